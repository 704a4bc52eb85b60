"""A blob of which nothing is known but its digest: no signed size, no piece list. One source after the other.

Guarantees: what is stored hashes to the digest; no source makes this node write more than `limit` bytes. Only the whole
can be checked, so that a source that lies costs all that it sent: with a signed reference use `Fetcher` instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial as bind

import trio

from market.model import PIECE_SIZE, BlobRef, Digest
from market.swarm.answers import Redirected
from market.swarm.bodies import Abort
from market.swarm.errors import AllSourcesFailed, BadAnswer, PieceMismatch, RedirectRefused, SourceFault
from market.swarm.pieces import PieceHasher
from market.swarm.race import abortable
from market.swarm.routes import MAX_REDIRECTS, Resolver
from market.swarm.sources import AddressPolicy, Source, SourceKind, parse_url
from market.swarm.store import Store
from market.swarm.transport import ORIGIN_DEADLINES, PEER_DEADLINES, HttpTransport, Route, Wanted

OnBytes = Callable[[int, int], None]
"""Bytes so far and in all; called from a worker thread."""


async def fetch_unlisted(
    store: Store,
    digest: Digest,
    sources: Sequence[Source],
    *,
    addresses: AddressPolicy,
    limit: int,
    on_bytes: OnBytes | None = None,
) -> tuple[BlobRef, Source]:
    """Bring a blob into the store by its digest alone; its reference, and who had it.

    Raises AllSourcesFailed with each source's fault, StoreFull, StoreUnusable.
    """
    faults = []
    transport = HttpTransport()
    resolver = Resolver(addresses, time.monotonic)
    limiter = trio.CapacityLimiter(1)
    try:
        for source in sources:
            abort = Abort()
            try:
                ref = await _from_one(store, digest, source, transport, resolver, limit, on_bytes, limiter, abort)
            except SourceFault as fault:
                faults.append((source.url, fault.what))
            else:
                return ref, source
    finally:
        transport.close()
    raise AllSourcesFailed("no source has this blob", where=digest.hex, faults=tuple(faults))


async def _from_one(
    store: Store,
    digest: Digest,
    source: Source,
    transport: HttpTransport,
    resolver: Resolver,
    limit: int,
    on_bytes: OnBytes | None,
    limiter: trio.CapacityLimiter,
    abort: Abort,
) -> BlobRef:
    deadlines = ORIGIN_DEADLINES if source.kind is SourceKind.ORIGIN else PEER_DEADLINES
    route = await resolver.route(source, parse_url(source.blob_url(digest)), deadlines.connect)

    def attempt(route: Route) -> BlobRef | Redirected:
        size = transport.size_of(source.url, route, deadlines, abort)
        if isinstance(size, Redirected):
            return size
        if size > limit:
            raise BadAnswer(source.url, f"says that the blob has {size} bytes, more than the {limit} that are allowed")
        reader = transport.open_span(source.url, route, Wanted(0, size, size, ranged=False), deadlines, abort)
        if isinstance(reader, Redirected):
            return reader
        try:
            return _keep(store, digest, source, reader.readinto, size, on_bytes)
        finally:
            reader.close()

    for _ in range(1 + MAX_REDIRECTS):
        result = await abortable(bind(attempt, route), abort, limiter)
        if isinstance(result, BlobRef):
            return result
        route = await resolver.redirect(source, route.url, result.location, deadlines.connect)
    raise RedirectRefused(source.url, f"more than {MAX_REDIRECTS} redirects")


def _keep(
    store: Store,
    digest: Digest,
    source: Source,
    readinto: Callable[[memoryview], int],
    size: int,
    on_bytes: OnBytes | None,
) -> BlobRef:
    hasher = PieceHasher()
    buffer = memoryview(bytearray(PIECE_SIZE))
    with store.receiving() as receiving:
        done = 0
        while done < size:
            got = readinto(buffer[: min(len(buffer), size - done)])
            receiving.write(buffer[:got])
            hasher.update(buffer[:got])
            done += got
            if on_bytes is not None:
                on_bytes(done, size)
        ref, pieces = hasher.finish()
        if ref.blake3 != digest:
            raise PieceMismatch(source.url, 0)
        receiving.keep(digest)
    if pieces is not None:
        store.add_list(pieces)
    return ref
