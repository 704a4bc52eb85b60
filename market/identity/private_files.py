"""Files that only their owner may read, written whole or not at all.

Guarantees: a folder of mode 0700, files of mode 0600, each written to a temporary name, flushed to disk, and renamed.
A file or folder that others can read is refused with the command that mends it, never silently used.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from market.errors import EnvironmentLacks, Problem, Refused

MAX_FILE_SIZE: Final = 1024 * 1024
"""A key is 60 bytes, a ledger of a thousand apps some 200 KiB; anything larger is not ours."""


class LaxPermissions(Refused):
    """Private material that others could have read."""

    kind = "lax-permissions"


class NoSuchFile(Problem):
    """A file of the identity that is not on this machine."""

    kind = "no-such-file"


def make_private_folder(folder: Path) -> None:
    """Create the folder with mode 0700, parents as usual. Raises EnvironmentLacks when the place can not be written."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise cannot_write(folder, error) from error


def write_private(path: Path, data: bytes) -> None:
    """Order: temporary file with its bytes on disk, rename, folder on disk. A kill leaves the old file or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(
            OSError
        ):  # what can not be written may not be removable either; the first fault is the one to tell
            temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def read_private(path: Path) -> bytes:
    """The bytes of a file that only its owner can read. Raises LaxPermissions, NoSuchFile or Refused."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a FIFO does not wait for its writer
    except FileNotFoundError as error:
        raise NoSuchFile("the file is not here", where=str(path)) from error
    except OSError as error:
        raise EnvironmentLacks(f"can not be read: {error.strerror}", where=str(path)) from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise Refused("not a file", where=str(path), remedy="restore it from a backup")
        _require_private(path, found, 0o600)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(MAX_FILE_SIZE + 1)
    except OSError as error:
        raise EnvironmentLacks(f"can not be read: {error.strerror}", where=str(path)) from error
    finally:
        os.close(descriptor)
    if len(data) > MAX_FILE_SIZE:
        raise Refused(f"larger than {MAX_FILE_SIZE} bytes", where=str(path))
    return data


def require_private_folder(folder: Path) -> None:
    """Raises NoSuchFile when it is not there, LaxPermissions when others may enter it, Refused when it is no folder."""
    try:
        found = folder.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NoSuchFile("there is no identity here", where=str(folder), remedy="archy id init") from error
    except OSError as error:
        raise EnvironmentLacks(f"can not be read: {error.strerror}", where=str(folder)) from error
    if not stat.S_ISDIR(found.st_mode):
        raise Refused("not a folder", where=str(folder), remedy="move it away, or choose another --home")
    _require_private(folder, found, 0o700)


def is_free(folder: Path) -> bool:
    """Whether a folder may be put there: there is none, or an empty one. Raises EnvironmentLacks, Refused."""
    try:
        return not any(folder.iterdir())
    except FileNotFoundError:
        return True
    except NotADirectoryError as error:
        if not folder.exists():
            return True  # what is above it is no folder: making it will say so
        raise Refused("not a folder", where=str(folder), remedy="move it away, or choose another --home") from error
    except OSError as error:
        raise EnvironmentLacks(
            f"can not be read: {error.strerror}", where=str(folder), remedy="choose another --home"
        ) from error


def sync_folder(folder: Path) -> None:
    """Make renames inside the folder durable (fsync(2))."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _require_private(path: Path, found: os.stat_result, mode: int) -> None:
    have = stat.S_IMODE(found.st_mode)
    if have & ~mode:
        raise LaxPermissions(
            f"mode {have:04o} lets others at private keys", where=str(path), remedy=f"chmod {mode:o} {path}"
        )
    if found.st_uid != os.geteuid() and os.geteuid() != 0:
        raise LaxPermissions("belongs to another user", where=str(path), remedy=f"chown {os.geteuid()} {path}")


def cannot_write(path: Path, error: OSError) -> EnvironmentLacks:
    """What to tell of a place that can not be written."""
    return EnvironmentLacks(
        f"can not be written: {error.strerror}", where=str(path), remedy="make room, or choose another --home"
    )
