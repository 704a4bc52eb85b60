"""HTTP/1.1 ranges over blocking sockets, for worker threads: h11 reads the head, the body goes to the caller's buffer.

Guarantees: a span either brings exactly the bytes that were asked for or raises a SourceFault naming the source; every
wait has a deadline; a connection goes only to addresses that were resolved and checked before; `Abort.fire` ends a
blocked call from another thread. It refuses to know digests, pieces and who else is fetching.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Final, Protocol

import h11

from market.swarm.answers import Body, Head, Redirected, check_head, length_of
from market.swarm.bodies import Abort, AbortedByCaller, RawBody, Unpacked
from market.swarm.errors import (
    AddressRefused,
    BadAnswer,
    ConnectFailed,
    Stalled,
    Truncated,
)
from market.swarm.sources import Url

MAX_HEAD: Final = 32 * 1024
"""Bytes of all heads of one answer, interim ones included; nginx and Apache send under 1 KiB, CDNs under 8."""
MAX_IDLE: Final = 4
"""Idle connections kept per host: one per blob that is being fetched at the same time."""
IDLE_SECONDS: Final = 15.0
"""Common servers close idle connections after 15 to 75 seconds."""
_READ: Final = 64 * 1024
USER_AGENT: Final = "archipelago-market"


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds a source may take: to connect (TLS included), to answer, and between signs of progress."""

    connect: float
    first_byte: float
    stall: float


PEER_DEADLINES: Final = Deadlines(1.0, 2.0, 1.0)
ORIGIN_DEADLINES: Final = Deadlines(3.0, 5.0, 5.0)


@dataclass(frozen=True, slots=True)
class Route:
    """A URL with the addresses its host resolved to, all of them permitted."""

    url: Url
    addresses: tuple[tuple[int, tuple[str, int] | tuple[str, int, int, int]], ...]
    """(address family, socket address)."""

    @property
    def key(self) -> tuple[str, str, int]:
        return self.url.scheme, self.url.host, self.url.port


@dataclass(frozen=True, slots=True)
class Wanted:
    """Bytes offset..offset+length-1 of a resource of `size` bytes."""

    offset: int
    length: int
    size: int
    ranged: bool = True
    """Ask with a Range header; otherwise the resource is exactly these `length` bytes."""
    zstd: bool = False
    """Accept them compressed; only without a range, which would name bytes of the compressed form."""


class SpanReader(Protocol):
    """An answer whose body is being read: what every transport offers."""

    whole: bool
    """The source ignored the range and sends the blob from its first byte on."""
    offers_spans: bool
    """The source is a node that serves spans with a content-coding, too."""

    def readinto(self, view: memoryview) -> int:
        """Fill some of `view`; at least one byte. Raises SourceFault, AbortedByCaller."""

    def close(self) -> None:
        """Done with it; a fully read connection is kept for the next span."""


class Connection:
    """A connected socket, and whom it leads to."""

    def __init__(self, route: Route, sock: socket.socket) -> None:
        self.key = route.key
        self.sock = sock
        self.idle_since = 0.0


class HttpTransport:
    """A pool of connections; one exchange at a time on each. Threads may share it."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, str, int], list[Connection]] = defaultdict(list)
        self.connections_made = 0

    def close(self) -> None:
        with self._lock:
            idle = [connection for pool in self._idle.values() for connection in pool]
            self._idle.clear()
        for connection in idle:
            connection.sock.close()

    def open_span(
        self, source: str, route: Route, wanted: Wanted, deadlines: Deadlines, abort: Abort
    ) -> HttpSpan | Redirected:
        """Ask for bytes of a resource. Raises SourceFault, AbortedByCaller."""
        pooled = self.take(route.key)
        if pooled is not None:
            try:
                return self._exchange(pooled, source, route, wanted, deadlines, abort)
            except _StaleConnection:
                pooled.sock.close()  # closed by the server while idle: no fault of anybody's
        connection = self.connect(source, route, deadlines, abort)
        try:
            return self._exchange(connection, source, route, wanted, deadlines, abort)
        except _StaleConnection as gone:
            connection.sock.close()
            raise Truncated(source, "closed the connection without an answer") from gone

    def size_of(self, source: str, route: Route, deadlines: Deadlines, abort: Abort) -> int | Redirected:
        """What the source says a resource's length is, which proves nothing. Raises SourceFault, AbortedByCaller."""
        connection = self.connect(source, route, deadlines, abort)
        try:
            parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
            request = _request(route.url, None)
            head = _ask(connection.sock, source, parser, request, time.monotonic() + deadlines.first_byte, abort)
            return length_of(source, head)
        except _StaleConnection as gone:
            raise Truncated(source, "closed the connection without an answer") from gone
        finally:
            connection.sock.close()

    def take(self, key: tuple[str, str, int]) -> Connection | None:
        """An idle connection, which its server may have closed by now."""
        stale = []
        found = None
        with self._lock:
            pool = self._idle[key]
            while pool and found is None:
                connection = pool.pop()
                if time.monotonic() - connection.idle_since < IDLE_SECONDS:
                    found = connection
                else:
                    stale.append(connection)
        for connection in stale:
            connection.sock.close()
        return found

    def give_back(self, connection: Connection, abort: Abort) -> None:
        """Keep a connection on which nothing is under way for the next exchange."""
        try:
            abort.attach(None)
        except AbortedByCaller:
            connection.sock.close()
            return
        connection.idle_since = time.monotonic()
        with self._lock:
            pool = self._idle[connection.key]
            if len(pool) < MAX_IDLE:
                pool.append(connection)
                return
        connection.sock.close()

    def connect(self, source: str, route: Route, deadlines: Deadlines, abort: Abort) -> Connection:
        """A new connection. Raises ConnectFailed, AddressRefused, AbortedByCaller."""
        if not route.addresses:
            raise AddressRefused(source, f"{route.url.host} has no address that this node may talk to")
        until = time.monotonic() + deadlines.connect
        fault: OSError | None = None
        for tried, (family, address) in enumerate(route.addresses):
            share = (until - time.monotonic()) / (len(route.addresses) - tried)
            if share <= 0:
                break
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                abort.attach(sock)
                sock.settimeout(share)
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if route.url.scheme == "https":
                    sock.settimeout(max(0.05, until - time.monotonic()))
                    sock = self._wrap(sock, route.url.host, abort)
            except OSError as refused:
                sock.close()
                abort.check()
                fault = refused
            except BaseException:
                sock.close()
                raise
            else:
                with self._lock:
                    self.connections_made += 1
                return Connection(route, sock)
        raise ConnectFailed(source, f"no connection to {route.url.authority}: {fault or 'timed out'}") from fault

    def _wrap(self, sock: socket.socket, host: str, abort: Abort) -> ssl.SSLSocket:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        wrapped = self._tls.wrap_socket(sock, server_hostname=host)
        try:
            abort.attach(wrapped)
        except AbortedByCaller:
            wrapped.close()  # the caller's socket is an empty shell by now
            raise
        return wrapped

    def _exchange(
        self, connection: Connection, source: str, route: Route, wanted: Wanted, deadlines: Deadlines, abort: Abort
    ) -> HttpSpan | Redirected:
        try:
            abort.attach(connection.sock)
            parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
            until = time.monotonic() + deadlines.first_byte
            head = _ask(connection.sock, source, parser, _request(route.url, wanted), until, abort)
            body = check_head(
                source, head, wanted.offset, wanted.length, wanted.size, ranged=wanted.ranged, zstd=wanted.zstd
            )
            if isinstance(body, Redirected):
                connection.sock.close()
                return body
        except BaseException:
            connection.sock.close()
            raise
        return HttpSpan(self, connection, source, parser, body, deadlines.stall, abort)


class _StaleConnection(Exception):
    """The connection ended before the first byte of an answer."""


def _request(url: Url, wanted: Wanted | None) -> h11.Request:
    """None asks for the head alone."""
    headers = [
        ("Host", url.authority),
        ("User-Agent", USER_AGENT),
        ("Accept", "*/*"),
        ("Accept-Encoding", "zstd, identity;q=0.5" if wanted is not None and wanted.zstd else "identity"),
    ]
    if wanted is not None and wanted.ranged:
        headers.append(("Range", f"bytes={wanted.offset}-{wanted.offset + wanted.length - 1}"))
    return h11.Request(method="HEAD" if wanted is None else "GET", target=url.target, headers=headers)


def _ask(
    sock: socket.socket, source: str, parser: h11.Connection, request: h11.Request, until: float, abort: Abort
) -> Head:
    read = 0
    try:
        sock.settimeout(max(0.05, until - time.monotonic()))
        sock.sendall((parser.send(request) or b"") + (parser.send(h11.EndOfMessage()) or b""))
        while True:
            event = parser.next_event()
            if isinstance(event, h11.Response):
                headers = {name.decode("ascii"): value.decode("latin-1") for name, value in event.headers}
                alive = event.http_version == b"1.1" and headers.get("connection", "").lower() != "close"
                return Head(event.status_code, headers, alive)
            if event is h11.NEED_DATA:
                if read > MAX_HEAD:
                    raise BadAnswer(source, f"a head of more than {MAX_HEAD} bytes")
                left = until - time.monotonic()
                if left <= 0:
                    raise Stalled(source, "no complete answer head within the deadline")
                sock.settimeout(left)
                data = sock.recv(_READ)
                if not data and not read:
                    abort.check()
                    raise _StaleConnection
                read += len(data)
                parser.receive_data(data)
    except TimeoutError as late:
        abort.check()
        raise Stalled(source, "no answer within the deadline") from late
    except OSError as broken:
        abort.check()
        if not read:
            raise _StaleConnection from broken
        raise Truncated(source, f"the connection broke in the answer's head: {broken}") from broken
    except h11.RemoteProtocolError as bad:
        abort.check()
        raise BadAnswer(source, f"not HTTP/1.1: {bad}") from bad


class HttpSpan:
    """A checked answer's body."""

    def __init__(
        self,
        transport: HttpTransport,
        connection: Connection,
        source: str,
        parser: h11.Connection,
        body: Body,
        stall: float,
        abort: Abort,
    ) -> None:
        self.whole = body.whole
        self.offers_spans = body.offers_spans
        self._transport = transport
        self._connection = connection
        self._source = source
        self._left = body.length
        self._keep = body.keep_alive
        raw = RawBody(connection.sock, source, parser, body, stall, abort)
        self._raw = raw
        self._unpack = Unpacked(source, raw) if body.zstd else None
        self._abort = abort
        connection.sock.settimeout(stall)

    def readinto(self, view: memoryview) -> int:
        """Fill some of `view`; at least one byte. Raises Stalled, Truncated, BadAnswer, AbortedByCaller."""
        if self._left == 0:
            raise BadAnswer(self._source, "the body is shorter than was asked for")
        room = view[: self._left]
        got = self._unpack.readinto(room) if self._unpack is not None else self._raw.readinto(room)
        if got == 0:
            raise Truncated(self._source, f"the body ended {self._left} bytes early")
        self._left -= got
        return got

    def close(self) -> None:
        """Keep the connection if its body was read to the end; drop it otherwise."""
        connection = self._connection
        if self._left == 0 and self._keep and self._raw.at_end:
            self._transport.give_back(connection, self._abort)
        else:
            connection.sock.close()
