"""A process that fetches, is killed before its n-th step on disk, and fetches again; for every n. Run by test_crash.

    python -m tests.market.swarm.killed FOLDER URL DIGEST SIZE PIECES

Writing and recording are threads of their own, so that a count of all steps meets another interleaving each time, and
another number of them: a second series of rounds counts the writes of pieces alone, a third what follows them. Prints
one JSON line per round: what was counted and to where, pieces that were written before the kill, bytes resumed, bytes
fetched afterwards. It forks before trio starts a thread, so that each round costs milliseconds and not an interpreter.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import trio

from market.model import PIECE_SIZE, BlobRef, Digest
from market.swarm import Fetcher, Source, SourceKind, Store, open_store
from market.swarm.disk import Disk
from tests.market.swarm.published import LOOPBACK

MAX_ROUNDS = 200
STEPS, PIECES, REST = "steps", "pieces", "rest"
"""What is counted: steps of any kind, writes of pieces only, steps after all pieces were written."""


class KillingDisk(Disk):
    """Ends the process with SIGKILL before a step, counted from 0; notes finished piece writes in a file."""

    def __init__(self, counted: str, number: int, notes: Path, pieces: int) -> None:
        self._counted = counted
        self._lacking = pieces
        self._left = number
        self._notes = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def _step(self, *, is_piece: bool = False) -> None:
        if (self._counted == PIECES and not is_piece) or (self._counted == REST and self._lacking):
            return
        self._left -= 1
        if self._left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def create(self, path: Path) -> int:
        self._step()
        return super().create(path)

    def reopen(self, path: Path) -> int:
        self._step()
        return super().reopen(path)

    def pwrite(self, fd: int, data: bytes | bytearray | memoryview, offset: int, path: Path) -> None:
        is_piece = path.suffix == ".data"
        self._step(is_piece=is_piece)
        super().pwrite(fd, data, offset, path)
        if is_piece:
            os.write(self._notes, b".")
            self._lacking -= 1

    def sync_data(self, fd: int, path: Path) -> None:
        self._step()
        super().sync_data(fd, path)

    def seal(self, fd: int, path: Path) -> None:
        self._step()
        super().seal(fd, path)

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        super().rename(source, target)

    def sync_folder(self, folder: Path) -> None:
        self._step()
        super().sync_folder(folder)

    def make_folder(self, folder: Path) -> None:
        self._step()
        super().make_folder(folder)

    def unlink(self, path: Path) -> None:
        self._step()
        super().unlink(path)


def _fetcher(store: Store, url: str) -> Fetcher:
    """With a checkpoint after every piece, so that each of its steps is a place to die too."""
    return Fetcher(store, [Source(url, SourceKind.ORIGIN)], LOOPBACK, checkpoint_bytes=1)


async def _fetch(root: Path, disk: Disk, url: str, ref: BlobRef) -> tuple[int, int]:
    with open_store(root, disk=disk) as store, _fetcher(store, url) as fetcher:
        report = await fetcher.fetch(ref)
        store.verify(ref)
        for blob in store.list():
            store.verify(BlobRef(blob.digest, blob.size, None if blob.size <= 1 << 20 else ref.pieces))
        return report.resumed, report.fetched


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a fork; its wait status."""
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def main() -> None:
    """All rounds."""
    folder, url, digest, size, pieces = sys.argv[1:]
    Path(folder).mkdir()
    ref = BlobRef(Digest(digest), int(size), Digest(pieces))
    for counted in (STEPS, PIECES, REST):
        _series(Path(folder), counted, url, ref)


def _series(folder: Path, counted: str, url: str, ref: BlobRef) -> None:
    """Rounds, until one is not killed any more."""
    pieces = -(-ref.size // PIECE_SIZE)
    for number in range(MAX_ROUNDS):
        root, notes = folder / f"{counted}-{number}", folder / f"{counted}-{number}.notes"

        def attempt(root: Path = root, notes: Path = notes, number: int = number) -> None:
            trio.run(_fetch, root, KillingDisk(counted, number, notes, pieces), url, ref)

        def again(root: Path = root, notes: Path = notes, number: int = number) -> None:
            resumed, fetched = trio.run(_fetch, root, Disk(), url, ref)
            told = {"counted": counted, "number": number, "written": notes.stat().st_size if notes.exists() else 0}
            print(json.dumps(told | {"resumed": resumed, "fetched": fetched}), flush=True)

        status = in_child(attempt)
        if status == 0:
            return
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL) or in_child(again) != 0:
            sys.exit(f"round {number} of {counted} went wrong")
    sys.exit("it never came to an end")


if __name__ == "__main__":
    main()
