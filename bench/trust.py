"""What trust costs at 1e5 people / 2e6 edges and at 1e6 / 2e7, beside scipy's bare product and networkx, in one run.

    python -m bench.trust [--sizes 100000:2000000,1000000:20000000]

Prints a table and writes bench/out/trust.json. Every measurement is a process of its own, so that peak memory is of
that work alone. `load` reads the lists from SQLite as the index keeps them and builds the graph. `floor` is what the
same number of rounds cost scipy's compiled CSR product alone: no teleport, no dangling people, no test for convergence.
networkx runs on a tenth of the smallest graph.
"""

from __future__ import annotations

import argparse
import json
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from market.discovery import circle_rows
from market.discovery.schema import migrate
from market.trust import TrustGraph, pagerank
from market.trust.rank import FOLLOWED, MAX_ROUNDS, TOLERANCE, Weights, home_of

OUT: Final = Path(__file__).parent / "out" / "trust.json"
SIZES: Final = "100000:2000000,1000000:20000000"
REPEATS: Final = 5
"""The best of so many runs: noise only ever adds."""

ANCHORS: Final = 20


def skewed(people: int, edges: int, *, seed: int = 1) -> tuple[Any, Any]:
    """Follows as they are: few are followed by many. Popularity falls with the square root of the rank."""
    dice = np.random.default_rng(seed)
    sources = dice.integers(0, people, edges, dtype=np.int32)
    targets = (people * dice.random(edges, dtype=np.float32) ** 2).astype(np.int32)
    targets = np.minimum(targets, people - 1)
    return sources, dice.permutation(people).astype(np.int32)[targets]


def skewed_graph(people: int, edges: int) -> TrustGraph:
    sources, targets = skewed(people, edges)
    return TrustGraph.from_ids(tuple(f"nostr:{number:064x}" for number in range(people)), sources, targets)


def seconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


def fill(path: Path, people: int, edges: int) -> None:
    """An index with everybody's follow list, as ingesting would have left it."""
    sources, targets = skewed(people, edges)
    order = np.argsort(sources, kind="stable")
    sources, targets = sources[order], targets[order]
    begins = np.searchsorted(sources, np.arange(people + 1)).tolist()
    packed = (targets + 1).astype("<i4")
    with sqlite3.connect(path) as db:
        migrate_in(db, path)
        db.executemany(
            "INSERT INTO people (id, pubkey, named) VALUES (?, ?, 1)",
            ((number + 1, number.to_bytes(32, "big")) for number in range(people)),
        )
        db.executemany(
            "INSERT INTO people_lists (author, list, created_at, event_id, targets, left_out)"
            " VALUES (?, '3', 0, '', ?, 0)",
            ((number + 1, packed[begins[number] : begins[number + 1]].tobytes()) for number in range(people)),
        )
    db.close()


def migrate_in(db: sqlite3.Connection, path: Path) -> None:
    db.isolation_level = None
    migrate(db, path)
    db.isolation_level = "DEFERRED"


def load(path: Path) -> TrustGraph:
    db = sqlite3.connect(path)
    try:
        edges, _, _ = circle_rows.edges(db)
    finally:
        db.close()
    return TrustGraph.from_ids(
        edges.people, np.frombuffer(edges.sources, dtype=np.int32), np.frombuffer(edges.targets, dtype=np.int32)
    )


def measure_ours(people: int, edges: int, path: Path) -> dict[str, float]:
    began = time.perf_counter()
    graph = load(path)
    loaded = time.perf_counter() - began
    home = home_of(graph, dict.fromkeys(graph.names[:ANCHORS], 1))
    full = seconds(lambda: pagerank(graph, home))
    # Warm: one anchor more, from the weights before. A change of a few lists moves less than that.
    before, after = pagerank(graph, home), home_of(graph, dict.fromkeys(graph.names[: ANCHORS + 1], 1))
    warm = seconds(lambda: pagerank(graph, after, before))
    gap = float(np.abs(pagerank(graph, after, before) - pagerank(graph, after)).max())
    return {"load": loaded, "full": full, "warm": warm, "gap": gap, "peak": peak(), "edges": graph.edges}


def measure_floor(people: int, edges: int, path: Path) -> dict[str, float]:
    import scipy.sparse

    graph = skewed_graph(people, edges)
    degree = np.maximum(np.diff(graph.out_starts), 1)
    shares = FOLLOWED / degree[graph.in_sources]
    matrix = scipy.sparse.csr_array((shares, graph.in_sources, graph.in_starts), shape=(people, people))
    home = home_of(graph, dict.fromkeys(graph.names[:ANCHORS], 1))
    dangling = np.flatnonzero(np.diff(graph.out_starts) == 0)
    weights, rounds = home, MAX_ROUNDS
    for number in range(1, MAX_ROUNDS + 1):
        new = matrix @ weights + home * (1 - FOLLOWED + FOLLOWED * weights[dangling].sum())
        moved, weights = np.abs(new - weights).sum(), new
        if moved < TOLERANCE:
            rounds = number
            break

    def bare() -> Weights:
        found = home
        for _ in range(rounds):
            found = matrix @ found
        return found

    # Both in one process and by turns, so that a busy machine slows both.
    ours = floor = float("inf")
    for _ in range(REPEATS):
        ours, floor = min(ours, seconds(lambda: pagerank(graph, home), 1)), min(floor, seconds(bare, 1))
    return {"floor": floor, "beside": ours, "rounds": rounds}


def measure_networkx(people: int, edges: int, path: Path) -> dict[str, float]:
    import networkx as nx

    graph = skewed_graph(people, edges)
    anchors = dict.fromkeys(graph.names[:ANCHORS], 1)
    home = home_of(graph, anchors)
    theirs = nx.DiGraph()
    theirs.add_nodes_from(graph.names)
    for person, name in enumerate(graph.names):
        theirs.add_edges_from((name, graph.names[other]) for other in graph.followed_by(person).tolist())
    # networkx stops below people x tol.
    began = time.perf_counter()
    found = nx.pagerank(theirs, personalization=anchors, tol=TOLERANCE / people, max_iter=MAX_ROUNDS)
    took = time.perf_counter() - began
    ours = pagerank(graph, home)
    gap = max(abs(found[name] - weight) for name, weight in zip(graph.names, ours.tolist(), strict=True))
    return {"networkx": took, "ours": seconds(lambda: pagerank(graph, home)), "gap": gap}


def peak() -> float:
    """MiB of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


MEASUREMENTS: Final = {"ours": measure_ours, "floor": measure_floor, "networkx": measure_networkx}


def apart(name: str, people: int, edges: int, path: Path) -> dict[str, float]:
    """A measurement in a process of its own."""
    argv = [sys.executable, "-m", "bench.trust", "--measure", name, f"{people}:{edges}", str(path)]
    found: dict[str, float] = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
    return found


def report(people: int, edges: int, folder: Path) -> list[dict[str, object]]:
    path = folder / f"{people}.db"
    fill(path, people, edges)
    ours, floor = apart("ours", people, edges, path), apart("floor", people, edges, path)
    large = people >= 1_000_000
    size = f"{people:.0e}/{edges:.0e}".replace("e+0", "e")
    return [
        figure(f"{size}: recompute / scipy's bare product", floor["beside"] / floor["floor"], "x", 1.5, "lower"),
        figure(f"{size}: full recompute", ours["full"], "s", 1.7 if large else 0.1, "lower"),
        figure(f"{size}: warm recompute", ours["warm"], "s", None, "lower"),
        figure(f"{size}: warm and full differ by", ours["gap"], "weight", 1e-9, "lower"),
        figure(f"{size}: scipy's bare product, same rounds", floor["floor"], "s", None, "lower"),
        figure(f"{size}: load from SQLite into the graph", ours["load"], "s", None, "lower"),
        figure(f"{size}: peak memory, loading included", ours["peak"], "MiB", 1024, "lower"),
    ]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sizes", default=SIZES, help="PEOPLE:EDGES, separated by commas")
    options.add_argument("--measure", nargs=3, metavar=("NAME", "SIZE", "FILE"), help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.measure:
        name, size, path = asked.measure
        people, edges = map(int, size.split(":"))
        print(json.dumps(MEASUREMENTS[name](people, edges, Path(path))))
        return
    sizes = [tuple(map(int, size.split(":"))) for size in asked.sizes.split(",")]
    figures: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="archy-bench-") as folder:
        for people, edges in sizes:
            figures += report(people, edges, Path(folder))
    small = apart("networkx", sizes[0][0] // 10, sizes[0][1] // 10, OUT)
    figures += [
        figure("networkx / ours, a tenth of the smallest", small["networkx"] / small["ours"], "x", 1.0, "higher"),
        figure("largest difference from networkx", small["gap"], "weight", 1e-9, "lower"),
    ]
    for row in figures:
        goal = "" if row["goal"] is None else f"  goal {'<=' if row['better'] == 'lower' else '>='} {row['goal']:g}"
        print(f"  {row['name']:<52} {row['value']:>12.4g} {row['unit']:<7}{goal}")
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"figures": figures}, indent=1) + "\n")


def figure(name: str, value: float, unit: str, goal: float | None, better: str) -> dict[str, object]:
    return {"name": name, "value": value, "unit": unit, "goal": goal, "better": better}


if __name__ == "__main__":
    main()
