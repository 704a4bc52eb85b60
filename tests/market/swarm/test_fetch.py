"""Fetching from real servers on loopback, good and hostile: what arrives is right, whoever is there, or nothing is."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from market.model import PIECE_SIZE, BlobRef, Digest
from market.swarm import (
    AddressPolicy,
    AllSourcesFailed,
    BadPieceList,
    Fetcher,
    FetchProgress,
    FetchReport,
    PieceHasher,
    PublisherInconsistent,
    SizeContradicted,
    Source,
    SourceKind,
    Store,
    fetch_blob,
    open_store,
)
from market.swarm.disk import Disk
from market.swarm.errors import AddressRefused
from market.swarm.routes import Resolver
from market.swarm.sources import parse_url
from market.swarm.transport import Deadlines
from tests.fakes.blob_servers import BlobServer, Faults
from tests.market.swarm.published import FOUR_AND_A_BIT, LOOPBACK, publish, some_bytes

QUICK = Deadlines(connect=1.0, first_byte=0.4, stall=0.3)
"""Shorter than the real ones, so that a test of a stall does not take as long as one."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "published"


def origin(server: BlobServer) -> Source:
    return Source(server.url, SourceKind.ORIGIN)


def peer(server: BlobServer) -> Source:
    return Source(server.url, SourceKind.PEER)


def dead(kind: SourceKind) -> Source:
    with socket.create_server(("127.0.0.1", 0)) as freed:
        return Source(f"http://127.0.0.1:{freed.getsockname()[1]}", kind)


async def fetch(store: Store, ref: BlobRef, *sources: Source) -> FetchReport:
    with Fetcher(store, sources, LOOPBACK, origin_deadlines=QUICK, peer_deadlines=QUICK) as fetcher:
        return await fetcher.fetch(ref)


async def test_a_blob_arrives_from_the_origin_alone(store: Store, folder: Path) -> None:  # R-SW1, R-SW2
    ref = publish(folder, FOUR_AND_A_BIT)
    with BlobServer(folder) as server:
        report = await fetch(store, ref, origin(server))
    assert store.path(ref.blake3).read_bytes() == FOUR_AND_A_BIT
    assert report.bytes_by_kind[SourceKind.ORIGIN] == ref.size + 5 * 32
    assert report.wasted == 0
    assert server.connections == 1, "the connection is kept alive"


@pytest.mark.parametrize("size", [0, 1, 4096, PIECE_SIZE, PIECE_SIZE + 1, 2 * PIECE_SIZE])
async def test_every_size_around_a_piece_arrives(store: Store, folder: Path, size: int) -> None:
    data = some_bytes(size)
    ref = publish(folder, data)
    with BlobServer(folder) as server:
        await fetch(store, ref, origin(server))
    assert store.path(ref.blake3).read_bytes() == data


async def test_a_present_blob_is_not_fetched_again(store: Store, folder: Path) -> None:
    ref = publish(folder, FOUR_AND_A_BIT)
    with BlobServer(folder) as server:
        await fetch(store, ref, origin(server))
        asked = len(server.requests)
        report = await fetch(store, ref, origin(server))
    assert report.already_present == ref.size
    assert report.fetched == 0
    assert len(server.requests) == asked


async def test_peers_suffice_when_the_origin_is_down(store: Store, folder: Path) -> None:  # R-SW2
    ref = publish(folder, FOUR_AND_A_BIT)
    with BlobServer(folder) as one, BlobServer(folder) as two:
        report = await fetch(store, ref, dead(SourceKind.ORIGIN), peer(one), peer(two))
    assert store.has(ref.blake3)
    assert report.bytes_by_kind[SourceKind.ORIGIN] == 0


async def test_the_origin_suffices_when_the_peers_are_down(store: Store, folder: Path) -> None:  # R-SW2
    ref = publish(folder, FOUR_AND_A_BIT)
    with BlobServer(folder) as server:
        report = await fetch(store, ref, origin(server), dead(SourceKind.PEER), dead(SourceKind.PEER))
    assert store.has(ref.blake3)
    assert report.bytes_by_kind[SourceKind.PEER] == 0


async def test_several_sources_share_the_work(store: Store, folder: Path) -> None:
    data = some_bytes(12 * PIECE_SIZE)
    ref = publish(folder, data)
    capped = Faults(rate=20e6)
    with BlobServer(folder, capped) as one, BlobServer(folder, capped) as two, BlobServer(folder, capped) as three:
        report = await fetch(store, ref, origin(one), peer(two), peer(three))
    assert store.path(ref.blake3).read_bytes() == data
    assert all(used > 0 for used in report.bytes_by_source.values())


def late_list(ref: BlobRef) -> int:
    """Bytes a peer may bring in vain besides: it is asked for the list, too, if the origin does not answer soon."""
    return 32 * ref.piece_count


async def test_a_corrupting_peer_is_banned_and_costs_one_piece(store: Store, folder: Path) -> None:  # R-SW3
    data = some_bytes(12 * PIECE_SIZE)
    ref = publish(folder, data)
    every = frozenset(range(12))
    with BlobServer(folder, Faults(rate=20e6)) as good, BlobServer(folder, Faults(corrupt_pieces=every)) as liar:
        report = await fetch(store, ref, origin(good), peer(liar))
    assert store.path(ref.blake3).read_bytes() == data
    assert list(report.banned) == [liar.url]
    assert "does not hash" in report.banned[liar.url]
    wasted = {each.source.url: each.wasted for each in report.sources}
    assert 0 < wasted[liar.url] <= PIECE_SIZE + late_list(ref)


async def test_a_banned_peer_stays_out_for_the_session(store: Store, folder: Path) -> None:  # R-SW3
    data, later = some_bytes(12 * PIECE_SIZE), some_bytes(3 * PIECE_SIZE, "later")
    ref, next_ref = publish(folder, data), publish(folder, later)
    every = frozenset(range(12))
    with BlobServer(folder, Faults(rate=20e6)) as good, BlobServer(folder, Faults(corrupt_pieces=every)) as liar:
        with Fetcher(store, [origin(good), peer(liar)], LOOPBACK) as fetcher:
            await fetcher.fetch(ref)
            asked = len(liar.requests)
            await fetcher.fetch(next_ref)
            assert list(fetcher.banned) == [liar.url]
        assert len(liar.requests) == asked


async def test_a_corrupting_origin_is_not_banned_and_peers_finish(store: Store, folder: Path) -> None:  # R-SW2
    ref = publish(folder, FOUR_AND_A_BIT)
    with BlobServer(folder, Faults(corrupt_pieces=frozenset({1}))) as bad, BlobServer(folder) as good:
        report = await fetch(store, ref, origin(bad), peer(good))
    assert store.path(ref.blake3).read_bytes() == FOUR_AND_A_BIT
    assert report.banned == {}


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(Faults(stall_after=-1), id="never_answers"),
        pytest.param(Faults(stall_after=100_000), id="stalls_in_the_body"),
        pytest.param(Faults(drip=0.05), id="drips_bytes"),
        pytest.param(Faults(truncate_after=100_000), id="truncates"),
        pytest.param(Faults(endless=True), id="sends_without_end"),
        pytest.param(Faults(range_shift=7), id="sends_another_range"),
        pytest.param(Faults(size_shift=1), id="has_another_size"),
        pytest.param(Faults(encoding="gzip"), id="sends_gzip"),
        pytest.param(Faults(status=500), id="is_broken"),
        pytest.param(Faults(status=403), id="forbids"),
        pytest.param(Faults(header_flood=True), id="floods_headers"),
        pytest.param(Faults(garbage=True), id="speaks_no_http"),
        pytest.param(Faults(redirect="http://127.0.0.1:1"), id="redirects"),
        pytest.param(Faults(only_lists_and_small=True), id="does_not_have_it"),
    ],
)
async def test_a_hostile_peer_costs_nothing_but_itself(store: Store, folder: Path, faults: Faults) -> None:  # R-SW5
    data = some_bytes(5 * PIECE_SIZE)
    ref = publish(folder, data)
    with BlobServer(folder, Faults(rate=8e6)) as good, BlobServer(folder, faults) as hostile:
        report = await fetch(store, ref, origin(good), peer(hostile))
    assert store.path(ref.blake3).read_bytes() == data
    told = {each.source.url: each for each in report.sources}[hostile.url]
    assert told.faults, "its fault is told by name"
    assert told.wasted <= PIECE_SIZE + late_list(ref)


async def test_a_hostile_source_alone_is_named_and_nothing_is_left_as_done(store: Store, folder: Path) -> None:
    ref = publish(folder, FOUR_AND_A_BIT)
    with (
        BlobServer(folder, Faults(truncate_after=100_000)) as hostile,
        pytest.raises(AllSourcesFailed, match="the body ended") as told,
    ):
        await fetch(store, ref, peer(hostile))
    assert told.value.faults[0][0] == hostile.url
    assert not store.has(ref.blake3)


async def test_a_server_without_ranges_is_a_source_all_the_same(store: Store, folder: Path) -> None:
    ref = publish(folder, FOUR_AND_A_BIT)
    with BlobServer(folder, Faults(no_ranges=True)) as plain:
        report = await fetch(store, ref, origin(plain))
    assert store.path(ref.blake3).read_bytes() == FOUR_AND_A_BIT
    assert report.fetched == ref.size + 5 * 32


async def test_a_stalled_origin_is_hedged_by_a_peer_for_a_small_blob(store: Store, folder: Path) -> None:
    data = some_bytes(4096)
    ref = publish(folder, data)
    with BlobServer(folder, Faults(latency=30)) as slow, BlobServer(folder) as warm, trio.fail_after(2):
        report = await fetch_blob(store, ref, [origin(slow), peer(warm)], addresses=LOOPBACK)
    assert report.bytes_by_source[warm.url] == 4096


# --- publishers who lie


async def test_a_list_that_contradicts_the_digest_is_the_publishers_fault(store: Store, folder: Path) -> None:  # R-SW1
    true = publish(folder, FOUR_AND_A_BIT)
    other = publish(folder, some_bytes(true.size, "other"))
    liar = BlobRef(true.blake3, true.size, other.pieces)
    (folder / "blobs" / true.blake3.hex).write_bytes(some_bytes(true.size, "other"))
    with (
        BlobServer(folder) as server,
        Fetcher(store, [origin(server), peer(server)], LOOPBACK, publisher="did:key:zLiar") as fetcher,
    ):
        with pytest.raises(PublisherInconsistent, match="did:key:zLiar"):
            await fetcher.fetch(liar)
        assert fetcher.banned == {}
    assert not store.has(true.blake3)


async def test_another_publishers_false_list_hurts_neither_the_blob_nor_its_peers(store: Store, folder: Path) -> None:
    true = publish(folder, FOUR_AND_A_BIT)
    other = publish(folder, some_bytes(true.size, "other"))
    liar = BlobRef(true.blake3, true.size, other.pieces)
    with (
        BlobServer(folder) as one,
        BlobServer(folder) as two,
        Fetcher(store, [peer(one), peer(two)], LOOPBACK) as fetcher,
    ):
        with pytest.raises(AllSourcesFailed, match="does not hash"):
            await fetcher.fetch(liar)
        assert fetcher.banned == {}, "honest peers are not blamed for a list that lies"
        report = await fetcher.fetch(true)
    assert store.path(true.blake3).read_bytes() == FOUR_AND_A_BIT
    assert report.resumed == 0


async def test_a_list_of_the_wrong_length_is_refused(store: Store, folder: Path) -> None:
    short = publish(folder, some_bytes(2 * PIECE_SIZE))
    true = publish(folder, FOUR_AND_A_BIT)
    assert short.pieces is not None
    with BlobServer(folder) as server:
        await fetch(store, short, origin(server))
        with pytest.raises(BadPieceList, match="64 bytes, not 160"):
            await fetch(store, BlobRef(true.blake3, true.size, short.pieces), origin(server))


async def test_a_false_size_is_refused_whether_or_not_the_blob_is_here(store: Store, folder: Path) -> None:
    ref = publish(folder, some_bytes(1000))
    with BlobServer(folder) as server:
        with pytest.raises(AllSourcesFailed, match="the signed size is 999"):
            await fetch(store, BlobRef(ref.blake3, 999), peer(server))
        await fetch(store, ref, origin(server))
        with pytest.raises(SizeContradicted):
            await fetch(store, BlobRef(ref.blake3, 999), origin(server))


# --- going on


async def test_a_second_attempt_fetches_only_what_is_missing(store: Store, folder: Path) -> None:  # R-SW4
    data = some_bytes(8 * PIECE_SIZE)
    ref = publish(folder, data)
    with BlobServer(folder, Faults(corrupt_pieces=frozenset({5}))) as bad, pytest.raises(AllSourcesFailed):
        await fetch(store, ref, peer(bad))
    with BlobServer(folder) as good:
        report = await fetch(store, ref, origin(good))
    assert report.resumed >= 4 * PIECE_SIZE
    assert report.resumed + report.fetched == ref.size
    assert store.path(ref.blake3).read_bytes() == data


async def test_cancelling_ends_blocked_threads_at_once_and_keeps_what_was_verified(store: Store, folder: Path) -> None:
    ref = publish(folder, FOUR_AND_A_BIT)
    async with trio.open_nursery() as nursery:
        with (
            BlobServer(folder, Faults(stall_after=2 * PIECE_SIZE + 1000)) as stalling,
            Fetcher(store, [origin(stalling)], LOOPBACK) as fetcher,
            trio.fail_after(3),
        ):
            await nursery.start(_begin, fetcher, ref)
            await trio.to_thread.run_sync(stalling.stalled.wait)
            nursery.cancel_scope.cancel()
    with BlobServer(folder) as good:
        report = await fetch(store, ref, origin(good))
    assert report.resumed == 2 * PIECE_SIZE


async def _begin(fetcher: Fetcher, ref: BlobRef, task_status: trio.TaskStatus[None]) -> None:
    task_status.started()
    await fetcher.fetch(ref)


class BrokenDisk(Disk):
    """Has a defect: something that is no OSError goes wrong in its third write of a piece."""

    def __init__(self) -> None:
        self.writes = 0

    def pwrite(self, fd: int, data: bytes | bytearray | memoryview, offset: int, path: Path) -> None:
        self.writes += path.suffix == ".data"
        if path.suffix == ".data" and self.writes == 3:
            raise RuntimeError("a defect in the writer")
        super().pwrite(fd, data, offset, path)


async def test_a_defect_in_the_writer_ends_the_fetch_and_shows_itself(tmp_path: Path, folder: Path) -> None:
    ref = publish(folder, some_bytes(40 * PIECE_SIZE))
    with open_store(tmp_path / "broken", disk=BrokenDisk()) as store, BlobServer(folder) as server:
        with trio.fail_after(10), pytest.raises(ExceptionGroup) as told:
            await fetch(store, ref, origin(server))
        assert told.group_contains(RuntimeError, match="a defect in the writer")
        assert not store.has(ref.blake3)


class SlowDisk(Disk):
    """Syncs only when it is let; counts what was written meanwhile."""

    def __init__(self) -> None:
        self.may_sync = threading.Event()
        self.written = 0
        self.most = 0

    def pwrite(self, fd: int, data: bytes | bytearray | memoryview, offset: int, path: Path) -> None:
        super().pwrite(fd, data, offset, path)
        if path.suffix == ".data":
            self.written += len(data)
            self.most = max(self.most, self.written)

    def sync_data(self, fd: int, path: Path) -> None:
        if path.suffix == ".data":
            self.may_sync.wait(0.4)
            self.written = 0
        super().sync_data(fd, path)


async def test_a_disk_that_can_not_keep_up_holds_the_fetch_back(tmp_path: Path, folder: Path) -> None:  # R-SW4
    ref = publish(folder, bytes(90 * PIECE_SIZE))
    disk = SlowDisk()
    with open_store(tmp_path / "slow", disk=disk) as store, BlobServer(folder) as server:
        await fetch(store, ref, origin(server))
        assert store.has(ref.blake3)
    assert 24 * PIECE_SIZE <= disk.most <= 64 * PIECE_SIZE


async def test_two_fetches_of_one_blob_bring_it_once(store: Store, folder: Path) -> None:
    ref = publish(folder, FOUR_AND_A_BIT)
    with BlobServer(folder) as server, Fetcher(store, [origin(server)], LOOPBACK) as fetcher:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetcher.fetch, ref)
            nursery.start_soon(fetcher.fetch, ref)
    assert server.body_bytes == ref.size + 5 * 32


async def test_many_small_blobs_use_one_connection(store: Store, folder: Path) -> None:
    refs = [publish(folder, some_bytes(100, str(number))) for number in range(30)]
    with BlobServer(folder) as server, Fetcher(store, [origin(server)], LOOPBACK) as fetcher:
        for ref in refs:
            await fetcher.fetch(ref)
        assert fetcher.connections_made == 1


async def test_progress_goes_up_and_ends_at_the_size(store: Store, folder: Path) -> None:
    ref = publish(folder, FOUR_AND_A_BIT)
    seen: list[FetchProgress] = []
    with BlobServer(folder, Faults(rate=10e6)) as server:
        await fetch_blob(store, ref, [origin(server)], on_progress=seen.append, addresses=LOOPBACK)
    assert [each.done for each in seen] == sorted(each.done for each in seen)
    assert seen[-1].done == seen[-1].total == ref.size


async def test_reports_of_several_blobs_add_up(store: Store, folder: Path) -> None:
    refs = [publish(folder, some_bytes(1000, str(number))) for number in range(3)]
    with BlobServer(folder) as server, Fetcher(store, [origin(server)], LOOPBACK) as fetcher:
        total = FetchReport()
        for ref in refs:
            total += await fetcher.fetch(ref)
    assert total.bytes_by_source == {server.url: 3000}
    assert len(total.sources) == 1


# --- addresses that strangers name


async def test_a_signed_origin_on_a_private_address_is_refused_unless_allowed(store: Store, folder: Path) -> None:
    ref = publish(folder, FOUR_AND_A_BIT)  # R-SW5
    with BlobServer(folder) as server:
        with pytest.raises(AllSourcesFailed, match="private address"):
            await fetch_blob(store, ref, [origin(server)], addresses=AddressPolicy(allow_private=False))
        assert server.connections == 0
        await fetch_blob(
            store,
            ref,
            [Source(server.url, SourceKind.PEER, configured=True)],
            addresses=AddressPolicy(allow_private=False),
        )
    assert store.has(ref.blake3)


async def test_an_origin_may_redirect_and_the_target_is_held_to_the_policy(store: Store, folder: Path) -> None:
    ref = publish(folder, FOUR_AND_A_BIT)
    with BlobServer(folder) as target, BlobServer(folder, Faults(redirect=target.url)) as first:
        strict = Source(first.url, SourceKind.ORIGIN, configured=True)
        with pytest.raises(AllSourcesFailed, match="private address"):
            await fetch_blob(store, ref, [strict], addresses=AddressPolicy(allow_private=False))
        assert target.connections == 0
        report = await fetch(store, ref, origin(first))
    assert report.bytes_by_source[first.url] == ref.size + 5 * 32


async def test_a_redirect_loop_ends(store: Store, folder: Path) -> None:
    ref = publish(folder, some_bytes(10))
    with BlobServer(folder) as free:
        pass
    with (
        BlobServer(folder, Faults(redirect=f"http://127.0.0.1:{free.port}"), port=free.port) as loop,
        pytest.raises(AllSourcesFailed, match="more than 5 redirects"),
    ):
        await fetch(store, ref, origin(loop))


class _Rebinding(trio.abc.HostnameResolver):
    """Answers a public address first and a private one ever after, as an attacker's name server would."""

    def __init__(self) -> None:
        self.answers = ["1.1.1.1", "127.0.0.1"]

    async def getaddrinfo(self, host: object, port: object, *_: object, **__: object) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (self.answers.pop(0), port))]

    async def getnameinfo(self, sockaddr: object, flags: int) -> tuple[str, str]:
        raise NotImplementedError


async def test_dns_rebinding_gains_nothing_because_the_checked_address_is_the_one_used() -> None:  # R-SW5
    now = 0.0
    trio.socket.set_custom_hostname_resolver(_Rebinding())
    resolver = Resolver(AddressPolicy(), lambda: now)
    source = Source("http://rebinding.example:8080", SourceKind.ORIGIN)
    url = parse_url(source.url)
    route = await resolver.route(source, url, 1.0)
    assert [address[0] for _, address in route.addresses] == ["1.1.1.1"]
    assert (await resolver.route(source, url, 1.0)).addresses == route.addresses
    now = 3600.0
    with pytest.raises(AddressRefused, match=r"127\.0\.0\.1"):
        await resolver.route(source, url, 1.0)


async def test_tls_is_checked(store: Store, folder: Path, tmp_path: Path) -> None:
    ref = publish(folder, FOUR_AND_A_BIT)
    small = [publish(folder, some_bytes(100_000 + number, str(number))) for number in range(20)]
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    _self_signed(key, cert)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(cert, key)
    with BlobServer(folder, tls=serving) as server:
        with pytest.raises(AllSourcesFailed, match="certificate verify failed"):
            await fetch(store, ref, peer(server))
        with (
            Fetcher(store, [origin(server)], LOOPBACK) as fetcher,
            pytest.raises(AllSourcesFailed, match="verify failed"),
        ):
            await fetcher.fetch_many(small)
        trusting = ssl.create_default_context(cafile=str(cert))
        with Fetcher(store, [origin(server)], LOOPBACK, tls=trusting) as fetcher:
            await fetcher.fetch(ref)
            await fetcher.fetch_many(small)
    assert store.path(ref.blake3).read_bytes() == FOUR_AND_A_BIT
    assert all(store.holds(each) for each in small)


def _self_signed(key: Path, cert: Path) -> None:
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )


def test_a_digest_in_upper_case_or_truncated_is_no_digest() -> None:
    hasher = PieceHasher()
    ref, _ = hasher.finish()
    for wrong in (ref.blake3.hex.upper(), ref.blake3.hex[:40]):
        with pytest.raises(Exception, match="not a BLAKE3 digest"):
            Digest(wrong)
