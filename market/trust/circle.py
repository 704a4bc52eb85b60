"""One consistent snapshot of the operator's circle: who counts how much, how they are known, and what they say.

Guarantees that weight comes from the anchors only and is measured in direct follows of this operator (an anchor weighs
at least 1 where all anchors weigh the same), so that it can be compared between operators who follow 3 and 3,000.
Building it costs one PageRank; asking it costs next to nothing, and nothing in it ever changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from market.model import Edges, TrustEvidence
from market.trust.anchors import Anchors
from market.trust.graph import ID, Ids, TrustGraph
from market.trust.paths import Reach, has_two_paths
from market.trust.rank import FOLLOWED, Weights, home_of, pagerank
from market.trust.votes import REPORTS, LiveVotes, is_person, resolve

OPERATOR: Final = "you"
"""Who follows the people of an imported follow list. No DID and no Nostr key is called so."""

MAX_HOPS: Final = 6
"""Steps from an anchor within which people have a say: beyond six, 0.85^6 of next to nothing arrives, and nobody can
follow how he is known. Relays are asked for lists of the first two steps only."""

_NOBODY: Final = -1
_DISTRUSTED: Final = -2


@dataclass(frozen=True, eq=False, slots=True)
class Circle:
    """The snapshot. `weights` are in direct follows of this operator; `shares` are the anchors as they resolved."""

    graph: TrustGraph
    weights: Weights
    reach: Reach
    votes: LiveVotes
    shares: Mapping[str, int]
    named: int
    """Anchors that the operator chose: `shares` may hold the operator's own identity as well."""
    labels: Mapping[str, str]
    distrusted: frozenset[str]
    ignored: Mapping[str, int]

    @classmethod
    def of(cls, evidence: TrustEvidence, anchors: Anchors, *, now: int) -> Circle:
        """From what the index knows. `now` (Unix seconds) only decides which votes are alive."""
        bound = evidence.bound
        distrusted = frozenset(resolve(person, bound) for person in anchors.distrusted)
        votes = LiveVotes.of(evidence.attestations, bound, now=now, distrusted=distrusted)
        shares: dict[str, int] = {}
        labels: dict[str, str] = {}
        for anchor in anchors.entries:
            person = resolve(anchor.person, bound)
            if person not in distrusted:
                shares[person] = max(anchor.weight, shares.get(person, 0))
                labels |= {person: anchor.label} if anchor.label else {}
        followed = [(OPERATOR, resolve(person, bound)) for person in anchors.follows]
        if followed:
            shares[OPERATOR] = 1
            labels[OPERATOR] = "your follow list"
        named = len(shares)
        if named and anchors.own:
            # The operator's own signed word counts for the operator, and is no anchor that somebody chose.
            shares.setdefault(resolve(anchors.own, bound), 1)
            labels.setdefault(resolve(anchors.own, bound), "you")
        graph, left_out = _graph(evidence, (*followed, *_vouched(votes)), shares, distrusted)
        starts = np.array(sorted(graph.ids[person] for person in shares), dtype=ID)
        graph, reach = _within_hops(graph, Reach.of(graph, starts))
        ignored = {**evidence.ignored, **votes.ignored, **graph.ignored, **left_out}
        return cls(graph, _weigh(graph, shares), reach, votes, shares, named, labels, distrusted, ignored)

    def weight(self, person: str) -> float:
        number = self.graph.ids.get(person)
        return 0.0 if number is None else float(self.weights[number])

    def is_anchor(self, person: str) -> bool:
        return person in self.shares

    @property
    def reached(self) -> int:
        """People to whom a path leads, the anchors included."""
        return int((self.reach.parents >= 0).sum())

    @property
    def typical_friend(self) -> float:
        """The median weight of those whom an anchor follows, in direct follows; 0 when they follow nobody."""
        friends = self.weights[self.reach.depths == 1]
        return float(np.median(friends)) if friends.size else 0.0

    def to_json(self) -> dict[str, int]:
        """How far the operator's circle reaches, for an explanation."""
        return {"anchors": self.named, "people": self.reached, "follows": self.graph.edges, "hops": MAX_HOPS}

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


def _graph(
    evidence: TrustEvidence, own: Iterable[tuple[str, str]], shares: Mapping[str, int], distrusted: frozenset[str]
) -> tuple[TrustGraph, Mapping[str, int]]:
    """Follows and vouching less mutes, between people as they resolve; and what was left out, counted by reason."""
    follows, vouching, mutes = Edges.of(evidence.follows), Edges.of(own), Edges.of(evidence.mutes)
    resolved = [[resolve(person, evidence.bound) for person in edges.people] for edges in (follows, vouching)]
    everybody = {person for people in resolved for person in people} | set(shares)
    names = tuple(sorted(person for person in everybody - distrusted if is_person(person) or person == OPERATOR))
    ids = {name: number for number, name in enumerate(names)}
    ignored: Counter[str] = Counter()

    def numbered(edges: Edges, people: Sequence[str]) -> tuple[Ids, Ids]:
        place = np.array([ids.get(p, _DISTRUSTED if p in distrusted else _NOBODY) for p in people], dtype=ID)
        sources = place[np.frombuffer(edges.sources, dtype=ID)] if len(edges) else np.array([], dtype=ID)
        targets = place[np.frombuffer(edges.targets, dtype=ID)] if len(edges) else np.array([], dtype=ID)
        worst = np.minimum(sources, targets)
        if worst.size and worst.min() < 0:
            ignored["follows of nobody"] += int((worst == _NOBODY).sum())
            ignored["follows of people you distrust"] += int((worst == _DISTRUSTED).sum())
            return sources[worst >= 0], targets[worst >= 0]
        return sources, targets

    found = [numbered(edges, people) for edges, people in zip((follows, vouching), resolved, strict=True)]
    without = numbered(mutes, [resolve(person, evidence.bound) for person in mutes.people])
    sources, targets = (np.concatenate([pair[side] for pair in found]) for side in (0, 1))
    graph = TrustGraph.from_ids(names, sources, targets, muted=without)
    return graph, {reason: number for reason, number in ignored.items() if number}


def _within_hops(graph: TrustGraph, reach: Reach) -> tuple[TrustGraph, Reach]:
    """The graph without what is said by people more than MAX_HOPS steps away, or by nobody the anchors lead to."""
    if int(reach.depths.max(initial=0)) < MAX_HOPS:
        return graph, reach
    sources = np.repeat(np.arange(graph.people, dtype=ID), np.diff(graph.out_starts))
    kept = reach.depths[sources] < MAX_HOPS
    nearer = replace(TrustGraph.from_ids(graph.names, sources[kept], graph.out_targets[kept]), ignored=graph.ignored)
    return nearer, Reach.of(nearer, reach.anchors)


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
