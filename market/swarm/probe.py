"""Asking one source whether it has a blob, without fetching it. A hint only: what it says is checked by nobody."""

from __future__ import annotations

import time

import trio

from market.model import Digest
from market.swarm.answers import Redirected
from market.swarm.bodies import Abort
from market.swarm.errors import RedirectRefused
from market.swarm.race import abortable
from market.swarm.routes import Resolver
from market.swarm.sources import AddressPolicy, Source, parse_url
from market.swarm.transport import PEER_DEADLINES, HttpTransport


async def has_blob(source: Source, digest: Digest, addresses: AddressPolicy) -> int:
    """The size that it says the blob has. Raises SourceFault: NotThere, or why it could not be asked."""
    route = await Resolver(addresses, time.monotonic).route(
        source, parse_url(source.blob_url(digest)), PEER_DEADLINES.connect
    )
    transport = HttpTransport()
    abort = Abort()
    try:
        size = await abortable(
            lambda: transport.size_of(source.url, route, PEER_DEADLINES, abort), abort, trio.CapacityLimiter(1)
        )
    finally:
        transport.close()
    if isinstance(size, Redirected):
        raise RedirectRefused(source.url, "redirects, which a peer may not")
    return size
