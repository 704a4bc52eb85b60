"""An answer's body as it comes from the socket: with a length or in chunks, plain or compressed.

Guarantees: never more bytes than the head promised; what is compressed is unpacked into the caller's buffer only, so
that no answer, however it was packed, takes more memory than one window; a body that drips is a stalled one. Plain
bodies with a length go from the socket into the caller's buffer without a copy.
"""

from __future__ import annotations

import socket
import threading
import time
from io import BytesIO
from typing import Final

import h11
import zstandard

from market.swarm.answers import Body
from market.swarm.errors import BadAnswer, Stalled, Truncated

STALL_BYTES: Final = 1024
"""Less than this within a stall deadline counts as nothing: a slow drip must not hold a piece for ever."""
MAX_WINDOW: Final = 8 * 1024 * 1024
"""zstd's own advice to decoders (RFC 8878, 3.1.1.1.2); a frame may ask for gigabytes."""
_READ: Final = 64 * 1024


class AbortedByCaller(Exception):
    """The caller fired the Abort; not the source's fault."""


class Abort:
    """Ends a blocking exchange from another thread by shutting its socket down."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._fired = False

    def attach(self, sock: socket.socket | None) -> None:
        """What to shut down from now on. Raises AbortedByCaller if it is too late."""
        with self._lock:
            self._socket = sock
            if self._fired:
                raise AbortedByCaller

    def fire(self) -> None:
        with self._lock:
            self._fired = True
            if self._socket is not None:
                try:
                    # Not SSLSocket's own shutdown: it takes the TLS object away under the reading thread.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
                except OSError:
                    return  # it was not connected, or is gone already

    def check(self) -> None:
        if self._fired:
            raise AbortedByCaller


class Progress:
    """Whether enough comes within each stall deadline."""

    def __init__(self, source: str, stall: float) -> None:
        self._source = source
        self._stall = stall
        self._window_ends = time.monotonic() + stall
        self._window_bytes = 0

    def note(self, got: int) -> None:
        """So many bytes came. Raises Stalled."""
        self._window_bytes += got
        if self._window_bytes >= STALL_BYTES:
            self._window_bytes = 0
            self._window_ends = time.monotonic() + self._stall
        elif time.monotonic() > self._window_ends:
            raise Stalled(self._source, f"fewer than {STALL_BYTES} bytes came in {self._stall:g} s")


class RawBody:
    """The bytes of one body, without their framing. `parser` has just returned the head."""

    def __init__(
        self, sock: socket.socket, source: str, parser: h11.Connection, body: Body, stall: float, abort: Abort
    ) -> None:
        self._sock = sock
        self._source = source
        self._stall = stall
        self._abort = abort
        self._parser = parser if body.chunked or body.zstd else None
        self._ended = False
        rest = parser.trailing_data[0] if self._parser is None else b""
        self._rest = memoryview(rest)[: body.length]
        self._overrun = len(rest) > body.length
        self._left = body.length
        self._progress = Progress(source, stall)

    @property
    def at_end(self) -> bool:
        """Everything was read and nothing came beyond it, so that the connection is good for another exchange."""
        if self._parser is None:
            return self._left == 0 and not self._overrun
        return (self._ended or self._is_end()) and not self._rest and not self._parser.trailing_data[0]

    def readinto(self, view: memoryview) -> int:
        """Fill some of `view`; 0 at the end. Raises Stalled, Truncated, BadAnswer, AbortedByCaller."""
        if not self._rest and self._parser is not None:
            self._rest = memoryview(self._next_data(self._parser))
        if self._rest:
            got = min(len(view), len(self._rest))
            view[:got] = self._rest[:got]
            self._rest = self._rest[got:]
        elif self._parser is not None:
            return 0
        else:
            got = self._receive(view)
        self._left -= got
        return got

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, for the unpacker."""
        buffer = bytearray(_READ if size < 0 else min(size, _READ))
        got = self.readinto(memoryview(buffer))
        return bytes(memoryview(buffer)[:got])

    def _next_data(self, parser: h11.Connection) -> bytes:
        """The next bytes of a body that h11 takes out of its framing; none at its end."""
        while not self._ended:
            try:
                event = parser.next_event()
                if isinstance(event, h11.Data) and event.data:
                    return bytes(event.data)
                if isinstance(event, h11.EndOfMessage):
                    self._ended = True
                elif event is h11.NEED_DATA:
                    buffer = bytearray(_READ)
                    got = self._receive(memoryview(buffer))
                    parser.receive_data(bytes(memoryview(buffer)[:got]))
            except h11.RemoteProtocolError as bad:
                raise BadAnswer(self._source, f"not HTTP/1.1: {bad}") from bad
        return b""

    def _is_end(self) -> bool:
        """Whether what is left of a framed body is its end, which has arrived already."""
        assert self._parser is not None
        try:
            self._ended = isinstance(self._parser.next_event(), h11.EndOfMessage)
        except h11.RemoteProtocolError:
            return False
        return self._ended

    def _receive(self, view: memoryview) -> int:
        try:
            got = self._sock.recv_into(view)
        except TimeoutError as late:
            self._abort.check()
            raise Stalled(self._source, f"nothing came for {self._stall:g} s") from late
        except OSError as broken:
            self._abort.check()
            raise Truncated(self._source, f"the connection broke: {broken}") from broken
        if got == 0:
            self._abort.check()
            raise Truncated(self._source, f"the body ended {max(self._left, 1)} bytes early")
        self._progress.note(got)
        return got


class Unpacked:
    """A zstd body (RFC 8878), unpacked as far as the caller has room."""

    def __init__(self, source: str, raw: RawBody | BytesIO) -> None:
        self._source = source
        unpacker = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
        self._reader = unpacker.stream_reader(
            raw,  # type: ignore[arg-type]  # it only ever calls read(size)
            read_across_frames=True,
        )

    def readinto(self, view: memoryview) -> int:
        """Fill some of `view`; 0 at the end. Raises BadAnswer, and what RawBody raises."""
        try:
            return int(self._reader.readinto(view))
        except zstandard.ZstdError as bad:
            raise BadAnswer(self._source, f"not a zstd body: {bad}") from bad
