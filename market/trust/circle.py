"""One consistent snapshot of the operator's circle: who counts how much, how they are known, and what they say.

Guarantees that weight comes from the anchors only and is measured in direct follows of this operator (an anchor weighs
at least 1 where all anchors weigh the same), so that it can be compared between operators who follow 3 and 3,000.
Building it costs one PageRank; asking it costs next to nothing, and nothing in it ever changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from market.model import TrustEvidence
from market.trust.anchors import Anchors
from market.trust.graph import ID, TrustGraph
from market.trust.paths import Reach, has_two_paths
from market.trust.rank import FOLLOWED, Weights, home_of, pagerank
from market.trust.votes import REPORTS, LiveVotes, is_person, resolve


@dataclass(frozen=True, eq=False, slots=True)
class Circle:
    """The snapshot. `weights` are in direct follows of this operator; `shares` are the anchors as they resolved."""

    graph: TrustGraph
    weights: Weights
    reach: Reach
    votes: LiveVotes
    shares: Mapping[str, int]
    labels: Mapping[str, str]
    ignored: Mapping[str, int]

    @classmethod
    def of(cls, evidence: TrustEvidence, anchors: Anchors, *, now: int) -> Circle:
        """From what the index knows. `now` (Unix seconds) only decides which votes are alive."""
        votes = LiveVotes.of(evidence.attestations, evidence.bound, now=now)
        shares: dict[str, int] = {}
        for anchor in anchors.entries:
            person = resolve(anchor.person, evidence.bound)
            shares[person] = max(anchor.weight, shares.get(person, 0))
        labels = {resolve(anchor.person, evidence.bound): anchor.label for anchor in anchors.entries if anchor.label}
        follows = [(resolve(a, evidence.bound), resolve(b, evidence.bound)) for a, b in evidence.follows]
        sound = [edge for edge in follows if is_person(edge[0]) and is_person(edge[1])]
        graph = TrustGraph.from_edges((*sound, *_vouched(votes)), shares)
        ignored = {**votes.ignored, **graph.ignored}
        if len(sound) < len(follows):
            ignored["follows of nobody"] = len(follows) - len(sound)
        numbers = np.array(sorted(graph.ids[person] for person in shares), dtype=ID)
        return cls(graph, _weigh(graph, shares), Reach.of(graph, numbers), votes, shares, labels, ignored)

    def weight(self, person: str) -> float:
        number = self.graph.ids.get(person)
        return 0.0 if number is None else float(self.weights[number])

    def is_anchor(self, person: str) -> bool:
        return person in self.shares

    def path(self, person: str) -> tuple[str, ...]:
        """The shortest way from an anchor to the person, both included; empty when there is none."""
        number = self.graph.ids.get(person)
        return () if number is None else tuple(self.graph.names[step] for step in self.reach.path(number))

    def stands_on_two_paths(self, person: str) -> bool:
        number = self.graph.ids.get(person)
        return number is not None and has_two_paths(self.reach, number)

    def supporters(self, person: str) -> tuple[tuple[str, float], ...]:
        """Who passes weight on to a person, and how much, heaviest first."""
        number = self.graph.ids.get(person)
        if number is None:
            return ()
        followers = self.graph.followers_of(number)
        degrees = self.graph.out_starts[followers + 1] - self.graph.out_starts[followers]
        flows = FOLLOWED * self.weights[followers] / degrees
        named = ((self.graph.names[f], flow) for f, flow in zip(followers.tolist(), flows.tolist(), strict=True))
        return tuple(sorted(((name, flow) for name, flow in named if flow > 0), key=lambda pair: (-pair[1], pair[0])))


def _weigh(graph: TrustGraph, shares: Mapping[str, int]) -> Weights:
    if not shares:
        return np.zeros(graph.people, dtype=np.float64)
    # One direct follow: what the teleport alone gives to an average anchor. It does not depend on the graph, so
    # nobody can move the unit.
    unit = (1.0 - FOLLOWED) / len(shares)
    return pagerank(graph, home_of(graph, shares)) / unit


def _vouched(votes: LiveVotes) -> Iterator[tuple[str, str]]:
    """Who speaks well of a release lends standing to its publisher."""
    for app, cast in votes.by_app.items():
        for vote in cast:
            if vote.value > 0 and vote.kind not in REPORTS and is_person(app.publisher):
                yield vote.voter, app.publisher
