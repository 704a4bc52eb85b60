"""The folder that Quadlet reads: only our own files are seen, each is replaced as a whole.

Guarantees: a file is the old text or the new text, never a part; what others put there is never read as ours,
changed or removed; removing is idempotent, and `sweep` takes away what a killed process left in the middle of a write.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apps.problems import Problem
from orchestrator.quadlet.text import owner_of
from orchestrator.secret_files import sync_folder

MAX_UNIT: Final = 256 * 1024
"""Bytes; ours are a few KiB. A larger file is not ours."""
_UNFINISHED: Final = ".archy-new"
SUFFIXES: Final = (".build", ".container", ".network", ".volume")


@dataclass(frozen=True, slots=True)
class OwnedFile:
    """A file of ours: which app it belongs to, and its text."""

    owner: str
    text: str


class UnitFolder:
    """The unit folder of one node."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self.folder = folder
        self._prefix = prefix

    def read(self) -> dict[str, OwnedFile]:
        """Every file of this node by its path relative to the folder, drop-ins included."""
        found: dict[str, OwnedFile] = {}
        if not self.folder.is_dir():
            return found
        for entry in sorted(self.folder.iterdir()):
            if not entry.name.startswith(f"{self._prefix}-"):
                continue
            if entry.name.endswith(SUFFIXES):
                self._take(entry, found)
            elif entry.name.endswith(tuple(f"{suffix}.d" for suffix in SUFFIXES)) and entry.is_dir():
                for inner in sorted(entry.glob("*.conf")):
                    self._take(inner, found)
        return found

    def _take(self, path: Path, found: dict[str, OwnedFile]) -> None:
        try:
            if path.is_symlink() or path.stat().st_size > MAX_UNIT:
                return
            text = path.read_text(errors="replace")
        except OSError:
            return  # unreadable is not ours; the planner writes it again and then tells what fails
        if owner := owner_of(text):
            found[str(path.relative_to(self.folder))] = OwnedFile(owner, text)

    def write(self, files: Mapping[str, str]) -> None:
        """All texts are on the disk before the first file is replaced. Raises Problem; what was replaced before the
        fault stays replaced, and the planner sees it."""
        waiting: dict[Path, Path] = {}
        try:
            for name, text in sorted(files.items()):
                path = self.folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = waiting[path] = path.with_name(f".{path.name}{_UNFINISHED}")
                with temporary.open("w") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
            for path, temporary in waiting.items():
                temporary.replace(path)
            for folder in {path.parent for path in waiting}:
                sync_folder(folder)
        except OSError as error:
            for temporary in waiting.values():
                with suppress(OSError):
                    temporary.unlink()
            raise Problem(
                f"units can not be written: {error.strerror}",
                where=str(self.folder),
                remedy="free space, or make the folder writable for this user",
            ) from error

    def remove(self, names: Iterable[str]) -> None:
        """Raises Problem."""
        try:
            for name in sorted(names):
                path = self.folder / name
                path.unlink(missing_ok=True)
                if path.parent != self.folder and path.parent.is_dir() and not any(path.parent.iterdir()):
                    path.parent.rmdir()
            if self.folder.is_dir():
                sync_folder(self.folder)
        except OSError as error:
            raise Problem(f"units can not be removed: {error.strerror}", where=str(self.folder)) from error

    def sweep(self, stem: str) -> None:
        """Remove unfinished files, and folders of drop-ins that hold nothing, whose names begin with an app's stem.

        Raises Problem. Nobody else may be writing that app's units.
        """
        kinds = tuple(f"{suffix}.d" for suffix in SUFFIXES)
        try:
            entries = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
            for entry in entries:
                name = entry.name.removeprefix(".")
                if not name.startswith((f"{stem}-", f"{stem}.")):
                    continue
                if entry.name.endswith(kinds) and entry.is_dir() and not entry.is_symlink():
                    for unfinished in entry.glob(f".*{_UNFINISHED}"):
                        unfinished.unlink(missing_ok=True)
                    if not any(entry.iterdir()):
                        entry.rmdir()
                elif entry.name != name and entry.name.endswith(_UNFINISHED):
                    entry.unlink(missing_ok=True)
        except OSError as error:
            raise Problem(f"units can not be removed: {error.strerror}", where=str(self.folder)) from error
