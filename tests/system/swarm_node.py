"""What a lab node runs in the swarm's tests, on the project's own code, one JSON line per event.

archy-python -m tests.system.swarm_node serve STORE HOST:PORT RATE FILE     the blob's reference, when it listens
archy-python -m tests.system.swarm_node fetch STORE REFERENCE SOURCES       progress, then a report or a problem
archy-python -m tests.system.swarm_node neighbours STORE HOST:PORT          who is found on the LAN, as it changes
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import trio
from aiohttp import web

from market.bridge import open_bridge, serve
from market.errors import Problem
from market.model import BlobRef, Digest
from market.node.providers import neighbours
from market.swarm import (
    AddressPolicy,
    FetchProgress,
    Source,
    SourceKind,
    Store,
    UploadLimits,
    blob_routes,
    fetch_blob,
    open_store,
)


def _say(**event: object) -> None:
    print(json.dumps(event), flush=True)


async def _serve(store: Store, at: str, rate: float, file: Path) -> None:
    ref = store.add_file(file)
    app = web.Application()
    app.add_routes(blob_routes(store, lambda digest: True, lambda: UploadLimits(rate=rate)))
    host, _, port = at.rpartition(":")
    async with open_bridge() as bridge, serve(bridge, app, tcp=(host, int(port))):
        _say(listening=ref.to_json())
        await trio.sleep_forever()


async def _fetch(store: Store, ref: BlobRef, sources: list[Source]) -> None:
    def progress(now: FetchProgress) -> None:
        _say(done=now.done)

    report = await fetch_blob(store, ref, sources, on_progress=progress, addresses=AddressPolicy(allow_private=True))
    store.verify(ref)
    _say(report=report.to_json())


async def _neighbours(at: str) -> None:
    host, _, port = at.rpartition(":")
    told: tuple[str, ...] = ()
    async with open_bridge() as bridge, neighbours(bridge, (host, int(port))) as known:
        _say(looking=at)
        while True:
            if known.urls() != told:
                told = known.urls()
                _say(found=told)
            await trio.sleep(0.1)


def main() -> None:
    """See the module's docstring."""
    what, root, *rest = sys.argv[1:]
    with open_store(Path(root)) as store:
        try:
            if what == "serve":
                trio.run(_serve, store, rest[0], float(rest[1]), Path(rest[2]))
            elif what == "neighbours":
                trio.run(_neighbours, rest[0])
            else:
                given = json.loads(rest[0])
                pieces = Digest(given["pieces"]) if "pieces" in given else None
                ref = BlobRef(Digest(given["blake3"]), given["size"], pieces)
                sources = [Source(url, SourceKind(kind)) for url, kind in json.loads(rest[1])]
                trio.run(_fetch, store, ref, sources)
        except Problem as problem:
            _say(problem=str(problem), kind=problem.kind)


if __name__ == "__main__":
    main()
