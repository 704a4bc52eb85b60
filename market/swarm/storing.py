"""Batches of small blobs on their way to the store: a few threads make them durable while the lanes ask for more.

Guarantees: what is handed over is stored, whatever happens to its source, unless this machine can not keep it; then
everybody is told. At most MAX_WAITING batches wait: a slow disk slows the lanes down. It refuses to know sources.
"""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import Final

import outcome

from market.errors import Problem
from market.model import BlobRef
from market.swarm.sinks import WriterDied
from market.swarm.store import Store

WRITERS: Final = 4
"""Threads that store: a disk takes several fsyncs at once for little more than one, and more do not help."""
MAX_WAITING: Final = 8
"""Batches that are handed over and not stored yet: what a kill may cost, beside what the lanes hold themselves."""

Batch = list[tuple[BlobRef, bytes]]


class Storing:
    """`store_all` runs in WRITERS threads until `close`; everything else may be called from any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: SimpleQueue[Batch | None] = SimpleQueue()
        self._room = threading.Semaphore(MAX_WAITING)
        self._lock = threading.Lock()
        self._stored: list[BlobRef] = []
        self.stored_bytes = 0
        self.broken: Problem | None = None
        """A fault of this machine: nothing is stored any more."""

    def add(self, batch: Batch) -> None:
        """Store these verified blobs soon. Blocks while too many wait."""
        self._room.acquire()
        self._waiting.put(batch)

    def close(self) -> None:
        """No more batches: the threads end when what waits is stored. Blocks for no disk."""
        for _ in range(WRITERS):
            self._waiting.put(None)

    def take_stored(self) -> list[BlobRef]:
        """What is durable since this was asked last."""
        with self._lock:
            stored, self._stored = self._stored, []
        return stored

    def store_all(self) -> None:
        """Store what is handed over until `close`; after a fault only let go of it. Raises what is no Problem."""
        defect: outcome.Error | None = None
        while (batch := self._waiting.get()) is not None:
            if self.broken is None:
                result = outcome.capture(self._put, batch)
                # Nothing may end this thread: whoever waits for room would wait for ever.
                if isinstance(result, outcome.Error) and not self._break(result.error):
                    defect = result
            self._room.release()
        if defect is not None:
            defect.unwrap()

    def _put(self, batch: Batch) -> None:
        self._store.put_many([(ref.blake3, data) for ref, data in batch])
        with self._lock:
            self.stored_bytes += sum(len(data) for _, data in batch)
            self._stored.extend(ref for ref, _ in batch)

    def _break(self, error: BaseException) -> bool:
        """Let everybody know that nothing can be kept any more. False if it is a defect, not a Problem."""
        told = WriterDied.told(error, self._store.root)
        with self._lock:
            self.broken = self.broken or told
        return told is error
