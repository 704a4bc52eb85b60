"""The few types that discovery, trust, swarm and the doors share. Frozen values; no I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from apps.names import PIECE_SIZE, AppName, BlobRef, Digest

__all__ = [
    "PIECE_SIZE",
    "AppName",
    "AttestKind",
    "Attestation",
    "BlobRef",
    "Digest",
    "Flag",
    "FlagKind",
    "Listing",
    "Release",
    "TrustEvidence",
]


class FlagKind(StrEnum):
    """What discovery can prove against a listing. Each is the evidence of a hard gate, never part of a score."""

    REVOKED = "revoked"
    EQUIVOCATION = "equivocation"
    FORK = "fork"
    UNBOUND = "unbound"
    STALE = "stale"
    NO_HEAD = "no-head"


@dataclass(frozen=True, slots=True)
class Flag:
    """One such proof: its kind, a sentence for people, and the digests of the documents that show it."""

    kind: FlagKind
    text: str
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Release:
    """One signed, immutable version of an app, already verified (proof, role, binding)."""

    app: AppName
    version: str
    seq: int
    digest: Digest
    """BLAKE3 of the canonical document without its proof."""
    manifest: Mapping[str, Any]
    """The install manifest as it was signed (JSON values); `apps.manifest.Manifest` parses it."""
    origins: tuple[str, ...]
    """Base URLs; a blob is at `<origin>/blobs/<digest>`."""
    source: str = ""
    channel: str = "stable"


@dataclass(frozen=True, slots=True)
class Listing:
    """What the index knows about one app: the app for people, its newest release, and what speaks against it."""

    app: AppName
    title: str
    summary: str
    categories: tuple[str, ...]
    homepage: str
    release: Release | None
    """The release the newest valid head points to, on the asked channel."""
    head_epoch: int | None
    head_expires: int | None
    """Unix seconds."""
    nostr_pubkeys: tuple[str, ...]
    """Hex x-only keys that are bound to the publisher in both directions."""
    flags: tuple[Flag, ...] = ()
    relays: tuple[str, ...] = ()
    """Relays that served the head or the release."""
    extra: Mapping[str, Any] = field(default_factory=dict)


class AttestKind(StrEnum):
    """What somebody says about a release. The reports are attestations too, with a value below zero."""

    REVIEWED = "reviewed"
    RAN = "ran"
    REBUILT = "rebuilt"
    MALWARE = "malware"
    IMPERSONATION = "impersonation"


@dataclass(frozen=True, slots=True)
class Attestation:
    """One live vote (R-TR5: the latest per voter and subject). `value` is -100..100; times are Unix seconds."""

    voter: str
    """A person: a DID, or `nostr:<hex>` for a Nostr key that no DID is bound to."""
    app: AppName
    subject: Digest
    """The release document's digest."""
    kind: AttestKind
    value: int
    made: int
    expires: int | None = None


@dataclass(frozen=True, slots=True)
class TrustEvidence:
    """What the index knows about who speaks for whom. People are named as in `Attestation.voter`."""

    follows: tuple[tuple[str, str], ...]
    attestations: tuple[Attestation, ...]
    bound: Mapping[str, str]
    """Hex Nostr key -> DID, only where the two-way binding holds (R-TR6)."""
