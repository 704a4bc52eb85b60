"""Many nodes that fetch one blob at once, each with the real picker, in a discrete-event model of their links.

    ./run bench swarm_sim [--quick] [--seed 1] [--scene WORD]... [--limit SECONDS]

Model: every node has the origin and a few random others as sources, a rate up and a rate down, and as many uploads at
a time as it has slots; a transfer's rate is its fair share at both ends, looked at anew for each piece. Everything that
is decided (what to ask of whom, when to look what others have, whom to drop) is `market.swarm.schedule`, unchanged.
Not modelled: packets, routers, more than one blob. Writes bench/out/swarm_sim.json and bench/out/swarm_sim.png.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial as bind
from itertools import count
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from market.model import Digest
from market.swarm.errors import FaultKind
from market.swarm.pieces import PieceTable
from market.swarm.quality import Quality
from market.swarm.schedule import Schedule
from market.swarm.sources import SourceKind
from market.swarm.states import Lease, Leave, Look, SourceState, Wait

MB = 1e6
PIECE = 1024 * 1024
ORIGIN_UP = 125 * MB
"""One server with a gigabit."""
NODE_UP = 12.5 * MB
NODE_DOWN = 62.5 * MB
ORIGIN_SLOTS = 64
NODE_SLOTS = 4
LATENCY = 0.03
ARRIVAL_SECONDS = 5.0
"""Everybody comes within this time: a release was announced."""
IDLE_SECONDS = 0.25
"""How soon an idle worker is asked again; the real one looks every 0.05 s, and at every change."""
GIVE_UP_SECONDS = 1800.0


@dataclass(frozen=True)
class Scene:
    """Shares of the nodes that behave in some way."""

    name: str
    nodes: int
    pieces: int
    known: int = 8
    """Other nodes that each of them knows."""
    free_riders: float = 0.0
    liars: float = 0.0
    """Say that they have everything, and send rubbish."""
    leave: float = 0.0
    """Go as soon as they have the blob."""
    vanish: float = 0.0
    """Go for good at some moment while they fetch."""

    @property
    def forwarding(self) -> float:
        """Share of the nodes that pass on what they have once it is whole."""
        return (1 - self.free_riders - self.liars) * (1 - self.leave) * (1 - self.vanish)

    def bound(self, size: int) -> float:
        """Seconds that a tree of store-and-forward would need in which only those forward who do so in this scene.

        Whoever has the blob sends it to one other at a time: with a share h that forwards, each round takes the number
        of those who have it times 1 + h (2 where everybody behaves). Each known liar costs one piece besides.
        """
        rounds = math.log(self.nodes, 1 + self.forwarding)
        return size / ORIGIN_UP + size / NODE_UP * rounds + self.known * self.liars * PIECE / NODE_UP

    @property
    def label(self) -> str:
        return f"{self.name}, {self.nodes:,} nodes"


SCENES = (
    Scene("cold start", 1000, 64),
    Scene("churn", 1000, 64, leave=0.5, vanish=0.1),
    Scene("free riders", 1000, 64, free_riders=0.3),
    Scene("liars", 1000, 64, liars=0.1),
    Scene("all of these", 1000, 64, free_riders=0.3, liars=0.1, leave=0.5, vanish=0.1),
    Scene("cold start", 10_000, 24, known=6),
    Scene("all of these", 10_000, 24, known=6, free_riders=0.3, liars=0.1, leave=0.5, vanish=0.1),
)


@dataclass
class Host:
    """One end of transfers: the origin is number 0."""

    up: float
    slots: int
    sending: int = 0
    receiving: int = 0
    sent: int = 0
    here: bool = True
    serves: bool = True
    lies: bool = False
    have: bytearray = field(default_factory=bytearray)
    schedule: Schedule | None = None
    sources: list[int] = field(default_factory=list)
    came: float = 0.0
    done: float = math.inf
    wasted: int = 0
    vanishes_at: int = -1


@dataclass
class Result:
    """What came of one scene."""

    scene: Scene
    seconds: list[float]
    """From each node's coming to its last piece; only of those that stayed."""
    unfinished: int
    last: float
    origin_copies: float
    wasted_most: int
    bound: float
    took: float

    @property
    def label(self) -> str:
        return self.scene.label


class World:
    """The event queue and everybody in it."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self.scene = scene
        self.random = random.Random(seed)
        self.table = PieceTable(Digest("0" * 64), scene.pieces * PIECE, bytes(32 * scene.pieces))
        self.hosts = [Host(ORIGIN_UP, ORIGIN_SLOTS, have=bytearray([1]) * scene.pieces)]
        self.hosts += [self._node() for _ in range(scene.nodes)]
        self.now = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def run(self, limit: float) -> Result:
        """Until nobody has anything left to do, or computing has taken `limit` seconds: then some did not finish."""
        began = time.perf_counter()
        for number in range(1, len(self.hosts)):
            self._later(self.random.uniform(0, ARRIVAL_SECONDS), bind(self._come, number))
        while self._queue and self.now < GIVE_UP_SECONDS and time.perf_counter() - began < limit:
            self.now, _, act = heapq.heappop(self._queue)
            act()
        nodes = [host for host in self.hosts[1:] if host.vanishes_at < 0]
        finished = [host for host in nodes if host.done < math.inf]
        size = self.table.size
        return Result(
            self.scene,
            sorted(host.done - host.came for host in finished),
            len(nodes) - len(finished),
            max((host.done for host in finished), default=math.inf),
            self.hosts[0].sent / size,
            max(host.wasted for host in nodes),
            self.scene.bound(size),
            time.perf_counter() - began,
        )

    def _node(self) -> Host:
        host = Host(NODE_UP, NODE_SLOTS, have=bytearray(self.scene.pieces))
        draw = self.random.random()
        if draw < self.scene.free_riders:
            host.serves = False
        elif draw < self.scene.free_riders + self.scene.liars:
            host.lies = True
        if self.random.random() < self.scene.vanish:
            host.vanishes_at = self.random.randrange(self.scene.pieces)
        return host

    def _later(self, delay: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + delay, next(self._order), act))

    def _come(self, number: int) -> None:
        me = self.hosts[number]
        me.came = self.now
        others = self.random.sample(range(1, len(self.hosts)), self.scene.known + 1)
        me.sources = [0, *[other for other in others if other != number][: self.scene.known]]
        kinds = [SourceKind.ORIGIN] + [SourceKind.PEER] * (len(me.sources) - 1)
        states = [SourceState(kind, Quality()) for kind in kinds]
        me.schedule = Schedule(self.table, states, self.random.getrandbits(32))
        for source in range(len(me.sources)):
            if source:
                me.schedule.looked(source, self._shown(me.sources[source]), self.now)
            self._ask(number, source)

    def _shown(self, other: int) -> bytes:
        """What a node says that it has."""
        host = self.hosts[other]
        if host.lies:
            return b"\x01" * self.scene.pieces
        return bytes(host.have) if host.serves and host.here else bytes(self.scene.pieces)

    def _other(self, number: int, source: int) -> Host:
        return self.hosts[self.hosts[number].sources[source]]

    def _ask(self, number: int, source: int) -> None:
        me = self.hosts[number]
        if not me.here or me.schedule is None:
            return
        match me.schedule.next(source, self.now):
            case Leave():
                return
            case Wait(until):
                self._later(max(until - self.now, IDLE_SECONDS), lambda: self._ask(number, source))
            case Look():
                me.schedule.looked(source, self._shown(me.sources[source]), self.now)
                self._later(LATENCY, lambda: self._ask(number, source))
            case Lease() as lease:
                self._begin(number, source, lease)

    def _begin(self, number: int, source: int, lease: Lease) -> None:
        me, other = self.hosts[number], self._other(number, source)
        assert me.schedule is not None
        if not other.here or other.sending >= other.slots:
            fault = FaultKind.BUSY if other.here else FaultKind.TRANSPORT
            me.schedule.failed(lease, fault, self.now)
            self._later(LATENCY, lambda: self._ask(number, source))
            return
        other.sending += 1
        me.receiving += 1
        self._later(LATENCY, lambda: self._next_piece(number, source, lease))

    def _next_piece(self, number: int, source: int, lease: Lease) -> None:
        me, other = self.hosts[number], self._other(number, source)
        assert me.schedule is not None
        if not me.schedule.wants(lease) or not me.here:
            self._end(number, source, lease, None)
            return
        if not other.here:
            self._end(number, source, lease, FaultKind.TRANSPORT)
            return
        me.schedule.received(lease, 0, self.now)
        size = self.table.length(lease.next)
        rate = min(other.up / max(1, other.sending), NODE_DOWN / max(1, me.receiving))
        self._later(size / rate, lambda: self._piece_came(number, source, lease, size))

    def _piece_came(self, number: int, source: int, lease: Lease, size: int) -> None:
        me, other = self.hosts[number], self._other(number, source)
        assert me.schedule is not None
        other.sent += size
        if other.lies:
            me.wasted += size
            self._end(number, source, lease, FaultKind.CORRUPT)
            return
        if me.schedule.received(lease, size, self.now):
            me.have[lease.next] = 1
            me.schedule.verified(lease)
        else:
            me.wasted += size
        self._look_at(me)
        self._next_piece(number, source, lease)

    def _look_at(self, me: Host) -> None:
        assert me.schedule is not None
        if sum(me.have) == me.vanishes_at + 1 and me.vanishes_at >= 0:
            me.here = False
        if me.schedule.complete and me.done == math.inf:
            me.done = self.now
            if self.random.random() < self.scene.leave:
                me.here = False

    def _end(self, number: int, source: int, lease: Lease, fault: FaultKind | None) -> None:
        me, other = self.hosts[number], self._other(number, source)
        assert me.schedule is not None
        other.sending -= 1
        me.receiving -= 1
        if fault is None:
            me.schedule.ended(lease, self.now)
        else:
            me.schedule.failed(lease, fault, self.now)
        self._ask(number, source)


def figures(results: list[Result]) -> list[dict[str, object]]:
    """What bench/out/swarm_sim.json says."""
    found: list[dict[str, object]] = []
    for result in results:
        for name, value, unit, goal in (
            ("time to the last node / the bound", result.last / result.bound, "x", 1.0),
            ("origin traffic in blobs", result.origin_copies, "x", None),
            ("nodes that did not finish", float(result.unfinished), "", 0.0),
            ("wasted by the unluckiest node", result.wasted_most / PIECE, "MiB", None),
        ):
            full, rounded = f"{result.label}: {name}", round(value, 3)
            found.append({"name": full, "value": rounded, "unit": unit, "goal": goal, "better": "lower"})
    return found


def plot(results: list[Result], target: Path) -> None:
    """Who is done when, and what the origin had to send."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5))
    for result in results:
        shares = [(index + 1) / len(result.seconds) for index in range(len(result.seconds))]
        left.step(result.seconds, shares, where="post", label=result.label)
    left.set(xlabel="seconds from a node's coming", ylabel="share of nodes that have the blob", title="Time to have it")
    left.legend(fontsize=7)
    left.grid(alpha=0.3)
    right.barh([result.label for result in results], [result.origin_copies for result in results])
    right.set(xlabel="blobs sent by the origin (one per node without peers)", title="What the origin pays")
    right.set_xscale("log")
    right.invert_yaxis()
    figure.tight_layout()
    figure.savefig(target, dpi=110)
    plt.close(figure)


def main() -> None:
    """Run the scenes, print a table, write the figures and the plot."""
    parser = argparse.ArgumentParser(prog="bench swarm_sim")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="only the scenes of 1,000 nodes")
    parser.add_argument("--scene", action="append", default=[], metavar="WORD", help="only scenes so labelled")
    parser.add_argument("--limit", type=float, default=1800.0, metavar="SECONDS", help="the most to compute per scene")
    given = parser.parse_args()
    results = []
    out = Path(__file__).parent / "out"
    out.mkdir(exist_ok=True)
    print(f"{'scene':<32}{'median s':>10}{'last s':>10}{'bound s':>10}{'origin':>10}{'wasted':>10}{'unfinished':>12}")
    for scene in SCENES:
        if given.quick and scene.nodes > 1000:
            continue
        if given.scene and not any(word in scene.label for word in given.scene):
            continue
        result = World(scene, given.seed).run(given.limit)
        results.append(result)
        median = result.seconds[len(result.seconds) // 2]
        print(
            f"{result.label:<32}{median:>10.1f}{result.last:>10.1f}{result.bound:>10.1f}{result.origin_copies:>9.1f}x"
            f"{result.wasted_most // PIECE:>6} MiB{result.unfinished:>12}   ({result.took:.0f} s to compute)",
            flush=True,
        )
        # After each scene: the large ones take minutes, and what is known should not be lost with them.
        (out / "swarm_sim.json").write_text(json.dumps({"figures": figures(results)}, indent=2) + "\n")
        plot(results, out / "swarm_sim.png")


if __name__ == "__main__":
    main()
