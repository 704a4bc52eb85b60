"""Who counts: personalised PageRank from the operator's anchors.

Guarantees that all weight starts at the anchors and sums to 1, that what flows into a crowd is bounded by the edges
that lead into it (however large the crowd), and that one machine always gives the same bits for the same graph.
Page, Brin, Motwani, Winograd 1999, section 2.6; the convention for dangling people is networkx's default.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from market.trust.graph import TrustGraph

Weights = NDArray[np.float64]

FOLLOWED: Final = 0.85
"""networkx's `alpha`: the share of a person's weight that goes on to those they follow; the rest returns home."""

TOLERANCE: Final = 1e-10
"""Stop when a round moves less weight than this in total: two machines then agree to 1e-9."""

MAX_ROUNDS: Final = 200
"""0.85^n reaches TOLERANCE at n = 142 on the most stubborn graph, so this bound is never what stops a sound one."""


def pagerank(graph: TrustGraph, home: Weights) -> Weights:
    """One weight per person, summing to 1. `home` is where weight starts and returns to: non-negative, summing to 1.

    People who follow nobody give all of their weight back to `home`. Raises ValueError when `home` is no distribution.
    """
    if home.shape != (graph.people,) or not np.isfinite(home).all() or (home < 0).any() or abs(home.sum() - 1) > 1e-9:
        raise ValueError("`home` must be a distribution over the graph's people")
    degree = np.diff(graph.out_starts)
    dangling = np.flatnonzero(degree == 0)
    followed = np.flatnonzero(np.diff(graph.in_starts))
    segments = graph.in_starts[followed]
    share = FOLLOWED / np.maximum(degree, 1)
    # numpy indexes with machine words only, and would convert 32-bit ids anew in every round.
    sources = graph.in_sources.astype(np.intp)
    flows = np.empty(graph.edges, dtype=np.float64)
    weights, sent = home.copy(), np.empty_like(home)
    for _ in range(MAX_ROUNDS):
        np.multiply(weights, share, out=sent)
        # The sources come from the graph itself, so `clip` clips nothing; it spares take() a second buffer.
        np.take(sent, sources, out=flows, mode="clip")
        new = home * (1.0 - FOLLOWED + FOLLOWED * float(weights[dangling].sum()))
        if followed.size:
            new[followed] += np.add.reduceat(flows, segments)
        moved = float(np.abs(new - weights).sum())
        weights = new
        if moved < TOLERANCE:
            break
    return weights


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
