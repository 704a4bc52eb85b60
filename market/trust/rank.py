"""Who counts: personalised PageRank from the operator's anchors.

Guarantees that all weight starts at the anchors and sums to 1, that what flows into a crowd is bounded by the edges
that lead into it (however large the crowd), and that one machine always gives the same bits for the same graph.
Page, Brin, Motwani, Winograd 1999, section 2.6; the convention for dangling people is networkx's default.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from market.trust.graph import TrustGraph

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Weights = NDArray[np.float64]

FOLLOWED: Final = 0.85
"""networkx's `alpha`: the share of a person's weight that goes on to those they follow; the rest returns home."""

TOLERANCE: Final = 1e-10
"""Stop when a round moves less weight than this in total: two machines then agree to 1e-9."""

MAX_ROUNDS: Final = 200
"""0.85^n reaches TOLERANCE at n = 142 on the most stubborn graph, so this bound is never what stops a sound one."""


def pagerank(graph: TrustGraph, home: Weights, start: Weights | None = None) -> Weights:
    """One weight per person, summing to 1. `home` is where weight starts and returns to: non-negative, summing to 1.

    People who follow nobody give all of their weight back to `home`. `start` is an earlier answer for nearly the same
    graph: fewer rounds, and an answer that is as exact without being the same bits. Raises ValueError when `home` or
    `start` is no distribution.
    """
    _check(home, graph)
    weights = home.copy()
    if start is not None:
        _check(start, graph)
        weights = start.copy()
    dangling = np.flatnonzero(np.diff(graph.out_starts) == 0)
    passed_on = _transition(graph)
    for _ in range(MAX_ROUNDS):
        new = passed_on @ weights
        new += home * (1.0 - FOLLOWED + FOLLOWED * float(weights[dangling].sum()))
        moved = float(np.abs(new - weights).sum())
        weights = new
        if moved < TOLERANCE:
            break
    return weights


def _check(distribution: Weights, graph: TrustGraph) -> None:
    sound = distribution.shape == (graph.people,) and np.isfinite(distribution).all() and (distribution >= 0).all()
    if not sound or abs(distribution.sum() - 1) > 1e-6:
        raise ValueError("`home` and `start` must each be a distribution over the graph's people")


def _transition(graph: TrustGraph) -> csr_array:
    """Row b, column a: the share of a's weight that goes on to b."""
    # Imported late: it takes longer than most commands that never rank anybody.
    from scipy.sparse import csr_array

    degree = np.maximum(np.diff(graph.out_starts), 1)
    shares = (FOLLOWED / degree)[graph.in_sources]
    return csr_array((shares, graph.in_sources, graph.in_starts), shape=(graph.people, graph.people))


def personalized_pagerank(
    edges: Iterable[tuple[str, str]], anchors: Mapping[str, int] | Iterable[str]
) -> dict[str, float]:
    """The weight of every person named by an edge or an anchor; all zero without anchors.

    `anchors` are people, each with its share of the teleport when given as a mapping (positive integers).
    """
    shares = dict(anchors) if isinstance(anchors, Mapping) else dict.fromkeys(anchors, 1)
    graph = TrustGraph.from_edges(edges, shares)
    if not shares:
        return dict.fromkeys(graph.names, 0.0)
    weights = pagerank(graph, home_of(graph, shares))
    return dict(zip(graph.names, weights.tolist(), strict=True))


def home_of(graph: TrustGraph, shares: Mapping[str, int]) -> Weights:
    """The teleport distribution: each anchor's share of the total. Raises ValueError unless every share is positive."""
    if not shares or any(share <= 0 for share in shares.values()):
        raise ValueError("anchors need positive shares")
    home = np.zeros(graph.people, dtype=np.float64)
    total = sum(shares.values())
    for person, share in shares.items():
        home[graph.ids[person]] = share / total
    return home
