"""Generated secrets: made once, kept as 0600 files, given to Podman by name (R-MF3).

Guarantees: an existing value is never made again or changed; a crash leaves the old value or the new one whole;
drifted permissions are put right. A secret is data: it stays until the operator removes the app's data.
"""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from apps.manifest_parts import GeneratedSecret
from apps.names import AppName
from apps.problems import Problem

MAX_SECRET: Final = 4096
"""The longest secret a manifest may ask for, encoded, with room to spare."""


class SecretFiles:
    """`<folder>/<slug>/<name>`."""

    def __init__(self, folder: Path, random: Callable[[int], bytes] = os.urandom) -> None:
        self._folder = folder
        self._random = random

    def ensure(self, app: AppName, secret: GeneratedSecret) -> bytes:
        """The value, made now if there is none. Raises Problem."""
        folder = self._folder / app.slug
        path = folder / secret.name
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.mkdir(exist_ok=True, mode=0o700)
            folder.chmod(0o700)
            if not path.exists():
                _write_once(path, encode(self._random(secret.bytes), secret.encoding))
            if path.stat().st_mode & 0o777 != 0o600:
                path.chmod(0o600)
            with path.open("rb") as file:
                return file.read(MAX_SECRET)
        except OSError as error:
            raise Problem(
                f"the secret can not be stored: {error.strerror}",
                where=str(path),
                remedy="free space, or make the folder writable for this user",
            ) from error

    def known(self, app: AppName) -> frozenset[str]:
        """Names of the secrets that have been made."""
        folder = self._folder / app.slug
        return (
            frozenset(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
            if (folder.is_dir())
            else frozenset()
        )

    def read(self, app: AppName) -> dict[str, str]:
        """Every secret that has been made, as text. Raises Problem."""
        try:
            return {
                name: (self._folder / app.slug / name).read_bytes()[:MAX_SECRET].decode() for name in self.known(app)
            }
        except OSError as error:
            raise Problem(f"a secret can not be read: {error.strerror}", where=str(self._folder / app.slug)) from error

    def remove(self, app: AppName, names: frozenset[str] | None = None) -> None:
        """Remove an app's secrets: all of them, or those named."""
        folder = self._folder / app.slug
        if not folder.is_dir():
            return
        if names is None:
            shutil.rmtree(folder)
            return
        for name in names:
            (folder / name).unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def encode(raw: bytes, encoding: str) -> bytes:
    """Random bytes as text: hex, base64 or base64url without padding."""
    match encoding:
        case "hex":
            return raw.hex().encode()
        case "base64":
            return base64.b64encode(raw)
        case _:
            return base64.urlsafe_b64encode(raw).rstrip(b"=")


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
