"""How the operator comes to know somebody: shortest paths from the anchors, and whether there are two separate ones.

Guarantees shortest paths that do not depend on the order of the input (ties go to the first name), and an answer about
two separate paths that is exact (Menger's theorem for k = 2), not a sample. Refuses to know weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from market.trust.graph import ID, Ids, TrustGraph


@dataclass(frozen=True, eq=False, slots=True)
class Reach:
    """Everybody who can be reached from the anchors along follows. `parents[i]` is -1 for who can not be."""

    graph: TrustGraph
    anchors: Ids
    parents: Ids
    depths: Ids
    """Steps from the nearest anchor; -1 for who can not be reached."""

    @classmethod
    def of(cls, graph: TrustGraph, anchors: Ids, *, without: int | None = None, until: int | None = None) -> Reach:
        """Breadth first. `without` walks around one person; `until` stops once that person is reached."""
        parents = np.full(graph.people, -1, dtype=ID)
        frontier = np.unique(anchors[anchors != without] if without is not None else anchors)
        parents[frontier] = frontier
        depths = np.full(graph.people, -1, dtype=ID)
        depths[frontier] = depth = 0
        while frontier.size and (until is None or parents[until] < 0):
            depth += 1
            targets, sources = _edges_from(graph, frontier)
            fresh = parents[targets] < 0
            if without is not None:
                fresh &= targets != without
            # The frontier ascends, so the first edge to a target is the one from the first name.
            found, first = np.unique(targets[fresh], return_index=True)
            parents[found] = sources[fresh][first]
            depths[found] = depth
            frontier = found
        return cls(graph, anchors, parents, depths)

    def reaches(self, person: int) -> bool:
        return bool(self.parents[person] >= 0)

    def path(self, person: int) -> tuple[int, ...]:
        """From an anchor to the person, both included; empty when there is none."""
        if not self.reaches(person):
            return ()
        steps = [person]
        while (parent := int(self.parents[steps[-1]])) != steps[-1]:
            steps.append(parent)
        return tuple(reversed(steps))


def has_two_paths(reach: Reach, person: int) -> bool:
    """Whether two paths lead from the anchors to `person` that share nobody but their ends (or it is an anchor).

    Without this a crowd behind one attack edge could speak with many voices: all of its paths share that edge's end.
    """
    graph, anchors = reach.graph, reach.anchors
    if person in anchors:
        return True
    followers = graph.followers_of(person)
    direct = np.isin(followers, anchors)
    if direct.sum() >= 2:
        return True
    if direct.any():
        around = Reach.of(graph, anchors, without=person)
        return bool((around.parents[followers[~direct]] >= 0).any())
    path = reach.path(person)
    between = path[1:-1]
    return bool(path) and all(Reach.of(graph, anchors, without=v, until=person).reaches(person) for v in between)


def _edges_from(graph: TrustGraph, people: Ids) -> tuple[Ids, Ids]:
    """Targets and sources of all edges that leave `people`, in their order."""
    begins = graph.out_starts[people]
    counts = graph.out_starts[people + 1] - begins
    ends = np.cumsum(counts)
    offsets = np.arange(int(ends[-1]) if ends.size else 0, dtype=np.int64) + np.repeat(begins - (ends - counts), counts)
    return graph.out_targets[offsets], np.repeat(people, counts)
