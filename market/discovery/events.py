"""Nostr events (NIP-01): their bytes, their id, their signature, and the filter they answer.

Guarantees that an `Event` has fields of the right shape; `verify` says whether its id and signature are genuine.
Refuses to know documents, relays and time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, Final, Protocol

import msgspec
from coincurve import PublicKeyXOnly
from msgspec import Meta

from market.discovery.reasons import Reason, Refusal

DOCUMENT_KIND: Final = 30078
"""NIP-78: application data, addressable by (pubkey, kind, d)."""
FOLLOW_KIND: Final = 3
"""NIP-02."""
DELETION_KIND: Final = 5
"""NIP-09: the author asks that events are no longer shown."""
RELAY_LIST_KIND: Final = 10_002
"""NIP-65: where the author writes and reads."""
AUTHOR_KINDS: Final = frozenset({DELETION_KIND, RELAY_LIST_KIND})
"""Lists that only count from who publishes documents here."""
AUTH_KIND: Final = 22_242
"""NIP-42: proves to one relay who asks."""
MUTE_KIND: Final = 10_000
"""NIP-51: the mute list. Only its public entries can be read by others."""
SET_KIND: Final = 30_000
"""NIP-51: a named set of people. Clients keep all kinds of sets, so that only names with a clear meaning count."""

TRUST_SETS: Final = ("archy-trust",)
DISTRUST_SETS: Final = ("archy-distrust", "mute")
LIST_KINDS: Final = frozenset({FOLLOW_KIND, MUTE_KIND, SET_KIND})
TRUSTING_LISTS: Final = frozenset({f"{FOLLOW_KIND}", *(f"{SET_KIND}:{name}" for name in TRUST_SETS)})
DISTRUSTING_LISTS: Final = frozenset({f"{MUTE_KIND}", *(f"{SET_KIND}:{name}" for name in DISTRUST_SETS)})

MAX_EVENT_SIZE: Final = 64 * 1024
"""Bytes; what relays commonly accept, and the bound nostr-sdk's relay enforces."""

_HEX64 = Meta(min_length=64, max_length=64)
_HEX128 = Meta(min_length=128, max_length=128)


def _is_hex(text: str) -> bool:
    """Whether these are bytes in their one spelling. A third of what a pattern costs, for every event that arrives."""
    try:
        return bytes.fromhex(text).hex() == text
    except ValueError:
        return False


class Event(msgspec.Struct, frozen=True, gc=False):
    """An event as decoded, with nothing verified yet. Unknown members are dropped: the id does not cover them.

    It holds texts only, and so no cycle: the collector need not look at it.
    """

    id: Annotated[str, _HEX64]
    pubkey: Annotated[str, _HEX64]
    created_at: Annotated[int, Meta(ge=0, le=253_402_300_799)]
    kind: Annotated[int, Meta(ge=0, le=65_535)]
    tags: tuple[tuple[str, ...], ...]
    content: str
    sig: Annotated[str, _HEX128]

    def __post_init__(self) -> None:
        if not (_is_hex(self.id) and _is_hex(self.pubkey) and _is_hex(self.sig)):
            raise ValueError("id, pubkey and sig are written in lower-case hexadecimal digits")

    def to_json(self) -> dict[str, Any]:
        """As a plain JSON object."""
        return {**msgspec.structs.asdict(self), "tags": [list(tag) for tag in self.tags]}

    def to_bytes(self) -> bytes:
        return _ENCODER.encode(self)

    def tag(self, name: str) -> tuple[str, ...]:
        """The values (second fields) of all tags with this name."""
        return tuple(tag[1] for tag in self.tags if len(tag) > 1 and tag[0] == name)


class Filter(msgspec.Struct, frozen=True, omit_defaults=True):
    """The part of NIP-01's filters that is used here; `tags` holds `{"t": (...)}` for `#t`."""

    ids: tuple[str, ...] = ()
    kinds: tuple[int, ...] = ()
    authors: tuple[str, ...] = ()
    tags: Mapping[str, tuple[str, ...]] = {}
    until: int | None = None
    limit: int | None = None
    since: int | None = None

    def matches(self, event: Event) -> bool:
        """NIP-01: all conditions hold; a tag condition holds if any value does."""
        return (
            (not self.ids or event.id in self.ids)
            and (not self.kinds or event.kind in self.kinds)
            and (not self.authors or event.pubkey in self.authors)
            and (self.until is None or event.created_at <= self.until)
            and (self.since is None or event.created_at >= self.since)
            and (not self.tags or self._tags_match(event))
        )

    def _tags_match(self, event: Event) -> bool:
        for name, wanted in self.tags.items():
            for tag in event.tags:
                if len(tag) > 1 and tag[0] == name and tag[1] in wanted:
                    break
            else:
                return False
        return True

    def to_json(self) -> dict[str, Any]:
        """As it goes into a REQ."""
        found: dict[str, Any] = {
            name: list(values)
            for name, values in (("ids", self.ids), ("kinds", self.kinds), ("authors", self.authors))
            if values
        }
        found.update({f"#{name}": list(values) for name, values in self.tags.items()})
        if self.until is not None:
            found["until"] = self.until
        if self.since is not None:
            found["since"] = self.since
        if self.limit is not None:
            found["limit"] = self.limit
        return found


def list_name(event: Event) -> str | None:
    """Which of its author's lists the event replaces: `KIND` or `KIND:NAME`; None if it is none that counts."""
    if event.kind in (FOLLOW_KIND, MUTE_KIND):
        return str(event.kind)
    name = f"{event.kind}:{next(iter(event.tag('d')), '')}"
    return name if event.kind == SET_KIND and name in TRUSTING_LISTS | DISTRUSTING_LISTS else None


class SchnorrSigner(Protocol):
    """Who signs an event: a Keyring does."""

    @property
    def nostr_pubkey(self) -> str: ...

    def sign_schnorr(self, digest: bytes) -> bytes: ...


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Event)


def decode_event(raw: bytes) -> Event | Refusal:
    """Size, then typed decode."""
    if len(raw) > MAX_EVENT_SIZE:
        return Refusal(Reason.OVERSIZE, f"an event of {len(raw)} bytes")
    try:
        return _DECODER.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Refusal(Reason.MALFORMED, str(error)[:200])


def event_id(pubkey: str, created_at: int, kind: int, tags: Sequence[Sequence[str]], content: str) -> bytes:
    """NIP-01: SHA-256 of the JSON array [0, pubkey, created_at, kind, tags, content], 32 bytes."""
    return hashlib.sha256(_ENCODER.encode([0, pubkey, created_at, kind, tags, content])).digest()


def sign_event(
    signer: SchnorrSigner, *, created_at: int, kind: int, tags: Sequence[Sequence[str]], content: str
) -> Event:
    """A signed event. `created_at` in Unix seconds."""
    digest = event_id(signer.nostr_pubkey, created_at, kind, tags, content)
    return Event(
        id=digest.hex(),
        pubkey=signer.nostr_pubkey,
        created_at=created_at,
        kind=kind,
        tags=tuple(tuple(tag) for tag in tags),
        content=content,
        sig=signer.sign_schnorr(digest).hex(),
    )


def verify(event: Event) -> Refusal | None:
    """Recompute the id, then check the BIP-340 signature over it. None means genuine.

    libsecp256k1 releases the GIL, so a batch of these belongs in a worker thread.
    """
    try:
        digest = event_id(event.pubkey, event.created_at, event.kind, event.tags, event.content)
    except UnicodeEncodeError:
        return Refusal(Reason.MALFORMED, "half of a surrogate pair")
    if digest.hex() != event.id:
        return Refusal(Reason.FORGED_ID, f"says {event.id[:16]}, is {digest.hex()[:16]}")
    key = _parsed_key(event.pubkey)
    if key is None or not key.verify(bytes.fromhex(event.sig), digest):
        return Refusal(Reason.BAD_SIGNATURE, f"by {event.pubkey[:16]}")
    return None


@lru_cache(maxsize=16_384)  # some 3 MiB; parsing a key costs 5 us, and most events come from few keys
def _parsed_key(pubkey: str) -> PublicKeyXOnly | None:
    try:
        return PublicKeyXOnly(bytes.fromhex(pubkey))
    except ValueError:  # not the x coordinate of a point
        return None
