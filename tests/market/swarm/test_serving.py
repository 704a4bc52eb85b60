"""What other nodes, curl and browsers get, over a real aiohttp server on a real socket."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import h11
import pytest
import trio
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from market.bridge import open_bridge, serve
from market.model import PIECE_SIZE, BlobRef, Digest
from market.swarm import Source, SourceKind, Store, blob_routes, fetch_blob, open_store
from market.swarm.serving import Span, Unsatisfiable, parse_range
from market.swarm.uplink import MAX_STREAMS_PER_PEER
from tests.market.swarm.published import FOUR_AND_A_BIT, LOOPBACK


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        yield opened


@asynccontextmanager
async def serving(store: Store, *allowed: BlobRef) -> AsyncIterator[str]:
    digests = {ref.blake3 for ref in allowed} | {ref.pieces for ref in allowed}
    app = web.Application()
    app.add_routes(blob_routes(store, digests.__contains__))
    async with open_bridge() as bridge, serve(bridge, app, tcp=("127.0.0.1", 0)) as at:
        yield at.url


async def ask(base: str, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    host, port = base.removeprefix("http://").split(":")
    parser = h11.Connection(h11.CLIENT)
    sent = [("Host", host), ("Connection", "close")] + [(k.replace("_", "-"), v) for k, v in headers.items()]
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        request = parser.send(h11.Request(method=method, target=path, headers=sent))
        await stream.send_all((request or b"") + (parser.send(h11.EndOfMessage()) or b""))
        status, found, body = 0, {}, b""
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                parser.receive_data(await stream.receive_some(65536))
            elif isinstance(event, h11.Response):
                status = event.status_code
                found = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            else:
                return status, found, body


async def test_a_blob_is_sent_whole_with_its_digest_as_etag(store: Store) -> None:
    ref = store.add_bytes(FOUR_AND_A_BIT)
    async with serving(store, ref) as url:
        status, headers, body = await ask(url, f"/blobs/{ref.blake3}")
    assert (status, body) == (200, FOUR_AND_A_BIT)
    assert headers["etag"] == f'"{ref.blake3}"'
    assert headers["content-length"] == str(ref.size)
    assert headers["accept-ranges"] == "bytes"
    assert "immutable" in headers["cache-control"]


async def test_head_tells_the_same_without_a_body(store: Store) -> None:
    ref = store.add_bytes(FOUR_AND_A_BIT)
    async with serving(store, ref) as url:
        status, headers, body = await ask(url, f"/blobs/{ref.blake3}", "HEAD")
        partial = await ask(url, f"/blobs/{ref.blake3}", "HEAD", Range="bytes=0-9")
    assert (status, headers["content-length"], body) == (200, str(ref.size), b"")
    assert (partial[0], partial[1]["content-length"]) == (206, "10")


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=100-299", 100, 299),
        ("bytes=1048570-1048580", 1048570, 1048580),
        ("bytes=4194304-", 4194304, len(FOUR_AND_A_BIT) - 1),
        ("bytes=-5", len(FOUR_AND_A_BIT) - 5, len(FOUR_AND_A_BIT) - 1),
        ("bytes=5-99999999999", 5, len(FOUR_AND_A_BIT) - 1),
    ],
)
async def test_a_range_is_sent_and_named(store: Store, asked: str, first: int, last: int) -> None:
    ref = store.add_bytes(FOUR_AND_A_BIT)
    async with serving(store, ref) as url:
        status, headers, body = await ask(url, f"/blobs/{ref.blake3}", Range=asked)
    assert status == 206
    assert headers["content-range"] == f"bytes {first}-{last}/{ref.size}"
    assert body == FOUR_AND_A_BIT[first : last + 1]


async def test_a_range_outside_the_blob_is_416(store: Store) -> None:
    ref = store.add_bytes(b"short")
    async with serving(store, ref) as url:
        status, headers, _ = await ask(url, f"/blobs/{ref.blake3}", Range="bytes=5-9")
    assert (status, headers["content-range"]) == (416, "bytes */5")


async def test_what_the_client_has_is_not_sent_again(store: Store) -> None:
    ref = store.add_bytes(FOUR_AND_A_BIT)
    async with serving(store, ref) as url:
        path = f"/blobs/{ref.blake3}"
        for named in (f'"{ref.blake3}"', f'W/"{ref.blake3}"', f'"other", "{ref.blake3}"', "*"):
            status, _, body = await ask(url, path, If_None_Match=named)
            assert (status, body) == (304, b"")
        assert (await ask(url, path, If_None_Match='"other"'))[0] == 200
        assert (await ask(url, path, Range="bytes=0-0", If_Range='"other"'))[0] == 200
        assert (await ask(url, path, Range="bytes=0-0", If_Range=f'"{ref.blake3}"'))[0] == 206


async def test_a_blob_that_is_not_shared_looks_like_one_that_is_not_there(store: Store) -> None:  # R-SW7
    private, shared = store.add_bytes(b"private"), store.add_bytes(b"shared")
    async with serving(store, shared) as url:
        assert (await ask(url, f"/blobs/{shared.blake3}"))[0] == 200
        answers = [await ask(url, f"/blobs/{digest}") for digest in (private.blake3, Digest("00" * 32))]
    for status, headers, body in answers:
        headers.pop("date")
        assert status == 404
        assert (headers, body) == ({**answers[0][1]}, answers[0][2])


@pytest.mark.parametrize("name", ["..%2F..%2Flock", "../lock", "AB" * 32, "ab" * 20, "", "%00"])
async def test_a_path_that_is_no_digest_is_404(store: Store, name: str) -> None:
    async with serving(store) as url:
        assert (await ask(url, f"/blobs/{name}"))[0] == 404


async def test_one_address_gets_no_more_than_its_streams(store: Store) -> None:  # R-SW7
    # Larger than what two sockets buffer, so that a stream whose reader does not read stays open.
    ref = store.add_bytes(bytes(32 * PIECE_SIZE))
    async with serving(store, ref) as url:
        host, port = url.removeprefix("http://").split(":")
        request = f"GET /blobs/{ref.blake3} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        streams = []
        for _ in range(MAX_STREAMS_PER_PEER):
            stream = await trio.open_tcp_stream(host, int(port))
            await stream.send_all(request)
            assert (await stream.receive_some(12)) == b"HTTP/1.1 200"
            streams.append(stream)
        status, headers, _ = await ask(url, f"/blobs/{ref.blake3}")
        assert status == 503
        assert "retry-after" in headers
        for stream in streams:
            await stream.aclose()


async def test_a_node_fetches_what_another_serves(store: Store, tmp_path: Path) -> None:
    ref = store.add_bytes(FOUR_AND_A_BIT)
    with open_store(tmp_path / "other") as other:
        async with serving(store, ref) as url:
            report = await fetch_blob(other, ref, [Source(url, SourceKind.PEER)], addresses=LOOPBACK)
        assert other.path(ref.blake3).read_bytes() == FOUR_AND_A_BIT
    assert report.wasted == 0


async def test_curl_resumes_from_a_node(store: Store, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    assert curl, "curl is part of what CI installs"
    ref = store.add_bytes(FOUR_AND_A_BIT)
    target = tmp_path / "download"
    target.write_bytes(FOUR_AND_A_BIT[:1_500_000])
    async with serving(store, ref) as url:
        command = [curl, "-sS", "--fail", "-C", "-", "-o", str(target), f"{url}/blobs/{ref.blake3}"]
        await trio.run_process(command, stdout=subprocess.DEVNULL)
    assert target.read_bytes() == FOUR_AND_A_BIT


@given(st.text(alphabet="bytes=-0123456789, ", max_size=20), st.integers(0, 100))
def test_any_range_header_is_inside_the_blob_or_unsatisfiable(header: str, size: int) -> None:
    try:
        span = parse_range(header, size)
    except Unsatisfiable:
        return
    assert span is None or (span.offset >= 0 and span.length > 0 and span.offset + span.length <= size)


def test_ranges_that_are_not_one_well_formed_range_are_ignored() -> None:  # RFC 9110, 14.2
    for header in (None, "", "bytes=", "bytes=-", "bytes=9-5", "items=0-1", "bytes=0-1,3-4", "bytes=a-b"):
        assert parse_range(header, 100) is None
    assert parse_range("bytes=-500", 100) == Span(0, 100)
