"""Many small blobs at once: over a few connections, from whoever brings them, durable in batches."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from blake3 import blake3

from market.model import PIECE_SIZE, BlobRef, Digest
from market.swarm import (
    AddressPolicy,
    AllSourcesFailed,
    DamagedBlob,
    Fetcher,
    Source,
    SourceKind,
    Store,
    StoreFull,
    hash_file,
    open_store,
)
from market.swarm.disk import Disk
from market.swarm.lanes import BATCH_BLOBS, LANES, MAX_ABSENT, NEAR_LANES, NEAR_SECONDS, PROBES, Distance
from market.swarm.storing import MAX_WAITING
from market.swarm.transport import Deadlines
from tests.fakes.blob_servers import BlobServer, Faults
from tests.market.swarm.published import LOOPBACK, publish, some_bytes

QUICK = Deadlines(connect=1.0, first_byte=0.6, stall=0.5)
DATA = some_bytes(2 * PIECE_SIZE + 99)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        yield opened


def published(folder: Path, count: int) -> list[BlobRef]:
    return [publish(folder, some_bytes(100 + number, str(number))) for number in range(count)]


def fetcher(store: Store, *sources: Source) -> Fetcher:
    return Fetcher(store, sources, LOOPBACK, origin_deadlines=QUICK, peer_deadlines=QUICK)


def origin(server: BlobServer) -> Source:
    return Source(server.url, SourceKind.ORIGIN)


def peer(server: BlobServer) -> Source:
    return Source(server.url, SourceKind.PEER)


async def test_many_small_blobs_come_over_a_few_connections(store: Store, tmp_path: Path) -> None:
    refs = published(tmp_path / "published", 60)
    large = publish(tmp_path / "published", DATA)
    empty = publish(tmp_path / "published", b"")
    stored: list[BlobRef] = []
    with BlobServer(tmp_path / "published") as server:
        with fetcher(store, origin(server)) as fetching:
            report = await fetching.fetch_many([*refs, large, empty, refs[0]], stored.extend)
            again = await fetching.fetch_many(refs)
        assert server.connections <= LANES
    every = (*refs, large, empty)
    assert sorted(ref.size for ref in stored) == sorted(ref.size for ref in every)
    assert all(store.holds(ref) for ref in every)
    assert report.fetched == sum(ref.size for ref in every) + 3 * 32
    assert (again.fetched, again.already_present) == (0, sum(ref.size for ref in refs))


async def test_a_far_source_is_asked_over_more_connections_than_a_near_one(store: Store, tmp_path: Path) -> None:
    refs = published(tmp_path / "published", 60)
    with BlobServer(tmp_path / "published", Faults(latency=0.02)) as server:
        with fetcher(store, origin(server)) as fetching:
            await fetching.fetch_many(refs)
        assert NEAR_LANES < server.connections <= LANES
    assert all(store.holds(ref) for ref in refs)


def test_one_answer_that_was_held_up_makes_no_source_far() -> None:
    near, far = Distance(), Distance()
    assert not any(near.is_far(seconds) for seconds in [1.0, *[NEAR_SECONDS / 2] * PROBES] * 5)
    assert [far.is_far(2 * NEAR_SECONDS) for _ in range(PROBES)] == [False] * (PROBES - 1) + [True]


def test_a_source_that_becomes_slow_is_far_from_then_on() -> None:
    source = Distance()
    assert not any(source.is_far(NEAR_SECONDS / 2) for _ in range(10 * PROBES))
    assert any(source.is_far(2 * NEAR_SECONDS) for _ in range(2 * PROBES))


@pytest.mark.parametrize(
    "faults",
    [Faults(corrupt_pieces=frozenset({0})), Faults(stall_after=-1), Faults(status=500), Faults(truncate_after=10)],
)
async def test_small_blobs_that_their_origin_does_not_bring_come_from_a_peer(
    store: Store, tmp_path: Path, faults: Faults
) -> None:  # R-SW2
    refs = published(tmp_path / "published", 40)
    with BlobServer(tmp_path / "published", faults) as bad, BlobServer(tmp_path / "published") as good:
        with fetcher(store, origin(bad), peer(good)) as fetching, trio.fail_after(20):
            report = await fetching.fetch_many(refs)
        assert len(bad.requests) <= 2 * LANES, "the failing source was not asked for each of them"
        assert good.connections <= LANES
    assert all(store.holds(ref) for ref in refs)
    assert report.bytes_by_source[good.url] == sum(ref.size for ref in refs)
    assert not report.banned, "an origin never is"


async def test_a_peer_that_lies_about_a_small_blob_is_banned_at_once(store: Store, tmp_path: Path) -> None:  # R-SW3
    refs = published(tmp_path / "published", 30)
    lies = Faults(corrupt_pieces=frozenset({0}))
    with (
        BlobServer(tmp_path / "published", lies) as liar,
        BlobServer(tmp_path / "published") as good,
        fetcher(store, peer(liar), peer(good)) as fetching,
    ):
        report = await fetching.fetch_many(refs)
        assert list(fetching.banned) == [liar.url]
    assert list(report.banned) == [liar.url]
    assert all(hash_file(store.path(ref.blake3))[0] == ref for ref in refs)
    assert report.wasted <= LANES * max(ref.size for ref in refs)


async def test_a_source_that_has_only_some_brings_these(store: Store, tmp_path: Path) -> None:
    refs = published(tmp_path / "published", 40)
    for ref in refs[::4]:
        publish(tmp_path / "some", store_bytes(tmp_path / "published", ref))
    for ref in refs:
        if ref not in refs[::4]:
            publish(tmp_path / "others", store_bytes(tmp_path / "published", ref))
    with (
        BlobServer(tmp_path / "others") as most,
        BlobServer(tmp_path / "some") as some,
        fetcher(store, origin(most), peer(some)) as fetching,
    ):
        report = await fetching.fetch_many(refs)
    assert all(store.holds(ref) for ref in refs)
    assert all(report.bytes_by_source[server.url] > 0 for server in (most, some))


def store_bytes(folder: Path, ref: BlobRef) -> bytes:
    return (folder / "blobs" / ref.blake3.hex).read_bytes()


async def test_a_source_that_has_none_is_not_asked_for_all(store: Store, tmp_path: Path) -> None:
    refs = published(tmp_path / "published", 100)
    with BlobServer(tmp_path / "nothing") as empty, BlobServer(tmp_path / "published") as good:
        with fetcher(store, origin(empty), peer(good)) as fetching:
            await fetching.fetch_many(refs)
        assert len(empty.requests) <= MAX_ABSENT + 2 * LANES
    assert all(store.holds(ref) for ref in refs)


async def test_small_blobs_are_asked_of_no_private_address_that_a_stranger_named(
    store: Store, tmp_path: Path
) -> None:  # R-SW5
    refs = published(tmp_path / "published", 10)
    with (
        BlobServer(tmp_path / "published") as inside,
        BlobServer(tmp_path / "published", Faults(redirect=inside.url)) as to,
    ):
        named = Source(inside.url, SourceKind.PEER)
        redirecting = Source(to.url, SourceKind.ORIGIN, configured=True)
        with Fetcher(store, [redirecting, named], AddressPolicy()) as fetching, pytest.raises(AllSourcesFailed):
            await fetching.fetch_many(refs)
        assert inside.connections == 0


async def test_when_nobody_has_them_it_says_so_and_keeps_what_came(store: Store, tmp_path: Path) -> None:
    refs = published(tmp_path / "published", 20)
    missing = BlobRef(Digest("ab" * 32), 100)
    with (
        BlobServer(tmp_path / "published") as server,
        fetcher(store, origin(server)) as fetching,
        trio.fail_after(20),
        pytest.raises(AllSourcesFailed, match=server.url),
    ):
        await fetching.fetch_many([*refs, missing])
    assert all(store.holds(ref) for ref in refs)


async def test_cancelling_keeps_what_has_verified(store: Store, tmp_path: Path) -> None:
    refs = published(tmp_path / "published", 50)
    with BlobServer(tmp_path / "published", Faults(latency=0.02)) as server:
        async with trio.open_nursery() as nursery:

            async def fetch() -> None:
                with fetcher(store, origin(server)) as fetching:
                    await fetching.fetch_many(refs)

            nursery.start_soon(fetch)
            while len(server.requests) < len(refs) // 2:  # noqa: ASYNC110 - the server's threads know no trio
                await trio.sleep(0.005)
            nursery.cancel_scope.cancel()
        assert 0 < len(list(store.list())) < len(refs)
        await fetch()
        assert len(server.requests) <= len(refs) + 2 * LANES
    assert all(store.holds(ref) for ref in refs)


# --- the store's side


class CountingDisk(Disk):
    """The real disk; counts folders' fsyncs, and is full from some step on."""

    def __init__(self, room_for: int = 1000) -> None:
        self.folders: list[Path] = []
        self.room = room_for

    def pwrite(self, fd: int, data: bytes | bytearray | memoryview, offset: int, path: Path) -> None:
        self.room -= 1
        if self.room < 0:
            raise StoreFull("no room left", where=str(path))
        super().pwrite(fd, data, offset, path)

    def sync_folder(self, folder: Path) -> None:
        self.folders.append(folder)
        super().sync_folder(folder)


def batch(count: int) -> list[tuple[Digest, bytes]]:
    contents = (some_bytes(50, str(number)) for number in range(count))
    return [(digest_of(content), content) for content in contents]


def digest_of(content: bytes) -> Digest:
    return Digest.from_bytes(blake3(content).digest())


def test_blobs_that_are_stored_together_share_the_fsyncs_of_their_folders(tmp_path: Path) -> None:  # R-SW4
    disk = CountingDisk()
    together = batch(100)
    with open_store(tmp_path, disk=disk) as store:
        disk.folders.clear()
        store.put_many(together)
        assert len(disk.folders) == len(set(disk.folders)) == 1 + len({digest.hex[:2] for digest, _ in together})
        disk.folders.clear()
        store.put_many(together)
        assert disk.folders == [], "they are here"
        assert {stored.digest for stored in store.list()} == {digest for digest, _ in together}
        assert all((store.path(digest).stat().st_mode & 0o777) == 0o444 for digest, _ in together)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_bytes_under_a_wrong_name_stop_a_batch_before_anything_is_written(store: Store) -> None:  # R-SW1
    with pytest.raises(DamagedBlob):
        store.put_many([*batch(3), (Digest("77" * 32), b"something else")])
    assert list(store.list()) == []


async def test_a_full_disk_ends_it_at_once_and_leaves_nothing_half_stored(tmp_path: Path) -> None:  # R-SW4
    refs = published(tmp_path / "published", 200)
    with (
        BlobServer(tmp_path / "published") as server,
        open_store(tmp_path / "store", disk=CountingDisk(room_for=40)) as store,
    ):
        with fetcher(store, origin(server)) as fetching, pytest.raises(StoreFull):
            await fetching.fetch_many(refs)
        assert all(hash_file(store.path(stored.digest))[0].blake3 == stored.digest for stored in store.list())
        assert list((tmp_path / "store" / "tmp").iterdir()) == []


class BrokenDisk(Disk):
    """Has a defect: something that is no OSError goes wrong in its tenth write."""

    def __init__(self) -> None:
        self.writes = 0

    def pwrite(self, fd: int, data: bytes | bytearray | memoryview, offset: int, path: Path) -> None:
        self.writes += 1
        if self.writes == 10:
            raise RuntimeError("a defect in storing")
        super().pwrite(fd, data, offset, path)


async def test_a_defect_in_storing_ends_it_and_shows_itself(tmp_path: Path) -> None:
    refs = published(tmp_path / "published", 2 * (MAX_WAITING + LANES) * BATCH_BLOBS)
    with (
        BlobServer(tmp_path / "published") as server,
        open_store(tmp_path / "store", disk=BrokenDisk()) as store,
        fetcher(store, origin(server)) as fetching,
        trio.fail_after(20),
        pytest.raises(ExceptionGroup) as told,
    ):
        await fetching.fetch_many(refs)
    assert told.group_contains(RuntimeError, match="a defect in storing")
    assert len(server.requests) < len(refs)


class SlowDisk(Disk):
    """Its first fsync takes long; notes how many blobs had been asked for by the end of each."""

    def __init__(self, server: BlobServer) -> None:
        self._server = server
        self._hold = threading.Event()
        self._lock = threading.Lock()
        self.sealed = 0
        self.most_unsealed = 0

    def seal(self, fd: int, path: Path) -> None:
        self._hold.wait(0.4)
        with self._lock:
            self.most_unsealed = max(self.most_unsealed, len(self._server.requests) - self.sealed)
            self.sealed += 1
        self._hold.set()
        super().seal(fd, path)


async def test_a_slow_disk_slows_the_asking_down(tmp_path: Path) -> None:  # R-SW4
    bound = (MAX_WAITING + LANES) * BATCH_BLOBS + 2 * LANES
    refs = published(tmp_path / "published", 2 * bound)
    with BlobServer(tmp_path / "published") as server:
        disk = SlowDisk(server)
        with open_store(tmp_path / "store", disk=disk) as store, fetcher(store, origin(server)) as fetching:
            await fetching.fetch_many(refs)
            assert all(store.holds(ref) for ref in refs)
    assert disk.most_unsealed <= bound
