"""Answers to requests for whole small blobs: what is recognised at a glance must be what h11 would have said."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from market.swarm import BadAnswer, SourceFault
from market.swarm.bodies import Abort, AbortedByCaller
from market.swarm.errors import Busy, NotThere, Stalled, Truncated
from market.swarm.sources import parse_url
from market.swarm.transport import Deadlines, HttpTransport, Route
from market.swarm.wholes import PACKING_SURPLUS, KeptLane, WholeAnswer

WHO = "http://origin.example"
DATA = b"the bytes of a small blob"


def told(raw: bytes, *cuts: int, size: int = len(DATA)) -> tuple[bytes, bool] | str:
    """What comes of an answer that arrives in these parts: its resource, or the name of the fault."""
    answer = WholeAnswer(WHO, size)
    borders = sorted({0, *(cut % (len(raw) + 1) for cut in cuts), len(raw)})
    try:
        for start, end in pairwise(borders):
            if answer.complete:
                break
            answer.feed(raw[start:end])
        return (answer.resource(), answer.keep_alive) if answer.complete else "unfinished"
    except SourceFault as fault:
        return f"{type(fault).__name__} of {fault.where}"


def plain(*fields: str, body: bytes = DATA, line: str = "HTTP/1.1 200 OK") -> bytes:
    return "\r\n".join((line, *fields, "", "")).encode("latin-1") + body


LENGTH = f"Content-Length: {len(DATA)}"
_FIELDS = st.sampled_from(
    (
        LENGTH,
        LENGTH.lower(),
        f"Content-Length:\t {len(DATA)} ",
        f"Content-Length: {len(DATA) + 1}",
        f"Content-Length: +{len(DATA)}",
        f"Content-Length: {len(DATA)}, {len(DATA)}",
        "Content-Length : 25",
        "Content-Length: \u0662\u0665".encode().decode("latin-1"),
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: identity",
        "Content-Encoding: identity",
        "Content-Encoding: gzip",
        "Content-Encoding: zstd",
        "Connection: close",
        "Connection: keep-alive",
        "Connection: Keep-Alive, Upgrade",
        "Server: nginx/1.22 (Debian)",
        'ETag: "a:b"',
        "X-Empty:",
        "X-Folded: one\r\n two",
        "X-Nul: \x00",
        "X-High: \xe9",
        " X-Space: leads",
        "no colon at all",
    )
)
_LINES = st.sampled_from(
    (
        "HTTP/1.1 200 OK",
        "HTTP/1.1 200 ",
        "HTTP/1.1 200",
        "HTTP/1.0 200 OK",
        "HTTP/2 200 OK",
        "HTTP/1.1 206 Partial Content",
        "HTTP/1.1 100 Continue",
        "HTTP/1.1 404 Not Found",
        "HTTP/1.1 503 Busy",
        "http/1.1 200 OK",
        "HTTP/1.1 200 OK\r\n",
    )
)


@given(
    line=_LINES,
    fields=st.lists(_FIELDS, max_size=5),
    body=st.sampled_from((DATA, DATA[:-1], DATA + b"more", b"19\r\n" + DATA + b"\r\n0\r\n\r\n", b"")),
    cuts=st.lists(st.integers(0, 400), max_size=4),
)
@example("HTTP/1.1 200 OK", [LENGTH], DATA, [])
@example("HTTP/1.1 200 OK", [LENGTH, LENGTH], DATA, [])
@example("HTTP/1.1 200 OK", [LENGTH, "Transfer-Encoding: chunked"], DATA, [])
def test_an_answer_means_the_same_however_it_arrives(
    line: str, fields: list[str], body: bytes, cuts: list[int]
) -> None:  # R-SW5
    raw = plain(*fields, body=body, line=line)
    at_once, by_h11, in_parts = told(raw), told(raw, *range(1, len(raw))), told(raw, *cuts)
    if isinstance(by_h11, tuple):
        assert at_once == (by_h11[0], at_once[1])
        assert in_parts == (by_h11[0], in_parts[1])
    else:
        assert at_once == in_parts == by_h11
    if isinstance(at_once, tuple):
        assert len(at_once[0]) == len(DATA)


def test_what_common_servers_send_is_read_at_once() -> None:
    date = "Date: Sat, 21 Nov 2026 15:49:13 GMT"
    assert told(plain("Server: nginx", date, LENGTH, "Connection: keep-alive", "Accept-Ranges: bytes")) == (DATA, True)
    assert told(plain(LENGTH, "Connection: close")) == (DATA, False)
    assert told(plain(LENGTH) + b"HTTP/1.1 200 OK\r\n") == (DATA, False), "what nobody asked for ends the connection"
    packed = zstandard.compress(DATA)
    assert told(plain("Content-Encoding: zstd", f"Content-Length: {len(packed)}", body=packed)) == (DATA, True)


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        pytest.param(plain("Content-Length: 7", body=b"another"), "BadAnswer", id="another_size"),
        pytest.param(plain(LENGTH, "Content-Encoding: gzip"), "BadAnswer", id="an_encoding_nobody_asked_for"),
        pytest.param(plain(LENGTH, "Transfer-Encoding: chunked"), "BadAnswer", id="request_smuggling"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 4000, "BadAnswer", id="interim_answers_without_end"),
        pytest.param(plain(*(f"X-{n}: {'y' * 100}" for n in range(9000))), "BadAnswer", id="header_flood"),
        pytest.param(plain("Transfer-Encoding: chunked", body=b"ff\r\n" + bytes(255)), "BadAnswer", id="more_bytes"),
        pytest.param(plain("Transfer-Encoding: chunked", body=b"1\r\nx\r\n0\r\n\r\n"), "Truncated", id="fewer_bytes"),
        pytest.param(plain("Location: http://127.0.0.1/", line="HTTP/1.1 302 Found"), "SourceFault", id="redirect"),
        pytest.param(plain("Content-Length: 0", line="HTTP/1.1 404 Gone", body=b""), "NotThere", id="absent"),
        pytest.param(plain("Content-Length: 0", line="HTTP/1.1 503 Busy", body=b""), "Busy", id="busy"),
        pytest.param(b"\x16\x03\x01\x00 this is no HTTP\r\n\r\n", "BadAnswer", id="no_http"),
    ],
)
def test_a_hostile_answer_is_a_typed_fault_that_names_the_source(raw: bytes, fault: str) -> None:  # R-SW5
    assert told(raw) == f"{fault} of {WHO}"


def test_a_packed_body_that_unpacks_to_gigabytes_costs_the_signed_size() -> None:
    bomb = zstandard.compress(bytes(64 * 1024 * 1024))
    raw = plain("Content-Encoding: zstd", f"Content-Length: {len(bomb)}", body=bomb)
    assert told(raw) == (bytes(len(DATA)), True), "its first bytes, which the digest then refuses"
    endless = plain("Content-Encoding: zstd", "Content-Length: 999999999", body=bytes(PACKING_SURPLUS + len(DATA) + 1))
    assert told(endless) == f"BadAnswer of {WHO}"


# --- a connection that is kept

QUICK = Deadlines(1.0, 0.2, 0.2)


@contextmanager
def saying(*connections: bytes | None) -> Iterator[Route]:
    """A server that, connection by connection, reads one request per answer and says these bytes; None: nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve() -> None:
            for script in connections:
                sock, _ = listener.accept()
                with sock:
                    for answer in (script or b"").split(b"|"):
                        if sock.recv(4096) and answer:
                            sock.sendall(answer)
                    if script is None:
                        sock.recv(4096)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield Route(parse_url(f"http://127.0.0.1:{port}"), ((socket.AF_INET, ("127.0.0.1", port)),))
        thread.join(5)
        assert not thread.is_alive(), "every connection was used"


def lane(route: Route, abort: Abort | None = None) -> KeptLane:
    return KeptLane(HttpTransport(), WHO, route, QUICK, abort or Abort())


def test_a_connection_that_the_server_closed_between_two_answers_is_made_anew() -> None:
    with saying(plain(LENGTH), plain(LENGTH, "Connection: close"), plain(LENGTH)) as route:
        one = lane(route)
        for _ in range(3):
            one.ask("/blobs/x")
            assert one.receive(len(DATA)) == DATA
        one.close()


def test_a_server_that_never_answers_is_left_after_two_connections_at_most() -> None:
    with saying(plain(LENGTH), b"") as route:
        one = lane(route)
        one.ask("/blobs/x")
        one.receive(len(DATA))
        one.ask("/blobs/x")
        with pytest.raises(Truncated):
            one.receive(len(DATA))


@pytest.mark.parametrize("script", [None, b"HTTP/1.1 200 OK\r\nX", plain(LENGTH, body=b"t")])
def test_silence_anywhere_in_an_answer_is_a_stall(script: bytes | None) -> None:  # R-SW5
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        one = lane(Route(parse_url(f"http://127.0.0.1:{port}"), ((socket.AF_INET, ("127.0.0.1", port)),)))

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(4096)
                sock.sendall(script or b"")
                sock.recv(4096)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        one.ask("/blobs/x")
        with pytest.raises(Stalled):
            one.receive(len(DATA))
        thread.join(5)


def test_an_abort_ends_a_lane_that_waits() -> None:
    with saying(None) as route:
        abort = Abort()
        one = lane(route, abort)
        one.ask("/blobs/x")
        threading.Timer(0.05, abort.fire).start()
        with pytest.raises(AbortedByCaller):
            one.receive(len(DATA))


@pytest.mark.parametrize(("line", "fault"), [("HTTP/1.1 404 No", NotThere), ("HTTP/1.1 429 Wait", Busy)])
def test_a_refusal_costs_the_connection_and_no_more(line: str, fault: type[SourceFault]) -> None:
    with saying(plain("Content-Length: 0", line=line, body=b""), plain(LENGTH)) as route:
        one = lane(route)
        one.ask("/blobs/x")
        with pytest.raises(fault):
            one.receive(len(DATA))
        one.ask("/blobs/y")
        assert one.receive(len(DATA)) == DATA
        one.close()


def test_an_answer_for_another_size_is_bad() -> None:
    with saying(plain(LENGTH)) as route:
        one = lane(route)
        one.ask("/blobs/x")
        with pytest.raises(BadAnswer):
            one.receive(len(DATA) + 1)
