"""How fast trust is recomputed, beside scipy's bare matrix-vector product (the floor) and networkx, in one run.

    python -m bench.trust [--people 100000 --edges 2000000]

Prints a table and writes bench/out/trust.json. The floor is what the same number of rounds cost scipy's compiled CSR
product alone, without teleport, dangling people or convergence test. networkx runs on a tenth of the graph.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import networkx as nx
import numpy as np
import scipy.sparse

from market.trust import TrustGraph, pagerank
from market.trust.rank import FOLLOWED, MAX_ROUNDS, TOLERANCE, Weights, home_of

OUT: Final = Path(__file__).parent / "out" / "trust.json"
REPEATS: Final = 5
"""The best of so many runs: noise only ever adds."""


def skewed_graph(people: int, edges: int, *, seed: int = 1) -> TrustGraph:
    """Follows as they are: few are followed by many. Popularity falls with the square root of the rank."""
    dice = np.random.default_rng(seed)
    names = tuple(f"p{number:08}" for number in range(people))
    sources = dice.integers(0, people, edges, dtype=np.int32)
    targets = (people * dice.random(edges) ** 2).astype(np.int32)
    return TrustGraph.from_ids(names, sources, dice.permutation(people).astype(np.int32)[targets])


def seconds(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


def transition(graph: TrustGraph) -> scipy.sparse.csr_array:
    """The same graph as scipy sees it: row b, column a holds the share that a passes on to b."""
    degree = np.maximum(np.diff(graph.out_starts), 1)
    shares = FOLLOWED / degree[graph.in_sources]
    return scipy.sparse.csr_array((shares, graph.in_sources, graph.in_starts), shape=(graph.people, graph.people))


def rounds_needed(matrix: scipy.sparse.csr_array, graph: TrustGraph, home: Weights) -> int:
    dangling = np.flatnonzero(np.diff(graph.out_starts) == 0)
    weights = home.copy()
    for number in range(1, MAX_ROUNDS + 1):
        new = matrix @ weights + home * (1 - FOLLOWED + FOLLOWED * weights[dangling].sum())
        moved, weights = np.abs(new - weights).sum(), new
        if moved < TOLERANCE:
            return number
    return MAX_ROUNDS


def bare(matrix: scipy.sparse.csr_array, home: Weights, rounds: int) -> None:
    weights = home
    for _ in range(rounds):
        weights = matrix @ weights


def against_networkx(people: int, edges: int) -> tuple[float, float, float]:
    """Seconds of ours and of networkx, and the largest difference between their weights."""
    graph = skewed_graph(people, edges)
    anchors = dict.fromkeys(graph.names[:20], 1)
    home = home_of(graph, anchors)
    theirs = nx.DiGraph()
    theirs.add_nodes_from(graph.names)
    for person, name in enumerate(graph.names):
        theirs.add_edges_from((name, graph.names[other]) for other in graph.followed_by(person).tolist())
    # networkx stops below people x tol.
    found = nx.pagerank(theirs, personalization=anchors, tol=TOLERANCE / people, max_iter=MAX_ROUNDS)
    ours = pagerank(graph, home)
    gap = max(abs(found[name] - weight) for name, weight in zip(graph.names, ours.tolist(), strict=True))
    began = time.perf_counter()
    nx.pagerank(theirs, personalization=anchors, tol=TOLERANCE / people, max_iter=MAX_ROUNDS)
    return seconds(lambda: pagerank(graph, home)), time.perf_counter() - began, gap


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--people", type=int, default=100_000)
    options.add_argument("--edges", type=int, default=2_000_000)
    asked = options.parse_args()
    began = time.perf_counter()
    graph = skewed_graph(asked.people, asked.edges)
    load = time.perf_counter() - began
    home = home_of(graph, dict.fromkeys(graph.names[:20], 1))
    matrix = transition(graph)
    rounds = rounds_needed(matrix, graph, home)
    ours, floor = seconds(lambda: pagerank(graph, home)), seconds(lambda: bare(matrix, home, rounds))
    small, networkx, gap = against_networkx(asked.people // 10, asked.edges // 10)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures = [
        figure("recompute / scipy's bare product", ours / floor, "x", 1.5, "lower"),
        figure("recompute", ours, "s", 0.1, "lower"),
        figure("scipy's bare product, same rounds", floor, "s", None, "lower"),
        figure("one round", 1000 * ours / rounds, "ms", None, "lower"),
        figure("generate and load the graph", load, "s", None, "lower"),
        figure("networkx / ours, a tenth of the graph", networkx / small, "x", 1.0, "higher"),
        figure("largest difference from networkx", gap, "weight", 1e-9, "lower"),
        figure("peak memory of this run", peak, "MiB", 1024, "lower"),
    ]
    print(f"{graph.people} people, {graph.edges} edges, {rounds} rounds to {TOLERANCE:g}")
    for row in figures:
        goal = "" if row["goal"] is None else f"  goal {'<=' if row['better'] == 'lower' else '>='} {row['goal']:g}"
        print(f"  {row['name']:<40} {row['value']:>12.4g} {row['unit']:<7}{goal}")
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"figures": figures}, indent=1) + "\n")


def figure(name: str, value: float, unit: str, goal: float | None, better: str) -> dict[str, object]:
    return {"name": name, "value": value, "unit": unit, "goal": goal, "better": better}


if __name__ == "__main__":
    main()
