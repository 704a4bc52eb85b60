"""What no score can outweigh. Guarantees that every gate fails closed (an unknown kind of proof refuses), names itself,
shows its evidence and says what would lift it. Nothing in here is answered by `--yes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from market.model import Digest, Flag, FlagKind, Listing
from market.trust.circle import Circle
from market.trust.signer import Continuity, Signer

_LAST_DATE: Final = 253_402_300_799
"""9999-12-31: what datetime can say; a head that expires later says the same."""


class GateKind(StrEnum):
    """The gates, in the order in which they are shown."""

    REVOKED = "revoked"
    EQUIVOCATION = "equivocation"
    FORK = "fork"
    UNBOUND = "unbound"
    DIGEST = "digest"
    RELEASE = "release"
    PERMISSIONS = "permissions"
    SIGNER = "signer"
    HEAD = "head"
    DISTRUSTED = "distrusted"
    ANCHORS = "anchors"
    OTHER = "other"


class GateState(StrEnum):
    """OK holds; ASK needs the operator's own word; REFUSE is final until its cause is gone."""

    OK = "ok"
    ASK = "ask"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Gate:
    """One check: its state, a sentence, the documents that show it, and what would lift it."""

    kind: GateKind
    state: GateState
    text: str
    evidence: tuple[str, ...] = ()
    lifted_by: str = ""

    def to_json(self) -> dict[str, object]:
        return {
            "kind": self.kind.value, "state": self.state.value, "text": self.text,
            "evidence": list(self.evidence), "lifted_by": self.lifted_by,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Permissions:
    """What a release asks for beyond what was granted, and what the operator never grants. Words of `apps`."""

    wanted: tuple[str, ...] = ()
    denied: frozenset[str] = frozenset()
    whole: tuple[str, ...] = ()
    """All that the release may do, granted or not; the policy asks for more where this reaches the machine."""


_PROOFS: Final[Mapping[FlagKind, tuple[GateKind, str, str]]] = {
    FlagKind.REVOKED: (GateKind.REVOKED, "Nothing is revoked.", "nothing: a revocation is for ever"),
    FlagKind.EQUIVOCATION: (
        GateKind.EQUIVOCATION,
        "One document was signed for this version.",
        "your own decision which document counts: `archy publisher show` has them",
    ),
    FlagKind.FORK: (
        GateKind.FORK,
        "The publisher has one key history.",
        "your own decision which history is genuine: `archy publisher show` has them",
    ),
    FlagKind.UNBOUND: (
        GateKind.UNBOUND,
        "The publisher and the Nostr key name each other.",
        "the publisher's identity, published under the Nostr key it names",
    ),
}
_OTHERS: Final = {FlagKind.WITHHELD: "a relay that shows what was withdrawn: `archy relays add` adds one"}
_NEWER_NODE: Final = "a newer node that knows this check"
_HEAD_FLAGS: Final = frozenset({FlagKind.STALE, FlagKind.NO_HEAD})


def check_all(
    circle: Circle,
    listing: Listing,
    *,
    now: int,
    permissions: Permissions,
    signer: Signer,
    broken: Mapping[Digest, str],
) -> tuple[Gate, ...]:
    """Every gate of one app, held or not. `broken` are releases whose bytes did not match, with what was found."""
    return (
        *(_proof(kind, listing.flags) for kind in _PROOFS),
        *_unknown_proofs(listing.flags),
        _digest(listing, broken),
        _release(listing),
        _permissions(permissions),
        _signer(signer),
        _head(listing, now),
        _distrusted(circle, listing.app.publisher),
        _anchors(circle),
    )


def _proof(kind: FlagKind, flags: Iterable[Flag]) -> Gate:
    gate, holds, lifted_by = _PROOFS[kind]
    found = [flag for flag in flags if flag.kind is kind]
    if not found:
        return Gate(gate, GateState.OK, holds)
    evidence = tuple(digest for flag in found for digest in flag.evidence)
    return Gate(gate, GateState.REFUSE, " ".join(flag.text for flag in found), evidence, lifted_by)


def _unknown_proofs(flags: Iterable[Flag]) -> tuple[Gate, ...]:
    """A kind that the table above does not know speaks against the app all the same."""
    return tuple(
        Gate(GateKind.OTHER, GateState.REFUSE, flag.text, flag.evidence, _OTHERS.get(flag.kind, _NEWER_NODE))
        for flag in flags
        if flag.kind not in _PROOFS and flag.kind not in _HEAD_FLAGS
    )


def _digest(listing: Listing, broken: Mapping[Digest, str]) -> Gate:
    found = broken.get(listing.release.digest) if listing.release else None
    if listing.release and found is not None:
        evidence = (listing.release.digest.hex,)
        return Gate(GateKind.DIGEST, GateState.REFUSE, found, evidence, "a new release whose parts match")
    return Gate(GateKind.DIGEST, GateState.OK, "No part of this release was found to differ from what was signed.")


def _release(listing: Listing) -> Gate:
    if listing.release is None:
        text = "There is no valid release on this channel."
        return Gate(GateKind.RELEASE, GateState.REFUSE, text, lifted_by="a release that the publisher signs")
    return Gate(GateKind.RELEASE, GateState.OK, "The release is signed by a key that may sign releases.")


def _permissions(permissions: Permissions) -> Gate:
    refused = [word for word in dict.fromkeys((*permissions.wanted, *permissions.whole)) if word in permissions.denied]
    if refused:
        text = f"It wants what you never allow: {', '.join(refused)}."
        return Gate(GateKind.PERMISSIONS, GateState.REFUSE, text, lifted_by="your own change of mind")
    if permissions.wanted:
        text = f"It wants more than you agreed to: {', '.join(permissions.wanted)}."
        return Gate(GateKind.PERMISSIONS, GateState.ASK, text, lifted_by="agreeing to each of them by name")
    return Gate(GateKind.PERMISSIONS, GateState.OK, "It wants nothing that you have not agreed to.")


def _signer(signer: Signer) -> Gate:
    if signer.continuity is Continuity.CHANGED:
        text = signer.text or "Another signer than the one whose app runs here under this name."
        return Gate(GateKind.SIGNER, GateState.ASK, text, signer.evidence, "your own word for this signer")
    text = signer.text or "No other signer runs here under this name."
    return Gate(GateKind.SIGNER, GateState.OK, text, signer.evidence)


def _distrusted(circle: Circle, publisher: str) -> Gate:
    if publisher in circle.distrusted:
        text = "You said that you distrust this publisher."
        return Gate(GateKind.DISTRUSTED, GateState.REFUSE, text, (publisher,), "taking your own word back")
    return Gate(GateKind.DISTRUSTED, GateState.OK, "You have not said that you distrust this publisher.")


def _head(listing: Listing, now: int) -> Gate:
    """The clock is asked here as well: a listing may have been made before its head expired (R-DS4)."""
    flags = [flag for flag in listing.flags if flag.kind in _HEAD_FLAGS]
    evidence = tuple(digest for flag in flags for digest in flag.evidence)
    lifted_by = "a newer head from the publisher, or your own word"
    if listing.head_expires is None or listing.head_epoch is None:
        text = " ".join(f.text for f in flags) or "The publisher's word on what is newest was not found."
        return Gate(GateKind.HEAD, GateState.ASK, text, evidence, lifted_by)
    if listing.head_expires <= now:
        days = (now - listing.head_expires) // 86_400
        silent = "less than a day" if days < 1 else "1 day" if days == 1 else f"{days} days"
        text = f"The publisher's word on what is newest expired on {_date(listing.head_expires)}: silent for {silent}."
        return Gate(GateKind.HEAD, GateState.ASK, text, evidence, lifted_by)
    if flags:
        return Gate(GateKind.HEAD, GateState.ASK, " ".join(flag.text for flag in flags), evidence, lifted_by)
    text = f"The publisher's word on what is newest holds until {_date(listing.head_expires)}."
    return Gate(GateKind.HEAD, GateState.OK, text)


def _anchors(circle: Circle) -> Gate:
    if not circle.named:
        text = "You have no anchors, so there is nobody whose word could count."
        return Gate(GateKind.ANCHORS, GateState.ASK, text, lifted_by="pinning a publisher or a person you trust")
    return Gate(GateKind.ANCHORS, GateState.OK, f"Trust starts at {circle.named} of your own anchors.")


def _date(moment: int) -> str:
    return datetime.fromtimestamp(min(max(moment, 0), _LAST_DATE), UTC).date().isoformat()
