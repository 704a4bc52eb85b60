"""Small JSON files of the operator's own words: read bounded, replaced whole or not at all, 0600."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from market.errors import EnvironmentLacks


def read_bounded(path: Path, limit: int) -> bytes | None:
    """The file's bytes, or None when there is none yet.

    Raises ValueError when it is longer than `limit` bytes, EnvironmentLacks when it can not be read.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise EnvironmentLacks(
            f"can not be read: {error.strerror}", where=str(path), remedy="mend it, or restore it from a backup"
        ) from error
    if len(raw) > limit:
        raise ValueError("it is too long")
    return raw


def replace_whole(path: Path, body: Any) -> None:
    """Write JSON: temporary file (0600 from its first moment on), fsync, rename, fsync of the folder.

    Raises EnvironmentLacks; the file is the old one then.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _replace(path, body)
    except OSError as error:
        raise EnvironmentLacks(
            f"can not be written: {error.strerror}", where=str(path), remedy="make room, or make its folder writable"
        ) from error


def _replace(path: Path, body: Any) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(body, file, indent=1, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
