"""Who counts: personalised PageRank against networkx, on random graphs and on a real who-trusts-whom graph."""

from __future__ import annotations

import csv
import os
import random
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.trust import TrustGraph, pagerank, personalized_pagerank
from market.trust.graph import MAX_FOLLOWS
from market.trust.rank import home_of

VECTORS = Path(os.environ.get("ARCHY_VECTORS", Path(__file__).parents[4] / "shared" / "vectors"))

PEOPLE = [f"p{number:02}" for number in range(12)]
EDGES = st.lists(st.tuples(st.sampled_from(PEOPLE), st.sampled_from(PEOPLE)), max_size=60)
ANCHORS = st.dictionaries(st.sampled_from(PEOPLE), st.integers(1, 100), min_size=1, max_size=4)


def oracle(edges: list[tuple[str, str]], anchors: dict[str, int]) -> dict[str, float]:
    graph = nx.DiGraph()
    graph.add_nodes_from(anchors)
    graph.add_nodes_from(person for edge in edges for person in edge)
    graph.add_edges_from((a, b) for a, b in edges if a != b)
    result: dict[str, float] = nx.pagerank(graph, alpha=0.85, personalization=anchors, tol=1e-14, max_iter=2000)
    return result


@given(edges=EDGES, anchors=ANCHORS)
@settings(max_examples=150, deadline=None)
def test_weights_equal_networkx_on_random_graphs(edges: list[tuple[str, str]], anchors: dict[str, int]) -> None:
    ours, theirs = personalized_pagerank(edges, anchors), oracle(edges, anchors)
    assert ours.keys() == theirs.keys()
    assert all(abs(ours[person] - theirs[person]) < 1e-9 for person in ours)


@given(edges=EDGES, anchors=ANCHORS, seed=st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_the_order_and_repetition_of_edges_change_no_bit(
    edges: list[tuple[str, str]], anchors: dict[str, int], seed: random.Random
) -> None:  # R-TR1
    shuffled = edges + edges[: len(edges) // 2]
    seed.shuffle(shuffled)
    assert personalized_pagerank(edges, anchors) == personalized_pagerank(shuffled, anchors)


def trusting_graph() -> list[tuple[str, str]]:
    """Bitcoin-OTC's positive ratings where they are at hand, else a generated graph of the same size and skew."""
    path = VECTORS / "trust" / "bitcoin-otc.csv"
    if path.exists():
        with path.open(newline="") as file:
            return [(row["Source"], row["Target"]) for row in csv.DictReader(file) if int(row["Weight"]) > 0]
    graph = nx.scale_free_graph(5_900, seed=7)
    return [(str(a), str(b)) for a, b in graph.edges()]


def test_weights_equal_networkx_on_a_real_graph() -> None:
    edges = trusting_graph()
    anchors = dict.fromkeys(sorted({a for a, _ in edges})[:5], 1)
    ours, theirs = personalized_pagerank(edges, anchors), oracle(edges, anchors)
    assert len(ours) > 5_000
    assert max(abs(ours[person] - theirs[person]) for person in theirs) < 1e-9


def test_without_anchors_nobody_counts() -> None:
    assert personalized_pagerank([("a", "b")], []) == {"a": 0.0, "b": 0.0}


def test_an_anchor_that_nobody_has_heard_of_keeps_its_weight_and_breaks_nothing() -> None:
    weights = personalized_pagerank([("a", "b")], ["a", "ghost"])
    assert weights["ghost"] > 0
    assert sum(weights.values()) == pytest.approx(1)


def test_a_follow_list_of_100_000_entries_is_cut_and_counted() -> None:
    edges = [("a", f"b{number:06}") for number in range(100_000)]
    graph = TrustGraph.from_edges(edges)
    assert graph.edges == MAX_FOLLOWS
    assert graph.ignored == {"beyond the longest list": 100_000 - MAX_FOLLOWS}
    assert pagerank(graph, home_of(graph, {"a": 1})).sum() == pytest.approx(1)


def test_following_oneself_is_ignored_and_counted() -> None:
    graph = TrustGraph.from_edges([("a", "a"), ("a", "b")])
    assert graph.edges == 1
    assert graph.ignored == {"follows of oneself": 1}


@pytest.mark.parametrize("home", [[0.5, 0.6], [1.5, -0.5], [float("nan"), 1.0], [1.0]])
def test_a_teleport_that_is_no_distribution_is_refused(home: list[float]) -> None:
    graph = TrustGraph.from_edges([("a", "b")])
    with pytest.raises(ValueError, match="distribution"):
        pagerank(graph, np.array(home))


def test_edges_that_name_nobody_are_refused() -> None:
    with pytest.raises(ValueError, match="names nobody"):
        TrustGraph.from_ids(("a", "b"), np.array([0], dtype=np.int32), np.array([2], dtype=np.int32))
