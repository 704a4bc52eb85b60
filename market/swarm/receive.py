"""One span, in a worker thread: socket -> buffer -> BLAKE3 -> sink, piece by piece; and the board the threads share.

Guarantees: no byte reaches a sink before its piece verified; the schedule is touched under one lock only; what each
source brought and wasted adds up. It refuses to know trio, and which source to ask for what.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from blake3 import blake3

from market.swarm.errors import FaultKind, PieceMismatch, SourceFault
from market.swarm.memory import Buffers
from market.swarm.pieces import PieceTable
from market.swarm.report import MAX_FAULTS
from market.swarm.schedule import Schedule
from market.swarm.sinks import Sink
from market.swarm.sources import Source, SourceKind
from market.swarm.states import Lease, Leave, Look, SourceState, Wait
from market.swarm.transport import SpanReader


@dataclass(slots=True)
class Tally:
    """What one source did so far."""

    used: int = 0
    wasted: int = 0
    banned: str | None = None
    faults: deque[str] | None = None

    def note(self, fault: str) -> None:
        if self.faults is None:
            self.faults = deque(maxlen=MAX_FAULTS)
        self.faults.append(fault)


class Board:
    """The schedule of one blob behind a lock, with its clock and the tallies."""

    def __init__(
        self,
        table: PieceTable,
        sources: Sequence[Source],
        states: Sequence[SourceState],
        clock: Callable[[], float],
        seed: int = 0,
    ) -> None:
        self.table = table
        self.sources = sources
        self.tallies = [Tally() for _ in sources]
        self._schedule = Schedule(table, states, seed)
        self._states = states
        self._clock = clock
        self._lock = threading.Lock()

    @property
    def complete(self) -> bool:
        return self._schedule.complete

    @property
    def used(self) -> int:
        return sum(tally.used for tally in self.tallies)

    def already(self, pieces: Sequence[int]) -> None:
        with self._lock:
            self._schedule.already(pieces)

    def next(self, number: int) -> Lease | Wait | Look | Leave:
        with self._lock:
            return self._schedule.next(number, self._clock())

    def looked(self, number: int, have: bytes | None) -> None:
        with self._lock:
            self._schedule.looked(number, have, self._clock())

    def rate(self, number: int) -> float | None:
        """Bytes per second, as far as is known."""
        return self._states[number].quality.rate

    def is_partial(self, number: int) -> bool:
        """Whether this source is known to have a part of the blob only."""
        return self._states[number].have is not None

    def span(self, lease: Lease) -> tuple[int, int]:
        """Offset and length of what is left of the lease."""
        with self._lock:
            return self.table.offset(lease.next), self.table.span_bytes(lease.next, lease.end)

    def wants(self, lease: Lease) -> bool:
        with self._lock:
            return self._schedule.wants(lease)

    def received(self, lease: Lease, size: int) -> bool:
        with self._lock:
            return self._schedule.received(lease, size, self._clock())

    def skipped(self, lease: Lease, size: int) -> bool:
        """Bytes before the lease, from a source that knows no ranges."""
        with self._lock:
            self._states[lease.source].whole_only = True
            self.tallies[lease.source].wasted += size
            return self._schedule.received(lease, 0, self._clock())

    def verified(self, lease: Lease) -> None:
        with self._lock:
            size = self.table.length(lease.next)
            if self._schedule.verified(lease):
                self.tallies[lease.source].used += size
            else:
                self.tallies[lease.source].wasted += size

    def ended(self, lease: Lease) -> None:
        with self._lock:
            self.tallies[lease.source].wasted += lease.in_piece
            self._schedule.ended(lease, self._clock())

    def failed(self, lease: Lease, fault: SourceFault) -> None:
        with self._lock:
            tally = self.tallies[lease.source]
            tally.wasted += lease.in_piece
            tally.note(fault.what)
            if fault.fault is FaultKind.CORRUPT and self.sources[lease.source].kind is SourceKind.PEER:
                tally.banned = fault.what
            self._schedule.failed(lease, fault.fault, self._clock())


def receive_span(reader: SpanReader, board: Board, lease: Lease, offset: int, sink: Sink, buffers: Buffers) -> None:
    """Read the pieces of `lease`, which begins at `offset`, as long as they are wanted. Closes the reader.

    Raises PieceMismatch at the first piece that does not verify, SourceFault, and the sink's Problem.
    """
    buffer = buffers.take()
    try:
        if reader.whole and not _skip(reader, board, lease, offset, buffer):
            return
        while board.wants(lease):
            size = board.table.length(lease.next)
            piece = buffer[:size]
            if not _fill(reader, board, lease, piece):
                return
            if not board.table.matches(lease.next, blake3(piece).digest()):
                raise PieceMismatch(board.sources[lease.source].url, lease.next)
            buffer = sink.keep(lease.next, buffer, size)
            board.verified(lease)
    finally:
        reader.close()
        buffers.give_back(buffer)


def _skip(reader: SpanReader, board: Board, lease: Lease, offset: int, scratch: memoryview) -> bool:
    board.skipped(lease, 0)
    while offset:
        got = reader.readinto(scratch[: min(offset, len(scratch))])
        offset -= got
        if not board.skipped(lease, got):
            return False
    return True


def _fill(reader: SpanReader, board: Board, lease: Lease, piece: memoryview) -> bool:
    filled = 0
    while filled < len(piece):
        got = reader.readinto(piece[filled:])
        filled += got
        if not board.received(lease, got):
            return False
    return True
