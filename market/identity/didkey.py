"""did:key for Ed25519, and the multibase text of its keys (W3C did:key, Multikey).

Guarantees one spelling per key: text that does not encode back to itself is refused. Knows no files and no roles.
"""

from __future__ import annotations

from functools import lru_cache
from operator import mul
from typing import Final

import base58

from market.errors import Refused

_PUBLIC: Final = b"\xed\x01"  # multicodec ed25519-pub, as a varint
_PRIVATE: Final = b"\x80\x26"  # multicodec ed25519-priv, as a varint
_PREFIX: Final = "did:key:"

MAX_KEY_TEXT: Final = 64
"""Characters; 34 bytes are 48 in base58btc. Decoding base58 is quadratic, so the bound comes first."""


class BadKey(Refused):
    """A text that names no Ed25519 key."""

    kind = "bad-key"


@lru_cache(maxsize=4096)
def encode_public(key: bytes) -> str:
    """`z6Mk...` of 32 raw bytes."""
    return _encode(_PUBLIC, key)


def encode_private(seed: bytes) -> str:
    """`z3u2...` of a 32-byte seed; for key files only."""
    return _encode(_PRIVATE, seed)


@lru_cache(maxsize=4096)
def decode_public(text: str) -> bytes:
    """The 32 raw bytes of `z6Mk...`. Raises BadKey."""
    return _decode(_PUBLIC, text)


def decode_private(text: str) -> bytes:
    """The 32-byte seed of `z3u2...`. Raises BadKey, which never quotes the text."""
    return _decode(_PRIVATE, text)


@lru_cache(maxsize=4096)
def did_of(key: bytes) -> str:
    """The did:key of 32 raw public bytes."""
    return _PREFIX + encode_public(key)


def key_text(did: str) -> str:
    """The bare `z6Mk...` of a did:key, which is what addresses (`d` tags) hold. Raises BadKey."""
    if not did.startswith(_PREFIX):
        raise BadKey(f"not a did:key: {did[:80]!r}", remedy="a publisher is did:key:z6Mk...")
    text = did.removeprefix(_PREFIX)
    decode_public(text)
    return text


def key_of(did: str) -> bytes:
    """The inception key's 32 raw bytes. Raises BadKey."""
    return decode_public(key_text(did))


_ALPHABET: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_NO_LETTER: Final = 255
_VALUES: Final = bytes(_ALPHABET.find(chr(code)) % 256 for code in range(256))
"""What each byte of text counts; NO_LETTER outside of the alphabet."""
_GROUP: Final = 10
"""Letters at a time: 58^10 fits a machine word, so the inner loop works on small numbers."""
_POWERS: Final = tuple(58**power for power in reversed(range(_GROUP)))


def decode_base58(text: str, size: int) -> bytes:
    """The `size` bytes that base58btc text stands for. Raises BadKey.

    Every value has one spelling: the alphabet is strict, and as many leading 1s as leading zero bytes are required.
    """
    values = text.encode("ascii", "replace").translate(_VALUES)  # `?` is no letter of the alphabet either
    if _NO_LETTER in values:
        raise BadKey("not base58")
    first = len(values) % _GROUP
    number: int = sum(map(mul, values[:first], _POWERS[_GROUP - first :]))
    for start in range(first, len(values), _GROUP):
        number = number * 58**_GROUP + sum(map(mul, values[start : start + _GROUP], _POWERS))
    try:
        raw = number.to_bytes(size, "big")
    except OverflowError as error:
        raise BadKey("not base58") from error
    if len(text) - len(text.lstrip("1")) != size - len(raw.lstrip(b"\0")):
        raise BadKey("not the one base58 spelling")
    return raw


def is_did(text: str) -> bool:
    """Whether the text is the did:key of an Ed25519 key."""
    try:
        key_text(text)
    except BadKey:
        return False
    return True


def _encode(codec: bytes, raw: bytes) -> str:
    if len(raw) != 32:
        raise BadKey(f"an Ed25519 key has 32 bytes, not {len(raw)}")
    return "z" + base58.b58encode(codec + raw).decode("ascii")


def _decode(codec: bytes, text: str) -> bytes:
    if not 2 <= len(text) <= MAX_KEY_TEXT or text[0] != "z":
        raise BadKey("not a multibase key", remedy="an Ed25519 public key begins with z6Mk")
    raw = decode_base58(text[1:], 34)
    if raw[:2] != codec:
        raise BadKey("not an Ed25519 key of the kind that belongs here")
    return raw[2:]
