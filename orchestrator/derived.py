"""Derived files: which an app is to have, and the folder that holds them (R-FM2).

Guarantees: a file is the old bytes or the new ones, never a part; folders are for the owner alone; a container that
has read older bytes is marked before its files change, so that a crash in between loses no restart. It holds
secrets: nothing of a file's content is ever shown.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from blake3 import blake3

from apps.manifest import Manifest
from apps.manifest_parts import Setting
from apps.manifest_values import parse_size
from apps.names import AppName
from apps.problems import Problem, Refused
from orchestrator.names import folder_of
from orchestrator.secret_files import sync_folder
from orchestrator.templates import MAX_TEMPLATE, MAX_TEXT, Facts, fill

PENDING: Final = ".pending"
"""Beside a container's folders: the container that has not seen its newest files yet, and what tells it."""
FOLDER_MODE: Final = 0o755
"""Inside the container other users than root read too; on the host the app's own folder keeps everybody out."""


@dataclass(frozen=True, slots=True)
class DerivedFile:
    """One file for one container. `path` is relative to the app's folder; `on_change`: restart, reload, none."""

    path: str
    container: str
    mode: int
    on_change: str
    content: bytes = field(repr=False)

    @property
    def mark(self) -> str:
        """What the planner compares with the disk."""
        return _mark(self.content, self.mode)


@dataclass(frozen=True, slots=True)
class DerivedSeen:
    """An app's folder: marks of files by path, and (container id, what to do) by container that waits for it."""

    files: Mapping[str, str] = field(default_factory=dict)
    pending: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def read_file(root: Path, manifest: Manifest, path: str, most: int = MAX_TEMPLATE) -> bytes:
    """One of the bundle's files, compared with what was signed (R-MF12). Raises Refused."""
    entry = manifest.files.get(path)
    where = str(root / "files" / path)
    try:
        with (root / "files" / path).open("rb") as file:
            raw = file.read(most + 1)
    except OSError as error:
        raise Refused(f"can not be read: {error.strerror}", where=where, remedy="install the app again") from error
    if len(raw) > most:
        raise Refused(f"more than {most} bytes", where=where, remedy="ask the publisher for a smaller one")
    if entry is None or blake3(raw).hexdigest() != entry.blake3:
        raise Refused("other bytes than were signed", where=where, remedy="install the app again")
    return raw


def facts(manifest: Manifest, secrets: Mapping[str, str], dependencies: Mapping[str, Any]) -> Facts:
    """What templates can read: app, settings (typed; sizes in bytes), secrets, ports, dependencies."""
    ports = {
        port.name: {"container": port.container, "host": port.host}
        for container in manifest.containers.values()
        for port in container.ports
    }
    return {
        "app": {"id": manifest.id, "version": manifest.version},
        "settings": {setting.name: _typed(setting) for setting in manifest.settings},
        "secrets": {secret.name: secrets[secret.name] for secret in manifest.generated_secrets},
        "ports": ports,
        "dependencies": dependencies,
    }


def _typed(setting: Setting) -> object:
    match setting.type:
        case "number":
            return int(setting.default)
        case "truth":
            return setting.default == "true"
        case "size":
            return parse_size(setting.default)
        case _:
            return setting.default


def derive(root: Path, manifest: Manifest, known: Facts) -> tuple[DerivedFile, ...]:
    """Every derived file of an app. Raises Refused for a template that is not the signed one, or does not work."""
    found = []
    for derived in manifest.derived_files:
        raw = read_file(root, manifest, derived.template)
        content = fill(raw, known, where=f"{manifest.id}: {derived.template}")
        name = derived.dest.rpartition("/")[2]
        for label, inside in sorted(derived.into.items()):
            path = f"{folder_of(label, inside)}/{name}"
            found.append(DerivedFile(path, label, int(derived.mode, 8), derived.on_change, content))
    return tuple(found)


class DerivedFolder:
    """`<folder>/<slug>/<container>/<digest of the folder inside>/<file>`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self) -> dict[str, DerivedSeen]:
        """Every app's folder as it is."""
        if not self.folder.is_dir():
            return {}
        return {entry.name: _seen(entry) for entry in sorted(self.folder.iterdir()) if entry.is_dir()}

    def write(
        self, app: AppName, files: tuple[DerivedFile, ...], removed: tuple[str, ...], pending: Mapping[str, Any]
    ) -> None:
        """Marks first, then files, each replaced whole. Raises Problem."""
        root = self.folder / app.slug
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            root.mkdir(exist_ok=True, mode=0o700)
            root.chmod(0o700)
            for label, wait in sorted(pending.items()):
                _replace(root / label / PENDING, json.dumps(wait).encode(), 0o600)
            for file in files:
                _replace(root / file.path, file.content, file.mode)
            for path in removed:
                (root / path).unlink(missing_ok=True)
        except OSError as error:
            raise Problem(
                f"a derived file can not be written: {error.strerror}",
                where=str(root),
                remedy="free space, or make the folder writable for this user",
            ) from error

    def settle(self, app: AppName, label: str) -> None:
        """The container has seen its newest files."""
        (self.folder / app.slug / label / PENDING).unlink(missing_ok=True)

    def remove(self, app: AppName) -> None:
        """All of an app's derived files; they can be made again at any time."""
        shutil.rmtree(self.folder / app.slug, ignore_errors=True)


def _seen(root: Path) -> DerivedSeen:
    files, pending = {}, {}
    for path in sorted(root.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        relative = str(path.relative_to(root))
        if path.name == PENDING:
            pending[path.parent.name] = _pending(path)
        else:
            files[relative] = _read_mark(path)
    return DerivedSeen(MappingProxyType(files), MappingProxyType(pending))


def _pending(path: Path) -> tuple[str, str]:
    try:
        container, action = json.loads(path.read_bytes())
    except (OSError, ValueError, TypeError):
        return "", ""
    return str(container), str(action)


def _read_mark(path: Path) -> str:
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_TEXT:
            return "nothing that was written here"
        return _mark(path.read_bytes(), stat.S_IMODE(found.st_mode))
    except OSError:
        return "unreadable"


def _mark(content: bytes, mode: int) -> str:
    return f"{hashlib.sha256(content).hexdigest()}:{mode:o}"


def _replace(path: Path, content: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(FOLDER_MODE)
    temporary = path.with_name(f".{path.name}.archy-new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    temporary.replace(path)
    sync_folder(path.parent)
