"""Reading files in large steps, whatever they are of. Foreign OSErrors leave as Problems that name the path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from market.model import PIECE_SIZE, BlobRef
from market.swarm.disk import told
from market.swarm.memory import page_aligned
from market.swarm.pieces import PieceHasher

_READ: Final = 4 * PIECE_SIZE
"""Bytes per read when a file is hashed or copied: large enough for full speed, small beside the memory budget."""


def hash_file(path: Path) -> tuple[BlobRef, bytes | None]:
    """The reference of a file's bytes and, above 1 MiB, its piece list. Raises StoreUnusable when unreadable."""
    hasher = PieceHasher()
    for chunk in chunks(path):
        hasher.update(chunk)
    return hasher.finish()


def chunks(path: Path) -> Iterator[memoryview]:
    """A file's bytes; each view is good until the next. Raises StoreUnusable."""
    view = page_aligned(_READ)
    with told(path), path.open("rb", buffering=0) as file:
        while got := file.readinto(view):
            yield view[:got]
