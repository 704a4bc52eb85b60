"""NIP-19: the bech32 text of Nostr keys, `npub1...` and `nsec1...`.

Guarantees one spelling for 32 bytes, with a checksum that matches. Knows no curve: not all 32 bytes are a key.
"""

from __future__ import annotations

from typing import Literal

from pynostr import bech32  # its key module would bring an HTTP client into every process

Prefix = Literal["npub", "nsec"]


def encode(prefix: Prefix, raw: bytes) -> str:
    """The text of 32 bytes."""
    return str(bech32.bech32_encode(prefix, bech32.convertbits(raw, 8, 5), bech32.Encoding.BECH32))


def decode(prefix: Prefix, text: str) -> bytes:
    """The 32 bytes. Raises ValueError, which never quotes the text: it may be a secret."""
    found, words, spec = bech32.bech32_decode(text)
    if found != prefix or words is None or spec is not bech32.Encoding.BECH32:  # bech32, not bech32m
        raise ValueError(f"not an {prefix}, or its checksum does not match")
    raw = bech32.convertbits(words, 5, 8, False)
    if raw is None or len(raw) != 32:
        raise ValueError(f"an {prefix} holds 32 bytes")
    return bytes(raw)
