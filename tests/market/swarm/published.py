"""Blobs in a folder, as a publisher's static server has them, and deterministic bytes to put in."""

from __future__ import annotations

import hashlib
from pathlib import Path

from market.model import PIECE_SIZE, BlobRef
from market.swarm import AddressPolicy, PieceHasher

LOOPBACK = AddressPolicy(allow_private=True)
"""Tests run on loopback, which a stranger's address may not be."""


def some_bytes(size: int, seed: str = "") -> bytes:
    """Deterministic, incompressible."""
    return hashlib.shake_128(f"{seed}:{size}".encode()).digest(size)


def publish(root: Path, data: bytes) -> BlobRef:
    """Write `data` and its piece list to root/blobs."""
    hasher = PieceHasher()
    hasher.update(data)
    ref, pieces = hasher.finish()
    folder = root / "blobs"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ref.blake3.hex).write_bytes(data)
    if pieces is not None and ref.pieces is not None:
        (folder / ref.pieces.hex).write_bytes(pieces)
    return ref


FOUR_AND_A_BIT = some_bytes(4 * PIECE_SIZE + 12_345)
"""Five pieces, the last one short."""
