"""Draws docs/pictures/swarm.png: one fetch from five sources, each decision made by the real picker.

    ./run bench swarm_picture [--out FILE]

The links are pretended (a rate and a latency each), so that the picture is the same everywhere.
"""

from __future__ import annotations

import argparse
import heapq
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from market.model import Digest
from market.swarm.errors import FaultKind
from market.swarm.pieces import PieceTable
from market.swarm.quality import Quality
from market.swarm.schedule import Schedule
from market.swarm.sources import SourceKind
from market.swarm.states import Lease, SourceState, Wait

MIB = 1024 * 1024
PIECES = 64
LATENCY = 0.01
STYLES: dict[str, dict[str, Any]] = {"good": {}, "bad": {"hatch": "xxx", "alpha": 0.5}, "late": {"alpha": 0.3}}


@dataclass
class Actor:
    """One source: MiB/s, and what goes wrong after how many pieces."""

    name: str
    kind: SourceKind
    rate: float
    color: str
    fault: FaultKind | None = None
    seconds_to_fault: float = 0.0
    bars: list[tuple[float, float, int, str]] = field(default_factory=list)
    """(begin, end, piece, outcome)."""


def race(actors: list[Actor]) -> float:
    """Run the picker to the end; the seconds it took."""
    table = PieceTable(Digest("0" * 64), PIECES * MIB, bytes(32 * PIECES))
    schedule = Schedule(table, [SourceState(actor.kind, Quality()) for actor in actors])
    order = count()
    queue: list[tuple[float, int, int, Lease | None]] = [(0.0, next(order), n, None) for n in range(len(actors))]
    began: dict[int, float] = {}
    now = 0.0
    while queue and not schedule.complete:
        now, _, number, lease = heapq.heappop(queue)
        actor = actors[number]
        if lease is not None:
            piece = lease.next
            if actor.fault is not None:
                actor.bars.append((began[number], now, piece, "bad"))
                schedule.failed(lease, actor.fault, now)
                lease = None
            elif schedule.received(lease, MIB, now):
                schedule.verified(lease)
                actor.bars.append((began[number], now, piece, "good"))
            else:
                actor.bars.append((began[number], now, piece, "late"))
        if lease is not None and not schedule.wants(lease):
            schedule.ended(lease, now)
            lease = None
        pause = 0.0
        if lease is None:
            move = schedule.next(number, now)
            if isinstance(move, Wait):
                heapq.heappush(queue, (max(move.until, now + 0.01), next(order), number, None))
                continue
            if not isinstance(move, Lease):
                continue
            lease, pause = move, LATENCY
        schedule.received(lease, 0, now + pause)
        began[number] = now + pause
        ends = now + pause + (actor.seconds_to_fault if actor.fault else 1 / actor.rate)
        heapq.heappush(queue, (ends, next(order), number, lease))
    for _, _, number, lease in queue:
        if lease is not None:  # what nobody waited for
            actors[number].bars.append((began[number], now, lease.next, "late"))
    return now


def draw(axes: Axes, actors: list[Actor], seconds: float) -> None:
    """A row a source, a bar a piece, at the place that the piece has in the blob."""
    for actor in actors:
        for begin, end, piece, outcome in actor.bars:
            style = STYLES[outcome]
            axes.barh(piece, end - begin, left=begin, height=0.9, color=actor.color, edgecolor="white", lw=0.2, **style)
    for actor in actors:
        axes.barh(0, 0, color=actor.color, label=actor.name)
    axes.set(
        xlabel="seconds",
        ylabel="piece of the blob (1 MiB each)",
        xlim=(0, seconds * 1.02),
        ylim=(-1, PIECES),
        title="64 MiB from five sources: each bar is a piece on its way; crossed: dropped, pale: not waited for",
    )
    axes.legend(loc="upper left", fontsize=8)


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(prog="bench swarm_picture")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "pictures" / "swarm.png")
    given = parser.parse_args()
    actors = [
        Actor("origin, 60 MiB/s", SourceKind.ORIGIN, 60, "#1f5f99"),
        Actor("good peer, 20 MiB/s", SourceKind.PEER, 20, "#3a9d5d"),
        Actor("straggler, 1 MiB/s", SourceKind.PEER, 1, "#d9a227"),
        Actor("corrupting peer: banned", SourceKind.PEER, 20, "#b3342d", FaultKind.CORRUPT, 0.05),
        Actor("silent peer", SourceKind.PEER, 20, "#8a6bb1", FaultKind.TRANSPORT, 1.0),
    ]
    seconds = race(actors)
    figure, axes = plt.subplots(figsize=(10, 6))
    draw(axes, actors, seconds)
    figure.tight_layout()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(given.out, dpi=100)
    print(f"{given.out}: {seconds:.2f} s, of 0.80 s with the sum of the good rates and 1.07 s with the origin alone")


if __name__ == "__main__":
    main()
