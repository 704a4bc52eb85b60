"""Content references and names that every layer shares. Pure: no I/O."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from apps.problems import Refused

PIECE_SIZE: Final = 1024 * 1024
"""Bytes in a piece; the last piece of a blob may be shorter."""

MAX_BLOB_SIZE: Final = 1 << 40
"""1 TiB: far above any image layer; bounds what a hostile manifest can make a node reserve."""

_HEX64 = re.compile(r"[0-9a-f]{64}")
_APP_ID = re.compile(r"[a-z0-9][a-z0-9-]{1,38}")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A BLAKE3 digest: 32 bytes as 64 lower-case hex digits, what `b3sum` prints. Raises Refused otherwise."""

    hex: str

    def __post_init__(self) -> None:
        if not _HEX64.fullmatch(self.hex):
            raise Refused(f"not a BLAKE3 digest: {self.hex[:80]!r}", remedy="a digest is 64 lower-case hex digits")

    @classmethod
    def from_bytes(cls, raw: bytes) -> Digest:
        return cls(raw.hex())

    @property
    def raw(self) -> bytes:
        return bytes.fromhex(self.hex)

    def __str__(self) -> str:
        return self.hex


@dataclass(frozen=True, slots=True)
class BlobRef:
    """Immutable bytes inside a signed document: digest, size in bytes and, above one piece, the piece list's digest.

    The piece list is the concatenation of the 32-byte BLAKE3 digests of the blob's 1 MiB pieces. Raises Refused when
    the size is out of bounds or when `pieces` is absent above one piece or present at or below it.
    """

    blake3: Digest
    size: int
    pieces: Digest | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.size <= MAX_BLOB_SIZE:
            raise Refused(f"blob size {self.size} is outside 0..{MAX_BLOB_SIZE}", where=self.blake3.hex)
        if (self.pieces is not None) != (self.size > PIECE_SIZE):
            raise Refused(
                "a blob has a piece list exactly when it is larger than 1 MiB",
                where=self.blake3.hex,
                remedy="pack the app again",
            )

    @property
    def piece_count(self) -> int:
        return max(1, -(-self.size // PIECE_SIZE))

    def to_json(self) -> dict[str, object]:
        """The form inside signed documents: `{blake3, size, pieces?}`."""
        body: dict[str, object] = {"blake3": self.blake3.hex, "size": self.size}
        if self.pieces is not None:
            body["pieces"] = self.pieces.hex
        return body


@dataclass(frozen=True, slots=True, order=True)
class AppName:
    """An app is (publisher, id) everywhere, so that two publishers' `bitcoin` never meet.

    `publisher` is opaque here (the market uses a DID). `slug` is safe in unit, volume, network and secret names.
    """

    publisher: str
    id: str

    def __post_init__(self) -> None:
        if not _APP_ID.fullmatch(self.id):
            raise Refused(
                f"not an app id: {self.id[:80]!r}",
                remedy="2 to 39 lower-case letters, digits and hyphens, starting with a letter or digit",
            )

    @property
    def slug(self) -> str:
        """`<id>-<10 hex of SHA-256(publisher)>`."""
        return f"{self.id}-{_mark(self.publisher)}"

    def __str__(self) -> str:
        return f"{self.publisher}/{self.id}"


@lru_cache(maxsize=1024)
def _mark(publisher: str) -> str:
    """Asked some fifty times for each app that is planned for, and a node has few publishers."""
    return hashlib.sha256(publisher.encode()).hexdigest()[:10]
