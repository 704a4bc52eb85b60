"""A process that acquires a release and kills itself at a given point: `python -m tests.market.acquire_child ...`.

Arguments: the node's folder, a JSON file with the release, the origin's URL, and where to die: a step, `link:N`, or
`never`. Prints the report as JSON when it lives.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import trio

from market.acquire import AcquireProgress, acquire
from market.model import AppName, Digest, Release
from market.swarm import AddressPolicy, Fetcher, Source, SourceKind, Store
from market.swarm.disk import Disk


class MortalStore(Store):
    """Dies after so many links."""

    links_to_live = 1 << 30

    def link(self, digest: Digest, dest: Path) -> None:
        super().link(digest, dest)
        self.links_to_live -= 1
        if not self.links_to_live:
            die()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def read_release(path: Path) -> Release:
    body = json.loads(path.read_text())
    return Release(
        AppName(body["publisher"], body["id"]), body["version"], 1, Digest(body["digest"]), body["manifest"], ()
    )


async def main(home: Path, release: Release, origin: str, until: str) -> None:

    def watch(progress: AcquireProgress) -> None:
        if progress.step.value == until:
            die()

    store = MortalStore(home / "blobs", Disk())
    with store:
        if until.startswith("link:"):
            store.links_to_live = int(until.removeprefix("link:"))
        with Fetcher(store, [Source(origin, SourceKind.ORIGIN)], AddressPolicy(allow_private=True)) as fetcher:
            found = await acquire(release, fetcher, store, home / "bundles", arch="amd64", on_progress=watch)
    print(json.dumps(found.report.to_json()))


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), read_release(Path(sys.argv[2])), sys.argv[3], sys.argv[4])
