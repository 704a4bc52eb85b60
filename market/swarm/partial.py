"""A blob that is not complete yet: its data file and the bitmap of its verified pieces.

Order of writes, always: pwrite(data) -> fdatasync(data) -> bitmap to a temporary file -> fdatasync -> rename ->
fsync(folder). The bitmap may lag the data and never leads it. On opening, pieces that the bitmap lacks are looked for
in the data and hashed, so that a SIGKILL costs no piece that was written, and a damaged bitmap costs a read.

Finish: fchmod 0444 and fsync(data) -> whole digest -> rename to its place -> fsync(folder) -> unlink(bitmap).
The caller computes the whole digest between `seal` and `publish`. It refuses to know where pieces come from.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType

from blake3 import blake3

from market.model import Digest
from market.swarm.disk import Disk, told
from market.swarm.errors import StoreFull, StoreUnusable
from market.swarm.pieces import Bitmap, DamagedBitmap, PieceTable

ROOM_TO_SPARE = 16 * 1024 * 1024
"""Bytes that must stay free beside a fetch: bitmaps, the index and other parts of the node write too."""


class Partial:
    """One open partial. Pieces may be written from several threads; everything else is the owner's."""

    def __init__(
        self, disk: Disk, folder: Path, name: Digest, table: PieceTable, *, on_close: Callable[[], None]
    ) -> None:
        self._on_close = on_close
        self._disk = disk
        self._folder = folder
        self._name = name
        self.table = table
        self.data_path = folder / f"{name.hex}.data"
        self._bits_path = folder / f"{name.hex}.bits"
        self._lock = threading.Lock()
        self._fd = disk.reopen(self.data_path)
        try:
            self.have = self._recover()
            self._check_room()
        except BaseException:
            os.close(self._fd)
            raise
        self.resumed_bytes = self.verified_bytes
        self._recorded = len(self.have)

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; what was written stays for the next attempt. The partial is dead afterwards."""
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
            self._on_close()

    @property
    def verified_bytes(self) -> int:
        full = len(self.have) * self.table.piece_size
        last = self.table.count - 1
        return full - (self.table.piece_size - self.table.length(last) if last in self.have else 0)

    @property
    def unrecorded_pieces(self) -> int:
        """Pieces that the bitmap on disk does not know of yet."""
        return len(self.have) - self._recorded

    def write(self, index: int, data: memoryview) -> bool:
        """Store one piece that the caller has verified. False if it was there already. Raises StoreFull."""
        with self._lock:
            if index in self.have:
                return False
        self._disk.pwrite(self._fd, data, self.table.offset(index), self.data_path)
        with self._lock:
            return self.have.add(index)

    def has_bytes(self, offset: int, length: int) -> bool:
        """Whether every piece that these bytes touch is verified and written. Any thread."""
        first, last = offset // self.table.piece_size, (offset + length - 1) // self.table.piece_size
        with self._lock:
            return self._fd >= 0 and all(index in self.have for index in range(first, last + 1))

    def bitmap_bytes(self) -> bytes:
        """Which pieces are verified and written, in the form they are recorded in. Any thread."""
        with self._lock:
            return self.have.to_bytes(self._name)

    def read(self, index: int) -> bytes:
        """The bytes of one piece as they are on disk now; shorter where the file ends."""
        with told(self.data_path):
            return os.pread(self._fd, self.table.length(index), self.table.offset(index))

    def read_into(self, index: int, buffer: memoryview) -> memoryview:
        """As `read`, into memory that is there already: a fresh megabyte costs as much as reading it."""
        with told(self.data_path):
            got = os.preadv(self._fd, [buffer[: self.table.length(index)]], self.table.offset(index))
        return buffer[:got]

    def checkpoint(self) -> None:
        """Record every piece written so far. Blocks on the disk; call it from a worker thread."""
        with self._lock:
            snapshot = self.have.copy()
        if len(snapshot) == self._recorded:
            return
        self._disk.sync_data(self._fd, self.data_path)
        self._write_bitmap(snapshot)
        self._recorded = len(snapshot)

    def forget(self, pieces: Iterable[int]) -> None:
        """Take back pieces whose bytes turned out to be damaged on this disk."""
        with self._lock:
            for index in pieces:
                self.have.discard(index)
            snapshot = self.have.copy()
        self._write_bitmap(snapshot)
        self._recorded = len(snapshot)

    def damaged(self) -> list[int]:
        """Pieces that count as verified and no longer hash to the list."""
        return [index for index in self.have if not self._piece_matches(index)]

    def seal(self) -> None:
        """First step of finishing: every byte is durable and nobody writes any more."""
        self._disk.seal(self._fd, self.data_path)

    def publish(self, target: Path) -> None:
        """Last steps: the data gets its place in the store; only then the bitmap goes."""
        self._disk.rename(self.data_path, target)
        self._disk.sync_folder(target.parent)
        self._disk.unlink(self._bits_path)
        self.close()

    def discard(self) -> None:
        self._disk.unlink(self._bits_path)
        self._disk.unlink(self.data_path)
        self.close()

    def _write_bitmap(self, bitmap: Bitmap) -> None:
        temporary = self._bits_path.with_suffix(".bits.tmp")
        self._disk.unlink(temporary)
        fd = self._disk.create(temporary)
        try:
            self._disk.pwrite(fd, bitmap.to_bytes(self._name), 0, temporary)
            self._disk.sync_data(fd, temporary)
        finally:
            os.close(fd)
        self._disk.rename(temporary, self._bits_path)
        self._disk.sync_folder(self._folder)

    def _recover(self) -> Bitmap:
        with told(self.data_path):
            os.fchmod(self._fd, 0o600)
            present = os.fstat(self._fd).st_size
            if present > self.table.size:
                # Not ours, or a reference that was smaller: bytes past the end must not reach the finished blob.
                os.ftruncate(self._fd, self.table.size)
        try:
            bitmap = Bitmap.from_bytes(self._stored_bits(), self._name, self.table.count)
        except DamagedBitmap:
            bitmap = Bitmap(self.table.count)
        for index in list(bitmap):
            if self.table.offset(index) + self.table.length(index) > present:
                bitmap.discard(index)
        for index in self._written_pieces(present):
            if index not in bitmap and self._piece_matches(index):
                bitmap.add(index)
        return bitmap

    def _stored_bits(self) -> bytes:
        """The bitmap file, cut one byte after the length it may have: whatever lies there, memory stays bounded."""
        limit = len(Bitmap(self.table.count).to_bytes(self._name)) + 1
        try:
            with told(self._bits_path), self._bits_path.open("rb") as file:
                return file.read(limit)
        except StoreUnusable:
            return b""

    def _written_pieces(self, present: int) -> Iterator[int]:
        """Indices of the pieces that have some data on disk; holes of the sparse file are passed over. lseek(2)"""
        offset = 0
        while offset < present:
            try:
                start = os.lseek(self._fd, offset, os.SEEK_DATA)
            except OSError as fault:
                if fault.errno == errno.ENXIO:
                    return
                raise
            end = os.lseek(self._fd, start, os.SEEK_HOLE)
            first = max(start, offset) // self.table.piece_size
            last = min(-(-end // self.table.piece_size), self.table.count)
            yield from range(first, last)
            offset = last * self.table.piece_size

    def _piece_matches(self, index: int) -> bool:
        data = self.read(index)
        return len(data) == self.table.length(index) and self.table.matches(index, blake3(data).digest())

    def _check_room(self) -> None:
        with told(self._folder):
            room = os.fstatvfs(self._fd)
        needed = self.table.size - self.verified_bytes
        free = room.f_bavail * room.f_frsize
        if needed + ROOM_TO_SPARE > free:
            raise StoreFull(
                f"{needed} more bytes are needed and {free} are free",
                where=str(self._folder),
                remedy="free some space, or collect blobs that nothing uses",
            )
