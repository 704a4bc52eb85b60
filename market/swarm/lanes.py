"""Many small blobs from one good source: a few threads, a kept connection each, one request after the other.

For blobs of one piece the race's own work costs more than the bytes. Guarantees: what is stored hashes to its digest;
the first fault of the source, lateness included, closes every lane, and what it did not bring is left to the race, with
every source. It refuses to know schedules and other sources.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from blake3 import blake3

from market.errors import Problem
from market.model import BlobRef
from market.swarm.answers import Redirected
from market.swarm.bodies import Abort, AbortedByCaller
from market.swarm.errors import PieceMismatch, SourceFault
from market.swarm.sources import Source, parse_url
from market.swarm.store import Store
from market.swarm.transport import Deadlines, HttpTransport, Route, Wanted

LANES: Final = 3
"""Threads: one waits for the source while another verifies and a third writes; more only take turns."""


@dataclass(slots=True)
class Lanes:
    """One pass over `todo`. `left` is what remains for the race afterwards."""

    store: Store
    transport: HttpTransport
    source: Source
    route: Route
    """To the source's base URL."""
    deadlines: Deadlines
    todo: deque[BlobRef]
    on_stored: Callable[[BlobRef], None]
    left: deque[BlobRef] = field(default_factory=deque)
    used: int = 0
    present: int = 0
    broken: Problem | None = None
    _closed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run_one(self, abort: Abort) -> None:
        """One lane, in a worker thread, until nothing is left to do or the source has failed."""
        while not self._closed:
            try:
                ref = self.todo.popleft()
            except IndexError:
                return
            try:
                self._bring(ref, abort)
            except AbortedByCaller:
                self._close(ref)
                return
            except SourceFault:
                self._close(ref)
            except Problem as broken:
                self.broken = self.broken or broken
                self._close(ref)

    def remaining(self) -> Iterable[BlobRef]:
        """What the lanes did not bring."""
        return (*self.left, *self.todo)

    def _close(self, ref: BlobRef) -> None:
        self._closed = True
        self.left.append(ref)

    def _bring(self, ref: BlobRef, abort: Abort) -> None:
        if self.store.holds(ref):
            self.store.touch(ref.blake3)
            with self._lock:
                self.present += ref.size
        else:
            data = self._ask(ref, abort) if ref.size else b""
            if blake3(data).digest() != ref.blake3.raw:
                raise PieceMismatch(self.source.url, 0)
            self.store.put(ref.blake3, data)
            with self._lock:
                self.used += ref.size
        self.on_stored(ref)

    def _ask(self, ref: BlobRef, abort: Abort) -> bytearray:
        route = replace(self.route, url=parse_url(self.source.blob_url(ref.blake3)))
        wanted = Wanted(0, ref.size, ref.size, ranged=False, zstd=True)
        reader = self.transport.open_span(self.source.url, route, wanted, self.deadlines, abort)
        if isinstance(reader, Redirected):
            raise SourceFault(self.source.url, "redirects, which the race follows")
        try:
            buffer = bytearray(ref.size)
            view = memoryview(buffer)
            filled = 0
            while filled < ref.size:
                filled += reader.readinto(view[filled:])
            return buffer
        finally:
            reader.close()
