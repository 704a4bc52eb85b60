"""Paths from the anchors, against networkx: shortest ones, and whether two separate ones exist."""

from __future__ import annotations

import itertools

import networkx as nx
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from market.trust.graph import ID, TrustGraph
from market.trust.paths import Reach, has_two_paths

PEOPLE = [f"p{number:02}" for number in range(9)]
EDGES = st.lists(st.tuples(st.sampled_from(PEOPLE), st.sampled_from(PEOPLE)), max_size=30)
ANCHORS = st.sets(st.sampled_from(PEOPLE), min_size=1, max_size=3)


def reach_of(edges: list[tuple[str, str]], anchors: set[str]) -> Reach:
    graph = TrustGraph.from_edges(edges, PEOPLE)
    return Reach.of(graph, np.array(sorted(graph.ids[anchor] for anchor in anchors), dtype=ID))


def with_operator(edges: list[tuple[str, str]], anchors: set[str]) -> nx.DiGraph:
    graph = nx.DiGraph()
    graph.add_nodes_from(PEOPLE)
    graph.add_edges_from((a, b) for a, b in edges if a != b)
    graph.add_edges_from(("operator", anchor) for anchor in anchors)
    return graph


@given(edges=EDGES, anchors=ANCHORS)
@settings(max_examples=150, deadline=None)
def test_paths_are_shortest_and_made_of_follows(edges: list[tuple[str, str]], anchors: set[str]) -> None:
    reach, graph = reach_of(edges, anchors), with_operator(edges, anchors)
    distance = nx.single_source_shortest_path_length(graph, "operator")
    for person in PEOPLE:
        path = [reach.graph.names[step] for step in reach.path(reach.graph.ids[person])]
        assert len(path) == distance.get(person, 0)
        if path:
            assert path[0] in anchors
            assert path[-1] == person
            assert all(edge in edges for edge in itertools.pairwise(path))


@given(edges=EDGES, anchors=ANCHORS)
@settings(max_examples=250, deadline=None)
def test_two_paths_are_found_exactly_when_maximum_flow_finds_them(
    edges: list[tuple[str, str]], anchors: set[str]
) -> None:
    reach = reach_of(edges, anchors)
    flow = nx.DiGraph()
    for person in PEOPLE:
        # Anchors are ends, not inner people: a path may start at the same anchor twice.
        flow.add_edge(("in", person), ("out", person), **({} if person in anchors else {"capacity": 1}))
    flow.add_edges_from((("operator", ""), ("in", anchor)) for anchor in anchors)
    flow.add_edges_from(((("out", a), ("in", b)) for a, b in set(edges) if a != b), capacity=1)
    for person in PEOPLE:
        if person in anchors:
            assert has_two_paths(reach, reach.graph.ids[person])
            continue
        value = nx.maximum_flow_value(flow, ("operator", ""), ("in", person))
        assert has_two_paths(reach, reach.graph.ids[person]) == (value >= 2)
