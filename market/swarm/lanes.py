"""Many small blobs from one source: a few threads with a kept connection each, one request after the other.

For blobs of one piece the race's own work costs more than the bytes. Guarantees: what is handed over to be stored
hashes to its digest; what verified is handed over whatever happens to the rest; a source that lies or is late loses
every lane at once, and what it did not bring is left to others. It refuses to know schedules and other sources.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from blake3 import blake3

from market.model import BlobRef
from market.swarm.bodies import Abort, AbortedByCaller
from market.swarm.errors import Busy, ConnectFailed, NotThere, PieceMismatch, SourceFault, Truncated
from market.swarm.report import MAX_FAULTS, SourceReport
from market.swarm.sources import Source, SourceKind, parse_url
from market.swarm.store import Store
from market.swarm.storing import Batch, Storing
from market.swarm.transport import Deadlines, HttpTransport, Route
from market.swarm.wholes import KeptLane

LANES: Final = 8
"""Requests under way at once to a far source: hides its latency, and is what browsers and aria2c ask of one host."""
NEAR_LANES: Final = 2
"""... and to a near one: with nothing to hide, more would have the threads of both ends get in each other's way."""
NEAR_SECONDS: Final = 0.002
"""A source is far when it takes longer to answer: two lanes would bring fewer than 1,000 blobs a second."""
PROBES: Final = 4
"""Answers by which that is judged, by the quickest of them: any single one may have been held up."""
BATCH_BLOBS: Final = 32
"""Blobs that are handed over together, and made durable together."""
BATCH_BYTES: Final = 1024 * 1024
"""... and their bytes: with every lane's batch full, less memory than a large blob's race takes."""
MAX_ABSENT: Final = 8
"""Times in a row that a source may lack what it is asked for before it is taken to have nothing of it."""

_OWN: Final = (Busy, ConnectFailed, Truncated)
"""Faults that say no more than that this connection is one too many: the others go on."""


def sort_out(store: Store, refs: Sequence[BlobRef]) -> tuple[list[BlobRef], list[BlobRef]]:
    """Those that are here, and those that are not. Raises SizeContradicted. Blocks on the disk."""
    here: list[BlobRef] = []
    missing: list[BlobRef] = []
    for ref in refs:
        if store.holds(ref):
            store.touch(ref.blake3)
            here.append(ref)
        else:
            missing.append(ref)
    return here, missing


@dataclass(slots=True)
class Distance:
    """Whether a source is far, by how long its answers take. Pure; what threads lose by racing is one answer."""

    _answers: int = 0
    _quickest: float = math.inf

    def is_far(self, seconds: float) -> bool:
        """An answer took so long. True if now is the time to say that more lanes are worth it."""
        self._quickest = min(self._quickest, seconds)
        self._answers += 1
        if self._answers % PROBES:
            return False
        quickest, self._quickest = self._quickest, math.inf
        return quickest > NEAR_SECONDS


@dataclass(slots=True)
class Lanes:
    """One pass over `todo`."""

    storing: Storing
    transport: HttpTransport
    source: Source
    route: Route
    """To the source's base URL."""
    deadlines: Deadlines
    todo: deque[BlobRef]
    on_far: Callable[[], None]
    """Called by a lane that finds the source to be far: more than NEAR_LANES are worth it. Must not block."""
    _left: deque[BlobRef] = field(default_factory=deque)
    _faults: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_FAULTS))
    _banned: str | None = None
    _wasted: int = 0
    _absent: int = 0
    _distance: Distance = field(default_factory=Distance)
    _closed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _folder: str = field(init=False)
    """The path of every blob there, without its digest."""

    def __post_init__(self) -> None:
        self._folder = parse_url(f"{self.source.url}/blobs/").target

    def run_one(self, abort: Abort) -> None:
        """One lane, in a worker thread, until nothing is left to do or the source has failed."""
        lane = KeptLane(self.transport, self.source.url, self.route, self.deadlines, abort)
        batch: Batch = []
        try:
            self._work(lane, batch)
        finally:
            lane.close()
            if batch:
                self.storing.add(batch)

    def remaining(self) -> list[BlobRef]:
        """What the lanes did not bring."""
        return [*self._left, *self.todo]

    def report(self) -> SourceReport:
        return SourceReport(self.source, self.storing.stored_bytes, self._wasted, self._banned, tuple(self._faults))

    def _work(self, lane: KeptLane, batch: Batch) -> None:
        size = 0
        coming = self._ask(lane)
        while coming is not None:
            ref, coming = coming, None
            try:
                asked = time.monotonic()
                data = lane.receive(ref.size)
                if self._distance.is_far(time.monotonic() - asked):
                    self.on_far()
                coming = self._ask(lane)  # the source works on the next while this one is hashed and written
                self._check(ref, data)
            except AbortedByCaller:
                self._put_back(ref, coming)
                return
            except NotThere as absent:
                self._note_absent(ref, absent)
                coming = self._ask(lane)
            except SourceFault as fault:
                self._note_fault(fault)
                self._put_back(ref, coming)
                return
            else:
                batch.append((ref, data))
                size += ref.size
                if len(batch) >= BATCH_BLOBS or size >= BATCH_BYTES:
                    self.storing.add(batch.copy())
                    batch.clear()
                    size = 0
        lane.give_back()

    def _ask(self, lane: KeptLane) -> BlobRef | None:
        if self._closed or self.storing.broken is not None:
            return None
        try:
            ref = self.todo.popleft()
        except IndexError:
            return None
        lane.ask(self._folder + ref.blake3.hex)
        return ref

    def _check(self, ref: BlobRef, data: bytes) -> None:
        if blake3(data).digest() != ref.blake3.raw:
            with self._lock:
                self._wasted += len(data)
            raise PieceMismatch(self.source.url, 0)
        self._absent = 0

    def _put_back(self, *refs: BlobRef | None) -> None:
        self.todo.extend(ref for ref in refs if ref is not None)

    def _note_absent(self, ref: BlobRef, absent: NotThere) -> None:
        with self._lock:
            self._left.append(ref)
            self._absent += 1
            if self._absent >= MAX_ABSENT:
                self._faults.append(absent.what)
                self._closed = True

    def _note_fault(self, fault: SourceFault) -> None:
        with self._lock:
            self._faults.append(fault.what)
            self._closed = self._closed or not isinstance(fault, _OWN)
            if isinstance(fault, PieceMismatch) and self.source.kind is SourceKind.PEER:
                self._banned = fault.what
