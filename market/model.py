"""The few types that discovery, trust, swarm and the doors share. Frozen values; no I/O, no clock."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, overload

from apps.names import PIECE_SIZE, AppName, BlobRef, Digest

__all__ = [
    "PIECE_SIZE",
    "AppName",
    "AttestKind",
    "Attestation",
    "BlobRef",
    "Digest",
    "Edges",
    "Flag",
    "FlagKind",
    "Listing",
    "Release",
    "SignedBy",
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
    WITHHELD = "withheld"
    """The newest head names a revocation that no relay has shown."""


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
class SignedBy:
    """Whose key signed a release: what is compared when a newer one arrives."""

    publisher: str
    keys: int
    """`seq` of the entry of the publisher's key history that it was signed under."""
    key: str
    """The release key, multibase (z6Mk...)."""


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
    note: str = ""
    """A sentence of the voter's, already without control characters."""


class Edges(Sequence[tuple[str, str]]):
    """Pairs of people kept as integers: edge i leads from `people[sources[i]]` to `people[targets[i]]`.

    Reads like a sequence of names; 2e7 edges take 160 MB, where pairs of strings would take thirty times that.
    `people` holds each name once, sorted; `sources` and `targets` are arrays of 32-bit integers of one length.
    """

    __slots__ = ("people", "sources", "targets")

    def __init__(self, people: tuple[str, ...], sources: array[int], targets: array[int]) -> None:
        if len(sources) != len(targets) or (sources.itemsize, targets.itemsize) != (4, 4):
            raise ValueError("sources and targets are arrays of 32-bit integers of one length")
        self.people = people
        self.sources = sources
        self.targets = targets

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> Edges:
        """From pairs of names; returns `pairs` itself when it is made of integers already."""
        if isinstance(pairs, Edges):
            return pairs
        listed = list(pairs)
        people = tuple(sorted({person for pair in listed for person in pair}))
        ids = {person: number for number, person in enumerate(people)}
        return cls(people, array("i", (ids[a] for a, _ in listed)), array("i", (ids[b] for _, b in listed)))

    def __len__(self) -> int:
        return len(self.sources)

    @overload
    def __getitem__(self, index: int) -> tuple[str, str]: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[tuple[str, str], ...]: ...
    def __getitem__(self, index: int | slice) -> tuple[str, str] | tuple[tuple[str, str], ...]:
        if isinstance(index, slice):
            return tuple(self[place] for place in range(*index.indices(len(self))))
        return self.people[self.sources[index]], self.people[self.targets[index]]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence)
            and len(self) == len(other)
            and all(a == b for a, b in zip(self, other, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]  # as every mutable sequence: arrays can not be hashed

    def __repr__(self) -> str:
        return f"Edges({len(self.people)} people, {len(self)} edges)"


@dataclass(frozen=True, slots=True)
class TrustEvidence:
    """What the index knows about who speaks for whom. People are named as in `Attestation.voter`."""

    follows: Sequence[tuple[str, str]]
    """Follows and explicit trust. `Edges` where there are many."""
    attestations: tuple[Attestation, ...]
    bound: Mapping[str, str]
    """Hex Nostr key -> DID, only where the two-way binding holds (R-TR6)."""
    mutes: Sequence[tuple[str, str]] = ()
    """Mutes and explicit distrust: each takes away the edge between the same two people, and nothing else."""
    ignored: Mapping[str, int] = field(default_factory=dict)
    """What was left out before this, counted by reason."""
