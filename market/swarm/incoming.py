"""New files on their way to their place in the store.

Guarantees: a file has its place only after its bytes are durable: write -> fchmod 0444 and fsync -> rename -> fsync of
the folder, for one and for many; what does not get that far is removed. It refuses to know which
place is whose: the caller has verified what it brings.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from market.model import Digest
from market.swarm.disk import Disk


class Receiving:
    """Bytes on their way into the store, in order."""

    def __init__(self, disk: Disk, fd: int, path: Path, place: Callable[[Digest], None]) -> None:
        self._disk = disk
        self._fd = fd
        self._path = path
        self._place = place
        self._size = 0

    def write(self, data: memoryview) -> None:
        """Append. Raises StoreFull."""
        self._disk.pwrite(self._fd, data, self._size, self._path)
        self._size += len(data)

    def keep(self, digest: Digest) -> None:
        """Everything is there, and the caller has seen that it hashes to `digest`."""
        self._place(digest)


class Incoming:
    """The folder of temporary files. Threads may share it."""

    def __init__(self, disk: Disk, folder: Path) -> None:
        self._disk = disk
        self._folder = folder
        self._names = iter(range(1 << 62))

    @contextmanager
    def temporary(self) -> Iterator[tuple[int, Path]]:
        """A new file; gone at the end, unless it was renamed."""
        path = self._new_path()
        fd = self._disk.create(path)
        try:
            yield fd, path
        finally:
            os.close(fd)
            path.unlink(missing_ok=True)

    def place(self, fd: int, temporary: Path, place: Path) -> None:
        """Give a temporary file its place."""
        self._disk.seal(fd, temporary)
        self._disk.make_folder(place.parent)
        self._disk.rename(temporary, place)
        self._disk.sync_folder(place.parent)

    def bring(self, files: Iterable[tuple[Path, str, bytes | bytearray | memoryview]]) -> None:
        """Write several files to their folders and names, with one fsync for all that share a folder."""
        sealed: list[tuple[Path, Path]] = []
        folders: dict[Path, None] = {}
        try:
            for folder, name, data in files:
                sealed.append((self._new_path(), folder / name))
                folders[folder] = None
                self._write_sealed(sealed[-1][0], data)
            self._disk.make_folders(folders)
            while sealed:
                self._disk.rename(*sealed[-1])
                sealed.pop()
            for folder in folders:
                self._disk.sync_folder(folder)
        finally:
            for temporary, _ in sealed:
                temporary.unlink(missing_ok=True)

    def _write_sealed(self, path: Path, data: bytes | bytearray | memoryview) -> None:
        fd = self._disk.create(path)
        try:
            self._disk.pwrite(fd, data, 0, path)
            self._disk.seal(fd, path)
        finally:
            os.close(fd)

    def _new_path(self) -> Path:
        return self._folder / f"{os.getpid()}-{next(self._names)}"
