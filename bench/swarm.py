"""This fetcher beside aria2c, libtorrent, iroh and curl: same files, same servers, same caps, one run.

    ./run bench swarm [--mib 256] [--capped-mib 128] [--rounds 5] [--full] [--case WORD]... [--folder DIR]

Sources are the servers of tests/fakes, each a process of its own on a loopback address of its own; their pacer caps
all connections together, whoever asks. Rounds interleave the programs. Medians; ratios travel, absolute figures do not.
A program that this machine does not have is left out, and the table says why. Everything is verified: this fetcher by
BLAKE3 pieces and whole, aria2c by a metalink's SHA-1 pieces, libtorrent by its torrent's, iroh by its tree; curl not.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench.swarm_peers.contestants import Archy, Aria2, Contestant, Curl, Iroh, Libtorrent, Measured, NotHere, Task
from bench.swarm_peers.files import make_blob, make_small_blobs, server, touch_memory

MB = 1e6
PEAK_MIB = 150.0
"""What receiving a blob of any size may take, interpreter included."""
_MEMORY = Path("/dev/shm")
ORIGIN = 60.0
"""MB/s of the capped origin."""


@dataclass(frozen=True)
class Case:
    """Sources in MB/s (None is uncapped) or as flags of the fake server, and what is to be reached."""

    name: str
    origin: float | str | None = ORIGIN
    peers: tuple[float | str, ...] = ()
    good: float | None = None
    """MB/s of all good sources together; None where nothing is capped."""
    is_fault: bool = False
    """Goal: at most 1.05 x the time of the origin alone. Otherwise: at least 97 % of `good`."""
    uncapped: bool = False


def _bad(rate: float, *flags: str) -> str:
    return " ".join(("--rate", str(rate * MB), *flags))


CORRUPT = _bad(20, "--corrupt-all")
STALLED = _bad(20, "--stall")
DEAD = "dead"

CASES = (
    Case("uncapped origin", origin=None, uncapped=True),
    Case("origin alone", good=60),
    Case("+ a 20 MB/s peer", peers=(20,), good=80),
    Case("+ a 0.5 MB/s straggler", peers=(0.5,), good=60, is_fault=True),
    Case("+ a corrupting peer", peers=(CORRUPT,), good=60, is_fault=True),
    Case("+ a stalled peer", peers=(STALLED,), good=60, is_fault=True),
    Case("+ dead ports", peers=(DEAD, DEAD), good=60, is_fault=True),
    Case("all of these together", peers=(20, 0.5, CORRUPT, STALLED, DEAD), good=80),
    Case("origin dead, a 60 MB/s peer", origin=DEAD, peers=(60,), good=60),
    Case("8 peers of mixed speed", peers=(2, 5, 5, 10, 10, 20, 20, 30), good=162),
)
SMALL = "1,000 blobs of 4 KiB"


@dataclass
class Row:
    """What one program did in one case."""

    runs: list[Measured] = field(default_factory=list)
    absent: str = ""

    @property
    def seconds(self) -> float:
        return median(run.seconds for run in self.runs) if self.runs else math.inf

    @property
    def peak_rss(self) -> int:
        return max((run.peak_rss for run in self.runs), default=0)

    @property
    def wasted_most(self) -> int:
        return max((run.wasted_by_bad for run in self.runs), default=0)


Table = dict[str, dict[str, Row]]


@contextmanager
def _sources(case: Case, root: Path) -> Iterator[tuple[str, tuple[str, ...], frozenset[str]]]:
    """Origin, peers, and those of the peers that are bad."""
    with ExitStack() as stack:
        urls, bad = [], set()
        for number, what in enumerate((case.origin, *case.peers), start=1):
            flags = what.split() if isinstance(what, str) else [] if what is None else ["--rate", str(what * MB)]
            url = stack.enter_context(server(root, number, None if what == DEAD else flags))
            urls.append(url)
            if isinstance(what, str):
                bad.add(url)
        yield urls[0], tuple(urls[1:]), frozenset(bad)


def _race(task: Task, contestants: Sequence[Contestant], rounds: int, label: str) -> dict[str, Row]:
    rows = {contestant.name: Row() for contestant in contestants}
    for _ in range(rounds):
        for contestant in contestants:
            row = rows[contestant.name]
            failures = sum(math.isinf(run.seconds) for run in row.runs)
            if row.absent or failures >= 2:
                continue
            try:
                row.runs.append(contestant.run(task))
            except NotHere as reason:
                row.absent = str(reason)
    told = ", ".join(f"{name} {row.seconds:.2f} s" for name, row in rows.items() if row.runs)
    print(f"  {label}: {told}", file=sys.stderr, flush=True)
    return rows


def measure(
    mib: int,
    capped_mib: int,
    rounds: int,
    folder: Path,
    only: Sequence[str],
    contestants: Sequence[Contestant],
    on_case: Callable[[Table], None],
) -> Table:
    """Case -> program -> what it did. `on_case` gets what there is after each case."""
    table: Table = {}
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        root = work / "published"
        big, capped = make_blob(root, mib), make_blob(root, capped_mib)
        touch_memory(work, 4 * mib)
        for contestant in contestants:
            stack.callback(contestant.close)
        for case in CASES:
            if only and not any(word in case.name for word in only):
                continue
            with _sources(case, root) as (origin, peers, bad):
                blob = big if case.uncapped else capped
                ideal = blob.size / MB / case.good if case.good else 5.0
                task = Task((blob,), origin, peers, bad, work / "out", limit=20 + 5 * ideal)
                fit = [contestant for contestant in contestants if contestant.fits(task, capped=not case.uncapped)]
                table[case.name] = _race(task, fit, rounds, case.name)
                on_case(table)
        if not only or any(word in SMALL for word in only):
            blobs = make_small_blobs(work / "small", 1000)
            with server(work / "small", 1, []) as origin:
                task = Task(blobs, origin, (), frozenset(), work / "out", limit=60)
                fit = [contestant for contestant in contestants if contestant.fits(task, capped=False)]
                table[SMALL] = _race(task, fit, rounds, SMALL)
                on_case(table)
    return table


def figures(table: Table, mib: int, capped_mib: int) -> list[dict[str, object]]:
    """What bench/out/swarm.json says: every median, and every goal with its ratio."""
    found: list[dict[str, object]] = []

    def add(name: str, value: float, unit: str, goal: float | None, better: str) -> None:
        if not math.isinf(value) and not math.isnan(value):
            found.append({"name": name, "value": round(value, 3), "unit": unit, "goal": goal, "better": better})

    alone = table["origin alone"]["archy"].seconds if "origin alone" in table else math.inf
    by_name = {case.name: case for case in CASES}
    for name, rows in table.items():
        ours = rows["archy"].seconds
        for program, row in rows.items():
            add(f"{name}: {program}", row.seconds, "s", None, "lower")
        peers = [row.seconds for program, row in rows.items() if program not in ("archy", "curl") and row.runs]
        if peers and not math.isinf(min(peers)):
            add(f"{name}: archy / fastest peer", ours / min(peers), "x", 1.0, "lower")
        case = by_name.get(name)
        if name == "uncapped origin" and "curl" in rows:
            add(f"{name}: archy's rate / curl's", rows["curl"].seconds / ours, "x", 0.9, "higher")
            add(f"{name}: archy's peak memory, {mib} MiB", rows["archy"].peak_rss / 2**20, "MiB", PEAK_MIB, "lower")
        elif case is not None and case.is_fault and not math.isinf(alone):
            add(f"{name}: archy / origin alone", ours / alone, "x", 1.05, "lower")
        elif case is not None and case.good is not None:
            size = capped_mib * 2**20 / MB
            add(f"{name}: share of the good sources' rates", size / ours / case.good, "x", 0.97, "higher")
        if case is not None and any(isinstance(peer, str) for peer in case.peers):
            add(f"{name}: wasted by one bad peer", rows["archy"].wasted_most / 2**20, "MiB", 1.0, "lower")
    return found


def show(table: Table, found: Sequence[dict[str, object]], mib: int, capped_mib: int) -> None:
    """The tables: seconds by program with the ratio to this fetcher, and the goals."""
    programs = list(dict.fromkeys(program for rows in table.values() for program in rows))
    print(f"\nseconds (and how many times this fetcher's); {mib} MiB uncapped, {capped_mib} MiB capped")
    print(f"{'case':<30}" + "".join(f"{program:>20}" for program in programs))
    for name, rows in table.items():
        line = f"{name:<30}"
        for program in programs:
            row = rows.get(program)
            if row is None or not row.runs:
                line += f"{'-':>20}"
            elif math.isinf(row.seconds):
                line += f"{'fails':>20}"
            else:
                times = row.seconds / rows["archy"].seconds
                line += f"{f'{row.seconds:.2f} ({times:.2f}x)':>20}"
        print(line)
    for program in programs:
        reasons = {rows[program].absent for rows in table.values() if program in rows} - {""}
        for reason in reasons:
            print(f"{program} is left out: {reason}")
    print(f"\n{'goal':<60}{'is':>10}{'goal':>10}")
    for figure in found:
        if figure["goal"] is None:
            continue
        value, goal = float(str(figure["value"])), float(str(figure["goal"]))
        met = value >= goal if figure["better"] == "higher" else value <= goal
        bound = f"{'>=' if figure['better'] == 'higher' else '<='} {goal:g}"
        print(f"{figure['name']!s:<60}{value:>10.3f}{bound:>10}  {'' if met else 'MISSED'}")


def main() -> None:
    """Measure, print the tables; bench/out/swarm.json is written after each case, so that an interrupted run counts."""
    parser = argparse.ArgumentParser(prog="bench swarm")
    parser.add_argument("--mib", type=int, default=256, help="size of the uncapped file")
    parser.add_argument("--capped-mib", type=int, default=128, help="size of the file in the capped cases")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--full", action="store_true", help="1 GiB uncapped, 256 MiB capped; takes half an hour")
    parser.add_argument("--case", action="append", default=[], metavar="WORD", help="only cases with it in their name")
    parser.add_argument("--alone", action="store_true", help="this fetcher and curl only")
    parser.add_argument("--folder", type=Path, default=_MEMORY, help="where the files lie")
    given = parser.parse_args()
    mib, capped = (1024, 256) if given.full else (given.mib, given.capped_mib)
    contestants: list[Contestant] = [Archy(), Curl()]
    if not given.alone:
        contestants += [Aria2(), Libtorrent(), Iroh()]
    out = Path(__file__).parent / "out"
    out.mkdir(exist_ok=True)

    def write(table: Table) -> None:
        found = figures(table, mib, capped)
        (out / "swarm.json").write_text(json.dumps({"figures": found}, indent=2) + "\n")

    table = measure(mib, capped, given.rounds, given.folder, given.case, contestants, write)
    show(table, figures(table, mib, capped), mib, capped)


if __name__ == "__main__":
    if shutil.which("curl") is None:
        sys.exit("bench swarm: curl is the floor of every comparison (Debian: apt-get install curl)")
    main()
