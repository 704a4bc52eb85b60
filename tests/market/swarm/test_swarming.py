"""Nodes that fetch and serve at the same time: partial blobs, compressed spans, fair and limited upload."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from market.bridge import open_bridge, serve
from market.model import PIECE_SIZE, BlobRef, Digest
from market.swarm import (
    AllSourcesFailed,
    Fetcher,
    Source,
    SourceKind,
    Store,
    UploadLimits,
    blob_routes,
    fetch_blob,
    open_store,
)
from market.swarm.pieces import Bitmap, ref_digest, table_from_list
from market.swarm.serving import accepts_zstd
from market.swarm.transport import Deadlines
from market.swarm.uplink import Turns
from tests.fakes.blob_servers import BlobServer, Faults
from tests.market.swarm.published import LOOPBACK, publish, some_bytes
from tests.market.swarm.test_serving import ask

QUICK = Deadlines(connect=1.0, first_byte=0.6, stall=0.5)
DATA = some_bytes(6 * PIECE_SIZE + 99)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "other") as opened:
        yield opened


@asynccontextmanager
async def node(
    store: Store, *allowed: Digest | None, limits: Callable[[], UploadLimits] = UploadLimits
) -> AsyncIterator[str]:
    app = web.Application()
    app.add_routes(blob_routes(store, frozenset(allowed).__contains__, limits))
    async with open_bridge() as bridge, serve(bridge, app, tcp=("127.0.0.1", 0)) as at:
        yield at.url


def partly_stored(store: Store, folder: Path, pieces: list[int]) -> BlobRef:
    """A reference whose list is known here, of which some pieces are verified."""
    ref = publish(folder, DATA)
    assert ref.pieces is not None
    raw = (folder / "blobs" / ref.pieces.hex).read_bytes()
    store.add_list(raw)
    with store.open_partial(ref, table_from_list(ref, raw)) as partial:
        for index in pieces:
            partial.write(index, memoryview(DATA)[index * PIECE_SIZE :][: partial.table.length(index)])
        partial.checkpoint()
    return ref


# --- blobs that are still being fetched


async def test_verified_pieces_of_a_blob_that_is_still_being_fetched_are_served(store: Store, tmp_path: Path) -> None:
    ref = partly_stored(store, tmp_path / "published", [1, 2, 6])
    table = store.table(ref)
    assert table is not None
    name = ref_digest(ref)
    async with node(store) as url:
        assert (await ask(url, f"/partials/{name}/bitmap"))[0] == 404, "nobody fetches it: nothing to see"
        with store.open_partial(ref, table, shared=True):
            status, headers, raw = await ask(url, f"/partials/{name}/bitmap")
            assert list(Bitmap.from_bytes(raw, name, 7)) == [1, 2, 6]
            assert (status, headers["cache-control"]) == (200, "no-store")
            inside = f"bytes={PIECE_SIZE + 5}-{3 * PIECE_SIZE - 1}"
            status, headers, body = await ask(url, f"/partials/{name}", Range=inside)
            assert (status, body) == (206, DATA[PIECE_SIZE + 5 : 3 * PIECE_SIZE])
            for wrong in (f"bytes=0-{PIECE_SIZE}", f"bytes={PIECE_SIZE}-{3 * PIECE_SIZE}", "bytes=99999999-", "junk"):
                assert (await ask(url, f"/partials/{name}", Range=wrong))[0] == 404
            assert (await ask(url, f"/partials/{name}"))[0] == 404
        with store.open_partial(ref, table, shared=False):
            assert (await ask(url, f"/partials/{name}/bitmap"))[0] == 404, "sharing is off"


async def test_two_nodes_that_fetch_the_same_blob_give_each_other_pieces(
    store: Store, other: Store, tmp_path: Path
) -> None:
    ref = publish(tmp_path / "published", some_bytes(24 * PIECE_SIZE))
    with BlobServer(tmp_path / "published", Faults(rate=12e6)) as server:
        async with node(store, ref.blake3) as first, node(other, ref.blake3) as second:
            reports = {}

            async def fetch(into: Store, peer: str) -> None:
                sources = [Source(server.url, SourceKind.ORIGIN), Source(peer, SourceKind.PEER)]
                with Fetcher(into, sources, LOOPBACK, share=True) as fetcher:
                    reports[peer] = await fetcher.fetch(ref)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(fetch, store, second)
                nursery.start_soon(fetch, other, first)
    for peer, report in reports.items():
        assert report.bytes_by_source[peer] > 0, "each had something for the other"
        assert not report.banned
    assert server.body_bytes < 1.8 * ref.size, "the origin did not send all of it twice"


async def test_a_peer_that_has_a_part_brings_it_and_no_more_is_waited_for(
    store: Store, other: Store, tmp_path: Path
) -> None:
    ref = partly_stored(store, tmp_path / "published", [0, 1, 2, 4])
    table = store.table(ref)
    assert table is not None
    with BlobServer(tmp_path / "published", Faults(rate=10e6)) as server, store.open_partial(ref, table, shared=True):
        async with node(store) as url:
            sources = [Source(server.url, SourceKind.ORIGIN), Source(url, SourceKind.PEER)]
            report = await fetch_blob(other, ref, sources, addresses=LOOPBACK)
    assert other.path(ref.blake3).read_bytes() == DATA
    assert report.bytes_by_source[url] > 0


def claiming(count: int) -> web.Application:
    """Says that it has every piece of every blob, and has nothing."""

    async def all_of_them(request: web.Request) -> web.Response:
        bitmap = Bitmap(count)
        for index in range(count):
            bitmap.add(index)
        return web.Response(body=bitmap.to_bytes(Digest(request.match_info["ref"])))

    app = web.Application()
    app.add_routes([web.get("/partials/{ref}/bitmap", all_of_them)])
    return app


async def test_a_peer_that_lies_about_its_pieces_costs_nothing_but_itself(store: Store, tmp_path: Path) -> None:
    ref = publish(tmp_path / "published", DATA)

    app = claiming(7)
    with BlobServer(tmp_path / "published", Faults(rate=20e6)) as server:
        async with open_bridge() as bridge, serve(bridge, app, tcp=("127.0.0.1", 0)) as liar:
            sources = [Source(server.url, SourceKind.ORIGIN), Source(liar.url, SourceKind.PEER)]
            with trio.fail_after(5):
                report = await fetch_blob(store, ref, sources, addresses=LOOPBACK)
        with BlobServer(tmp_path / "published", Faults(only_lists_and_small=True)) as lists:
            again = publish(tmp_path / "published", some_bytes(3 * PIECE_SIZE))
            async with open_bridge() as bridge, serve(bridge, claiming(3), tcp=("127.0.0.1", 0)) as alone:
                sources = [Source(lists.url, SourceKind.PEER), Source(alone.url, SourceKind.PEER)]
                with trio.fail_after(20), pytest.raises(AllSourcesFailed, match="that it says it has"):
                    await fetch_blob(store, again, sources, addresses=LOOPBACK)
    assert report.bytes_by_source[liar.url] == 0
    assert store.path(ref.blake3).read_bytes() == DATA


# --- compressed


LAYER = b"".join(b"usr/lib/python3/dist-packages/%07d.py\0" % number for number in range(200_000))[: 5 * PIECE_SIZE]


async def test_a_span_is_compressed_for_who_accepts_it_and_where_it_helps(store: Store) -> None:
    layer, noise = store.add_bytes(LAYER), store.add_bytes(some_bytes(2 * PIECE_SIZE))
    async with node(store, layer.blake3, noise.blake3) as url:
        at = f"{PIECE_SIZE}-{2 * PIECE_SIZE - 1}"
        plain = await ask(url, f"/spans/{layer.blake3}/{at}")
        assert (plain[0], plain[2]) == (200, LAYER[PIECE_SIZE : 2 * PIECE_SIZE])
        packed = await ask(url, f"/spans/{layer.blake3}/{at}", Accept_Encoding="zstd")
        assert packed[1]["content-encoding"] == "zstd"
        assert packed[1]["vary"] == "Accept-Encoding"
        assert len(packed[2]) < PIECE_SIZE / 4
        assert "content-encoding" not in (await ask(url, f"/spans/{noise.blake3}/{at}", Accept_Encoding="zstd"))[1]
        for wrong in ("5-4", f"0-{len(LAYER)}", "0-", "-1", "a-b"):
            assert (await ask(url, f"/spans/{layer.blake3}/{wrong}"))[0] == 404


async def test_a_slow_node_sends_a_layer_compressed_and_it_verifies(store: Store, other: Store) -> None:
    ref = store.add_bytes(LAYER)
    rate = 1.5e6
    async with node(store, ref.blake3, ref.pieces, limits=lambda: UploadLimits(rate=rate)) as url:
        began = time.monotonic()
        report = await fetch_blob(other, ref, [Source(url, SourceKind.PEER)], addresses=LOOPBACK)
        seconds = time.monotonic() - began
    assert other.path(ref.blake3).read_bytes() == LAYER
    assert report.fetched == ref.size + 5 * 32
    assert seconds < 0.75 * ref.size / rate, "the wire carried less than the blob"


@pytest.mark.parametrize(
    ("packed", "told"),
    [
        pytest.param(b"this is no zstd at all", "not a zstd body", id="no_zstd"),
        pytest.param("half", "early", id="ends_early"),
        pytest.param("bomb", "does not hash", id="bomb"),
        pytest.param("window", "not a zstd body", id="asks_for_a_gigabyte_of_memory"),
    ],
)
async def test_a_hostile_compressed_body_is_refused_in_bounded_memory(
    store: Store, tmp_path: Path, packed: bytes | str, told: str
) -> None:  # R-SW5
    import zstandard

    data = b"small and compressible " * 1000
    ref = publish(tmp_path / "published", data)
    match packed:
        case "half":
            body = zstandard.ZstdCompressor().compress(data)[:20]
        case "bomb":
            body = zstandard.ZstdCompressor().compress(bytes(64 * PIECE_SIZE))
        case "window":
            large = zstandard.ZstdCompressionParameters(window_log=30, format=zstandard.FORMAT_ZSTD1)
            body = zstandard.ZstdCompressor(compression_params=large).compressobj().compress(b"")
            body = bytes.fromhex("28b52ffd") + b"\x00\xa0" + b"\x00\x00\x00"  # RFC 8878: a window of 1 GiB
        case raw:
            assert isinstance(raw, bytes)
            body = raw
    with BlobServer(tmp_path / "published", Faults(packed=body)) as hostile:
        with pytest.raises(AllSourcesFailed, match=told) as failed:
            await fetch_blob(store, ref, [Source(hostile.url, SourceKind.PEER)], addresses=LOOPBACK)
        assert failed.value.faults[0][0] == hostile.url
    good = zstandard.ZstdCompressor().compress(data)
    with BlobServer(tmp_path / "published", Faults(packed=good)) as server:
        await fetch_blob(store, ref, [Source(server.url, SourceKind.ORIGIN)], addresses=LOOPBACK)
    assert store.path(ref.blake3).read_bytes() == data


def test_zstd_is_sent_only_to_who_asks_for_it() -> None:  # RFC 9110, 12.5.3
    assert accepts_zstd("gzip, zstd;q=0.5")
    assert accepts_zstd("ZSTD")
    for header in (None, "", "gzip", "zstd;q=0", "zstd; q=0.000", "zstdx"):
        assert not accepts_zstd(header)


@pytest.mark.parametrize("size", [1000, PIECE_SIZE, 3 * PIECE_SIZE + 5])
async def test_a_source_that_sends_chunks_is_a_source(store: Store, tmp_path: Path, size: int) -> None:
    data = some_bytes(size)
    ref = publish(tmp_path / "published", data)
    with BlobServer(tmp_path / "published", Faults(chunked=True)) as server:
        await fetch_blob(store, ref, [Source(server.url, SourceKind.ORIGIN)], addresses=LOOPBACK)
    assert store.path(ref.blake3).read_bytes() == data


async def test_chunks_without_end_cost_their_source_only(store: Store, tmp_path: Path) -> None:  # R-SW5
    data = some_bytes(3 * PIECE_SIZE)
    ref = publish(tmp_path / "published", data)
    with (
        BlobServer(tmp_path / "published", Faults(rate=20e6)) as good,
        BlobServer(tmp_path / "published", Faults(chunked=True, endless=True, no_ranges=True)) as endless,
    ):
        sources = [Source(good.url, SourceKind.ORIGIN), Source(endless.url, SourceKind.PEER)]
        await fetch_blob(store, ref, sources, addresses=LOOPBACK)
    assert store.path(ref.blake3).read_bytes() == data


# --- the way out


async def test_upload_stays_under_its_rate_and_can_be_changed_while_it_runs(store: Store) -> None:  # R-SW7
    ref = store.add_bytes(some_bytes(3 * PIECE_SIZE))
    limits = UploadLimits(rate=4e6)
    async with node(store, ref.blake3, limits=lambda: limits) as url:
        began = time.monotonic()
        await ask(url, f"/blobs/{ref.blake3}", Range=f"bytes=0-{2 * PIECE_SIZE - 1}")
        limited = time.monotonic() - began
        limits = UploadLimits()
        began = time.monotonic()
        await ask(url, f"/blobs/{ref.blake3}")
        free = time.monotonic() - began
    assert 0.8 * 2 * PIECE_SIZE / 4e6 < limited < 3 * PIECE_SIZE / 4e6 + 0.5
    assert free < limited


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 99)), max_size=40))
def test_peers_take_turns_whatever_each_has_waiting(items: list[tuple[str, int]]) -> None:  # R-SW7
    turns: Turns[tuple[str, int]] = Turns()
    for peer, number in items:
        turns.put(peer, (peer, number))
    taken = [turns.take() for _ in range(len(turns))]
    assert sorted(taken) == sorted(items)
    for peer in "abc":
        mine = [index for index, (who, _) in enumerate(taken) if who == peer]
        others = len({who for who, _ in taken})
        assert all(after - before <= others for before, after in pairwise(mine))
        assert [number for who, number in taken if who == peer] == [number for who, number in items if who == peer]


# --- across sessions


async def test_a_liar_is_remembered_and_after_a_second_time_not_asked(store: Store, tmp_path: Path) -> None:  # R-SW3
    every = frozenset(range(20))
    refs = [publish(tmp_path / "published", some_bytes(20 * PIECE_SIZE, str(n))) for n in range(3)]
    with (
        BlobServer(tmp_path / "published", Faults(rate=40e6)) as good,
        BlobServer(tmp_path / "published", Faults(corrupt_pieces=every)) as liar,
    ):
        sources = [Source(good.url, SourceKind.ORIGIN), Source(liar.url, SourceKind.PEER)]
        reports = [await fetch_blob(store, ref, sources, addresses=LOOPBACK) for ref in refs]
    assert [bool(report.banned) for report in reports] == [True, True, False]
    assert good.url in dict(store.sources.rows(time.time()))
    assert liar.url not in {each.source.url for each in reports[2].sources}


async def test_rates_outlive_the_process(tmp_path: Path) -> None:
    ref = publish(tmp_path / "published", DATA)
    with BlobServer(tmp_path / "published", Faults(rate=20e6)) as server:
        with open_store(tmp_path / "store") as store:
            await fetch_blob(store, ref, [Source(server.url, SourceKind.PEER)], addresses=LOOPBACK)
        with open_store(tmp_path / "store") as again:
            quality = again.sources.quality(server.url, time.time())
            assert quality.rate is not None
            assert 5e6 < quality.rate < 60e6
            assert again.sources.good_peers(time.time(), 4) == (server.url,)
