"""One blob (or piece list) and every source that may have it, at once: the trio shell around a schedule.

Guarantees: every decision is the schedule's; a source's failure costs that source only; a fault of this machine ends
the race; on cancellation every thread has ended before the caller goes on. It refuses to know stores and publishers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial as bind
from typing import Final, TypeVar

import outcome
import trio

from market.errors import Problem
from market.model import Digest
from market.swarm.answers import Redirected
from market.swarm.bodies import Abort, AbortedByCaller
from market.swarm.errors import BadAnswer, NotThere, RedirectRefused, SourceFault
from market.swarm.memory import Buffers
from market.swarm.pieces import Bitmap, DamagedBitmap
from market.swarm.receive import Board, receive_span
from market.swarm.report import SourceReport
from market.swarm.routes import MAX_REDIRECTS, Resolver
from market.swarm.sinks import Sink
from market.swarm.sources import Source, SourceKind, parse_url
from market.swarm.states import Lease, Leave, Look, Wait
from market.swarm.transport import Deadlines, HttpTransport, Route, Wanted

ZSTD_BELOW: Final = 30e6
"""Bytes per second of a source under which it is asked to compress: above it, compressing is slower than sending."""

_T = TypeVar("_T")


@dataclass(slots=True)
class Session:
    """What the races of one fetching session share."""

    transport: HttpTransport
    resolver: Resolver
    deadlines: dict[SourceKind, Deadlines]
    clock: Callable[[], float]
    spans: trio.CapacityLimiter
    bans: dict[Source, str] = field(default_factory=dict)
    packing: dict[Source, bool | None] = field(default_factory=dict)
    """Of nodes that serve spans with a content-coding: whether their wire is slow enough; None: not known yet."""

    def packs(self, source: Source, rate: float | None) -> bool:
        """Decided once, by what came as it is: what comes compressed says little about the wire."""
        if source not in self.packing:
            return False
        if self.packing[source] is None and rate is not None:
            self.packing[source] = rate < ZSTD_BELOW
        return bool(self.packing[source])


@dataclass(slots=True)
class Race:
    """One run of the schedule. `partials` names what peers that still fetch the blob offer; None: nobody is asked."""

    session: Session
    digest: Digest
    board: Board
    sink: Sink
    buffers: Buffers
    partials: Digest | None = None
    broken: Problem | None = None
    """A fault of this machine: no source can mend it."""
    _routes: dict[int, Route] = field(default_factory=dict)
    _changed: trio.Event = field(default_factory=trio.Event)
    _over: trio.CancelScope = field(default_factory=trio.CancelScope)

    async def run(self) -> None:
        """Let every source work until the blob is complete or nobody is left."""
        with self._over:
            async with trio.open_nursery() as nursery:
                for number in range(len(self.board.sources)):
                    nursery.start_soon(self._work, number)

    def give_up(self, why: Problem) -> None:
        """End it: this machine can not keep what comes."""
        self.broken = self.broken or why
        self._over.cancel()

    def reports(self) -> tuple[SourceReport, ...]:
        return tuple(
            SourceReport(source, tally.used, tally.wasted, tally.banned, tuple(tally.faults or ()))
            for source, tally in zip(self.board.sources, self.board.tallies, strict=True)
        )

    def faults(self) -> tuple[tuple[str, str], ...]:
        """(source URL, its last fault) of each source, those included that were banned before."""
        found = [(each.source.url, (each.faults or ("no fault",))[-1]) for each in self.reports()]
        return (*found, *((source.url, f"banned: {why}") for source, why in self.session.bans.items()))

    def forgive(self) -> None:
        """Take back the bans of this run: the piece list may be the lie.

        Only a blob whose whole digest verified proves a peer's guilt.
        """
        for source, tally in zip(self.board.sources, self.board.tallies, strict=True):
            if tally.banned is not None:
                self.session.bans.pop(source, None)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _work(self, number: int) -> None:
        while True:
            match self.board.next(number):
                case Leave():
                    self._wake()
                    break
                case Wait(until):
                    with trio.move_on_after(max(0.0, until - self.session.clock())):
                        await self._changed.wait()
                case Look():
                    await self._look(number)
                    self._wake()
                case Lease() as lease:
                    await self._use(lease)
                    self._wake()
            if self.board.complete or self.broken is not None:
                self._over.cancel()

    async def _use(self, lease: Lease) -> None:
        source = self.board.sources[lease.source]
        try:
            await self._fetch_span(lease)
        except NotThere as absent:
            self._routes.pop(lease.source, None)
            claimed = self.board.is_partial(lease.source)
            have = await self._pieces_of(lease.source)
            if claimed:  # it may have become complete meanwhile; who goes on like that is dropped
                self.board.failed(lease, BadAnswer(source.url, "does not have the pieces that it says it has"))
                self.board.looked(lease.source, have)
            elif have is None:
                self.board.failed(lease, absent)
            else:
                self.board.ended(lease)
                self.board.looked(lease.source, have)
        except SourceFault as fault:
            self._routes.pop(lease.source, None)
            self.board.failed(lease, fault)
            if self.board.tallies[lease.source].banned is not None:
                self.session.bans[source] = fault.what
        except Problem as broken:
            self.board.ended(lease)
            self.give_up(broken)
        except (AbortedByCaller, trio.Cancelled):
            self.board.ended(lease)
            raise
        else:
            self.board.ended(lease)

    # --- peers that have a part only

    async def _look(self, number: int) -> None:
        """Ask what a partial source has by now; where its partial is gone, it may be complete, and is asked for all."""
        self.board.looked(number, await self._pieces_of(number))

    async def _pieces_of(self, number: int) -> bytes | None:
        """One byte a piece, or None where the source has no partial of this blob, or nothing readable."""
        source = self.board.sources[number]
        if self.partials is None or source.kind is not SourceKind.PEER:
            return None
        table = self.board.table
        size = len(Bitmap(table.count).to_bytes(self.partials))
        target = f"{source.url}/partials/{self.partials.hex}/bitmap"
        try:
            raw = await self._small(source, target, size)
            return Bitmap.from_bytes(raw, self.partials, table.count).flags()
        except (SourceFault, DamagedBitmap):
            return None

    async def _small(self, source: Source, target: str, size: int) -> bytes:
        """The `size` bytes of a small resource. Raises SourceFault."""
        deadlines = self.session.deadlines[source.kind]
        route = await self.session.resolver.route(source, parse_url(target), deadlines.connect)
        abort = Abort()

        def read() -> bytes:
            wanted = Wanted(0, size, size, ranged=False)
            reader = self.session.transport.open_span(source.url, route, wanted, deadlines, abort)
            if isinstance(reader, Redirected):
                raise BadAnswer(source.url, "a redirect where none may be")
            try:
                view = memoryview(bytearray(size))
                filled = 0
                while filled < size:
                    filled += reader.readinto(view[filled:])
                return bytes(view)
            finally:
                reader.close()

        return await abortable(read, abort, self.session.spans)

    # --- spans

    async def _fetch_span(self, lease: Lease) -> None:
        source = self.board.sources[lease.source]
        deadlines = self.session.deadlines[source.kind]
        route = self._routes.get(lease.source)
        if route is None:
            url = parse_url(source.blob_url(self.digest))
            route = await self.session.resolver.route(source, url, deadlines.connect)
        for _ in range(1 + MAX_REDIRECTS):
            abort = Abort()
            exchange = bind(self._exchange, lease, source, route, deadlines, abort)
            result = await abortable(exchange, abort, self.session.spans)
            if result is None:
                self._routes[lease.source] = route
                return
            route = await self.session.resolver.redirect(source, route.url, result.location, deadlines.connect)
        raise RedirectRefused(source.url, f"more than {MAX_REDIRECTS} redirects")

    def _exchange(
        self, lease: Lease, source: Source, route: Route, deadlines: Deadlines, abort: Abort
    ) -> Redirected | None:
        """One request and its body, in a worker thread."""
        offset, length = self.board.span(lease)
        if length == 0:
            return None
        route, wanted = self._request(lease, source, route, offset, length)
        reader = self.session.transport.open_span(source.url, route, wanted, deadlines, abort)
        if isinstance(reader, Redirected):
            return reader
        if reader.offers_spans and source.kind is SourceKind.PEER:
            self.session.packing.setdefault(source, None)
        receive_span(reader, self.board, lease, offset, self.sink, self.buffers)
        return None

    def _request(self, lease: Lease, source: Source, route: Route, offset: int, length: int) -> tuple[Route, Wanted]:
        """Which resource to ask for these bytes, and how."""
        size = self.board.table.size
        base = source.url.removesuffix("/")
        if self.board.is_partial(lease.source) and self.partials is not None:
            return _at(route, f"{base}/partials/{self.partials.hex}"), Wanted(offset, length, size)
        if length == size and self.board.table.count == 1:
            return route, Wanted(0, length, size, ranged=False, zstd=True)
        if self.session.packs(source, self.board.rate(lease.source)):
            target = f"{base}/spans/{self.digest.hex}/{offset}-{offset + length - 1}"
            return _at(route, target), Wanted(offset, length, length, ranged=False, zstd=True)
        return route, Wanted(offset, length, size)


async def abortable(work: Callable[[], _T], abort: Abort, limiter: trio.CapacityLimiter) -> _T:
    """Run blocking `work` in a thread; on cancellation fire `abort` and wait for the thread's end."""
    result: outcome.Outcome[_T] | None = None

    async def watch() -> None:
        try:
            await trio.sleep_forever()
        finally:
            if result is None:
                abort.fire()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        result = await trio.to_thread.run_sync(outcome.capture, work, limiter=limiter)
        nursery.cancel_scope.cancel()
    assert result is not None
    await trio.lowlevel.checkpoint_if_cancelled()
    return result.unwrap()


def _at(route: Route, url: str) -> Route:
    """The same host, another resource."""
    return replace(route, url=parse_url(url))
