"""Fetching one blob from an origin and peers at once. The trio shell around `schedule`, `receive` and `transport`.

Guarantees: what `Fetcher.fetch` leaves in the store hashes to the signed digest and has the signed size; verified
pieces survive failure, cancellation and SIGKILL; a failing source costs itself only. Every decision is the schedule's.
"""

from __future__ import annotations

import math
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial as bind
from types import TracebackType
from typing import Final, TypeVar

import outcome
import trio

from market.errors import Problem
from market.model import PIECE_SIZE, BlobRef, Digest
from market.swarm.answers import Redirected
from market.swarm.errors import AllSourcesFailed, PublisherInconsistent, RedirectRefused, SourceFault
from market.swarm.partial import Partial
from market.swarm.pieces import PieceTable, list_length, single_piece, table_from_list
from market.swarm.receive import Board, Buffers, MemorySink, PartialSink, Sink, receive_span
from market.swarm.report import FetchProgress, FetchReport, SourceReport
from market.swarm.routes import MAX_REDIRECTS, Resolver
from market.swarm.schedule import Lease, Leave, Quality, SourceState, Wait
from market.swarm.sources import AddressPolicy, Source, SourceKind, parse_url
from market.swarm.store import Store
from market.swarm.transport import (
    ORIGIN_DEADLINES,
    PEER_DEADLINES,
    Abort,
    AbortedByCaller,
    Deadlines,
    HttpTransport,
    Route,
)

MAX_SOURCES: Final = 16
"""Sources used for one blob: each costs a thread and a buffer of 1 MiB, and few links are wider than that many."""
CHECKPOINT_BYTES: Final = 64 * 1024 * 1024
CHECKPOINT_SECONDS: Final = 2.0
PROGRESS_SECONDS: Final = 0.1
RATE_SECONDS: Final = 1.0
"""Half-life of the rate that is shown."""
REPAIRS: Final = 2
"""Times that pieces damaged on this disk are fetched again before the disk is given up."""

OnProgress = Callable[[FetchProgress], None]
_T = TypeVar("_T")


@dataclass(slots=True)
class _Job:
    """One run of the schedule: a blob or a piece list."""

    digest: Digest
    board: Board
    sink: Sink
    buffers: Buffers
    routes: dict[int, Route] = field(default_factory=dict)
    changed: trio.Event = field(default_factory=trio.Event)
    broken: Problem | None = None
    """A fault of this machine: no source can mend it."""

    def wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class Fetcher:
    """A fetching session: connections, rates and bans live as long as it does. Close it, or use it with `with`.

    `publisher` is only named in faults that are the publisher's.
    """

    def __init__(
        self,
        store: Store,
        sources: Sequence[Source],
        addresses: AddressPolicy,
        *,
        publisher: str = "",
        tls: ssl.SSLContext | None = None,
        origin_deadlines: Deadlines = ORIGIN_DEADLINES,
        peer_deadlines: Deadlines = PEER_DEADLINES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._sources = tuple(dict.fromkeys(sources))
        self._publisher = publisher
        self._deadlines = {SourceKind.ORIGIN: origin_deadlines, SourceKind.PEER: peer_deadlines}
        self._clock = clock
        self._transport = HttpTransport(tls)
        self._resolver = Resolver(addresses, clock)
        self._quality = {source: Quality() for source in self._sources}
        self._bans: dict[Source, str] = {}
        self._spans = trio.CapacityLimiter(4 * MAX_SOURCES)
        self._files = trio.CapacityLimiter(4)

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()

    @property
    def banned(self) -> dict[str, str]:
        """URL -> reason of the peers banned in this session."""
        return {source.url: reason for source, reason in self._bans.items()}

    @property
    def connections_made(self) -> int:
        return self._transport.connections_made

    async def fetch(self, ref: BlobRef, on_progress: OnProgress | None = None) -> FetchReport:
        """Bring one blob into the store. `on_progress` is called in this task, at most 10 times a second.

        Raises AllSourcesFailed, PublisherInconsistent, SizeContradicted, BadPieceList, StoreFull, StoreUnusable.
        """
        began = self._clock()
        async with self._store.turn(ref.blake3):
            if await self._file_work(self._store.holds, ref):
                self._store.touch(ref.blake3)
                return FetchReport(self._clock() - began, already_present=ref.size)
            if ref.pieces is None:
                report = await self._fetch_small(ref)
            else:
                table, report = await self._table(ref, ref.pieces)
                report += await self._fetch_large(ref, table, on_progress)
        if on_progress is not None:
            on_progress(FetchProgress(ref, ref.size, ref.size, 0.0))
        return FetchReport(self._clock() - began, report.already_present, report.resumed, report.sources)

    async def _fetch_small(self, ref: BlobRef) -> FetchReport:
        data, report = await self._whole(ref.blake3, ref.size)
        await self._file_work(self._store.put, ref.blake3, data)
        return report

    async def _table(self, ref: BlobRef, pieces: Digest) -> tuple[PieceTable, FetchReport]:
        async with self._store.turn(pieces):
            table = await self._file_work(self._store.table, ref)
            if table is not None:
                return table, FetchReport()
            raw, report = await self._whole(pieces, list_length(ref))
            table = table_from_list(ref, raw)
            await self._file_work(self._store.put, pieces, raw)
            return table, report

    async def _whole(self, digest: Digest, size: int) -> tuple[bytes, FetchReport]:
        if size == 0:
            return b"", FetchReport()
        sink = MemorySink()
        table = single_piece(digest, size)
        job = self._job(digest, table, sink, Buffers(table.piece_size))
        await self._run(job)
        self._conclude(job)
        return sink.data, self._report(job)

    async def _fetch_large(self, ref: BlobRef, table: PieceTable, on_progress: OnProgress | None) -> FetchReport:
        partial = await self._file_work(self._store.open_partial, ref, table)
        report = FetchReport(resumed=partial.resumed_bytes)
        with partial:
            for _ in range(1 + REPAIRS):
                buffers = Buffers(table.piece_size)
                sink = PartialSink(partial, buffers)
                job = self._job(ref.blake3, table, sink, buffers)
                job.board.already(list(partial.have))
                await self._run_kept(job, ref, partial, sink, on_progress)
                report += self._report(job)
                self._conclude(job)
                if await self._file_work(self._finish, ref, partial, sink):
                    return report
                damaged = await self._file_work(partial.damaged)
                if not damaged:
                    self._forgive(job)
                    await self._file_work(partial.discard)
                    raise PublisherInconsistent(
                        "the signed piece list and the signed digest name different bytes",
                        where=f"{self._publisher or 'the publisher'}, blob {ref.blake3.hex}",
                        remedy="no source is to blame: ask the publisher to sign the release again",
                    )
                await self._file_work(partial.forget, damaged)
        raise Problem(
            "pieces that verified on arrival come back damaged from the disk",
            where=str(partial.data_path),
            remedy="check the disk",
        )

    def _finish(self, ref: BlobRef, partial: Partial, sink: PartialSink) -> bool:
        """Seal, check the whole digest, publish; False if the digest is another one."""
        partial.seal()
        if sink.whole_digest() != ref.blake3.raw:
            return False
        self._store.publish(ref, partial)
        return True

    # --- one run of the schedule

    def _job(self, digest: Digest, table: PieceTable, sink: Sink, buffers: Buffers) -> _Job:
        usable = [source for source in self._sources if source not in self._bans]
        usable.sort(
            key=lambda source: (source.kind is not SourceKind.ORIGIN, -(self._quality[source].rate or math.inf))
        )
        chosen = usable[:MAX_SOURCES]
        states = [SourceState(source.kind, self._quality[source]) for source in chosen]
        return _Job(digest, Board(table, chosen, states, self._clock), sink, buffers)

    async def _run(self, job: _Job) -> None:
        """Let every source work until the blob is complete or nobody is left."""
        async with trio.open_nursery() as nursery:
            for number in range(len(job.board.sources)):
                nursery.start_soon(self._work, job, number, nursery.cancel_scope)

    async def _run_kept(
        self, job: _Job, ref: BlobRef, partial: Partial, sink: PartialSink, on_progress: OnProgress | None
    ) -> None:
        """The same, with checkpoints and progress beside it."""
        async with trio.open_nursery() as writing:
            writing.start_soon(self._hold_writer, sink)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._keep_checkpoints, job, partial, sink)
                    if on_progress is not None:
                        nursery.start_soon(self._tell_progress, ref, partial, on_progress)
                    await self._run(job)
                    nursery.cancel_scope.cancel()
            finally:
                sink.close()
        job.broken = job.broken or sink.broken

    async def _hold_writer(self, sink: PartialSink) -> None:
        with trio.CancelScope(shield=True):  # it ends when the sink is closed, with everything verified written
            await trio.to_thread.run_sync(sink.write_all, limiter=self._spans)

    async def _work(self, job: _Job, number: int, everyone: trio.CancelScope) -> None:
        while True:
            match job.board.next(number):
                case Leave():
                    job.wake()
                    break
                case Wait(until):
                    with trio.move_on_after(max(0.0, until - self._clock())):
                        await job.changed.wait()
                case Lease() as lease:
                    await self._use(job, lease)
                    job.wake()
            if job.board.complete or job.broken is not None:
                everyone.cancel()

    async def _use(self, job: _Job, lease: Lease) -> None:
        try:
            await self._fetch_span(job, lease)
        except SourceFault as fault:
            job.routes.pop(lease.source, None)
            job.board.failed(lease, fault)
            source = job.board.sources[lease.source]
            if job.board.tallies[lease.source].banned is not None:
                self._bans[source] = fault.what
        except Problem as broken:
            job.board.ended(lease)
            job.broken = broken
        except (AbortedByCaller, trio.Cancelled):
            job.board.ended(lease)
            raise
        else:
            job.board.ended(lease)

    async def _fetch_span(self, job: _Job, lease: Lease) -> None:
        source = job.board.sources[lease.source]
        deadlines = self._deadlines[source.kind]
        route = job.routes.get(lease.source)
        if route is None:
            route = await self._resolver.route(source, parse_url(source.blob_url(job.digest)), deadlines.connect)
        for _ in range(1 + MAX_REDIRECTS):
            abort = Abort()
            result = await self._abortable(bind(self._exchange, job, lease, source, route, deadlines, abort), abort)
            if result is None:
                job.routes[lease.source] = route
                return
            route = await self._resolver.redirect(source, route.url, result.location, deadlines.connect)
        raise RedirectRefused(source.url, f"more than {MAX_REDIRECTS} redirects")

    def _exchange(
        self, job: _Job, lease: Lease, source: Source, route: Route, deadlines: Deadlines, abort: Abort
    ) -> Redirected | None:
        """One request and its body, in a worker thread."""
        offset, length = job.board.span(lease)
        if length == 0:
            return None
        reader = self._transport.open_span(source.url, route, offset, length, job.board.table.size, deadlines, abort)
        if isinstance(reader, Redirected):
            return reader
        receive_span(reader, job.board, lease, offset, job.sink, job.buffers)
        return None

    async def _abortable(self, work: Callable[[], _T], abort: Abort) -> _T:
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
            result = await trio.to_thread.run_sync(outcome.capture, work, limiter=self._spans)
            nursery.cancel_scope.cancel()
        assert result is not None
        await trio.lowlevel.checkpoint_if_cancelled()
        return result.unwrap()

    async def _file_work(self, work: Callable[..., _T], *args: object) -> _T:
        return await trio.to_thread.run_sync(work, *args, limiter=self._files)

    async def _keep_checkpoints(self, job: _Job, partial: Partial, sink: PartialSink) -> None:
        """Record progress durably every 64 MiB or 2 s (R-SW4), and keep the whole digest close behind."""
        recorded = self._clock()
        while True:
            await trio.sleep(PROGRESS_SECONDS)
            await self._file_work(sink.catch_up)
            unrecorded = partial.unrecorded_pieces
            due = unrecorded * PIECE_SIZE >= CHECKPOINT_BYTES or self._clock() - recorded >= CHECKPOINT_SECONDS
            if unrecorded and due:
                recorded = self._clock()
                try:
                    await self._file_work(partial.checkpoint)
                except Problem as broken:
                    job.broken = broken
                    return

    async def _tell_progress(self, ref: BlobRef, partial: Partial, on_progress: OnProgress) -> None:
        before, then = partial.verified_bytes, self._clock()
        rate: float | None = None
        while True:
            on_progress(FetchProgress(ref, partial.verified_bytes, ref.size, rate or 0.0))
            await trio.sleep(PROGRESS_SECONDS)
            done, now = partial.verified_bytes, self._clock()
            latest = (done - before) / max(now - then, 1e-6)
            share = 0.5 ** ((now - then) / RATE_SECONDS)
            rate = latest if rate is None else share * rate + (1 - share) * latest
            before, then = done, now

    # --- afterwards

    def _conclude(self, job: _Job) -> None:
        """Raise what kept a run from completing. Bans of a run that did not verify are not held against anyone."""
        if job.broken is not None:
            raise job.broken
        if not job.board.complete:
            self._forgive(job)
            faults = [
                (source.url, (tally.faults or ["no fault"])[-1])
                for source, tally in zip(job.board.sources, job.board.tallies, strict=True)
            ]
            faults += [(source.url, f"banned: {reason}") for source, reason in self._bans.items()]
            raise AllSourcesFailed("no source is left for this blob", where=job.digest.hex, faults=tuple(faults))

    def _forgive(self, job: _Job) -> None:
        # The piece list may be the lie: only a blob whose whole digest verified proves a peer's guilt.
        for source, tally in zip(job.board.sources, job.board.tallies, strict=True):
            if tally.banned is not None:
                self._bans.pop(source, None)

    def _report(self, job: _Job) -> FetchReport:
        reports = (
            SourceReport(source, tally.used, tally.wasted, tally.banned, tuple(tally.faults or ()))
            for source, tally in zip(job.board.sources, job.board.tallies, strict=True)
        )
        return FetchReport(sources=tuple(reports))


async def fetch_blob(
    store: Store,
    ref: BlobRef,
    sources: Sequence[Source],
    *,
    on_progress: OnProgress | None = None,
    addresses: AddressPolicy,
) -> FetchReport:
    """Fetch one blob in a session of its own. See `Fetcher.fetch`."""
    with Fetcher(store, sources, addresses) as fetcher:
        return await fetcher.fetch(ref, on_progress)
