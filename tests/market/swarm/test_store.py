"""The store through its public door: what is complete, what stays, what a full or foreign disk does."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from market.model import PIECE_SIZE, BlobRef, Digest
from market.swarm import (
    DamagedBlob,
    NotStored,
    SizeContradicted,
    Store,
    StoreFull,
    StoreLocked,
    StoreUnusable,
    open_store,
)
from market.swarm.collecting import GRACE_SECONDS
from market.swarm.pieces import PieceTable, table_from_list
from tests.market.swarm.published import FOUR_AND_A_BIT, some_bytes

LATER = 10 * GRACE_SECONDS


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        yield opened


def test_what_was_added_is_there_read_only_and_listed(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(FOUR_AND_A_BIT)
    ref = store.add_file(tmp_path / "file")
    assert ref == store.add_bytes(FOUR_AND_A_BIT)
    path = store.path(ref.blake3)
    assert path.read_bytes() == FOUR_AND_A_BIT
    assert path.stat().st_mode & 0o777 == 0o444
    assert ref.pieces is not None
    assert {blob.digest for blob in store.list()} == {ref.blake3, ref.pieces}
    assert store.table(ref) is not None


def test_what_is_not_there_is_told(store: Store) -> None:
    absent = Digest("00" * 32)
    assert not store.has(absent)
    with pytest.raises(NotStored):
        store.path(absent)
    with pytest.raises(NotStored):
        store.verify(BlobRef(absent, 1))


def test_a_second_owner_is_refused_and_the_first_goes_on(store: Store) -> None:
    with pytest.raises(StoreLocked, match="another process owns this store"):
        open_store(store.root)
    child = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from market.swarm import open_store; open_store(__import__('pathlib').Path({str(store.root)!r}))",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "StoreLocked" in child.stderr
    store.add_bytes(b"still mine")


def test_a_blob_gets_a_second_name_without_a_copy(store: Store, tmp_path: Path) -> None:
    ref = store.add_bytes(b"layer")
    for _ in range(2):
        store.link(ref.blake3, tmp_path / "bundle-file")
    assert (tmp_path / "bundle-file").samefile(store.path(ref.blake3))


def test_a_blob_is_copied_where_there_are_no_hard_links(store: Store) -> None:
    ref = store.add_bytes(FOUR_AND_A_BIT)
    elsewhere = Path("/dev/shm") / f"archy-test-{os.getpid()}"  # another file system than any tmp_path
    try:
        store.link(ref.blake3, elsewhere)
        assert elsewhere.read_bytes() == FOUR_AND_A_BIT
    finally:
        elsewhere.unlink(missing_ok=True)


def test_damage_is_found_and_the_blob_is_gone(store: Store) -> None:  # R-SW1
    ref = store.add_bytes(FOUR_AND_A_BIT)
    store.verify(ref)
    path = store.path(ref.blake3)
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(2_000_000)
        file.write(b"damage")
    with pytest.raises(DamagedBlob):
        store.verify(ref)
    assert not store.has(ref.blake3)


def test_bytes_under_a_false_name_are_refused(store: Store) -> None:  # R-SW1
    with pytest.raises(DamagedBlob):
        store.put(Digest("00" * 32), b"something else")


def test_a_false_size_is_refused(store: Store) -> None:
    ref = store.add_bytes(b"five!")
    with pytest.raises(SizeContradicted):
        store.holds(BlobRef(ref.blake3, 6))


def test_foreign_files_are_passed_over(store: Store) -> None:
    ref = store.add_bytes(b"ours")
    blobs = store.root / "blobs"
    (blobs / "zz").mkdir()
    (blobs / "zz" / "README").write_text("hello")
    (blobs / "stray").write_text("hello")
    (blobs / "zz" / ("00" * 32)).write_text("in the wrong folder")
    assert [blob.digest for blob in store.list()] == [ref.blake3]


# --- collection


def test_roots_pins_leases_and_the_last_hour_are_never_collected(store: Store) -> None:  # R-SW6
    root = store.add_bytes(some_bytes(2 * PIECE_SIZE, "root"))
    pinned, leased, loose = (store.add_bytes(word) for word in (b"pinned", b"leased", b"loose"))
    store.pin(pinned.blake3)
    now = store.path(loose.blake3).stat().st_mtime
    assert store.gc([], 0, now=now).removed == ()
    with store.lease(leased.blake3):
        collected = store.gc([root], 0, now=now + LATER)
        assert collected.removed == (loose.blake3,)
    assert root.pieces is not None
    assert all(store.has(digest) for digest in (root.blake3, root.pieces, pinned.blake3, leased.blake3))
    assert set(store.gc([root], 0, now=now + LATER).removed) == {leased.blake3}


def test_the_least_recently_used_goes_first_and_no_more_than_needed(store: Store) -> None:
    refs = [store.add_bytes(some_bytes(1000, str(number))) for number in range(4)]
    for age, ref in enumerate(refs):
        os.utime(store.path(ref.blake3), (1000.0 - age, 1000.0 - age))
    collected = store.gc([], 2000, now=1000.0 + LATER)
    assert set(collected.removed) == {refs[3].blake3, refs[2].blake3}
    assert (collected.freed, collected.kept) == (2000, 2000)


def test_abandoned_partials_are_collected_and_open_ones_are_not(store: Store) -> None:
    table, ref = _table(store)
    with store.open_partial(ref, table) as partial:
        partial.write(0, memoryview(FOUR_AND_A_BIT[:PIECE_SIZE]))
        partial.checkpoint()
        moment = partial.data_path.stat().st_mtime + LATER
        store.gc([], 0, now=moment)
        assert partial.data_path.exists()
    store.gc([ref], 0, now=moment)
    assert partial.data_path.exists()
    store.gc([], 0, now=moment)
    assert list((store.root / "partial").iterdir()) == []


def test_pins_survive_reopening(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.pin(Digest("11" * 32))
        store.pin(Digest("22" * 32))
        store.unpin(Digest("11" * 32))
    with open_store(tmp_path) as store:
        assert store.pins() == {Digest("22" * 32)}


# --- partials


def _table(store: Store) -> tuple[PieceTable, BlobRef]:
    ref = store.add_bytes(FOUR_AND_A_BIT)
    assert ref.pieces is not None
    table = table_from_list(ref, store.path(ref.pieces).read_bytes())
    store.path(ref.blake3).unlink()
    return table, ref


def _piece(index: int) -> memoryview:
    return memoryview(FOUR_AND_A_BIT)[index * PIECE_SIZE : (index + 1) * PIECE_SIZE]


def test_a_partial_goes_on_where_it_was(store: Store) -> None:  # R-SW4
    table, ref = _table(store)
    with store.open_partial(ref, table) as partial:
        partial.write(1, _piece(1))
        partial.write(4, _piece(4))
        partial.checkpoint()
    with store.open_partial(ref, table) as partial:
        assert set(partial.have) == {1, 4}
        assert partial.resumed_bytes == PIECE_SIZE + 12_345


@pytest.mark.parametrize("damage", [b"", b"garbage", bytes(500), None])
def test_a_damaged_bitmap_is_rebuilt_from_the_data(store: Store, damage: bytes | None) -> None:  # R-SW4
    table, ref = _table(store)
    with store.open_partial(ref, table) as partial:
        for index in (0, 2, 4):
            partial.write(index, _piece(index))
        partial.checkpoint()
        bits = partial.data_path.with_suffix(".bits")
    if damage is None:
        bits.unlink()
    else:
        bits.write_bytes(damage)
    with store.open_partial(ref, table) as partial:
        assert set(partial.have) == {0, 2, 4}


def test_a_bitmap_that_promises_more_than_the_data_is_not_believed(store: Store) -> None:
    table, ref = _table(store)
    with store.open_partial(ref, table) as partial:
        for index in range(5):
            partial.write(index, _piece(index))
        partial.checkpoint()
        path = partial.data_path
    os.truncate(path, 2 * PIECE_SIZE)
    with store.open_partial(ref, table) as partial:
        assert set(partial.have) == {0, 1}


def test_data_beyond_the_signed_size_is_cut_off(store: Store) -> None:
    table, ref = _table(store)
    with store.open_partial(ref, table) as partial:
        for index in range(5):
            partial.write(index, _piece(index))
        path = partial.data_path
    with path.open("ab") as file:
        file.write(b"appended by somebody")
    with store.open_partial(ref, table) as partial:
        assert partial.have.full
        partial.seal()
        store.publish(ref, partial)
    assert store.path(ref.blake3).read_bytes() == FOUR_AND_A_BIT


def test_a_symbolic_link_in_the_place_of_a_partial_is_not_followed(store: Store, tmp_path: Path) -> None:
    table, ref = _table(store)
    with store.open_partial(ref, table) as partial:
        path = partial.data_path
    path.unlink()
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    path.symlink_to(victim)
    with pytest.raises(StoreUnusable):
        store.open_partial(ref, table)
    assert victim.read_bytes() == b"precious"


# --- disks that refuse


def test_a_folder_that_can_not_be_made_is_told_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreUnusable, match="file"):
        open_store(tmp_path / "file" / "store")


def test_a_blob_larger_than_the_free_space_is_refused_before_anything_is_written(store: Store) -> None:  # R-SW5
    huge = PieceTable(Digest("00" * 32), 1 << 40, bytes(32 * (1 << 20)))
    ref = BlobRef(Digest("00" * 32), 1 << 40, Digest("01" * 32))
    with pytest.raises(StoreFull, match=r"\d+ more bytes are needed"):
        store.open_partial(ref, huge)


FULL = """
import resource, sys
from pathlib import Path
from market.swarm import StoreFull, open_store
resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, 2 << 20))
with open_store(Path(sys.argv[1])) as store:
    kept = store.add_bytes(b"small enough")
    try:
        store.add_bytes(bytes(3 << 20))
    except StoreFull as full:
        print(full)
    assert store.has(kept.blake3)
    assert list((store.root / "tmp").iterdir()) == []
"""


def test_a_write_that_finds_no_room_says_so_and_leaves_nothing_behind(tmp_path: Path) -> None:  # R-SW5
    child = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    assert "no room left" in child.stdout


def test_leases_may_be_taken_from_any_thread(store: Store) -> None:
    ref = store.add_bytes(b"shared")

    def hold() -> None:
        for _ in range(200):
            with store.lease(ref.blake3):
                pass

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.gc([], 0, now=store.path(ref.blake3).stat().st_mtime + LATER).removed == (ref.blake3,)
