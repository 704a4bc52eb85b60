"""A WebSocket client (RFC 6455) without I/O: bytes in, whole messages and bytes to send out.

Guarantees that no message above MAX_MESSAGE_SIZE is ever held, and that whatever is not a plain data frame is judged by
the `websockets` library's own protocol. Plain ones, which is what relays send, are cut out of the buffer here: a
library's state machine costs three times what verifying the event's form does. Refuses to know sockets and time.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake
from websockets.frames import Frame, Opcode
from websockets.protocol import SEND_EOF, State
from websockets.uri import parse_uri

from market.discovery.frames import MAX_MESSAGE_SIZE

MAX_HANDSHAKE: Final = 32 * 1024
"""Bytes of an answer to the upgrade, body of an error page included."""

_PLAIN: Final = frozenset({0x81, 0x82})
"""First byte of a data frame that is a whole message: FIN, no extension, text or binary."""
_TWO_BYTES, _EIGHT_BYTES = 126, 127  # RFC 6455, section 5.2: how a length that needs more than seven bits is marked


class WebSocket:
    """One connection's protocol. Call `take` for what is to be sent after each call, and at the beginning."""

    def __init__(self, url: str) -> None:
        """Raises websockets' InvalidURI."""
        self._protocol = ClientProtocol(parse_uri(url), max_size=MAX_MESSAGE_SIZE)
        self._protocol.send_request(self._protocol.connect())
        self._buffer = bytearray()
        self._answered = 0
        self._refused = False
        self._parts: list[bytes] = []
        self._fragmented = False
        self.messages: deque[bytes] = deque()
        """Whole messages, in the order they came; the caller takes them from the left."""

    @property
    def is_open(self) -> bool:
        return self._protocol.state is State.OPEN

    @property
    def is_ending(self) -> bool:
        """A closing frame was seen or sent, or a rule was broken: nothing more comes."""
        return self._protocol.state in (State.CLOSING, State.CLOSED)

    @property
    def fault(self) -> str:
        """How the connection ended, for a person."""
        close, error = self._protocol.close_rcvd or self._protocol.close_sent, self._protocol.parser_exc
        if close is None:
            return "closed without a word"
        return f"closed with code {close.code}" + (f" ({error})" if error is not None else "")

    def take(self) -> bytes:
        """What is to be sent now."""
        return b"".join(data for data in self._protocol.data_to_send() if data != SEND_EOF)

    def send(self, text: str) -> None:
        self._protocol.send_text(text.encode())

    def ping(self) -> None:
        self._protocol.send_ping(b"")

    def close(self) -> None:
        """Say goodbye, if there is anybody to say it to."""
        if self.is_open:
            self._protocol.send_close()

    def receive(self, data: bytes) -> None:
        """Bytes from the relay; b"" is the end of the stream. Raises InvalidHandshake before it is open."""
        if not data:
            self._protocol.receive_eof()
        elif self.is_open:
            self._buffer += data
            self._cut()
        elif not self.is_ending:
            self._shake_hands(data)
        if self._protocol.handshake_exc is not None:
            raise self._protocol.handshake_exc

    def _shake_hands(self, data: bytes) -> None:
        """The answer goes to the library up to its end, so that what follows it begins with a frame."""
        self._answered += len(data)
        if self._answered > MAX_HANDSHAKE:
            raise InvalidHandshake("an answer to the upgrade without an end")
        self._buffer += data
        end = len(self._buffer) if self._refused else self._buffer.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        self._protocol.receive_data(bytes(self._buffer[:end]))
        del self._buffer[:end]
        self._protocol.events_received()
        self._refused = not self.is_open  # what follows is the page of a refusal
        if self.is_open:
            self._cut()

    def _cut(self) -> None:
        """Take every whole frame off the buffer."""
        buffer, at, size = self._buffer, 0, len(self._buffer)
        is_open = self.is_open
        while size - at >= 2 and is_open:
            length, header = buffer[at + 1] & 0x7F, 2
            if length == _TWO_BYTES:
                length, header = int.from_bytes(buffer[at + 2 : at + 4], "big"), 4
            elif length == _EIGHT_BYTES:
                length, header = int.from_bytes(buffer[at + 2 : at + 10], "big"), 10
            if size - at < header:
                break
            end = at + header + length
            if length > MAX_MESSAGE_SIZE:  # the library says so to the relay, at the sight of the header
                is_open = self._judge(bytes(buffer[at:]))
                at = size
            elif end > size:
                break
            else:
                if buffer[at] in _PLAIN and not buffer[at + 1] & 0x80 and not self._fragmented:
                    self.messages.append(bytes(buffer[at + header : end]))
                else:
                    is_open = self._judge(bytes(buffer[at:end]))
                at = end
        del buffer[:at]

    def _judge(self, frame: bytes) -> bool:
        """Control frames, fragments, and everything that is wrong. Whether the connection is open after it."""
        self._protocol.receive_data(frame)
        for event in self._protocol.events_received():
            if isinstance(event, Frame) and event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                self._parts.append(bytes(event.data))
                self._fragmented = not event.fin
                if event.fin:
                    self.messages.append(b"".join(self._parts))
                    self._parts.clear()
        return self.is_open
