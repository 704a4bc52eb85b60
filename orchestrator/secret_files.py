"""Generated secrets: made once, kept as 0600 files, given to Podman by name (R-MF3).

`<folder>/<slug>/<name>` holds the first value of a secret, `<name>.<turn>` one that was rotated, and `.<file>.sum`
beside it the SHA-256 of the value, so that a file that was cut, edited or lost is known from a good one. Guarantees:
an existing value is never made again or changed; a crash leaves the old value or the new one whole; drifted
permissions are put right. A secret is data: it stays until the operator removes the app's data.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from apps.manifest_parts import GeneratedSecret
from apps.names import AppName
from apps.problems import Problem

MAX_SECRET: Final = 4096
"""The longest secret a manifest may ask for, encoded, with room to spare."""

_ENTRY = re.compile(r"(?P<sum>\.)?(?P<name>[a-z][a-z0-9-]*)(?:\.(?P<turn>[1-9][0-9]{0,8}))?(?P<end>\.sum)?")
_VALUE = re.compile(rb"[!-~]{1,4096}")
"""What `encode` writes, whatever the encoding."""


class SecretFiles:
    """The folder. A turn counts how often a secret was rotated; the highest is the one that holds."""

    def __init__(self, folder: Path, random: Callable[[int], bytes] = os.urandom) -> None:
        self._folder = folder
        self._random = random

    def ensure(self, app: AppName, secret: GeneratedSecret) -> bytes:
        """The value, made now if there never was one. Raises Problem; also when it was made once and is lost."""
        if secret.name not in self.known(app):
            self._write(app, secret.name, 0, encode(self._random(secret.bytes), secret.encoding))
        return self.value(app, secret.name)

    def value(self, app: AppName, name: str) -> bytes:
        """The value that holds. Raises Problem when it is lost or damaged."""
        value = self._whole(app, name, self.turns(app).get(name, 0))
        if value is None:
            raise lost(app, name)
        return value

    def turns(self, app: AppName) -> Mapping[str, int]:
        """The turn that holds, of every secret that was made; what is lost counts too."""
        return _newest(self._entries(app))

    def known(self, app: AppName) -> frozenset[str]:
        """Names of the secrets that have been made."""
        return frozenset(self.turns(app))

    def read(self, app: AppName) -> dict[str, str]:
        """Every secret that is whole, as text."""
        values = {name: self._whole(app, name, turn) for name, turn in self.turns(app).items()}
        return {name: value.decode() for name, value in sorted(values.items()) if value is not None}

    def ailing(self, app: AppName, names: Iterable[str]) -> tuple[str, ...]:
        """Those of the names whose value is lost or damaged; permissions that have drifted are put right on the way."""
        folder, entries = self._folder / app.slug, self._entries(app)
        _private(folder, 0o700)
        for name, turn in entries:
            _private(folder / file_of(name, turn), 0o600)
        turns = _newest(entries)
        return tuple(name for name in names if self._whole(app, name, turns.get(name, 0)) is None)

    def restore(self, app: AppName, name: str, turn: int, value: bytes) -> bool:
        """Take a value back from where a copy of it was; False when it is not the one that was lost."""
        if not _VALUE.fullmatch(value) or self._sum(app, name, turn) not in ("", _sum_of(value)):
            return False
        (self._folder / app.slug / file_of(name, turn)).unlink(missing_ok=True)
        self._write(app, name, turn, value)
        return True

    def rotate(self, app: AppName, secret: GeneratedSecret) -> None:
        """A new value in the next turn; the old one stays until `settle`. Raises Problem."""
        turn = self.turns(app).get(secret.name, 0) + 1
        self._write(app, secret.name, turn, encode(self._random(secret.bytes), secret.encoding))

    def turn_back(self, app: AppName, name: str) -> None:
        """The newest value never was; the one before holds again."""
        turn = self.turns(app).get(name, 0)
        if turn:
            self._unlink(app, name, turn)

    def settle(self, app: AppName) -> None:
        """Forget the values that were rotated away, where the newest is whole."""
        for name, newest in self.turns(app).items():
            if self._whole(app, name, newest) is not None:
                for turn in {turn for other, turn in self._entries(app) if other == name} - {newest}:
                    self._unlink(app, name, turn)

    def remove(self, app: AppName, names: frozenset[str] | None = None) -> None:
        """Remove an app's secrets: all of them, or those named."""
        folder = self._folder / app.slug
        if not folder.is_dir():
            return
        if names is None:
            shutil.rmtree(folder)
            return
        for name, turn in self._entries(app):
            if name in names:
                self._unlink(app, name, turn)
        if not any(folder.iterdir()):
            folder.rmdir()

    def _entries(self, app: AppName) -> tuple[tuple[str, int], ...]:
        """(name, turn) of every value that is there or was."""
        try:
            entries = [entry.name for entry in os.scandir(self._folder / app.slug)]
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise Problem(f"secrets can not be read: {error.strerror}", where=str(self._folder / app.slug)) from error
        found = (_ENTRY.fullmatch(entry) for entry in entries)
        return tuple(
            sorted({(m["name"], int(m["turn"] or 0)) for m in found if m and bool(m["sum"]) == bool(m["end"])})
        )

    def _whole(self, app: AppName, name: str, turn: int) -> bytes | None:
        """The value, or None when it is not what was written. A link is never followed."""
        path = self._folder / app.slug / file_of(name, turn)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                value = file.read(MAX_SECRET + 1)
        except OSError:
            return None
        whole = _VALUE.fullmatch(value) and self._sum(app, name, turn) in ("", _sum_of(value))
        return value if whole else None

    def _sum(self, app: AppName, name: str, turn: int) -> str:
        try:
            return (self._folder / app.slug / f".{file_of(name, turn)}.sum").read_text(errors="replace")[:64]
        except OSError:
            return ""

    def _write(self, app: AppName, name: str, turn: int, value: bytes) -> None:
        """The value first: a sum without its value would tell of a loss that never was."""
        folder = self._folder / app.slug
        path = folder / file_of(name, turn)
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.mkdir(exist_ok=True, mode=0o700)
            folder.chmod(0o700)
            _write_once(path, value)
            _write_once(folder / f".{path.name}.sum", _sum_of(value).encode())
        except OSError as error:
            raise Problem(
                f"the secret can not be stored: {error.strerror}",
                where=str(path),
                remedy="free space, or make the folder writable for this user",
            ) from error

    def _unlink(self, app: AppName, name: str, turn: int) -> None:
        path = self._folder / app.slug / file_of(name, turn)
        try:
            path.with_name(f".{path.name}.sum").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            sync_folder(path.parent)
        except OSError as error:
            raise Problem(f"the secret can not be removed: {error.strerror}", where=str(path)) from error


def lost(app: AppName, name: str) -> Problem:
    """A value that was made once and is nowhere any more; another one is only made by the operator's word."""
    return Problem(
        f"the secret {name} is lost or damaged, and Podman does not have it either",
        where=app.id,
        remedy=f"restore it from a backup of the node's home, or: archy secrets rotate {app.id} {name}",
    )


def file_of(name: str, turn: int) -> str:
    """The file of a secret's value."""
    return f"{name}.{turn}" if turn else name


def encode(raw: bytes, encoding: str) -> bytes:
    """Random bytes as text: hex, base64 or base64url without padding."""
    match encoding:
        case "hex":
            return raw.hex().encode()
        case "base64":
            return base64.b64encode(raw)
        case _:
            return base64.urlsafe_b64encode(raw).rstrip(b"=")


def _sum_of(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()


def _newest(entries: Iterable[tuple[str, int]]) -> dict[str, int]:
    return dict(sorted(entries))  # the last one of a name wins


def _private(path: Path, mode: int) -> None:
    try:
        if not path.is_symlink() and path.stat().st_mode & 0o777 != mode:
            path.chmod(mode)
    except OSError:
        return  # what is not there is told as lost


def _write_once(path: Path, value: bytes) -> None:
    """Temporary file, fsync, link: a value that is there wins, and half a value never is."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(value)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename or link in a folder survive power loss."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
