"""The people and publishers whom the operator names: where all trust starts.

Guarantees that the file is 0600, replaced whole or not at all, and that a damaged one is a fault and never
"no anchors". Refuses to know the graph, and never repeats a secret key that was pasted by mistake.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final

from coincurve import PublicKeyXOnly

from market.errors import Problem, UsageProblem
from market.identity import didkey, nip19
from market.trust.files import read_bounded, replace_whole

MAX_ANCHORS: Final = 1_000
"""More than anybody vouches for by hand, and a follow list is imported as follows rather than as anchors."""

MAX_WEIGHT: Final = 100
"""Anchors differ by two orders of magnitude at most; integers leave no room for NaN."""

MAX_LABEL: Final = 100
"""Characters: one line of a terminal."""

MAX_FOLLOW_LIST: Final = 10_000
"""People of an imported follow list; real lists end near 5,000, and the graph keeps no more per person."""

MAX_DISTRUSTED: Final = 10_000

MAX_FILE: Final = MAX_ANCHORS * 1024 + (MAX_FOLLOW_LIST + MAX_DISTRUSTED) * 128
"""Bytes read of an anchor file: an anchor takes under 1 KiB, a person under 128."""

_HEX64 = re.compile(r"[0-9a-f]{64}")


class NotAPerson(UsageProblem):
    """The text names nobody: neither an npub, nor a Nostr key in hex, nor an Ed25519 did:key."""

    kind: ClassVar[str] = "not-a-person"


class UnknownAnchor(UsageProblem):
    """There is no such anchor to remove."""

    kind: ClassVar[str] = "unknown-anchor"


class DamagedAnchors(Problem):
    """The anchor file can not be read as one. Nothing is trusted from it."""

    kind: ClassVar[str] = "damaged-anchors"


@dataclass(frozen=True, slots=True, order=True)
class Anchor:
    """One person, as `market.model.Attestation.voter` names people, with a label and an integer share 1..100."""

    person: str
    label: str = ""
    weight: int = 1

    def __post_init__(self) -> None:
        if type(self.weight) is not int or not 1 <= self.weight <= MAX_WEIGHT:
            raise UsageProblem(f"an anchor's weight is 1 to {MAX_WEIGHT}, not {self.weight}", where=self.person)
        if len(self.label) > MAX_LABEL or not (self.label.isprintable() or not self.label):
            raise UsageProblem(f"a label is at most {MAX_LABEL} printable characters", where=self.person)

    def to_json(self) -> dict[str, str | int]:
        return {"who": self.person, "label": self.label, "weight": self.weight}


@dataclass(frozen=True, slots=True)
class Anchors:
    """The anchors as a value, sorted by person, each person once (the last one given counts)."""

    entries: tuple[Anchor, ...] = ()
    follows: tuple[str, ...] = ()
    """People of an imported follow list: known to the operator, each with a share of one anchor's weight."""
    distrusted: tuple[str, ...] = ()
    """People to whom the operator does not listen, whoever follows them."""
    own: str = ""
    """The operator's own identity in this home; it counts once there is another anchor."""

    @classmethod
    def of(cls, people: Iterable[str | Anchor]) -> Anchors:
        """From texts or anchors. Raises NotAPerson, and UsageProblem above MAX_ANCHORS."""
        anchors = (entry if isinstance(entry, Anchor) else Anchor(person_id(entry)) for entry in people)
        by_person = {anchor.person: anchor for anchor in anchors}
        if len(by_person) > MAX_ANCHORS:
            raise UsageProblem(f"more than {MAX_ANCHORS} anchors", remedy="import a follow list instead")
        return cls(tuple(sorted(by_person.values())))

    def __len__(self) -> int:
        return len(self.entries)


def person_id(text: str) -> str:
    """`nostr:<hex>` or `did:key:z...` from an npub (NIP-19), 64 hex digits or a did:key. Raises NotAPerson."""
    word = text.strip()
    if word.lower().startswith("nsec1"):
        raise NotAPerson("that is a secret key", remedy="name people by their npub; treat that key as disclosed")
    if word.startswith("did:key:"):
        return _ed25519_did(word)
    raw = word.removeprefix("nostr:")
    if raw.lower().startswith("npub1"):
        return f"nostr:{_x_only(_npub_bytes(raw), raw)}"
    if _HEX64.fullmatch(raw.lower()):
        return f"nostr:{_x_only(bytes.fromhex(raw), raw)}"
    raise NotAPerson(f"not a person: {word[:80]!r}", remedy="give an npub1..., 64 hex digits or a did:key:z6Mk...")


def _npub_bytes(npub: str) -> bytes:
    try:
        return nip19.decode("npub", npub)
    except ValueError as error:
        raise NotAPerson(f"not an npub: {npub[:80]!r}", remedy=f"copy it again: {error}") from error


def _x_only(raw: bytes, shown: str) -> str:
    """BIP-340: half of all 32-byte strings are no key; such an anchor could never speak."""
    try:
        PublicKeyXOnly(raw)
    except ValueError as error:
        raise NotAPerson(f"not a Nostr key: {shown[:80]!r}", remedy="copy it again") from error
    return raw.hex()


def _ed25519_did(did: str) -> str:
    try:
        didkey.key_text(did)
    except didkey.BadKey as error:
        raise NotAPerson(f"not an Ed25519 did:key: {did[:80]!r}", remedy="it starts with did:key:z6Mk") from error
    return did


class AnchorBook:
    """The anchors in a file. Every change rewrites it: temporary file, fsync, rename, fsync of the folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> Anchors:
        """The anchors; none when there is no file yet. Raises DamagedAnchors."""
        try:
            raw = read_bounded(self.path, MAX_FILE)
            return Anchors() if raw is None else _anchors(json.loads(raw))
        except UsageProblem as error:
            raise self._damaged(str(error)) from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._damaged("it is not the JSON this node writes") from error

    def list(self) -> tuple[Anchor, ...]:
        return self.load().entries

    def add(self, text: str, *, label: str = "", weight: int = 1) -> Anchor:
        """Adds or replaces one anchor. Raises NotAPerson, UsageProblem, DamagedAnchors."""
        anchor, known = Anchor(person_id(text), label, weight), self.load()
        distrusted = tuple(person for person in known.distrusted if person != anchor.person)
        self._save(replace(known, entries=Anchors.of((*known.entries, anchor)).entries, distrusted=distrusted))
        return anchor

    def remove(self, text: str) -> Anchor:
        """Raises UnknownAnchor, NotAPerson, DamagedAnchors."""
        person, known = person_id(text), self.load()
        gone = next((entry for entry in known.entries if entry.person == person), None)
        if gone is None:
            raise UnknownAnchor(f"no such anchor: {person}", remedy="`archy trust anchor list` shows them")
        self._save(replace(known, entries=tuple(entry for entry in known.entries if entry is not gone)))
        return gone

    def distrust(self, text: str) -> str:
        """Listen to this person no longer, whoever follows them; an anchor ceases to be one. Returns the person."""
        person, known = person_id(text), self.load()
        distrusted = tuple(sorted({*known.distrusted, person}))
        if len(distrusted) > MAX_DISTRUSTED:
            raise UsageProblem(f"more than {MAX_DISTRUSTED} people are distrusted")
        self._save(replace(known, entries=tuple(e for e in known.entries if e.person != person), distrusted=distrusted))
        return person

    def listen_again(self, text: str) -> str:
        """Take distrust back. Raises UnknownAnchor when there was none."""
        person, known = person_id(text), self.load()
        if person not in known.distrusted:
            raise UnknownAnchor(f"not distrusted: {person}", remedy="`archy trust distrust` lists who is")
        self._save(replace(known, distrusted=tuple(one for one in known.distrusted if one != person)))
        return person

    def follow(self, people: Iterable[str]) -> int:
        """Replace the imported follow list; how many it has now. Raises NotAPerson, UsageProblem."""
        follows = tuple(sorted({person_id(text) for text in people}))
        if len(follows) > MAX_FOLLOW_LIST:
            raise UsageProblem(f"a follow list of more than {MAX_FOLLOW_LIST} people", remedy="import a shorter one")
        self._save(replace(self.load(), follows=follows))
        return len(follows)

    def _save(self, anchors: Anchors) -> None:
        body = {"schema": 1, "anchors": [anchor.to_json() for anchor in anchors.entries]}
        lists = {"follows": [*anchors.follows], "distrusted": [*anchors.distrusted]}
        replace_whole(self.path, body | {name: people for name, people in lists.items() if people})

    def _damaged(self, why: str) -> DamagedAnchors:
        return DamagedAnchors(
            f"the anchor file can not be used: {why}", where=str(self.path), remedy="move it aside and add them again"
        )


def _anchors(body: Any) -> Anchors:
    if not isinstance(body, dict):
        raise TypeError("not an object")
    lists = []
    for name, limit in (("follows", MAX_FOLLOW_LIST), ("distrusted", MAX_DISTRUSTED)):
        people = body.get(name, [])
        if not isinstance(people, list) or len(people) > limit:
            raise ValueError(f"{name} is no list of at most {limit}")
        lists.append(tuple(sorted({person_id(person) for person in people})))
    return Anchors(Anchors.of(_entries(body)).entries, follows=lists[0], distrusted=lists[1])


def _entries(body: Any) -> Iterable[Anchor]:
    if body["schema"] != 1:
        raise ValueError("an unknown schema")
    for entry in body["anchors"]:
        yield Anchor(person_id(entry["who"]), entry["label"], entry["weight"])
