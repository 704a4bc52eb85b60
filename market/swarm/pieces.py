"""Pieces of a blob, its piece list, and the record of which pieces are there. Pure: bytes and numbers in, values out.

Guarantees: a `PieceTable` exists only for a list that hashes to the digest the signed reference names, with exactly
one entry per piece; a `Bitmap` that was damaged on disk is never read as one. It refuses to know where bytes come
from, where they are kept, and what time it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from market.errors import Refused
from market.model import PIECE_SIZE, BlobRef, Digest

DIGEST_BYTES: Final = 32

_BITMAP_MAGIC: Final = b"archy-bits-1\n"


class BadPieceList(Refused):
    """A piece list that does not belong to its reference: wrong length or wrong digest."""

    kind = "bad-piece-list"


class DamagedBitmap(Exception):
    """A stored bitmap can not be trusted; the reader rebuilds it from the data."""


@dataclass(frozen=True, slots=True)
class PieceTable:
    """What every piece of one blob must hash to, and where it lies."""

    whole: Digest
    size: int
    raw: bytes
    """The concatenated 32-byte digests."""
    piece_size: int = PIECE_SIZE
    """Bytes in every piece but the last. Above PIECE_SIZE only for a piece list, which is one piece however long."""

    @property
    def count(self) -> int:
        return len(self.raw) // DIGEST_BYTES

    def offset(self, index: int) -> int:
        return index * self.piece_size

    def length(self, index: int) -> int:
        return min(self.piece_size, self.size - index * self.piece_size)

    def span_bytes(self, start: int, end: int) -> int:
        """Bytes in the pieces start..end-1."""
        return max(0, min(end * self.piece_size, self.size) - start * self.piece_size) if end > start else 0

    def matches(self, index: int, digest: bytes) -> bool:
        return self.raw[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES] == digest


def single_piece(digest: Digest, size: int) -> PieceTable:
    """The table of bytes that are checked as a whole: a blob of at most 1 MiB, or a piece list of any length."""
    return PieceTable(digest, size, digest.raw, max(size, 1))


def list_length(ref: BlobRef) -> int:
    """Bytes of the piece list of `ref`."""
    return ref.piece_count * DIGEST_BYTES


def table_from_list(ref: BlobRef, raw: bytes) -> PieceTable:
    """Check a piece list against the reference that names it. Raises BadPieceList."""
    if ref.pieces is None:
        raise BadPieceList("this blob has no piece list", where=ref.blake3.hex)
    if len(raw) != list_length(ref):
        raise BadPieceList(f"the piece list has {len(raw)} bytes, not {list_length(ref)}", where=ref.pieces.hex)
    if blake3(raw).digest() != ref.pieces.raw:
        raise BadPieceList("the piece list does not hash to the signed digest", where=ref.pieces.hex)
    return PieceTable(ref.blake3, ref.size, raw)


def ref_digest(ref: BlobRef) -> Digest:
    """The name of everything that belongs to (digest, size, list) and not to the digest alone: partials, bans.

    A publisher could pair somebody's digest with a false list; the two references then never share state.
    """
    body = json.dumps(ref.to_json(), sort_keys=True, separators=(",", ":"))
    return Digest.from_bytes(blake3(body.encode()).digest())


class PieceHasher:
    """Turns a stream of bytes into a BlobRef and its piece list; memory is the list alone.

    BLAKE3 as in its paper; the list is what iroh-blobs calls a HashSeq.
    """

    def __init__(self) -> None:
        self._whole = blake3()
        self._piece = blake3()
        self._filled = 0
        self._size = 0
        self._digests = bytearray()

    def update(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        self._whole.update(view)
        self._size += len(view)
        while view:
            take = min(len(view), PIECE_SIZE - self._filled)
            self._piece.update(view[:take])
            self._filled += take
            view = view[take:]
            if self._filled == PIECE_SIZE:
                self._close_piece()

    def _close_piece(self) -> None:
        self._digests += self._piece.digest()
        self._piece = blake3()
        self._filled = 0

    def finish(self) -> tuple[BlobRef, bytes | None]:
        """The reference, and the piece list where the blob is above 1 MiB."""
        if self._filled:
            self._close_piece()
        digest = Digest.from_bytes(self._whole.digest())
        if self._size <= PIECE_SIZE:
            return BlobRef(digest, self._size), None
        raw = bytes(self._digests)
        return BlobRef(digest, self._size, Digest.from_bytes(blake3(raw).digest())), raw


class Bitmap:
    """Which pieces are verified. On disk: a magic line, the reference's digest, the bits, a BLAKE3 over them all."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._flags = bytearray(count)
        self._set = 0

    def __contains__(self, index: int) -> bool:
        return bool(self._flags[index])

    def __len__(self) -> int:
        """How many pieces are set."""
        return self._set

    def __iter__(self) -> Iterator[int]:
        index = self._flags.find(1)
        while index >= 0:
            yield index
            index = self._flags.find(1, index + 1)

    @property
    def full(self) -> bool:
        return self._set == self.count

    def add(self, index: int) -> bool:
        """Set one piece; False if it was set before."""
        if self._flags[index]:
            return False
        self._flags[index] = 1
        self._set += 1
        return True

    def discard(self, index: int) -> None:
        if self._flags[index]:
            self._flags[index] = 0
            self._set -= 1

    def missing(self) -> Iterator[int]:
        index = self._flags.find(0)
        while index >= 0:
            yield index
            index = self._flags.find(0, index + 1)

    def first_missing(self, start: int = 0) -> int:
        """The first index >= start that is not set, or `count`."""
        found = self._flags.find(0, start)
        return self.count if found < 0 else found

    def flags(self) -> bytes:
        """One byte a piece: 1 where it is set."""
        return bytes(self._flags)

    def copy(self) -> Bitmap:
        twin = Bitmap(self.count)
        twin._flags[:] = self._flags
        twin._set = self._set
        return twin

    def to_bytes(self, owner: Digest) -> bytes:
        packed = int(self._flags[::-1].translate(_TO_ASCII) or b"0", 2).to_bytes(-(-self.count // 8), "little")
        body = _BITMAP_MAGIC + owner.raw + self.count.to_bytes(8, "little") + packed
        return body + blake3(body).digest()

    @classmethod
    def from_bytes(cls, raw: bytes, owner: Digest, count: int) -> Bitmap:
        """Read a stored bitmap. Raises DamagedBitmap when anything at all is off."""
        width = -(-count // 8)
        head = _BITMAP_MAGIC + owner.raw + count.to_bytes(8, "little")
        if len(raw) != len(head) + width + DIGEST_BYTES or raw[: len(head)] != head:
            raise DamagedBitmap("wrong length or header")
        if blake3(raw[:-DIGEST_BYTES]).digest() != raw[-DIGEST_BYTES:]:
            raise DamagedBitmap("wrong checksum")
        value = int.from_bytes(raw[len(head) : len(head) + width], "little")
        if value >> count:
            raise DamagedBitmap("bits past the end")
        bitmap = cls(count)
        bitmap._flags[:] = bin(value)[2:].zfill(count).encode().translate(_TO_FLAGS)[::-1]
        bitmap._set = value.bit_count()
        return bitmap


_TO_ASCII: Final = bytes.maketrans(b"\x00\x01", b"01")
_TO_FLAGS: Final = bytes.maketrans(b"01", b"\x00\x01")
