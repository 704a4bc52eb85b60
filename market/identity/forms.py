"""The shapes that every document shares, and the identity document: frozen types with bounded, strict fields.

Guarantees that what parses has exactly the known members, each within its bound. Knows no signatures and no order of
events; `proofs` and `history` do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from apps.names import Digest
from market.errors import Refused
from market.identity.canonical import MAX_INTEGER, digest_of, document_digest
from market.identity.didkey import decode_public, key_text

FORMAT: Final = 1
"""Value of `archy` in every document."""

MAX_KEYS_PER_ROLE: Final = 8
"""A publisher with more machines than that at once rotates; it bounds what one entry costs to check."""

MAX_NOSTR_KEYS: Final = 8
MAX_WRITE_RELAYS: Final = 16
"""More write relays than that would make readers ask half the network for one publisher."""

DidText = Annotated[str, Meta(min_length=50, max_length=72, pattern=r"^did:key:z6Mk[1-9A-HJ-NP-Za-km-z]+\Z")]
KeyText = Annotated[str, Meta(min_length=42, max_length=64, pattern=r"^z6Mk[1-9A-HJ-NP-Za-km-z]+\Z")]
HexText = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
AppIdText = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{1,38}\Z")]
VersionText = Annotated[str, Meta(pattern=r"^[0-9A-Za-z][0-9A-Za-z.+~_-]{0,63}\Z")]
"""No colon and no slash: versions are part of addresses and of file names."""
Seq = Annotated[int, Meta(ge=0, le=MAX_INTEGER)]
UnixSeconds = Annotated[int, Meta(ge=0, le=253_402_300_799)]
"""Up to the year 9999, which is where datetime ends."""
RELAY_URL: Final = re.compile(r"wss?://[!-~]{1,249}")
RelayText = Annotated[str, Meta(min_length=6, max_length=255, pattern=r"^wss?://[!-~]+\Z")]


_HOST: Final = re.compile(r"\[[0-9A-Fa-f:.]{2,45}\]|(?=.{1,253}\Z)(?:[\w-]{1,63}\.)*[\w-]{1,63}\.?")


def is_relay_address(text: str) -> bool:
    """Whether a person's word for a relay can be one: scheme, a host that can be looked up, a port that there can be.

    Stricter than what is read of others (`RELAY_URL`), whose documents stay valid with an address that leads nowhere.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    host = parts.netloc.rpartition("@")[2]
    host = host.removesuffix(f":{port}") if port is not None else host
    return RELAY_URL.fullmatch(text) is not None and _HOST.fullmatch(host) is not None and parts.fragment == ""


class BadDocument(Refused):
    """The document has the wrong members, or one of them is out of its bound."""

    kind = "bad-document"


class Proof(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The members of an eddsa-jcs-2022 proof; `proofs` verifies them."""

    type: str
    cryptosuite: str
    created: str
    verification_method: str
    proof_purpose: str
    proof_value: str


class RoleKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The keys in force for the two roles that are delegated; root is the key that `next` commits to."""

    release: Annotated[tuple[KeyText, ...], Meta(max_length=MAX_KEYS_PER_ROLE)]
    online: Annotated[tuple[KeyText, ...], Meta(max_length=MAX_KEYS_PER_ROLE)]


class IdentityEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One entry of a publisher's key history, as it was signed."""

    archy: Annotated[int, Meta(ge=FORMAT, le=FORMAT)]
    type: Annotated[str, Meta(pattern=r"^identity\Z")]
    publisher: DidText
    name: Annotated[str, Meta(pattern=r"^history\Z")]
    seq: Annotated[int, Meta(ge=0, le=10_000)]
    prev: HexText | msgspec.UnsetType = msgspec.UNSET
    """Digest of the entry before; absent in entry 0 only."""
    next: HexText
    """BLAKE3 of the 32 raw bytes of the public key that signs the next entry and holds the root role meanwhile."""
    keys: RoleKeys
    nostr: Annotated[tuple[HexText, ...], Meta(max_length=MAX_NOSTR_KEYS)]
    """x-only public keys that may speak for the publisher, if they say so themselves."""
    relays: Annotated[tuple[RelayText, ...], Meta(max_length=MAX_WRITE_RELAYS)]
    made: UnixSeconds
    proof: Proof


T = TypeVar("T")


def strictly(document: Mapping[str, Any], form: type[T]) -> T:
    """The document as its frozen type. Raises BadDocument with the path of the first member that does not fit."""
    try:
        return msgspec.convert(document, form, strict=True)
    except msgspec.ValidationError as error:
        raise BadDocument(str(error)[:300]) from error


def parse_identity(document: Mapping[str, Any], unsigned: bytes | None = None) -> tuple[IdentityEntry, Digest]:
    """The entry and its digest. Raises BadDocument or BadKey; the proof is not looked at here."""
    entry = strictly(document, IdentityEntry)
    if (entry.seq == 0) != (entry.prev is msgspec.UNSET):
        raise BadDocument("entry 0 has no `prev`, and every later one has")
    key_text(entry.publisher)
    for text in (*entry.keys.release, *entry.keys.online):
        decode_public(text)
    return entry, document_digest(document) if unsigned is None else digest_of(unsigned)
