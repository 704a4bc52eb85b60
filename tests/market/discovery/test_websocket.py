"""The client's side of RFC 6455, driven by bytes: against the `websockets` library's own server, and by hand."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import InvalidHandshake, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from market.discovery.frames import MAX_MESSAGE_SIZE
from market.discovery.websocket import MAX_HANDSHAKE, WebSocket


def connected() -> tuple[WebSocket, ServerProtocol]:
    client, server = WebSocket("ws://relay.test"), ServerProtocol()
    server.receive_data(client.take())
    [request] = server.events_received()
    assert isinstance(request, Request)
    server.send_response(server.accept(request))
    client.receive(b"".join(server.data_to_send()))
    assert client.is_open
    return client, server


def frame(data: bytes, opcode: Opcode = Opcode.TEXT, *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=False)


def fragments(text: bytes, cuts: Iterable[int]) -> bytes:
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    parts = [text[start:end] for start, end in pairwise(places)] or [b""]
    last = len(parts) - 1
    return b"".join(
        frame(part, Opcode.CONT if at else Opcode.TEXT, fin=at == last) + frame(b"still here?", Opcode.PING)
        for at, part in enumerate(parts)
    )


@given(
    messages=st.lists(st.tuples(st.binary(max_size=700), st.lists(st.integers(0, 700), max_size=3)), max_size=8),
    steps=st.lists(st.integers(1, 900), min_size=1, max_size=20),
)
def test_messages_come_out_whole_and_in_order_however_they_are_cut(
    messages: list[tuple[bytes, list[int]]], steps: list[int]
) -> None:
    client, _ = connected()
    client.take()
    stream = b"".join(fragments(text, cuts) if cuts else frame(text) for text, cuts in messages)
    at, turn = 0, 0
    while at < len(stream):
        step = steps[turn % len(steps)]
        client.receive(stream[at : at + step])
        at, turn = at + step, turn + 1
    assert list(client.messages) == [text for text, _ in messages]
    assert client.is_open


def test_pings_are_answered_and_a_close_ends_what_comes_after_it() -> None:
    client, server = connected()
    client.receive(frame(b"one") + frame(b"?", Opcode.PING) + frame(b"two"))
    server.receive_data(client.take())
    assert [(event.opcode, event.data) for event in server.events_received()] == [(Opcode.PONG, b"?")]  # type: ignore[union-attr]  # frames only
    client.receive(frame(b"\x03\xe8bye", Opcode.CLOSE) + frame(b"three"))
    assert (list(client.messages), client.is_ending) == ([b"one", b"two"], True)
    assert client.fault == "closed with code 1000"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(frame(b"x" * (MAX_MESSAGE_SIZE + 1))[:64], "1009", id="endless message, seen by its header"),
        pytest.param(b"\x81\x7f" + b"\xff" * 8, "1009", id="a length beyond 63 bits"),
        pytest.param(b"\x81\x85aaaahello", "1002", id="a masked frame from a server"),
        pytest.param(b"\xc1\x01x", "1002", id="an extension nobody agreed on"),
        pytest.param(frame(b"a", fin=False) + frame(b"b"), "1002", id="a message inside of another"),
        pytest.param(frame(b"a", Opcode.CONT), "1002", id="the end of nothing"),
        pytest.param(b"".join(frame(b"x" * 60_000, o, fin=False) for o in (1, 0, 0)), "1009", id="endless fragments"),  # type: ignore[arg-type]  # numbers are opcodes
    ],
)
def test_what_breaks_the_protocol_ends_the_connection_and_is_never_a_message(data: bytes, code: str) -> None:
    client, _ = connected()  # R-DS9
    client.receive(data)
    assert (list(client.messages), client.is_ending) == ([], True)
    assert code in client.fault


def test_what_is_buffered_is_bounded() -> None:
    client, _ = connected()
    whole = frame(b"x" * MAX_MESSAGE_SIZE)
    for at in range(0, len(whole) - 1, 4096):
        client.receive(whole[at : min(at + 4096, len(whole) - 1)])
    assert (list(client.messages), client.is_open) == ([], True)
    client.receive(whole[-1:])
    assert [len(one) for one in client.messages] == [MAX_MESSAGE_SIZE]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 302 Found\r\nLocation: ws://127.0.0.1\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"x" * (MAX_HANDSHAKE + 1),
    ],
)
def test_what_is_no_upgrade_is_refused(answer: bytes) -> None:
    client = WebSocket("ws://relay.test")

    def drip() -> None:
        for at in range(0, len(answer), 7):
            client.receive(answer[at : at + 7])

    with pytest.raises(InvalidHandshake):
        drip()


def test_a_refusal_names_its_status_when_the_relay_hangs_up_before_its_page_is_through() -> None:
    client = WebSocket("ws://relay.test")
    client.receive(b"HTTP/1.1 403 Forbidden\r\n\r\nmembers only")
    with pytest.raises(InvalidStatus, match="403"):
        client.receive(b"")


def test_the_first_message_may_come_with_the_upgrade() -> None:
    client, server = WebSocket("ws://relay.test"), ServerProtocol()
    server.receive_data(client.take())
    [request] = server.events_received()
    assert isinstance(request, Request)
    server.send_response(server.accept(request))
    whole = b"".join(server.data_to_send()) + frame(b"welcome")
    client.receive(whole[:-3])
    client.receive(whole[-3:])
    assert list(client.messages) == [b"welcome"]
