"""What a node serves to peers, curl, aria2c and browsers: routes for an aiohttp application.

    GET, HEAD /blobs/<digest>                     a complete blob; Range, ETag, immutable
    GET, HEAD /spans/<digest>/<first>-<last>      these bytes of it as a resource, with zstd where it helps
    GET, HEAD /partials/<ref digest>              verified pieces of a blob that is still being fetched; Range only
    GET       /partials/<ref digest>/bitmap       which pieces these are

Guarantees: only complete blobs of the store that `allowed` admits, and verified pieces of partials that were opened for
sharing, are served, whatever the URL says (a refused blob looks exactly like an absent one: asking must not tell what
this node runs); one slow reader holds neither the loop nor more than its share; a blob is not collected while it is
being sent. It refuses to know apps and policies.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import zstandard
from aiohttp import hdrs, web

from market.errors import Refused
from market.model import PIECE_SIZE, Digest
from market.swarm.answers import SPANS_HEADER
from market.swarm.errors import NotStored
from market.swarm.partial import Partial
from market.swarm.store import Store
from market.swarm.uplink import Uplink, UploadLimits

RETRY_AFTER_SECONDS: Final = 2
IMMUTABLE: Final = "public, max-age=31536000, immutable"  # RFC 8246
SAMPLE_BYTES: Final = 64 * 1024
WORTH_PACKING: Final = 0.9
"""A span whose first bytes do not get smaller than this share is sent as it is."""
ZSTD_LEVEL: Final = 1
"""Layers shrink to half at hundreds of MB/s; higher levels are for what is compressed once and kept."""

_BYTES: Final = "application/octet-stream"
_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")
_SPAN = re.compile(r"(\d{1,19})-(\d{1,19})")


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


def accepts_zstd(header: str | None) -> bool:
    """Whether an Accept-Encoding header admits zstd. RFC 9110, 12.5.3. Pure."""
    for part in (header or "").lower().split(","):
        coding, _, weight = part.partition(";")
        if coding.strip() == "zstd":
            return not re.fullmatch(r"\s*q\s*=\s*0(\.0{0,3})?\s*", weight)
    return False


def blob_routes(
    store: Store, allowed: Callable[[Digest], bool], limits: Callable[[], UploadLimits] = UploadLimits
) -> list[web.RouteDef]:
    """The routes. `allowed` and `limits` are called on the loop's thread for each request and must not block."""
    server = _Server(store, allowed, Uplink(limits))
    return [
        web.get("/blobs/{digest}", server.blob, allow_head=True),
        web.get("/spans/{digest}/{span}", server.span, allow_head=True),
        web.get("/partials/{ref}/bitmap", server.bitmap, allow_head=False),
        web.get("/partials/{ref}", server.partial, allow_head=True),
    ]


class _Server:
    """The handlers. Lives on the loop's thread."""

    def __init__(self, store: Store, allowed: Callable[[Digest], bool], uplink: Uplink) -> None:
        self._store = store
        self._allowed = allowed
        self._uplink = uplink
        self._packing = asyncio.Semaphore(1)  # one core at most

    async def blob(self, request: web.Request) -> web.StreamResponse:
        digest = self._known(request)
        async with self._leased(digest) as path:
            etag = f'"{digest.hex}"'
            headers = _headers(etag)
            if _names_etag(request.headers.get(hdrs.IF_NONE_MATCH), etag):
                return web.Response(status=304, headers=headers)
            size = _size(path)
            try:
                span = parse_range(_range_header(request, etag), size)
            except Unsatisfiable:
                return web.Response(status=416, headers={**headers, hdrs.CONTENT_RANGE: f"bytes */{size}"})
            if span is None:
                return await self._send_file(request, path, Span(0, size), 200, headers)
            return await self._send_file(request, path, span, 206, headers | _content_range(span, size))

    async def span(self, request: web.Request) -> web.StreamResponse:
        """A range as a resource of its own: a Range of a compressed blob would name bytes of the compressed form."""
        digest = self._known(request)
        async with self._leased(digest) as path:
            size = _size(path)
            found = _SPAN.fullmatch(request.match_info["span"])
            if found is None or not int(found[1]) <= int(found[2]) < size:
                raise web.HTTPNotFound(text="no such span\n")
            span = Span(int(found[1]), int(found[2]) - int(found[1]) + 1)
            headers = _headers(f'"{digest.hex}-{span.offset}-{span.length}"') | {hdrs.VARY: hdrs.ACCEPT_ENCODING}
            if accepts_zstd(request.headers.get(hdrs.ACCEPT_ENCODING)) and await self._packs(path, span):
                return await self._send_packed(request, path, span, headers | {hdrs.CONTENT_ENCODING: "zstd"})
            return await self._send_file(request, path, span, 200, headers)

    async def partial(self, request: web.Request) -> web.StreamResponse:
        partial = self._shared(request)
        size = partial.table.size
        try:
            span = parse_range(request.headers.get(hdrs.RANGE), size)
        except Unsatisfiable:
            span = None
        if span is None or not partial.has_bytes(span.offset, span.length):
            raise web.HTTPNotFound(text="no such pieces yet\n")
        headers = {hdrs.CACHE_CONTROL: "no-store"} | _content_range(span, size)
        return await self._send_file(request, partial.data_path, span, 206, headers)

    async def bitmap(self, request: web.Request) -> web.StreamResponse:
        partial = self._shared(request)
        body = partial.bitmap_bytes()
        return web.Response(body=body, headers={hdrs.CACHE_CONTROL: "no-store"})

    def _known(self, request: web.Request) -> Digest:
        digest = _digest(request.match_info["digest"])
        if not self._allowed(digest):
            raise web.HTTPNotFound(text="no such blob\n")
        return digest

    def _shared(self, request: web.Request) -> Partial:
        partial = self._store.shared_partial(_digest(request.match_info["ref"]))
        if partial is None:
            raise web.HTTPNotFound(text="no such blob\n")
        return partial

    @asynccontextmanager
    async def _leased(self, digest: Digest) -> AsyncIterator[Path]:
        try:
            lease = self._store.lease(digest)
            path = lease.__enter__()
        except NotStored as absent:
            raise web.HTTPNotFound(text="no such blob\n") from absent
        try:
            yield path
        finally:
            lease.__exit__(None, None, None)

    async def _send_file(
        self, request: web.Request, path: Path, span: Span, status: int, headers: dict[str, str]
    ) -> web.StreamResponse:
        response = _response(status, headers, span.length)
        if request.method == hdrs.METH_HEAD:
            await response.prepare(request)
            return response
        peer = request.remote or ""
        try:
            file = path.open("rb")
        except FileNotFoundError as moved:  # a partial that has just become a blob
            raise web.HTTPNotFound(text="no such blob\n") from moved
        with file, self._uplink.stream(peer) as room:
            _require(room)
            await response.prepare(request)
            await response.write(b"")  # aiohttp keeps the head back until the first write
            transport = request.transport
            if transport is None:
                raise ConnectionResetError("the reader has gone")
            loop = asyncio.get_running_loop()
            os.posix_fadvise(file.fileno(), span.offset, span.length, os.POSIX_FADV_SEQUENTIAL)
            offset, end = span.offset, span.offset + span.length
            while offset < end:
                count = min(self._uplink.turn_bytes, end - offset)
                await self._uplink.wait_turn(peer, count)
                sent = await loop.sendfile(transport, file, offset, count)
                if not sent:
                    raise ConnectionResetError("the blob's file became shorter")
                offset += sent
            await response.write_eof()
        return response

    async def _packs(self, path: Path, span: Span) -> bool:
        """Whether compressing is worth it, by a sample."""
        sample = await self._pack(path, Span(span.offset, min(SAMPLE_BYTES, span.length)))
        return len(sample) <= WORTH_PACKING * min(SAMPLE_BYTES, span.length)

    async def _pack(self, path: Path, span: Span) -> bytes:
        async with self._packing:
            return await asyncio.to_thread(_packed, path, span)

    async def _send_packed(
        self, request: web.Request, path: Path, span: Span, headers: dict[str, str]
    ) -> web.StreamResponse:
        """A frame a piece (RFC 8878, 3.1: frames may follow each other), so that one piece is in memory at a time."""
        response = web.StreamResponse(headers=headers | {hdrs.CONTENT_TYPE: _BYTES})
        if request.method == hdrs.METH_HEAD:
            await response.prepare(request)
            return response
        peer = request.remote or ""
        with self._uplink.stream(peer) as room:
            _require(room)
            await response.prepare(request)
            for offset in range(span.offset, span.offset + span.length, PIECE_SIZE):
                left = span.offset + span.length - offset
                view = memoryview(await self._pack(path, Span(offset, min(PIECE_SIZE, left))))
                while view:
                    count = min(self._uplink.turn_bytes, len(view))
                    await self._uplink.wait_turn(peer, count)
                    await response.write(view[:count])
                    view = view[count:]
            await response.write_eof()
        return response


def _headers(etag: str) -> dict[str, str]:
    return {hdrs.ETAG: etag, hdrs.ACCEPT_RANGES: "bytes", hdrs.CACHE_CONTROL: IMMUTABLE, SPANS_HEADER: "zstd"}


def _content_range(span: Span, size: int) -> dict[str, str]:
    return {hdrs.CONTENT_RANGE: f"bytes {span.offset}-{span.offset + span.length - 1}/{size}"}


def _response(status: int, headers: dict[str, str], length: int) -> web.StreamResponse:
    described = {hdrs.CONTENT_TYPE: _BYTES, hdrs.CONTENT_LENGTH: str(length)}
    return web.StreamResponse(status=status, headers=headers | described)


def _require(room: bool) -> None:
    if not room:
        raise web.HTTPServiceUnavailable(
            text="too many streams, come back soon\n", headers={hdrs.RETRY_AFTER: str(RETRY_AFTER_SECONDS)}
        )


def _digest(text: str) -> Digest:
    try:
        return Digest(text)
    except Refused as bad:
        raise web.HTTPNotFound(text="no such blob\n") from bad


def _size(path: Path) -> int:
    return path.stat().st_size


def _packed(path: Path, span: Span) -> bytes:
    with path.open("rb", buffering=0) as file:
        return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(os.pread(file.fileno(), span.length, span.offset))


def _range_header(request: web.Request, etag: str) -> str | None:
    """The Range header, unless an If-Range names other bytes than these. RFC 9110, 13.1.5."""
    condition = request.headers.get(hdrs.IF_RANGE)
    return request.headers.get(hdrs.RANGE) if condition is None or condition.strip() == etag else None


def _names_etag(header: str | None, etag: str) -> bool:
    """Weak comparison, as If-None-Match asks for. RFC 9110, 13.1.2."""
    if header is None:
        return False
    names = [name.strip().removeprefix("W/") for name in header.split(",")]
    return etag in names or names == ["*"]
