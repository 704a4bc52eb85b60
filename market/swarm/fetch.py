"""Fetching one blob from an origin and peers at once: what is there already, the piece list, the race, the finish.

Guarantees: what `Fetcher.fetch` leaves in the store hashes to the signed digest and has the signed size; verified
pieces survive failure, cancellation and SIGKILL; a ban becomes reputation only after the whole digest has verified.
"""

from __future__ import annotations

import secrets
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, TypeVar

import trio

from market.errors import Problem
from market.model import BlobRef, Digest
from market.swarm.errors import AllSourcesFailed, PublisherInconsistent, SourceFault
from market.swarm.lanes import sort_out
from market.swarm.memory import Buffers
from market.swarm.partial import Partial
from market.swarm.pieces import PieceTable, list_length, ref_digest, single_piece, table_from_list
from market.swarm.race import Race, Session
from market.swarm.receive import Board
from market.swarm.report import PROGRESS_SECONDS, FetchProgress, FetchReport, Pace, SourceReport
from market.swarm.routes import Resolver
from market.swarm.sinks import CHECKPOINT_BYTES, MemorySink, PartialSink, Sink
from market.swarm.sources import AddressPolicy, Source, SourceKind, parse_url
from market.swarm.states import SourceState
from market.swarm.store import Store
from market.swarm.sweep import OnStored, Sweep
from market.swarm.transport import ORIGIN_DEADLINES, PEER_DEADLINES, Deadlines, HttpTransport

MAX_SOURCES: Final = 16
"""Sources used for one blob: each costs a thread and a buffer of 1 MiB, and few links are wider than that many."""
LATE_SECONDS: Final = 0.5
"""A source of small blobs that has not answered by then is late, where others could be asked."""
REPAIRS: Final = 2
"""Times that pieces damaged on this disk are fetched again before the disk is given up."""

OnProgress = Callable[[FetchProgress], None]
_T = TypeVar("_T")


class Fetcher:
    """A fetching session: connections and bans live as long as it does, rates and proven lies are remembered beyond.

    Close it, or use it with `with`. `publisher` is only named in faults that are the publisher's; `share` lets other
    nodes have the pieces of what is still being fetched.
    """

    def __init__(
        self,
        store: Store,
        sources: Sequence[Source],
        addresses: AddressPolicy,
        *,
        publisher: str = "",
        share: bool = False,
        tls: ssl.SSLContext | None = None,
        origin_deadlines: Deadlines = ORIGIN_DEADLINES,
        peer_deadlines: Deadlines = PEER_DEADLINES,
        checkpoint_bytes: int = CHECKPOINT_BYTES,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._wall = wall
        self._clock = clock
        self._publisher = publisher
        self._share = share
        self._checkpoint_bytes = checkpoint_bytes
        now = wall()
        self._sources = tuple(
            source
            for source in dict.fromkeys(sources)
            if source.kind is SourceKind.ORIGIN or not store.sources.is_blamed(source.url, now)
        )
        self._quality = {source: store.sources.quality(source.url, now) for source in self._sources}
        self._session = Session(
            HttpTransport(tls),
            Resolver(addresses, clock),
            {SourceKind.ORIGIN: origin_deadlines, SourceKind.PEER: peer_deadlines},
            clock,
            trio.CapacityLimiter(4 * MAX_SOURCES),
        )
        self._brought: dict[Source, int] = {}
        self._lies: set[Source] = set()
        self._files = trio.CapacityLimiter(4)
        self._seed = secrets.randbits(32)

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections, and remember how the sources were."""
        self._session.transport.close()
        if not self._brought:
            return
        for source, brought in self._brought.items():
            self._store.sources.remember(
                source.url,
                self._quality[source],
                peer=source.kind is SourceKind.PEER,
                brought=brought,
                lies=int(source in self._lies),
                now=self._wall(),
            )
        with suppress(Problem):  # a full disk: the fetch itself has said so, and this is only a hint for the next
            self._store.save_sources()

    @property
    def banned(self) -> dict[str, str]:
        """URL -> reason of the peers banned in this session."""
        return {source.url: reason for source, reason in self._session.bans.items()}

    @property
    def connections_made(self) -> int:
        return self._session.transport.connections_made

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

    async def fetch_many(self, refs: Iterable[BlobRef], on_stored: OnStored | None = None) -> FetchReport:
        """Bring many blobs, small ones over a few kept connections at once.

        `on_stored` is called in this task, at most 10 times a second, with those that are here since. Raises what
        `fetch` raises.
        """
        began = self._clock()
        told = on_stored or _nobody
        wanted = tuple(dict.fromkeys(refs))
        small = [ref for ref in wanted if ref.pieces is None and ref.size]
        rest = [ref for ref in wanted if ref.pieces is not None or not ref.size]
        report = FetchReport()
        if len(small) > 1:
            report, small = await self._in_lanes(small, told)
        for ref in (*small, *rest):
            report += await self.fetch(ref)
            told([ref])
        return FetchReport(self._clock() - began, report.already_present, report.resumed, report.sources)

    async def _in_lanes(self, refs: Sequence[BlobRef], told: OnStored) -> tuple[FetchReport, list[BlobRef]]:
        """One source after the other, the best first; what is left is for the race, where all are asked at once."""
        here, todo = await self._file_work(sort_out, self._store, refs)
        if here:
            told(here)
        report = FetchReport(already_present=sum(ref.size for ref in here))
        usable = self._usable()[:MAX_SOURCES]
        for source in usable:
            if not todo:
                break
            deadlines = self._session.deadlines[source.kind]
            if len(usable) > 1:
                late = max(LATE_SECONDS, self._quality[source].hedge_after)
                deadlines = Deadlines(deadlines.connect, min(deadlines.first_byte, late), deadlines.stall)
            try:
                route = await self._session.resolver.route(source, parse_url(source.url), deadlines.connect)
            except SourceFault:
                continue
            sweep = Sweep(self._store, self._session.transport, source, route, deadlines, todo)
            await sweep.run(self._session.spans, told)
            if sweep.broken is not None:
                raise sweep.broken
            self._credit(sweep.report())
            todo = sweep.remaining()
            report += FetchReport(sources=(sweep.report(),))
        return report, todo

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
        race = self._race(digest, table, sink, Buffers(table.piece_size))
        await race.run()
        self._conclude(race)
        self._remember(race)
        return sink.data, FetchReport(sources=race.reports())

    async def _fetch_large(self, ref: BlobRef, table: PieceTable, on_progress: OnProgress | None) -> FetchReport:
        partial = await self._file_work(lambda: self._store.open_partial(ref, table, shared=self._share))
        report = FetchReport(resumed=partial.resumed_bytes)
        with partial:
            for _ in range(1 + REPAIRS):
                buffers = Buffers(table.piece_size)
                sink = PartialSink(partial, buffers, checkpoint_bytes=self._checkpoint_bytes)
                race = self._race(ref.blake3, table, sink, buffers, ref_digest(ref))
                race.board.already(list(partial.have))
                await self._run_kept(race, ref, partial, sink, on_progress)
                report += FetchReport(sources=race.reports())
                self._conclude(race)
                if await self._file_work(self._finish, ref, partial, sink):
                    self._remember(race)
                    return report
                damaged = await self._file_work(partial.damaged)
                if not damaged:
                    race.forgive()
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

    # --- one race

    def _race(
        self, digest: Digest, table: PieceTable, sink: Sink, buffers: Buffers, partials: Digest | None = None
    ) -> Race:
        chosen = self._usable()[:MAX_SOURCES]
        states = [SourceState(source.kind, self._quality[source]) for source in chosen]
        board = Board(table, chosen, states, self._clock, self._seed)
        return Race(self._session, digest, board, sink, buffers, partials)

    def _usable(self) -> list[Source]:
        """Origins first, then those that are known, the fastest first, then the others."""
        usable = [source for source in self._sources if source not in self._session.bans]
        usable.sort(key=lambda source: (source.kind is not SourceKind.ORIGIN, -(self._quality[source].rate or 0.0)))
        return usable

    async def _run_kept(
        self, race: Race, ref: BlobRef, partial: Partial, sink: PartialSink, on_progress: OnProgress | None
    ) -> None:
        """The race, with writing, checkpoints, the whole digest and progress beside it."""
        async with trio.open_nursery() as keeping:
            keeping.start_soon(self._hold, sink.write_all)
            keeping.start_soon(self._hold, sink.record_all)
            keeping.start_soon(self._hold, sink.hash_all)
            keeping.start_soon(self._watch, race, sink)
            try:
                async with trio.open_nursery() as nursery:
                    if on_progress is not None:
                        nursery.start_soon(self._tell_progress, ref, partial, on_progress)
                    await race.run()
                    nursery.cancel_scope.cancel()
            finally:
                sink.close()
        race.broken = race.broken or sink.broken

    async def _hold(self, work: Callable[[], None]) -> None:
        with trio.CancelScope(shield=True):  # it ends when the sink is closed, with everything verified written
            await trio.to_thread.run_sync(work, limiter=self._session.spans)

    async def _file_work(self, work: Callable[..., _T], *args: object) -> _T:
        return await trio.to_thread.run_sync(work, *args, limiter=self._files)

    async def _watch(self, race: Race, sink: PartialSink) -> None:
        """End a race whose pieces can not be kept."""
        await self._hold(sink.wait_closed_or_broken)
        if sink.broken is not None:
            race.give_up(sink.broken)

    async def _tell_progress(self, ref: BlobRef, partial: Partial, on_progress: OnProgress) -> None:
        pace = Pace(partial.verified_bytes, self._clock())
        while True:
            done = partial.verified_bytes
            on_progress(FetchProgress(ref, done, ref.size, pace.at(done, self._clock())))
            await trio.sleep(PROGRESS_SECONDS)

    # --- afterwards

    def _conclude(self, race: Race) -> None:
        """Raise what kept a race from completing. Bans of a race that did not verify are held against nobody."""
        if race.broken is not None:
            raise race.broken
        if not race.board.complete:
            faults = race.faults()
            race.forgive()
            raise AllSourcesFailed("no source is left for this blob", where=race.digest.hex, faults=faults)

    def _remember(self, race: Race) -> None:
        """The bytes have verified: what the sources did counts from now on."""
        for report in race.reports():
            self._credit(report)

    def _credit(self, report: SourceReport) -> None:
        self._brought[report.source] = self._brought.get(report.source, 0) + report.used
        if report.banned is not None:
            self._session.bans[report.source] = report.banned
            self._lies.add(report.source)


def _nobody(stored: Sequence[BlobRef]) -> None:
    """Nobody asked."""


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
