"""What the schedule knows of one source and one lease, and the moves it can make. Values; no rules of who gets what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from market.swarm.quality import Quality
from market.swarm.sources import SourceKind

ORIGIN_ERRORS: Final = 6
"""Faults in a row, without a verified piece between, after which an origin no longer counts as hope."""
MAX_BUSY: Final = 24
"""Times in a row that a source may send this node away before it no longer counts: some two minutes of patience."""
ORIGIN_CORRUPT: Final = 8
"""Bad pieces in one blob after which an origin no longer counts as hope."""


@dataclass(eq=False, slots=True)
class Lease:
    """One source's right to fetch the pieces start..end-1, in order. `end` may shrink while it runs."""

    source: int
    start: int
    end: int
    begun: float
    next: int
    first_byte: float | None = None
    last_byte: float = 0.0
    received: int = 0
    """Bytes of this lease."""
    first_bytes: int = 0
    """Those that came at once with the first: how long they took is not known."""
    in_piece: int = 0
    """Bytes of the piece `next`."""
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing for this source now: ask again at `until`, or when another lease ends."""

    until: float


@dataclass(frozen=True, slots=True)
class Look:
    """Ask this source, which has a part of the blob only, which pieces it has by now; then call `looked`."""


@dataclass(frozen=True, slots=True)
class Leave:
    """Nothing for this source any more: the blob is complete, or the source is out."""


@dataclass(slots=True)
class SourceState:
    """One source within one blob."""

    kind: SourceKind
    quality: Quality
    errors: int = 0
    corrupt: int = 0
    busy: int = 0
    """Times in a row that it had no room."""
    ready_at: float = 0.0
    out: bool = False
    whole_only: bool = False
    """It knows no ranges: a request always brings the blob from its first byte on."""
    have: bytes | None = None
    """One byte a piece, 1 for those it has; None for a source that has the whole blob, as far as is known."""
    absent: bool = False
    """A peer that had nothing when it was asked: no hope, but it may have begun to fetch the blob since."""
    look_at: float = 0.0
    useful_at: float = 0.0
    lease: Lease | None = None

    def has(self, index: int) -> bool:
        return self.have is None or self.have[index] == 1

    @property
    def hopeless(self) -> bool:
        if self.busy >= MAX_BUSY:
            return True
        if self.kind is SourceKind.PEER:
            return self.out or self.absent
        return self.out or self.errors >= ORIGIN_ERRORS or self.corrupt >= ORIGIN_CORRUPT
