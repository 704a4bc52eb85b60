"""What a fetch may cost this machine: a full disk stops it with a clear word, and memory stays bounded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from market.model import PIECE_SIZE
from market.swarm import hash_file
from tests.fakes.blob_servers import BlobServer, Faults
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
status = Path("/proc/self/status").read_text().split()
before = int(status[status.index("VmHWM:") + 1])
with open_store(Path(folder)) as store:
    try:
        report = trio.run(lambda: fetch_blob(store, blob, [Source(url, SourceKind.ORIGIN)],
                                             addresses=AddressPolicy(allow_private=True)))
        # Not ru_maxrss, which outlives exec and knows the parent's memory, too. proc(5)
        status = Path("/proc/self/status").read_text().split()
        peak = int(status[status.index("VmHWM:") + 1])
        print(json.dumps({"resumed": report.resumed, "grown_kib": peak - before, "peak_kib": peak}))
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


def test_a_file_system_that_others_fill_during_a_fetch_stops_it_and_it_goes_on_later(tmp_path: Path) -> None:  # R-SW5
    data = some_bytes(20 * PIECE_SIZE)
    ref = publish(tmp_path / "published", data).to_json()
    small = tmp_path / "small"
    small.mkdir()
    with BlobServer(tmp_path / "published", Faults(rate=25e6)) as server:
        unshare = ["unshare", "--mount", "--map-root-user"] if os.geteuid() else ["unshare", "--mount"]
        script = 'mount -t tmpfs -o size=40m none "$1" && shift 1 && exec "$@"'
        child = subprocess.run(
            [
                *(*unshare, "sh", "-c", script, "sh", str(small)),
                *(sys.executable, "-c", FILLED, str(small), server.url, json.dumps(ref)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    assert child.returncode == 0, child.stderr
    answer = json.loads(child.stdout)
    assert answer["kind"] == "store-full"
    assert "no room left" in answer["text"]
    assert answer["resumed"] >= 4 * PIECE_SIZE
    assert answer["verified"] is True


def test_a_large_blob_arrives_in_bounded_memory(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    (folder / "blobs").mkdir(parents=True)
    sparse = folder / "blobs" / "sparse"
    with sparse.open("wb") as file:
        file.truncate(256 * PIECE_SIZE)
    ref, pieces = hash_file(sparse)
    assert ref.pieces is not None
    assert pieces is not None
    sparse.rename(folder / "blobs" / ref.blake3.hex)
    (folder / "blobs" / ref.pieces.hex).write_bytes(pieces)
    with BlobServer(folder) as server:
        answer = _fetch(tmp_path / "store", server.url, ref.to_json())
    assert isinstance(answer["peak_kib"], int)
    assert answer["peak_kib"] < 150 * 1000, "the whole process, interpreter and libraries included"


FILLED = """
import json, os, sys
from pathlib import Path
import trio
from market.errors import Problem
from market.model import BlobRef, Digest
from market.swarm import AddressPolicy, Source, SourceKind, fetch_blob, open_store

folder, url, ref = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
blob = BlobRef(Digest(ref["blake3"]), ref["size"], Digest(ref["pieces"]))
source = [Source(url, SourceKind.ORIGIN)]

def fill(progress):
    if progress.done >= 4 << 20 and not (folder / "filler").exists():
        with (folder / "filler").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass

with open_store(folder / "store") as store:
    policy = AddressPolicy(allow_private=True)
    try:
        trio.run(lambda: fetch_blob(store, blob, source, on_progress=fill, addresses=policy))
        sys.exit("the disk was full, and nobody noticed")
    except Problem as problem:
        told = {"kind": problem.kind, "text": str(problem)}
    (folder / "filler").unlink()
    report = trio.run(lambda: fetch_blob(store, blob, source, addresses=policy))
    store.verify(blob)
    print(json.dumps({**told, "resumed": report.resumed, "verified": True}))
"""
