"""One span, in a worker thread: socket -> buffer -> BLAKE3 -> sink, piece by piece; and the board the threads share.

Guarantees: no byte reaches a sink before its piece verified; the schedule is touched under one lock only; what each
source brought and wasted adds up. It refuses to know trio, and which source to ask for what.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final, Protocol

from blake3 import blake3

from market.errors import Problem
from market.swarm.errors import FaultKind, PieceMismatch, SourceFault
from market.swarm.partial import Partial
from market.swarm.pieces import PieceTable
from market.swarm.report import MAX_FAULTS
from market.swarm.schedule import Lease, Leave, Schedule, SourceState, Wait
from market.swarm.sources import Source, SourceKind
from market.swarm.transport import SpanReader

WRITE_AHEAD: Final = 8
"""Verified pieces that may wait for the disk: enough to bridge its hiccups, 8 MiB of memory."""


class Buffers:
    """Piece-sized buffers that are used again: a fresh one per piece costs more than the copy (malloc trimming)."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: deque[bytearray] = deque()

    def take(self) -> bytearray:
        try:
            return self._free.pop()
        except IndexError:
            return bytearray(self._size)

    def give_back(self, buffer: bytearray) -> None:
        self._free.append(buffer)


class Sink(Protocol):
    """Where verified pieces go. Called from several threads."""

    def keep(self, index: int, buffer: bytearray, size: int) -> bytearray:
        """Keep the first `size` bytes as a verified piece; it may come twice. Returns a buffer to go on with.

        Raises Problem when this machine can not.
        """


class MemorySink:
    """For bytes that are checked as a whole: small blobs and piece lists."""

    def __init__(self) -> None:
        self.data = b""

    def keep(self, index: int, buffer: bytearray, size: int) -> bytearray:
        self.data = bytes(memoryview(buffer)[:size])
        return buffer


class PartialSink:
    """Writes pieces to a partial, and hashes the whole blob as far as it lies there in order.

    `write_all` runs in a thread of its own, so that receiving and writing overlap; at most WRITE_AHEAD pieces wait.
    """

    def __init__(self, partial: Partial, buffers: Buffers) -> None:
        self._partial = partial
        self._buffers = buffers
        self._waiting: SimpleQueue[tuple[int, bytearray, int] | None] = SimpleQueue()
        self._room = threading.Semaphore(WRITE_AHEAD)
        self._broken: Problem | None = None
        self._lock = threading.Lock()
        self._whole = blake3()
        self._next = 0

    def keep(self, index: int, buffer: bytearray, size: int) -> bytearray:
        self._room.acquire()
        if self._broken is not None:
            self._room.release()
            raise self._broken
        self._waiting.put((index, buffer, size))
        return self._buffers.take()

    def write_all(self) -> None:
        """Write what is kept until `close`; after a fault of the disk only let go of it."""
        while (piece := self._waiting.get()) is not None:
            index, buffer, size = piece
            try:
                if self._broken is None:
                    self._write(index, memoryview(buffer)[:size])
            except Problem as broken:
                self._broken = broken
            finally:
                self._buffers.give_back(buffer)
                self._room.release()

    def close(self) -> None:
        """No more pieces: `write_all` returns when it has written those that wait. Never blocks."""
        self._waiting.put(None)

    @property
    def broken(self) -> Problem | None:
        """Why pieces could not be written."""
        return self._broken

    def _write(self, index: int, data: memoryview) -> None:
        if not self._partial.write(index, data):
            return
        if index == self._next and self._lock.acquire(blocking=False):
            try:
                if index == self._next:
                    self._whole.update(data)
                    self._next += 1
            finally:
                self._lock.release()

    def catch_up(self) -> None:
        """Hash what came out of order and is in order by now; reads it back from the page cache."""
        while self._catch_up_one():
            pass

    def _catch_up_one(self) -> bool:
        with self._lock:
            if self._next >= self._partial.table.count or self._next not in self._partial.have:
                return False
            self._whole.update(self._partial.read(self._next))
            self._next += 1
            return True

    def whole_digest(self) -> bytes:
        """BLAKE3 of the whole blob; every piece must be there."""
        self.catch_up()
        return self._whole.digest()


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
        self, table: PieceTable, sources: Sequence[Source], states: Sequence[SourceState], clock: Callable[[], float]
    ) -> None:
        self.table = table
        self.sources = sources
        self.tallies = [Tally() for _ in sources]
        self._schedule = Schedule(table, states)
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

    def next(self, number: int) -> Lease | Wait | Leave:
        with self._lock:
            return self._schedule.next(number, self._clock())

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
        if reader.whole and not _skip(reader, board, lease, offset, memoryview(buffer)):
            return
        while board.wants(lease):
            size = board.table.length(lease.next)
            piece = memoryview(buffer)[:size]
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
