"""`GET` and `HEAD /blobs/<digest>` for an aiohttp application: what peers, curl, aria2c and browsers fetch from.

Guarantees: only complete blobs of the store that `allowed` admits are served, whatever the URL says (a refused blob
looks exactly like an absent one: asking must not tell what this node runs); one slow reader holds neither the loop nor
more than its share of streams; a blob is not collected while it is being sent. It refuses to know apps and policies.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web

from market.errors import Refused
from market.model import Digest
from market.swarm.errors import NotStored
from market.swarm.store import Store

MAX_STREAMS: Final = 64
"""Bodies sent at the same time, to everybody together: each holds a file and a socket."""
MAX_STREAMS_PER_PEER: Final = 16
"""... and to one address: MAX_SOURCES blobs of one fetching node."""
SEND_BYTES: Final = 1024 * 1024
"""Bytes per sendfile call: asyncio loops over one call until it is done, so that a fast reader would hold the loop."""
RETRY_AFTER_SECONDS: Final = 2
IMMUTABLE: Final = "public, max-age=31536000, immutable"  # RFC 8246

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes offset..offset+length-1 of a blob."""

    offset: int
    length: int


class Unsatisfiable(Exception):
    """The range lies outside the blob: 416."""


def parse_range(header: str | None, size: int) -> Span | None:
    """Read a Range header for a resource of `size` bytes; None means the whole of it. Pure.

    RFC 9110, 14.2: what is no single well-formed byte range is ignored. Raises Unsatisfiable.
    """
    found = _RANGE.fullmatch(header.strip()) if header else None
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if not first:
        length = min(int(last), size)
        if length == 0:
            raise Unsatisfiable
        return Span(size - length, length)
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        raise Unsatisfiable
    end = min(int(last), size - 1) if last else size - 1
    return Span(int(first), end - int(first) + 1)


class _Streams:
    """Counts bodies that are being sent. Lives on the loop's thread."""

    def __init__(self) -> None:
        self._by_peer: Counter[str] = Counter()

    @contextmanager
    def one(self, peer: str) -> Iterator[bool]:
        """True while there was room for one more."""
        room = self._by_peer.total() < MAX_STREAMS and self._by_peer[peer] < MAX_STREAMS_PER_PEER
        if not room:
            yield False
            return
        self._by_peer[peer] += 1
        try:
            yield True
        finally:
            self._by_peer[peer] -= 1
            if not self._by_peer[peer]:
                del self._by_peer[peer]


def blob_routes(store: Store, allowed: Callable[[Digest], bool]) -> list[web.RouteDef]:
    """The routes. `allowed` is called on the loop's thread for each request and must not block."""
    streams = _Streams()

    async def answer(request: web.Request) -> web.StreamResponse:
        digest = _known_digest(request.match_info["digest"], allowed)
        async with _leased(store, digest) as path:
            return await _answer(request, digest, path, streams)

    return [web.get("/blobs/{digest}", answer, allow_head=True)]


def _known_digest(text: str, allowed: Callable[[Digest], bool]) -> Digest:
    try:
        digest = Digest(text)
    except Refused as bad:
        raise web.HTTPNotFound(text="no such blob\n") from bad
    if not allowed(digest):
        raise web.HTTPNotFound(text="no such blob\n")
    return digest


@asynccontextmanager
async def _leased(store: Store, digest: Digest) -> AsyncIterator[Path]:
    try:
        lease = store.lease(digest)
        path = lease.__enter__()
    except NotStored as absent:
        raise web.HTTPNotFound(text="no such blob\n") from absent
    try:
        yield path
    finally:
        lease.__exit__(None, None, None)


async def _answer(request: web.Request, digest: Digest, path: Path, streams: _Streams) -> web.StreamResponse:
    size = _size(path)
    etag = f'"{digest.hex}"'
    headers = {"ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": IMMUTABLE}
    if _names_etag(request.headers.get("If-None-Match"), etag):
        return web.Response(status=304, headers=headers)
    try:
        span = parse_range(_range_header(request, etag), size)
    except Unsatisfiable:
        return web.Response(status=416, headers={**headers, "Content-Range": f"bytes */{size}"})
    body = span or Span(0, size)
    headers |= {"Content-Type": "application/octet-stream", "Content-Length": str(body.length)}
    if span is not None:
        headers["Content-Range"] = f"bytes {span.offset}-{span.offset + span.length - 1}/{size}"
    response = web.StreamResponse(status=200 if span is None else 206, headers=headers)
    if request.method == "HEAD":
        await response.prepare(request)
        return response
    with streams.one(request.remote or "") as room:
        if not room:
            raise web.HTTPServiceUnavailable(
                text="too many streams, come back soon\n", headers={"Retry-After": str(RETRY_AFTER_SECONDS)}
            )
        await response.prepare(request)
        await _send(request, response, path, body)
        await response.write_eof()
    return response


def _size(path: Path) -> int:
    return path.stat().st_size


def _range_header(request: web.Request, etag: str) -> str | None:
    """The Range header, unless an If-Range names other bytes than these. RFC 9110, 13.1.5."""
    condition = request.headers.get("If-Range")
    return request.headers.get("Range") if condition is None or condition.strip() == etag else None


def _names_etag(header: str | None, etag: str) -> bool:
    """Weak comparison, as If-None-Match asks for. RFC 9110, 13.1.2."""
    if header is None:
        return False
    names = [name.strip().removeprefix("W/") for name in header.split(",")]
    return etag in names or names == ["*"]


async def _send(request: web.Request, response: web.StreamResponse, path: Path, span: Span) -> None:
    loop = asyncio.get_running_loop()
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the reader has gone")
    await response.write(b"")  # aiohttp keeps the head back until the first write
    with path.open("rb") as file:
        offset, end = span.offset, span.offset + span.length
        os.posix_fadvise(file.fileno(), offset, span.length, os.POSIX_FADV_SEQUENTIAL)
        while offset < end:
            sent = await loop.sendfile(transport, file, offset, min(SEND_BYTES, end - offset))
            if not sent:
                raise ConnectionResetError("the blob's file became shorter")
            offset += sent
            await asyncio.sleep(0)  # other requests get their turn between two calls
