"""What builds read and what they gave, on disk.

    <folder>/<slug>/<label>/Containerfile     as the node understood it; there while a build is under way
                           context/...        copies of the signed files
             <slug>/built.json                name:tag -> manifest digest and id of the image that came out

Guarantees: a context holds the signed bytes and nothing else, else staging raises; a label's folder is there from
before a build begins until everything that it may leave is gone, so that a crash in between is seen; `built.json` is
replaced whole. Methods block on the disk.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import trio
from blake3 import blake3

from apps.manifest_parts import BlobEntry
from apps.names import AppName
from apps.problems import Problem, Refused
from orchestrator.quadlet.build import CONTEXT, FILES, Built
from orchestrator.secret_files import sync_folder

RECORDS: Final = "built.json"
MAX_RECORDS: Final = 64
"""Images that are remembered of one app: two generations of 32 containers. Older ones are built again when wanted."""
CHUNK: Final = 1024 * 1024
FILE_MODE: Final = 0o755
"""Of every file in a context: blobs have no mode, and a program that can not be started helps nobody. COPY --chmod says
otherwise."""


class BuildFolder:
    """The folder of all builds of a node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.turn = trio.Lock()
        """One build at a time: each may take all the memory that a small node can spare."""

    def read(self) -> dict[str, frozenset[str]]:
        """Every app that has a folder here, with the containers whose builds were begun and not cleared."""
        if not self.folder.is_dir():
            return {}
        return {
            app.name: frozenset(entry.name for entry in app.iterdir() if entry.is_dir())
            for app in sorted(self.folder.iterdir())
            if app.is_dir()
        }

    def built(self, app: AppName) -> dict[str, Built]:
        """What builds of the app gave, by `name:tag`. A damaged record counts as none: it is built again."""
        try:
            body = json.loads((self.folder / app.slug / RECORDS).read_bytes())
            return {str(tag): Built(str(item["digest"]), str(item["id"])) for tag, item in body.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def record(self, app: AppName, tag: str, built: Built) -> None:
        """Remember what a build gave. Raises Problem."""
        known = {name: item for name, item in self.built(app).items() if name != tag} | {tag: built}
        newest = dict(list(known.items())[-MAX_RECORDS:])
        body = {name: {"digest": item.digest, "id": item.id} for name, item in newest.items()}
        root = self.folder / app.slug
        try:
            self._make(root)
            temporary = root / f".{RECORDS}.archy-new"
            with temporary.open("w") as file:
                json.dump(body, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(root / RECORDS)
            sync_folder(root)
        except OSError as error:
            raise _no_room(root, error) from error

    def begin(self, app: AppName, label: str) -> None:
        """From here on a build may leave something. Raises Problem."""
        root = self.folder / app.slug
        try:
            self._make(root)
            shutil.rmtree(root / label, ignore_errors=True)
            (root / label).mkdir(mode=0o700)
            sync_folder(root)
        except OSError as error:
            raise _no_room(root, error) from error

    def stage(self, app: AppName, label: str, text: str, source: Path, files: Mapping[str, BlobEntry]) -> None:
        """Write the Containerfile and copy the context (paths relative to `source`), comparing every byte.

        Raises Refused for other bytes than were signed, Problem.
        """
        place = self.folder / app.slug / label
        try:
            (place / CONTEXT).mkdir(mode=0o755)
            (place / FILES).write_text(text)
            for path, entry in sorted(files.items()):
                target = place / CONTEXT / path
                target.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
                _copy(source / path, target, entry)
        except OSError as error:
            raise _no_room(place, error) from error

    def clear(self, app: AppName, label: str) -> None:
        """Nothing is left of a build. Raises Problem."""
        self._remove(self.folder / app.slug / label)

    def forget(self, app: AppName) -> None:
        """Nothing is left of an app. Raises Problem."""
        self._remove(self.folder / app.slug)

    def _make(self, root: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        root.mkdir(exist_ok=True, mode=0o700)

    def _remove(self, path: Path) -> None:
        try:
            if path.is_dir():
                shutil.rmtree(path)
        except OSError as error:
            raise Problem(f"can not be removed: {error.strerror}", where=str(path)) from error


def check_file(path: Path, entry: BlobEntry) -> None:
    """Raises Refused unless the file has the signed bytes."""
    _hash(path, entry, None)


def _copy(source: Path, target: Path, entry: BlobEntry) -> None:
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        _hash(source, entry, handle)
        os.fchmod(handle, FILE_MODE)
    finally:
        os.close(handle)


def _hash(source: Path, entry: BlobEntry, into: int | None) -> None:
    hasher, size = blake3(), 0
    try:
        with source.open("rb") as file:
            # One byte more than was signed is enough to know
            while size <= entry.size and (chunk := file.read(CHUNK)):
                size += len(chunk)
                hasher.update(chunk)
                if into is not None:
                    _write(into, chunk)
    except OSError as error:
        raise Refused(
            f"can not be read or copied: {error.strerror}", where=str(source), remedy="install the app again"
        ) from error
    if size != entry.size or hasher.hexdigest() != entry.blake3:
        raise Refused("other bytes than were signed", where=str(source), remedy="install the app again")


def _write(handle: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(handle, view) :]


def _no_room(path: Path, error: OSError) -> Problem:
    return Problem(
        f"a build can not be prepared: {error.strerror}",
        where=str(path),
        remedy="free space, or make the folder writable for this user",
    )
