"""What a fetch may cost this machine: a full disk stops it with a clear word, and memory stays bounded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from market.model import PIECE_SIZE
from tests.fakes.blob_servers import BlobServer
from tests.market.swarm.published import publish, some_bytes

FETCH = """
import json, os, resource, sys
from pathlib import Path
import trio
from market.errors import Problem
from market.model import BlobRef, Digest
from market.swarm import AddressPolicy, Source, SourceKind, fetch_blob, open_store

folder, url, ref, file_limit = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
if file_limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
blob = BlobRef(Digest(ref["blake3"]), ref["size"], Digest(ref["pieces"]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with open_store(Path(folder)) as store:
    try:
        report = trio.run(lambda: fetch_blob(store, blob, [Source(url, SourceKind.ORIGIN)],
                                             addresses=AddressPolicy(allow_private=True)))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(json.dumps({"resumed": report.resumed, "grown_kib": grown}))
    except Problem as problem:
        print(json.dumps({"kind": problem.kind, "text": str(problem), "exit_code": problem.exit_code}))
"""


def _fetch(store: Path, url: str, ref: object, file_limit: int = 0) -> dict[str, object]:
    child = subprocess.run(
        [sys.executable, "-c", FETCH, str(store), url, json.dumps(ref), str(file_limit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    answer: dict[str, object] = json.loads(child.stdout)
    return answer


def test_a_disk_that_fills_up_during_a_fetch_loses_nothing_that_was_verified(tmp_path: Path) -> None:  # R-SW5
    data = some_bytes(6 * PIECE_SIZE)
    ref = publish(tmp_path / "published", data).to_json()
    with BlobServer(tmp_path / "published") as server:
        full = _fetch(tmp_path / "store", server.url, ref, file_limit=3 * PIECE_SIZE + 500_000)
        assert full["kind"] == "store-full"
        assert full["exit_code"] == 4
        assert "no room left" in str(full["text"])
        assert str(tmp_path / "store") in str(full["text"])
        assert _fetch(tmp_path / "store", server.url, ref)["resumed"] == 3 * PIECE_SIZE


def test_a_fetch_into_a_small_file_system_is_refused_before_it_begins(tmp_path: Path) -> None:  # R-SW5
    ref = publish(tmp_path / "published", bytes(24 * PIECE_SIZE)).to_json()
    small = tmp_path / "small"
    small.mkdir()
    with BlobServer(tmp_path / "published") as server:
        unshare = ["unshare", "--mount", "--map-root-user"] if os.geteuid() else ["unshare", "--mount"]
        script = 'mount -t tmpfs -o size=32m none "$1" && shift 1 && exec "$@"'
        child = subprocess.run(
            [
                *(*unshare, "sh", "-c", script, "sh", str(small)),
                *(sys.executable, "-c", FETCH, str(small / "store"), server.url, json.dumps(ref), "0"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    assert child.returncode == 0, child.stderr
    assert "more bytes are needed" in json.loads(child.stdout)["text"]


def test_memory_does_not_grow_with_the_blob(tmp_path: Path) -> None:
    ref = publish(tmp_path / "published", bytes(96 * PIECE_SIZE)).to_json()
    with BlobServer(tmp_path / "published") as server:
        answer = _fetch(tmp_path / "store", server.url, ref)
    assert isinstance(answer["grown_kib"], int)
    assert answer["grown_kib"] < 24 * 1024, "some buffers of a piece, threads, and no more"
