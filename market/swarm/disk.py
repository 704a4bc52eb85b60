"""The store's writes, one method per durable step, so that a test can end the process between any two of them.

Guarantees: every method is one step of the order of writes that `store` states; a foreign OSError leaves here as a
Problem that names the path. It refuses to know what a blob or a piece is.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from market.errors import Problem
from market.swarm.errors import StoreFull, StoreUnusable

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Translate an OSError of the store's own folder into a Problem."""
    try:
        yield
    except OSError as fault:
        raise problem_of(fault, path) from fault


def problem_of(fault: OSError, path: Path) -> Problem:
    if fault.errno in _NO_ROOM:
        return StoreFull(
            f"no room left ({fault.strerror})", where=str(path), remedy="free some space, or move the node's folder"
        )
    return StoreUnusable(
        f"{fault.strerror or fault}", where=str(path), remedy="the folder must be readable and writable for this user"
    )


class Disk:
    """The real one. A test may pass a subclass that does something before or after a step."""

    def create(self, path: Path) -> int:
        """Open a new file for writing and reading, 0600; never through a symbolic link."""
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as fault:
            raise problem_of(fault, path) from fault

    def reopen(self, path: Path) -> int:
        """Open a data file that may exist already, 0600; never through a symbolic link."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with told(path):
            try:
                return os.open(path, flags, 0o600)
            except PermissionError:
                # A kill between seal and rename left it read-only.
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    os.fchmod(fd, 0o600)
                finally:
                    os.close(fd)
                return os.open(path, flags, 0o600)

    def pwrite(self, fd: int, data: bytes | bytearray | memoryview, offset: int, path: Path) -> None:
        """Write all of `data` at `offset`."""
        view = memoryview(data)
        try:
            while view:
                written = os.pwrite(fd, view, offset)
                view = view[written:]
                offset += written
        except OSError as fault:
            raise problem_of(fault, path) from fault

    def sync_data(self, fd: int, path: Path) -> None:
        with told(path):
            os.fdatasync(fd)

    def seal(self, fd: int, path: Path) -> None:
        """Make a complete file read-only and durable, metadata included."""
        try:
            os.fchmod(fd, 0o444)
            os.fsync(fd)
        except OSError as fault:
            raise problem_of(fault, path) from fault

    def rename(self, source: Path, target: Path) -> None:
        try:
            os.rename(source, target)
        except OSError as fault:
            raise problem_of(fault, target) from fault

    def sync_folder(self, folder: Path) -> None:
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as fault:
            raise problem_of(fault, folder) from fault

    def make_folder(self, folder: Path) -> None:
        """Create a folder (0700) whose parent exists, durably; nothing if it is there."""
        if folder.is_dir():
            return
        with told(folder):
            folder.mkdir(mode=0o700, exist_ok=True)
        self.sync_folder(folder.parent)

    def make_folders(self, folders: Iterable[Path]) -> None:
        """The same for several, with one fsync for all that share a parent."""
        missing = [folder for folder in folders if not folder.is_dir()]
        for folder in missing:
            with told(folder):
                folder.mkdir(mode=0o700, exist_ok=True)
        for parent in dict.fromkeys(folder.parent for folder in missing):
            self.sync_folder(parent)

    def unlink(self, path: Path) -> None:
        with told(path):
            path.unlink(missing_ok=True)
