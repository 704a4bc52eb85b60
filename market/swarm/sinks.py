"""Where verified pieces go: to memory, or to a partial with threads that write, make it durable, and hash the whole.

Guarantees: receiving, writing, syncing and hashing overlap, with bounds between them: at most WRITE_AHEAD pieces wait
for the writer, and at most MAX_UNRECORDED bytes are written without being durable and recorded (R-SW4, also against a
power cut). Whatever ends one of the threads, the others are told and nobody waits for ever. It refuses to know sources.
"""

from __future__ import annotations

import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Final, Protocol

import outcome
from blake3 import blake3

from market.errors import Problem
from market.swarm.memory import Buffers
from market.swarm.partial import Partial

WRITE_AHEAD: Final = 8
"""Verified pieces that may wait for the disk: enough to bridge its hiccups, 8 MiB of memory."""
CHECKPOINT_BYTES: Final = 24 * 1024 * 1024
"""A checkpoint begins as soon as this much is new, so that it is done before MAX_UNRECORDED makes the writer wait."""
CHECKPOINT_SECONDS: Final = 2.0
MAX_UNRECORDED: Final = 56 * 1024 * 1024
"""What a power cut may cost is this and WRITE_AHEAD, 64 MiB; a slow disk slows the fetch down to its own rate."""


class WriterDied(Problem):
    """The thread that writes pieces ended by a defect; the defect itself is raised beside this."""

    kind = "writer-died"

    @classmethod
    def told(cls, error: BaseException, where: Path) -> Problem:
        """What everybody is told: the problem itself, or of a defect that the writer died of it."""
        return error if isinstance(error, Problem) else cls(f"{type(error).__name__}: {error}", where=str(where))


class Sink(Protocol):
    """Where verified pieces go. Called from several threads."""

    def keep(self, index: int, buffer: memoryview, size: int) -> memoryview:
        """Keep the first `size` bytes as a verified piece; it may come twice. Returns a buffer to go on with.

        Raises Problem when this machine can not.
        """


class MemorySink:
    """For bytes that are checked as a whole: small blobs and piece lists."""

    def __init__(self) -> None:
        self.data = b""

    def keep(self, index: int, buffer: memoryview, size: int) -> memoryview:
        self.data = bytes(buffer[:size])
        return buffer


class PartialSink:
    """Writes pieces to a partial, hashes the whole blob as far as it lies there in order, and records progress.

    `write_all`, `record_all` and `hash_all` each run in a thread of their own until `close`.
    """

    def __init__(self, partial: Partial, buffers: Buffers, *, checkpoint_bytes: int = CHECKPOINT_BYTES) -> None:
        self._partial = partial
        self._buffers = buffers
        self._checkpoint_bytes = checkpoint_bytes
        self._waiting: SimpleQueue[tuple[int, memoryview, int] | None] = SimpleQueue()
        self._room = threading.Semaphore(WRITE_AHEAD)
        self._changed = threading.Condition()
        self._broken: Problem | None = None
        self._closed = False
        self._hashing = threading.Lock()
        self._whole = blake3()
        self._next = 0

    def keep(self, index: int, buffer: memoryview, size: int) -> memoryview:
        self._room.acquire()
        if self._broken is not None:
            self._room.release()
            raise self._broken
        self._waiting.put((index, buffer, size))
        return self._buffers.take()

    def write_all(self) -> None:
        """Write what is kept until `close`; after a fault only let go of it. Raises what is no Problem, at the end."""
        defect: outcome.Error | None = None
        while (piece := self._waiting.get()) is not None:
            index, buffer, size = piece
            if self._broken is None:
                result = outcome.capture(self._write, index, buffer[:size])
                # Nothing may end this thread: whoever waits for room would wait for ever.
                if isinstance(result, outcome.Error) and not self._break(result.error):
                    defect = result
            self._buffers.give_back(buffer)
            self._room.release()
        if defect is not None:
            defect.unwrap()

    def record_all(self) -> None:
        """Checkpoint every CHECKPOINT_BYTES or CHECKPOINT_SECONDS until `close`."""
        while self._wait_due():
            result = outcome.capture(self._partial.checkpoint)
            if isinstance(result, outcome.Error) and not self._break(result.error):
                result.unwrap()
            with self._changed:
                self._changed.notify_all()

    def hash_all(self) -> None:
        """Hash what came before its turn as soon as its turn comes, until `close`: the end waits for what is left."""
        buffer = self._buffers.take()
        result = outcome.capture(self._hash_until_closed, buffer)
        self._buffers.give_back(buffer)
        if isinstance(result, outcome.Error) and not self._break(result.error):
            result.unwrap()

    def close(self) -> None:
        """No more pieces: the threads end when they have done what waits. Blocks for no disk."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._waiting.put(None)

    def wait_closed_or_broken(self) -> None:
        """Blocks until there will be no more pieces, or none can be kept."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._broken is not None)

    @property
    def broken(self) -> Problem | None:
        """Why pieces could not be written or recorded."""
        return self._broken

    @property
    def _unrecorded(self) -> int:
        return self._partial.unrecorded_pieces * self._partial.table.piece_size

    def _break(self, error: BaseException) -> bool:
        """Let everybody know that nothing can be kept any more. False if it is a defect, not a Problem."""
        told = WriterDied.told(error, self._partial.data_path)
        with self._changed:
            self._broken = self._broken or told
            self._changed.notify_all()
        return told is error

    def _wait_due(self) -> bool:
        """True when there is something to record; False when there will be no more."""
        with self._changed:
            while True:
                full = self._changed.wait_for(self._is_urgent, CHECKPOINT_SECONDS)
                if self._closed or self._broken is not None:
                    return False
                if full or self._unrecorded:
                    return True

    def _is_urgent(self) -> bool:
        return self._closed or self._broken is not None or self._unrecorded >= self._checkpoint_bytes

    def _write(self, index: int, data: memoryview) -> None:
        with self._changed:
            if self._unrecorded >= self._checkpoint_bytes:
                self._changed.notify_all()
            # Closed: the last pieces are about to be sealed, and nobody records any more.
            self._changed.wait_for(
                lambda: self._closed or self._broken is not None or self._unrecorded < MAX_UNRECORDED
            )
        if not self._partial.write(index, data):
            return
        if index == self._next and self._hashing.acquire(blocking=False):
            try:
                if index == self._next:
                    self._whole.update(data)
                    self._next += 1
            finally:
                self._hashing.release()
        if self._is_behind():
            with self._changed:
                self._changed.notify_all()

    def _is_behind(self) -> bool:
        return self._next < self._partial.table.count and self._next in self._partial.have

    def _hash_until_closed(self, buffer: memoryview) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._broken is not None or self._is_behind())
            # Closed: nobody waits for pieces any more, and `whole_digest` hashes what is left.
            if self._closed or self._broken is not None:
                return
            self._catch_up_one(buffer)

    def _catch_up_one(self, buffer: memoryview) -> bool:
        with self._hashing:
            if not self._is_behind():
                return False
            self._whole.update(self._partial.read_into(self._next, buffer))
            self._next += 1
            return True

    def whole_digest(self) -> bytes:
        """BLAKE3 of the whole blob; every piece must be there."""
        buffer = self._buffers.take()
        while self._catch_up_one(buffer):
            pass
        self._buffers.give_back(buffer)
        return self._whole.digest()
