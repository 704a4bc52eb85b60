"""What may go when room is needed. Pure: what is there, what must stay and the time in, candidates in their order out.

Guarantees: what is to be kept, and what was used lately, is no candidate. It refuses to know folders and leases.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from market.model import BlobRef, Digest
from market.swarm.pieces import ref_digest

GRACE_SECONDS: Final = 3600.0
"""What was used within the last hour is not collected: an install may be about to link it."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One complete blob: its digest, its size in bytes, and when it was last used (Unix seconds)."""

    digest: Digest
    size: int
    used: float


@dataclass(frozen=True, slots=True)
class Collected:
    """What `Store.gc` removed, and the bytes that are left."""

    removed: tuple[Digest, ...]
    """Blobs by their digest, abandoned partials by the digest of their reference."""
    freed: int
    kept: int


def needed(roots: Iterable[Digest | BlobRef]) -> frozenset[Digest]:
    """Everything that `roots` need: a BlobRef keeps its piece list and its partial, too."""
    keep: set[Digest] = set()
    for root in roots:
        if isinstance(root, Digest):
            keep.add(root)
        else:
            keep |= {root.blake3, ref_digest(root)} | ({root.pieces} if root.pieces is not None else set())
    return frozenset(keep)


def candidates(stored: Iterable[Stored], keep: Collection[Digest], now: float) -> Iterator[Stored]:
    """What may go, least recently used first."""
    for each in sorted(stored, key=lambda each: each.used):
        if each.digest not in keep and now - each.used >= GRACE_SECONDS:
            yield each
