"""iroh 0.35's own node as a peer of the benchmark. Runs in an environment of its own, with iroh and nothing else.

    python with_iroh.py serve FOLDER FILE...     prints a JSON line: one ticket per file; serves until stdin ends
    python with_iroh.py get FOLDER < tickets     reads a JSON list of tickets, prints {"seconds": ...}

Both ends are iroh's; there is no HTTP, so that no cap of the fake servers applies.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import iroh  # type: ignore[import-not-found]  # only in that environment


class _Added:
    def __init__(self) -> None:
        self.hash: Any = None

    async def progress(self, event: Any) -> None:
        if event.type() == iroh.AddProgressType.ALL_DONE:
            self.hash = event.as_all_done().hash


class _Silent:
    async def progress(self, event: Any) -> None:
        """Nobody asked."""


async def _node(folder: str) -> Any:
    iroh.iroh_ffi.uniffi_set_event_loop(asyncio.get_running_loop())
    options = iroh.NodeOptions()
    options.node_discovery = iroh.NodeDiscoveryConfig.NONE
    return await iroh.Iroh.persistent_with_options(folder, options)


async def _serve(folder: str, files: list[str]) -> None:
    node = await _node(folder)
    tickets = []
    for file in files:
        added = _Added()
        await node.blobs().add_from_path(file, True, iroh.SetTagOption.auto(), iroh.WrapOption.no_wrap(), added)
        ticket = await node.blobs().share(added.hash, iroh.BlobFormat.RAW, iroh.AddrInfoOptions.ADDRESSES)
        tickets.append(str(ticket))
    print(json.dumps(tickets), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await node.node().shutdown()


async def _get(folder: str, tickets: list[str]) -> None:
    node = await _node(folder)
    began = time.perf_counter()
    for text in tickets:
        ticket = iroh.BlobTicket(text)
        await node.blobs().download(ticket.hash(), ticket.as_download_options(), _Silent())
    print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)
    await node.node().shutdown()


def main() -> None:
    """See the module's docstring."""
    what, folder = sys.argv[1:3]
    Path(folder).mkdir(parents=True, exist_ok=True)
    if what == "serve":
        asyncio.run(_serve(folder, sys.argv[3:]))
    else:
        asyncio.run(_get(folder, json.load(sys.stdin)))


if __name__ == "__main__":
    main()
