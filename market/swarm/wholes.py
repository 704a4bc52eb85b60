"""Small resources over one kept connection, asked for one after the other: the cheapest exchange that is still checked.

Guarantees: `WholeAnswer` promises exactly the resource's signed size, and what it does not recognise at a glance goes
through h11 and `check_head` like every other answer, so that it accepts nothing that they refuse; memory is bounded by
the size and a named surplus. `KeptLane` has a deadline for every wait, and asks again on a new connection only where
the server has let go of an idle one. It refuses to know digests.
"""

from __future__ import annotations

import re
import time
from io import BytesIO
from typing import Final

import h11

from market.swarm.answers import Body, Head, Redirected, check_head
from market.swarm.bodies import Abort, Progress, Unpacked
from market.swarm.errors import BadAnswer, SourceFault, Stalled, Truncated
from market.swarm.transport import MAX_HEAD, USER_AGENT, Connection, Deadlines, HttpTransport, Route

PACKING_SURPLUS: Final = 64 * 1024
"""Bytes that a compressed or chunked body may be longer than what it becomes: frames and chunk sizes, no more."""
_READ: Final = 64 * 1024

_PLAIN: Final = re.compile(
    rb"HTTP/1\.1 200 [\t\x20-\x7e]*\r\n((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e]*\r\n)+)\r\n"
)
"""RFC 9112, 4 and 5, without what is rare: other versions and statuses, folded lines, bytes that are not ASCII."""
_TELLING: Final = re.compile(
    rb"^(content-length|content-encoding|transfer-encoding|connection):[\t ]*([^\r]*?)[\t ]*\r$", re.I | re.M
)
"""The fields that say where a body ends and what it is."""
_LENGTH: Final = re.compile(rb"[0-9]{1,19}")


class WholeAnswer:
    """One answer to a GET for a whole resource of `size` bytes: the socket's bytes in, the resource out. No I/O."""

    def __init__(self, source: str, size: int) -> None:
        self._source = source
        self._size = size
        self._parts: list[bytes] = []
        self._got = 0
        self._body: Body | None = None
        self._parser: h11.Connection | None = None
        self._fed = 0
        self.complete = False
        self.keep_alive = False
        """Whether the connection is good for another exchange; known when `complete`."""

    @property
    def has_head(self) -> bool:
        return self._body is not None

    def feed(self, data: bytes) -> bool:
        """Take what came from the socket. True when the answer is complete. Raises SourceFault."""
        if self._parser is not None:
            self._parse(self._parser, data)
        elif self._body is not None:
            self._take(data)
        elif (start := self._glance(data)) is not None:
            self._take(data[start:])
        else:
            self._parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
            self._parser.send(h11.Request(method="GET", target="/", headers=[("Host", "it")]))
            self._parser.send(h11.EndOfMessage())
            self._parse(self._parser, data)
        return self.complete

    def resource(self) -> bytes:
        """The resource's bytes, unpacked. Raises BadAnswer, Truncated."""
        data = b"".join(self._parts)
        if self._body is None or not self._body.zstd:
            return data
        unpacked = bytearray(self._size)
        view = memoryview(unpacked)
        filled = 0
        reader = Unpacked(self._source, BytesIO(data))
        while filled < self._size:
            got = reader.readinto(view[filled:])
            if not got:
                raise Truncated(self._source, f"the body ended {self._size - filled} bytes early")
            filled += got
        return bytes(unpacked)

    def _glance(self, data: bytes) -> int | None:
        """Where the body begins, if this is a whole head of the plainest kind; None leaves it to h11."""
        head = _PLAIN.match(data)
        if head is None:
            return None
        length, alive = b"", True
        for name, value in _TELLING.findall(head[1]):
            match name.lower():
                case b"content-length" if not length:
                    length = value
                case b"connection":
                    alive = alive and value.lower() == b"keep-alive"
                case _:
                    return None
        if not _LENGTH.fullmatch(length) or int(length) != self._size or head.end() > MAX_HEAD:
            return None
        self._body = Body(self._size, whole=False, keep_alive=alive)
        return head.end()

    def _take(self, data: bytes) -> None:
        """Bytes of a body with a length."""
        self._parts.append(data)
        self._got += len(data)
        if self._got >= self._size:
            assert self._body is not None
            self.complete = True
            self.keep_alive = self._body.keep_alive and self._got == self._size
            if self._got > self._size:
                self._parts[-1] = data[: len(data) - (self._got - self._size)]

    def _parse(self, parser: h11.Connection, data: bytes) -> None:
        if self._body is None:
            self._fed += len(data)
        try:
            parser.receive_data(data)
            while not self.complete:
                event = parser.next_event()
                if isinstance(event, h11.Response):
                    self._body = self._checked(event)
                elif isinstance(event, h11.Data):
                    self._keep(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    self._finish(parser)
                elif event is h11.NEED_DATA:
                    break
                elif not isinstance(event, h11.InformationalResponse):
                    raise BadAnswer(self._source, "the connection ended before the answer did")
        except h11.RemoteProtocolError as bad:
            raise BadAnswer(self._source, f"not HTTP/1.1: {bad}") from bad
        if self._body is None and self._fed > MAX_HEAD:
            raise BadAnswer(self._source, f"a head of more than {MAX_HEAD} bytes")

    def _checked(self, response: h11.Response) -> Body:
        headers = {name.decode("ascii"): value.decode("latin-1") for name, value in response.headers}
        alive = response.http_version == b"1.1" and headers.get("connection", "").lower() != "close"
        head = Head(response.status_code, headers, alive)
        body = check_head(self._source, head, 0, self._size, self._size, ranged=False, zstd=True)
        if isinstance(body, Redirected):
            raise SourceFault(self._source, "redirects, which is followed for single blobs only")
        return body

    def _keep(self, data: bytes) -> None:
        assert self._body is not None
        self._got += len(data)
        most = self._size + (PACKING_SURPLUS if self._body.zstd else 0)
        if self._got > most:
            raise BadAnswer(self._source, f"sends more than the {self._size} bytes that were asked for")
        self._parts.append(data)

    def _finish(self, parser: h11.Connection) -> None:
        assert self._body is not None
        if not self._body.zstd and self._got != self._size:
            raise Truncated(self._source, f"the body ended {self._size - self._got} bytes early")
        self.complete = True
        self.keep_alive = self._body.keep_alive and not parser.trailing_data[0]


class KeptLane:
    """One connection to `route`, in one thread: `ask` and `receive` take turns. Lanes may share a transport's pool."""

    def __init__(self, transport: HttpTransport, source: str, route: Route, deadlines: Deadlines, abort: Abort) -> None:
        self._transport = transport
        self._source = source
        self._route = route
        self._deadlines = deadlines
        self._abort = abort
        self._connection: Connection | None = None
        self._timeout = 0.0
        self._request = b""
        self._head_tail = (
            f" HTTP/1.1\r\nHost: {route.url.authority}\r\nUser-Agent: {USER_AGENT}\r\nAccept: */*\r\n"
            "Accept-Encoding: zstd, identity;q=0.5\r\n\r\n"
        ).encode("ascii")

    def ask(self, target: str) -> None:
        """Send the request for a resource of the route's host, by its path. What goes wrong shows at `receive`."""
        self._request = f"GET {target}".encode("ascii") + self._head_tail
        if self._connection is None:
            self._connection = self._transport.take(self._route.key)
            if self._connection is not None:
                self._use(self._connection)
        if self._connection is not None and not self._send(self._connection):
            self.close()

    def receive(self, size: int) -> bytes:
        """The resource that was asked for, of `size` bytes. Raises SourceFault, AbortedByCaller."""
        answer = WholeAnswer(self._source, size)
        try:
            connection = self._connection
            if connection is None or not self._begin(connection, answer):
                self.close()  # the server has let go of it while it was idle: no fault of anybody's
                connection = self._connection = self._transport.connect(
                    self._source, self._route, self._deadlines, self._abort
                )
                self._use(connection)
                if not self._send(connection) or not self._begin(connection, answer):
                    raise Truncated(self._source, "closed the connection without an answer")
            if not answer.complete:
                self._go_on(connection, answer)
            data = answer.resource()
        except BaseException:
            self.close()
            raise
        if not answer.keep_alive:
            self.close()
        return data

    def close(self) -> None:
        """Drop the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.sock.close()

    def give_back(self) -> None:
        """Done, and nothing is asked for: the connection may serve others."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._transport.give_back(connection, self._abort)

    def _use(self, connection: Connection) -> None:
        self._abort.attach(connection.sock)
        self._timeout = self._deadlines.first_byte
        connection.sock.settimeout(self._timeout)

    def _wait_at_most(self, connection: Connection, seconds: float) -> None:
        if seconds != self._timeout:  # every call is one into the kernel
            self._timeout = seconds
            connection.sock.settimeout(seconds)

    def _send(self, connection: Connection) -> bool:
        try:
            connection.sock.sendall(self._request)
        except OSError:
            self._abort.check()
            return False
        return True

    def _begin(self, connection: Connection, answer: WholeAnswer) -> bool:
        """The first bytes of the answer; False if the connection ended before any came."""
        try:
            data = connection.sock.recv(_READ)
        except TimeoutError as late:
            self._abort.check()
            raise Stalled(self._source, "no answer within the deadline") from late
        except OSError:
            self._abort.check()
            return False
        if not data:
            self._abort.check()
            return False
        answer.feed(data)
        return True

    def _go_on(self, connection: Connection, answer: WholeAnswer) -> None:
        """The rest of an answer that did not come at once."""
        head_until = time.monotonic() + self._deadlines.first_byte
        progress = Progress(self._source, self._deadlines.stall)
        while not answer.complete:
            wait = self._deadlines.stall if answer.has_head else head_until - time.monotonic()
            if wait <= 0:
                raise Stalled(self._source, "no complete answer head within the deadline")
            try:
                self._wait_at_most(connection, wait)
                data = connection.sock.recv(_READ)
            except TimeoutError as late:
                self._abort.check()
                raise Stalled(self._source, f"nothing came for {wait:.1f} s") from late
            except OSError as broken:
                self._abort.check()
                raise Truncated(self._source, f"the connection broke: {broken}") from broken
            if not data:
                self._abort.check()
                raise Truncated(self._source, "the connection ended before the answer did")
            if not answer.feed(data) and answer.has_head:
                progress.note(len(data))
        self._wait_at_most(connection, self._deadlines.first_byte)
