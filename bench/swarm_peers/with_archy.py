"""This fetcher as one program among the others of the benchmark, in a process of its own.

    python -m bench.swarm_peers.with_archy FOLDER < {"blobs", "origin", "peers"}

Prints {"seconds", "wasted", "peak_rss"}: `wasted` is by source; `peak_rss` is the process's own high-water mark in
bytes (proc(5): VmHWM), interpreter included. The seconds run from making the fetcher, in a process that has fetched
nothing before: a node runs already when it fetches, so that the interpreter's start and imports are not in them (nor in
those of libtorrent and iroh, which are libraries too). The start of curl and aria2c is in theirs, some hundredths.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import trio

from market.model import BlobRef, Digest
from market.swarm import AddressPolicy, Fetcher, FetchReport, Source, SourceKind, open_store


def main() -> None:
    """See the module's docstring."""
    given = json.load(sys.stdin)
    blobs = [_ref(**blob) for blob in given["blobs"]]
    sources = [Source(given["origin"], SourceKind.ORIGIN), *(Source(url, SourceKind.PEER) for url in given["peers"])]
    with open_store(Path(sys.argv[1]) / "store") as store:

        async def run() -> tuple[float, FetchReport]:
            began = time.perf_counter()
            with Fetcher(store, sources, AddressPolicy(allow_private=True)) as fetcher:
                report = await fetcher.fetch_many(blobs)
            return time.perf_counter() - began, report

        seconds, report = trio.run(run)
    wasted = {each.source.url: each.wasted for each in report.sources}
    print(json.dumps({"seconds": seconds, "wasted": wasted, "peak_rss": _peak_rss()}), flush=True)


def _ref(blake3: str, size: int, pieces: str | None = None) -> BlobRef:
    return BlobRef(Digest(blake3), size, Digest(pieces) if pieces else None)


def _peak_rss() -> int:
    """Not getrusage(2), whose ru_maxrss a child inherits from the process that started it."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
