"""Crowds of fakes for the manipulation suite, as integers: honest graphs, attack edges, and what a crowd does.

Used by the tests, which prove bounds, and by the benchmark, which draws them.
"""

from __future__ import annotations

import csv
import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from market.model import Attestation, AttestKind, Edges, TrustEvidence
from market.trust import Anchor, Anchors
from tests.market.trust.people import NOW, PUBLISHER, nostr, vote

Pairs = list[tuple[int, int]]


@dataclass(frozen=True)
class Honest:
    """An honest graph: people by number, their names, their follows, and the operator's anchors among them."""

    names: tuple[str, ...]
    follows: tuple[tuple[int, int], ...]
    anchors: tuple[int, ...]

    @property
    def trusted(self) -> Anchors:
        return Anchors(tuple(sorted(Anchor(self.names[number]) for number in self.anchors)))

    def evidence(self, crowd: int, more: Iterable[tuple[int, int]], votes: Sequence[Attestation] = ()) -> TrustEvidence:
        """With `crowd` fakes, numbered after the honest people, and the publisher after them (`publisher`)."""
        people = (*self.names, *fakes(crowd), PUBLISHER)
        pairs = np.array([*self.follows, *more], dtype=np.int32).reshape(-1, 2)
        order = sorted(range(len(people)), key=people.__getitem__)
        place = np.empty(len(people), dtype=np.int32)
        place[order] = np.arange(len(people), dtype=np.int32)
        sources, targets = array("i"), array("i")
        sources.frombytes(place[pairs[:, 0]].tobytes())
        targets.frombytes(place[pairs[:, 1]].tobytes())
        return TrustEvidence(Edges(tuple(people[number] for number in order), sources, targets), tuple(votes), {})

    def first_fake(self) -> int:
        return len(self.names)

    def publisher(self, crowd: int) -> int:
        return len(self.names) + crowd


def generated(people: int = 300, friends: int = 30) -> Honest:
    """Everybody follows `friends` others at random, two anchors among them follow 40."""
    dice = np.random.default_rng(20)
    follows: Pairs = []
    for person in range(people):
        chosen = dice.choice(people, 40 if person < 2 else friends, replace=False)
        follows += [(person, int(friend)) for friend in chosen if friend != person]
    return Honest(tuple(nostr(f"honest {number}") for number in range(people)), tuple(follows), (0, 1))


def bitcoin_otc(path: Path) -> Honest:
    """Who rated whom above zero on Bitcoin-OTC; the anchors are the three who rated the most people."""
    with path.open(newline="") as file:
        rated = [(row["Source"], row["Target"]) for row in csv.DictReader(file) if int(row["Weight"]) > 0]
    people = sorted({person for pair in rated for person in pair}, key=int)
    number = {person: place for place, person in enumerate(people)}
    follows = tuple(sorted({(number[a], number[b]) for a, b in rated if a != b}))
    busiest = np.bincount([a for a, _ in follows], minlength=len(people)).argsort(kind="stable")[::-1]
    names = tuple(nostr(f"otc {person}") for person in people)
    return Honest(names, follows, tuple(int(one) for one in busiest[:3]))


def fakes(count: int) -> list[str]:
    """Names of fakes; hashing is enough to tell them apart, no keys are needed."""
    return [f"nostr:{hashlib.sha256(b'fake %d' % number).hexdigest()}" for number in range(count)]


def star(honest: Honest, crowd: int, victims: Sequence[int]) -> Pairs:
    """A hub whom the victims follow; hub and crowd follow each other in a star and a ring, and all the publisher."""
    first, publisher = honest.first_fake(), honest.publisher(crowd)
    members = range(first, first + crowd)
    pairs: Pairs = [(victim, first) for victim in victims]
    pairs += [(first, member) for member in members if member != first]
    pairs += [(member, first) for member in members if member != first]
    pairs += [(member, first + (member - first + 1) % crowd) for member in members if crowd > 1]
    return pairs + [(member, publisher) for member in members]


def clique(honest: Honest, crowd: int, victims: Sequence[int]) -> Pairs:
    """Everybody in the crowd follows everybody in it, and the publisher."""
    first, publisher = honest.first_fake(), honest.publisher(crowd)
    members = range(first, first + crowd)
    pairs: Pairs = [(victim, first) for victim in victims]
    pairs += [(a, b) for a in members for b in members if a != b]
    return pairs + [(member, publisher) for member in members]


def praise(crowd: int) -> list[Attestation]:
    return [vote(name) for name in fakes(crowd)]


def blame(crowd: int) -> list[Attestation]:
    return [vote(name, AttestKind.MALWARE, -100) for name in fakes(crowd)]


def flips(crowd: int, turns: int) -> list[Attestation]:
    """Everybody in the crowd says good and bad by turns, each word later than the one before."""
    return [
        vote(name, value=100 if turn % 2 == 0 else -100, made=NOW - turns + turn)
        for name in fakes(crowd)
        for turn in range(turns)
    ]
