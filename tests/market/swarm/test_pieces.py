"""Piece lists and bitmaps: whatever is damaged or does not belong together is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from market.errors import Refused
from market.model import PIECE_SIZE, BlobRef, Digest
from market.swarm import AddressPolicy, BadPieceList, PieceHasher, Source, SourceKind, hash_file
from market.swarm.pieces import Bitmap, DamagedBitmap, ref_digest, table_from_list
from market.swarm.sources import is_public
from tests.market.swarm.published import some_bytes

OWNER = Digest("ab" * 32)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 3 * PIECE_SIZE), st.integers(10_000, 2 * PIECE_SIZE))
def test_the_reference_does_not_depend_on_how_the_bytes_come(size: int, chunk: int) -> None:
    data = bytes(size)
    hasher = PieceHasher()
    for start in range(0, size, chunk):
        hasher.update(data[start : start + chunk])
    ref, pieces = hasher.finish()
    assert ref.blake3 == Digest.from_bytes(blake3(data).digest())
    assert ref.size == size
    assert (pieces is None) == (size <= PIECE_SIZE)
    if pieces is not None:
        digests = [blake3(data[start : start + PIECE_SIZE]).digest() for start in range(0, size, PIECE_SIZE)]
        assert pieces == b"".join(digests)


def test_a_file_hashes_as_its_bytes_do(tmp_path: Path) -> None:
    data = some_bytes(2 * PIECE_SIZE + 5)
    (tmp_path / "file").write_bytes(data)
    ref, pieces = hash_file(tmp_path / "file")
    assert ref.blake3 == Digest.from_bytes(blake3(data).digest())
    assert pieces is not None
    assert ref.pieces == Digest.from_bytes(blake3(pieces).digest())


def test_the_official_vectors_hold() -> None:
    # BLAKE3's own test vectors: the input is 0..250 repeated; the digest of no bytes and of 1025 bytes.
    cases = json.loads(
        '{"0": "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",'
        ' "1025": "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444"}'
    )
    for length, digest in cases.items():
        hasher = PieceHasher()
        hasher.update(bytes(index % 251 for index in range(int(length))))
        assert hasher.finish()[0].blake3.hex == digest


def test_a_list_is_accepted_only_whole_and_unchanged() -> None:
    hasher = PieceHasher()
    hasher.update(bytes(3 * PIECE_SIZE))
    ref, raw = hasher.finish()
    assert raw is not None
    assert table_from_list(ref, raw).count == 3
    for wrong in (raw[:-1], raw + b"x", raw[:-32], bytes(96)):
        with pytest.raises(BadPieceList):
            table_from_list(ref, wrong)


def test_references_that_differ_in_anything_share_no_state() -> None:
    digest, one, two = Digest("00" * 32), Digest("01" * 32), Digest("02" * 32)
    size = 2 * PIECE_SIZE
    refs = [BlobRef(digest, size, one), BlobRef(digest, size, two), BlobRef(digest, size + 1, one)]
    assert len({ref_digest(ref) for ref in refs}) == 3


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_a_bitmap_comes_back_as_it_was(case: tuple[int, set[int]]) -> None:
    count, pieces = case
    bitmap = Bitmap(count)
    for index in pieces:
        bitmap.add(index)
    again = Bitmap.from_bytes(bitmap.to_bytes(OWNER), OWNER, count)
    assert set(again) == pieces
    assert set(again.missing()) == set(range(count)) - pieces
    assert len(again) == len(pieces)
    assert again.full == (len(pieces) == count)


@given(st.data())
def test_a_damaged_bitmap_is_never_read(data: st.DataObject) -> None:  # R-SW4
    bitmap = Bitmap(77)
    bitmap.add(3)
    raw = bytearray(bitmap.to_bytes(OWNER))
    where = data.draw(st.integers(0, len(raw) - 1))
    raw[where] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DamagedBitmap):
        Bitmap.from_bytes(bytes(raw), OWNER, 77)


@pytest.mark.parametrize("cut", [0, 1, 50])
def test_a_truncated_or_foreign_bitmap_is_never_read(cut: int) -> None:
    raw = Bitmap(77).to_bytes(OWNER)
    with pytest.raises(DamagedBitmap):
        Bitmap.from_bytes(raw[:cut], OWNER, 77)
    with pytest.raises(DamagedBitmap):
        Bitmap.from_bytes(raw, Digest("cd" * 32), 77)
    with pytest.raises(DamagedBitmap):
        Bitmap.from_bytes(raw, OWNER, 78)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "ff02::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "fe80::1%eth0", "no address"),
    ],
)
def test_an_address_that_is_not_the_internets_is_private_in_every_disguise(address: str) -> None:  # R-SW5
    assert not is_public(address)
    assert not AddressPolicy().permits(address)
    assert AddressPolicy(allow_private=True).permits(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700:4700::1111", "64:ff9b::101:101"])
def test_a_public_address_is_permitted(address: str) -> None:
    assert AddressPolicy().permits(address)


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://example.org", "file:///etc/passwd", "//example.org", "http://", "example.org", "http://a b"),
        *("http://user:pass@example.org", "http://example.org/#x", "http://example.org/?q=1", "http://h:99999"),
        *("http://example.org/\r\nHost: evil", "http://" + "a" * 3000, "http://ex\u00e4mple.org"),
    ],
)
def test_what_is_no_plain_base_url_is_no_source(url: str) -> None:
    with pytest.raises(Refused):
        Source(url, SourceKind.ORIGIN)


def test_a_blobs_url_is_below_the_base() -> None:
    assert Source("https://example.org/apps/", SourceKind.ORIGIN).blob_url(OWNER) == (
        "https://example.org/apps/blobs/" + "ab" * 32
    )
