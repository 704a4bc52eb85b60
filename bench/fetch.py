"""This fetcher against curl, same file, same server, same run; and two capped sources against the sum of their rates.

    ./run bench fetch [--mib 256] [--rounds 7] [--folder DIR]

The fetcher verifies every byte twice; curl verifies nothing. Both end with the file synced. The files lie in memory
unless --folder says otherwise, so that the disk is not what is measured. Medians; ratios travel, figures do not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import trio

from bench.swarm_peers.files import make_blob
from market.model import BlobRef
from market.swarm import AddressPolicy, Source, SourceKind, fetch_blob, open_store

MB = 1e6
ORIGIN_RATE = 60 * MB
PEER_RATE = 20 * MB
_MEMORY = Path("/dev/shm")


@contextmanager
def _server(root: Path, *flags: str) -> Iterator[str]:
    command = [sys.executable, "-m", "tests.fakes.blob_servers", "--root", str(root), *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def _curl(url: str, ref: BlobRef, folder: Path) -> float:
    target = folder / "curl"
    began = time.perf_counter()
    subprocess.run(["curl", "-sS", "--fail", "-o", str(target), f"{url}/blobs/{ref.blake3}"], check=True)
    with target.open("rb") as file:
        os.fdatasync(file.fileno())
    seconds = time.perf_counter() - began
    target.unlink()
    return seconds


def _touch_memory(folder: Path, mib: int) -> None:
    """A virtual machine's memory costs a fault of the host's when it is first used: let that happen before."""
    filler = folder / "filler"
    with filler.open("wb") as file:
        for _ in range(mib):
            file.write(bytes(1 << 20))
    filler.unlink()


def _ours(ref: BlobRef, folder: Path, *sources: Source) -> float:
    root = folder / "store"
    with open_store(root) as store:

        async def run() -> float:
            began = time.perf_counter()
            await fetch_blob(store, ref, sources, addresses=AddressPolicy(allow_private=True))
            return time.perf_counter() - began

        seconds = trio.run(run)
    shutil.rmtree(root)
    return seconds


def measure(mib: int, rounds: int, folder: Path) -> list[dict[str, object]]:
    """All figures; see bench/out/fetch.json."""
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        ref = make_blob(work, mib)
        fast = stack.enter_context(_server(work))
        origin = stack.enter_context(_server(work, "--rate", str(ORIGIN_RATE)))
        peer = stack.enter_context(_server(work, "--rate", str(PEER_RATE)))
        _touch_memory(work, 4 * mib)
        curl, ours = [], []
        for _ in range(rounds):
            curl.append(_curl(fast, ref, work))
            ours.append(_ours(ref, work, Source(fast, SourceKind.ORIGIN)))
        alone = _ours(ref, work, Source(origin, SourceKind.ORIGIN))
        both = _ours(ref, work, Source(origin, SourceKind.ORIGIN), Source(peer, SourceKind.PEER))
    size = ref.size / MB
    return [
        _figure("curl, uncapped", size / median(curl), "MB/s"),
        _figure("this fetcher, uncapped, verified twice", size / median(ours), "MB/s"),
        _figure("ratio to curl", median(curl) / median(ours), "", goal=0.9),
        _figure("share of a capped origin's rate", size * MB / ORIGIN_RATE / alone, "", goal=0.95),
        _figure("share of the sum of two capped sources", size * MB / (ORIGIN_RATE + PEER_RATE) / both, "", goal=0.95),
    ]


def _figure(name: str, value: float, unit: str, goal: float | None = None) -> dict[str, object]:
    return {"name": name, "value": round(value, 3), "unit": unit, "goal": goal, "better": "higher"}


def main() -> None:
    """Measure, print a table, write bench/out/fetch.json."""
    parser = argparse.ArgumentParser(prog="bench fetch")
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=_MEMORY, help="where the files lie")
    given = parser.parse_args()
    figures = measure(given.mib, given.rounds, given.folder)
    for figure in figures:
        goal = f"   goal >= {figure['goal']}" if figure["goal"] is not None else ""
        print(f"{figure['name']!s:48} {figure['value']!s:>10} {figure['unit']!s:5}{goal}")
    out = Path(__file__).parent / "out"
    out.mkdir(exist_ok=True)
    (out / "fetch.json").write_text(json.dumps({"figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
