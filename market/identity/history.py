"""A publisher's key history: which key may sign what, folded from its identity documents.

Guarantees that an entry counts only if the key that the entry before committed to has signed it, that the first branch
seen stays in force, and that a second valid entry with the same number is kept as proof of a fork.
Refuses to know relays, files and time: the same entries in the same order give the same history.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from typing import Any, Final

import blake3

from apps.names import Digest
from market.identity.didkey import encode_public, key_of
from market.identity.forms import IdentityEntry, parse_identity
from market.identity.proofs import verify_proof

MAX_FORKS_KEPT: Final = 4
"""One proof is enough to block a publisher; a few more help to see when it happened."""


class Role(StrEnum):
    """What a key may sign: root its history and revocations of keys, release what is installed, online the heads."""

    ROOT = "root"
    RELEASE = "release"
    ONLINE = "online"


class Folded(Enum):
    """What an identity document was to the history."""

    ADDED = "added"
    KNOWN = "known"
    FORK = "fork"
    EARLY = "early"
    """An entry before it has not been seen yet."""
    WRONG_SIGNER = "wrong-signer"
    WRONG_CHAIN = "wrong-chain"
    """It continues an entry that is not the one in force, without being a fork itself."""


@dataclass(frozen=True, slots=True)
class SignedEntry:
    """An identity entry whose proof verified: its digest, its signer's raw key, and the document it came in."""

    entry: IdentityEntry
    digest: Digest
    signer: bytes

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> SignedEntry:
        """Raises BadDocument, BadKey, BadProof or NotCanonical."""
        entry, digest = parse_identity(document)
        return cls(entry, digest, verify_proof(document))


@dataclass(frozen=True, slots=True)
class KeyHistory:
    """The entries in force, oldest first, and the proofs of forks."""

    did: str
    entries: tuple[SignedEntry, ...] = ()
    forks: tuple[SignedEntry, ...] = ()

    @property
    def latest(self) -> SignedEntry | None:
        return self.entries[-1] if self.entries else None

    def entry(self, digest: Digest) -> SignedEntry | None:
        """The entry in force with this digest."""
        return next((known for known in self.entries if known.digest == digest), None)

    def named(self, digest: str) -> SignedEntry | None:
        """The entry in force that a document names by these hex digits."""
        for known in self.entries:  # asked twice for each document; a generator costs twice as much
            if known.digest.hex == digest:
                return known
        return None

    def fold(self, signed: SignedEntry) -> tuple[KeyHistory, Folded]:
        """The history with this entry, and what became of it. Entries of another publisher are WRONG_CHAIN."""
        if signed.entry.publisher != self.did:
            return self, Folded.WRONG_CHAIN
        if any(signed.digest == known.digest for known in (*self.entries, *self.forks)):
            return self, Folded.KNOWN
        seq = signed.entry.seq
        if seq > len(self.entries):
            return self, Folded.EARLY
        if seq > 0 and signed.entry.prev != self.entries[seq - 1].digest.hex:
            return self, Folded.WRONG_CHAIN
        if not self._may_sign(signed):
            return self, Folded.WRONG_SIGNER
        if seq == len(self.entries):
            return replace(self, entries=(*self.entries, signed)), Folded.ADDED
        return replace(self, forks=(*self.forks, signed)[:MAX_FORKS_KEPT]), Folded.FORK

    def _may_sign(self, signed: SignedEntry) -> bool:
        if signed.entry.seq == 0:
            return signed.signer == key_of(self.did)
        return commitment(signed.signer) == self.entries[signed.entry.seq - 1].entry.next

    def holds(self, key: bytes, role: Role, entry: SignedEntry) -> bool:
        """Whether the raw Ed25519 key had the role under that entry.

        The inception key holds none: it signs entry 0 and nothing else.
        """
        match role:
            case Role.ROOT:
                return commitment(key) == entry.entry.next
            case Role.RELEASE:
                return encode_public(key) in entry.entry.keys.release
            case Role.ONLINE:
                return encode_public(key) in entry.entry.keys.online


def commitment(key: bytes) -> str:
    """What an entry says of the next root key: BLAKE3 of its 32 raw public bytes, as hex."""
    return blake3.blake3(key).hexdigest()


def identity_body(
    did: str,
    *,
    prev: SignedEntry | None,
    next_root: bytes,
    release: tuple[bytes, ...],
    online: tuple[bytes, ...],
    nostr: tuple[str, ...],
    relays: tuple[str, ...],
    made: int,
) -> dict[str, Any]:
    """The unsigned document of the entry that follows `prev` (None: entry 0).

    Keys are raw public bytes, `nostr` x-only hex, `made` Unix seconds.
    """
    body: dict[str, Any] = {
        "archy": 1,
        "type": "identity",
        "publisher": did,
        "name": "history",
        "seq": 0 if prev is None else prev.entry.seq + 1,
        "next": commitment(next_root),
        "keys": {"release": [encode_public(key) for key in release], "online": [encode_public(key) for key in online]},
        "nostr": list(nostr),
        "relays": list(relays),
        "made": made,
    }
    if prev is not None:
        body["prev"] = prev.digest.hex
    return body
