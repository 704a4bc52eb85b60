"""A blob of which nothing is known but its digest: no signed size, no piece list. One source after the other.

Guarantees: what is stored hashes to the digest; no source makes this node write more than `limit` bytes. Only the whole
can be checked, so that a source that lies costs all that it sent: with a signed reference use `Fetcher` instead.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial as bind

import outcome
import trio

from market.model import PIECE_SIZE, BlobRef, Digest
from market.swarm.answers import Redirected
from market.swarm.bodies import Abort
from market.swarm.errors import AllSourcesFailed, BadAnswer, PieceMismatch, RedirectRefused, SourceFault
from market.swarm.memory import page_aligned
from market.swarm.pieces import PieceHasher
from market.swarm.race import abortable
from market.swarm.report import PROGRESS_SECONDS, Pace
from market.swarm.routes import MAX_REDIRECTS, Resolver
from market.swarm.sources import AddressPolicy, Source, SourceKind, parse_url
from market.swarm.store import Store
from market.swarm.transport import ORIGIN_DEADLINES, PEER_DEADLINES, HttpTransport, Route, Wanted


@dataclass(frozen=True, slots=True)
class UnlistedProgress:
    """Who is sending, the bytes that came and that it says there are (0: not known yet), bytes per second."""

    source: Source
    done: int
    total: int
    rate: float


OnUnlisted = Callable[[UnlistedProgress], None]


@dataclass(slots=True)
class _Coming:
    """Where the attempt stands; written by its thread."""

    source: Source
    done: int = 0
    total: int = 0


async def fetch_unlisted(
    store: Store,
    digest: Digest,
    sources: Sequence[Source],
    *,
    addresses: AddressPolicy,
    limit: int,
    on_progress: OnUnlisted | None = None,
) -> tuple[BlobRef, Source]:
    """Bring a blob into the store by its digest alone; its reference, and who had it.

    `on_progress` is called in this task, at most 10 times a second. Raises AllSourcesFailed with each source's fault,
    StoreFull, StoreUnusable.
    """
    faults = []
    transport = HttpTransport()
    resolver = Resolver(addresses, time.monotonic)
    limiter = trio.CapacityLimiter(1)
    try:
        for source in sources:
            coming = _Coming(source)
            attempt = bind(_from_one, store, digest, coming, transport, resolver, limit, limiter)
            try:
                ref = await _telling(attempt, coming, on_progress)
            except SourceFault as fault:
                faults.append((source.url, fault.what))
            else:
                return ref, source
    finally:
        transport.close()
    raise AllSourcesFailed("no source has this blob", where=digest.hex, faults=tuple(faults))


async def _telling(
    attempt: Callable[[], Awaitable[BlobRef]], coming: _Coming, on_progress: OnUnlisted | None
) -> BlobRef:
    """Await `attempt`, with progress beside it."""
    if on_progress is None:
        return await attempt()
    tell = on_progress

    async def keep_telling() -> None:
        pace = Pace(0, time.monotonic())
        while True:
            await trio.sleep(PROGRESS_SECONDS)
            tell(UnlistedProgress(coming.source, coming.done, coming.total, pace.at(coming.done, time.monotonic())))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_telling)
        result = await outcome.acapture(attempt)
        nursery.cancel_scope.cancel()
    await trio.lowlevel.checkpoint_if_cancelled()
    ref = result.unwrap()
    tell(UnlistedProgress(coming.source, ref.size, ref.size, 0.0))
    return ref


async def _from_one(
    store: Store,
    digest: Digest,
    coming: _Coming,
    transport: HttpTransport,
    resolver: Resolver,
    limit: int,
    limiter: trio.CapacityLimiter,
) -> BlobRef:
    abort = Abort()
    source = coming.source
    deadlines = ORIGIN_DEADLINES if source.kind is SourceKind.ORIGIN else PEER_DEADLINES
    route = await resolver.route(source, parse_url(source.blob_url(digest)), deadlines.connect)

    def attempt(route: Route) -> BlobRef | Redirected:
        size = transport.size_of(source.url, route, deadlines, abort)
        if isinstance(size, Redirected):
            return size
        if size > limit:
            raise BadAnswer(source.url, f"says that the blob has {size} bytes, more than the {limit} that are allowed")
        coming.total = size
        reader = transport.open_span(source.url, route, Wanted(0, size, size, ranged=False), deadlines, abort)
        if isinstance(reader, Redirected):
            return reader
        try:
            return _keep(store, digest, coming, reader.readinto)
        finally:
            reader.close()

    for _ in range(1 + MAX_REDIRECTS):
        result = await abortable(bind(attempt, route), abort, limiter)
        if isinstance(result, BlobRef):
            return result
        route = await resolver.redirect(source, route.url, result.location, deadlines.connect)
    raise RedirectRefused(source.url, f"more than {MAX_REDIRECTS} redirects")


def _keep(store: Store, digest: Digest, coming: _Coming, readinto: Callable[[memoryview], int]) -> BlobRef:
    """Write and hash what comes, to the end that was announced."""
    hasher = PieceHasher()
    buffer = page_aligned(PIECE_SIZE)
    with store.receiving() as receiving:
        while coming.done < coming.total:
            got = readinto(buffer[: min(len(buffer), coming.total - coming.done)])
            receiving.write(buffer[:got])
            hasher.update(buffer[:got])
            coming.done += got
        ref, pieces = hasher.finish()
        if ref.blake3 != digest:
            raise PieceMismatch(coming.source.url, 0)
        receiving.keep(digest)
    if pieces is not None:
        store.add_list(pieces)
    return ref
