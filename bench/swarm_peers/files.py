"""Files to fetch and servers to fetch them from, for the benchmarks of the swarm."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from market.model import BlobRef
from market.swarm import PieceHasher, hash_file


def make_blob(root: Path, mib: int) -> BlobRef:
    """Random bytes and their piece list under root/blobs."""
    blobs = root / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    raw = blobs / "raw"
    with raw.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(1 << 20))
    ref, pieces = hash_file(raw)
    raw.rename(blobs / ref.blake3.hex)
    if ref.pieces is not None and pieces is not None:
        (blobs / ref.pieces.hex).write_bytes(pieces)
    return ref


def make_small_blobs(root: Path, count: int) -> tuple[BlobRef, ...]:
    """Blobs of 4 KiB under root/blobs."""
    blobs = root / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    refs = []
    for _ in range(count):
        data = os.urandom(4096)
        hasher = PieceHasher()
        hasher.update(data)
        ref, _ = hasher.finish()
        (blobs / ref.blake3.hex).write_bytes(data)
        refs.append(ref)
    return tuple(refs)


def touch_memory(folder: Path, mib: int) -> None:
    """A virtual machine's memory costs a fault of the host's when it is first used: let that happen before."""
    filler = folder / "filler"
    with filler.open("wb") as file:
        for _ in range(mib):
            file.write(bytes(1 << 20))
    filler.unlink()


@contextmanager
def server(root: Path, number: int, flags: Sequence[str] | None) -> Iterator[str]:
    """A server at 127.0.0.`number`, which other programs take for a host of its own; None: a port nobody listens at."""
    host = f"127.0.0.{number}"
    if flags is None:
        with socket.create_server((host, 0)) as freed:
            port = freed.getsockname()[1]
        yield f"http://{host}:{port}"
        return
    command = [sys.executable, "-m", "tests.fakes.blob_servers", "--root", str(root), "--listen", f"{host}:0", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
