"""The order of checks between a relay's bytes and the index, as pure functions.

    size -> typed decode -> matches the filter -> id -> Schnorr -> (de-duplicate) -> canonical form -> proof
    -> role -> binding -> policy -> (one transaction)

Guarantees: a failed check is a typed reason, decides about this one event only, and is never remembered by its id, so a
liar who is first can not keep the genuine event out. Refuses to know SQLite, relays and the clock: `now` is a value.

What is made for every event is a msgspec Struct: it costs a quarter of a frozen dataclass, and holds no cycle that the
collector would have to look for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from apps.names import Digest
from market.discovery.documents import (
    Document,
    HeadDocument,
    ProviderDocument,
    Signed,
    number_of,
    parse_document,
    required_role,
    tags,
)
from market.discovery.events import DOCUMENT_KIND, Event, Filter, decode_event
from market.discovery.reasons import Reason, Refusal, SetAside
from market.identity.canonical import MAX_DOCUMENT_SIZE, NotCanonical, parse_canonical, written_again
from market.identity.didkey import BadKey, encode_public
from market.identity.forms import BadDocument, IdentityEntry
from market.identity.history import Folded, KeyHistory, Role, SignedEntry
from market.identity.proofs import BadProof, verify_proof

MAX_AHEAD: Final = 15 * 60
"""Seconds a document may be dated ahead before it is set aside: home nodes' clocks are that wrong, honestly."""

_CHECKED_TAGS: Final = frozenset({"d", "t", "i", "c", "expiration"})


class Mark(msgspec.Struct, frozen=True, order=True, gc=False):
    """A place in a publisher's order. A rotation of keys begins anew (R-DS7), which undoes a thief's fast-forward."""

    keys: int
    """`seq` of the identity entry the document was signed under."""
    number: int


class Claim(msgspec.Struct, frozen=True, gc=False):
    """A document whose form, address and signature are right. Whether its signer may say so is not known yet."""

    event: Event
    document: Document
    digest: Digest
    signer: bytes
    """Raw Ed25519 public key that made the proof."""


class Standing(msgspec.Struct, frozen=True, gc=False):
    """What is known of a publisher, as far as one claim needs it."""

    history: KeyHistory
    carried: frozenset[str] = frozenset()
    """Nostr keys that have carried an identity document of this publisher which names them."""
    revoked_keys: Mapping[str, Mapping[str, int]] = {}
    """Key -> app -> last valid number; an app that is not named has no valid number."""
    revoked_releases: frozenset[str] = frozenset()
    mark: Mark | None = None
    """Highest seen for the claim's type and name."""
    rivals: frozenset[str] = frozenset()
    """Digests of known documents of the same type and name, with the same number or version."""
    offers: Mapping[str, Mark] = {}
    """Highest release offered before, by channel; absent when that release was revoked."""
    follows: Mark | None = None
    """Where the release stands that a release names as the one before it; None when that is unknown here."""

    def bound(self) -> frozenset[str]:
        """Nostr keys that count: named by the newest entry, and they said so themselves."""
        latest = self.history.latest
        return self.carried & set(latest.entry.nostr) if latest else frozenset()


class Accept(msgspec.Struct, frozen=True, gc=False):
    """Every check passed. `mark` is where the document stands."""

    mark: Mark


@dataclass(frozen=True, slots=True)
class AcceptIdentity:
    """The identity document belongs to the history, which is now this.

    `spoken` says whether the event's key is one that the entry names. A history proves itself whoever carries it (a
    publisher that lost its first Nostr key carries entry 0 with its next one), but only a named key is bound by it.
    """

    history: KeyHistory
    outcome: Folded
    spoken: bool


@dataclass(frozen=True, slots=True)
class Proven:
    """Kept as proof against its publisher, and not taken as an offer."""

    refusal: Refusal
    against: tuple[str, ...]
    history: KeyHistory | None = None


Decision = Accept | AcceptIdentity | Proven | SetAside | Refusal


def check_frame(raw: bytes, wanted: Filter) -> Event | Refusal:
    """Size, typed decode, and whether the event is one that was asked for."""
    event = decode_event(raw)
    if isinstance(event, Refusal):
        return event
    if not wanted.matches(event):
        return Refusal(Reason.UNMATCHED, f"kind {event.kind}, id {event.id[:16]}")
    return event


def check_document(event: Event) -> Claim | Refusal:
    """Canonical form, members, proof, and that address and tags say what the signed document says."""
    if event.kind != DOCUMENT_KIND:
        return Refusal(Reason.UNMATCHED, f"kind {event.kind} carries no document")
    content = event.content.encode()
    if len(content) > MAX_DOCUMENT_SIZE:
        return Refusal(Reason.OVERSIZE, f"a document of {len(content)} bytes")
    try:
        body = parse_canonical(content)
        unsigned = written_again({name: value for name, value in body.items() if name != "proof"})
        document, digest = parse_document(body, unsigned)
        signer = verify_proof(body, unsigned)
    except NotCanonical as error:
        return Refusal(Reason.NOT_CANONICAL, str(error))
    except BadProof as error:
        return Refusal(Reason.BAD_PROOF, str(error))
    except (BadDocument, BadKey) as error:
        return Refusal(Reason.BAD_DOCUMENT, str(error))
    if not _says(event.tags, tags(document, digest)):
        return Refusal(Reason.WRONG_ADDRESS, f"d is {''.join(event.tag('d'))[:120]!r}")
    return Claim(event, document, digest, signer)


def _says(have: Sequence[Sequence[str]], wanted: list[list[str]]) -> bool:
    """Whether tags say what a document says, in any order, among others that are not looked at."""
    if [*map(list, have)] == wanted:
        return True
    return sorted(list(tag[:2]) for tag in have if tag and tag[0] in _CHECKED_TAGS) == sorted(wanted)


def judge(claim: Claim, standing: Standing, now: float) -> Decision:
    """Role, binding, policy. `now` in Unix seconds."""
    if isinstance(claim.document, IdentityEntry):
        return _judge_identity(claim, claim.document, standing, now)
    entry = entry_of(claim, standing.history)
    if entry is None:
        return SetAside(Reason.UNKNOWN_IDENTITY)
    return (
        _role(claim, entry, standing)
        or _binding(claim, standing)
        or _too_early(claim, now)
        or _too_late(claim.document, now)
        or _policy(claim, claim.document, Mark(entry.entry.seq, number_of(claim.document)), standing)
    )


def _judge_identity(claim: Claim, entry: IdentityEntry, standing: Standing, now: float) -> Decision:
    history, outcome = standing.history.fold(SignedEntry(entry, claim.digest, claim.signer))
    if outcome is Folded.EARLY:
        return SetAside(Reason.UNKNOWN_IDENTITY)
    if outcome is Folded.WRONG_SIGNER:
        return Refusal(Reason.NO_ROLE, "not signed by the key that the entry before committed to")
    if outcome is Folded.WRONG_CHAIN:
        return Refusal(Reason.BROKEN_HISTORY, f"entry {entry.seq} continues another history")
    if early := _too_early(claim, now):
        return early
    if outcome is Folded.FORK:
        known = history.entries[entry.seq].digest.hex
        return Proven(Refusal(Reason.FORK, f"entry {entry.seq}"), (known, claim.digest.hex), history)
    return AcceptIdentity(history, outcome, claim.event.pubkey in entry.nostr)


def _role(claim: Claim, entry: SignedEntry, standing: Standing) -> Refusal | None:
    role = required_role(claim.document)
    if not standing.history.holds(claim.signer, role, entry):
        return Refusal(Reason.NO_ROLE, f"a {claim.document.type} needs the {role} role")
    latest = standing.history.latest
    if role is Role.ONLINE and latest and not standing.history.holds(claim.signer, role, latest):
        # What is newest *now* is said by a key in force now; older releases stay valid, for heads name their digests.
        return Refusal(Reason.NO_ROLE, "the online key is no longer in force")
    return None


def _binding(claim: Claim, standing: Standing) -> Refusal | SetAside | None:
    latest = standing.history.latest
    pubkey = claim.event.pubkey
    if latest is None or pubkey not in latest.entry.nostr:
        return Refusal(Reason.UNBOUND, f"{claim.document.publisher} does not name {pubkey[:16]}")
    return None if pubkey in standing.carried else SetAside(Reason.AWAITS_BINDING)


def _too_early(claim: Claim, now: float) -> SetAside | None:
    dated = max(claim.event.created_at, claim.document.made)
    return SetAside(Reason.FUTURE, wake=dated - MAX_AHEAD) if dated > now + MAX_AHEAD else None


def _too_late(document: Document, now: float) -> Refusal | None:
    expired = isinstance(document, ProviderDocument) and document.expires <= now
    return Refusal(Reason.EXPIRED) if expired else None


def expired(event: Event, now: float) -> bool:
    """NIP-40: whether the event asks not to be used any more. What is no number is no expiration."""
    for tag in event.tags:
        if len(tag) > 1 and tag[0] == "expiration":
            text = tag[1]
            if text.isascii() and text.isdigit() and len(text) < 16 and int(text) <= now:
                return True
    return False


def _policy(claim: Claim, document: Signed, mark: Mark, standing: Standing) -> Decision:
    if claim.digest.hex in standing.revoked_releases:
        return Refusal(Reason.REVOKED, "the release was withdrawn")
    limits = standing.revoked_keys.get(encode_public(claim.signer))
    if limits is not None and mark.number > limits.get(document.name, -1):
        return Refusal(Reason.REVOKED, "its key was revoked")
    rivals = tuple(digest for digest in standing.rivals if digest != claim.digest.hex)
    if rivals and document.type not in {"attest", "provider"}:
        return Proven(Refusal(Reason.EQUIVOCATION, f"number {mark.number}"), (*rivals, claim.digest.hex))
    if standing.mark and mark < standing.mark and document.type in {"head", "manifest", "attest", "provider"}:
        return Refusal(Reason.ROLLBACK, f"{mark.number} after {standing.mark.number}")
    if standing.follows and standing.follows >= mark:
        return Refusal(Reason.BROKEN_CHAIN, f"seq {mark.number} follows seq {standing.follows.number}")
    if isinstance(document, HeadDocument) and (older := _offers_older(document, standing.offers)):
        return older
    return Accept(mark)


def _offers_older(head: HeadDocument, offers: Mapping[str, Mark]) -> Refusal | None:
    # An online key must not be able to lead nodes back to an old release.
    for channel, ref in head.releases.items():
        before = offers.get(channel)
        if before and Mark(ref.keys, ref.seq) < before:
            return Refusal(Reason.ROLLBACK, f"offers seq {ref.seq} on {channel} after {before.number}")
    return None


def entry_of(claim: Claim, history: KeyHistory) -> SignedEntry | None:
    """The entry of the history that the document says it was signed under."""
    if isinstance(claim.document, IdentityEntry):
        return None
    return history.named(claim.document.identity)
