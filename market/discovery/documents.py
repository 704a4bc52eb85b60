"""The document types that travel in events, each a frozen type with strict, bounded members, and their addresses.

Guarantees that what parses has exactly the known members within their bounds, and texts for people without control or
direction-changing characters (a title must not rewrite a terminal). Refuses to know signatures and order: see `checks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, get_type_hints

import msgspec
from msgspec import UNSET, Meta, UnsetType

from apps.names import AppName, BlobRef, Digest
from market.errors import Refused
from market.identity.canonical import digest_of, document_digest
from market.identity.didkey import decode_public, key_text
from market.identity.forms import (
    FORMAT,
    AppIdText,
    BadDocument,
    DidText,
    HexText,
    IdentityEntry,
    KeyText,
    Proof,
    Seq,
    UnixSeconds,
    VersionText,
    parse_identity,
    strictly,
)
from market.identity.history import Role
from market.model import Attestation, AttestKind, Release

MAX_CHANNELS: Final = 8
MAX_REVOCATIONS: Final = 256
"""Digests in a head: 17 KiB of its 24. A publisher with more withdrawn releases names the newest."""
MAX_ORIGINS: Final = 8
MAX_PROVIDED: Final = 160
"""Apps one node says it serves: 20 KiB of its document."""
MAX_PROVIDER_LIFE: Final = 2 * 3600
"""Seconds; a node announces itself for one hour, and clocks differ."""
MAX_PROOF_SIZE: Final = 50 * 1024
"""Bytes: two documents of 24 KiB. What escaping makes too large for an event stays with the nodes that saw it."""
MIN_HEAD_LIFE: Final = 7 * 86_400
MAX_HEAD_LIFE: Final = 400 * 86_400
DEFAULT_HEAD_LIFE: Final = 90 * 86_400

_PLAIN = r"^[^\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]*\Z"
ChannelText = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,31}\Z")]
CategoryText = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}\Z")]
OriginText = Annotated[str, Meta(max_length=512, pattern=r"^https?://[!-~]+\Z")]
LinkText = Annotated[str, Meta(max_length=512, pattern=r"^([a-z][a-z0-9+.-]*:[!-~]+)?\Z")]


class Signed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every document but the identity has: who, what name, under which identity entry, when (Unix seconds)."""

    archy: Annotated[int, Meta(ge=FORMAT, le=FORMAT)]
    type: str
    publisher: DidText
    name: str
    identity: HexText
    made: UnixSeconds
    proof: Proof


class BlobForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A BlobRef as it is written."""

    blake3: HexText
    size: Annotated[int, Meta(ge=0)]
    pieces: HexText | UnsetType = UNSET

    def ref(self) -> BlobRef:
        """Raises Refused when size and piece list do not fit each other."""
        return BlobRef(Digest(self.blake3), self.size, None if self.pieces is UNSET else Digest(self.pieces))


class ManifestDocument(Signed, frozen=True, kw_only=True):
    """The app for people."""

    type: Annotated[str, Meta(pattern=r"^manifest\Z")]
    name: AppIdText
    seq: Seq
    title: Annotated[str, Meta(min_length=1, max_length=120, pattern=_PLAIN)]
    summary: Annotated[str, Meta(max_length=400, pattern=_PLAIN)]
    categories: Annotated[tuple[CategoryText, ...], Meta(max_length=8)]
    permissions: dict[str, Any]
    homepage: LinkText
    source: LinkText
    icon: BlobForm | UnsetType = UNSET
    minimum: VersionText | UnsetType = UNSET


class ReleaseDocument(Signed, frozen=True, kw_only=True):
    """One version, immutable: the install manifest and where its blobs are."""

    type: Annotated[str, Meta(pattern=r"^release\Z")]
    name: AppIdText
    seq: Seq
    version: VersionText
    channel: ChannelText
    prev: HexText | UnsetType = UNSET
    install: dict[str, Any]
    origins: Annotated[tuple[OriginText, ...], Meta(max_length=MAX_ORIGINS)]
    source: Annotated[str, Meta(max_length=512, pattern=_PLAIN)]


class ReleaseRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a head names a release. `keys` is the seq of the identity entry the release was signed under."""

    digest: HexText
    keys: Annotated[int, Meta(ge=0, le=10_000)]
    seq: Seq
    version: VersionText


class HeadDocument(Signed, frozen=True, kw_only=True):
    """TUF's timestamp and snapshot in one: what is newest now, and until when that may be believed."""

    type: Annotated[str, Meta(pattern=r"^head\Z")]
    name: AppIdText
    epoch: Seq
    expires: UnixSeconds
    manifest: HexText
    releases: Annotated[dict[ChannelText, ReleaseRef], Meta(max_length=MAX_CHANNELS)]
    revocations: Annotated[tuple[HexText, ...], Meta(max_length=MAX_REVOCATIONS)]


class About(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The app a vote is about."""

    publisher: DidText
    id: AppIdText


class AttestDocument(Signed, frozen=True, kw_only=True):
    """One voter's word on one release; `name` and `subject` are the release document's digest."""

    type: Annotated[str, Meta(pattern=r"^attest\Z")]
    name: HexText
    seq: Seq
    about: About
    subject: HexText
    kind: AttestKind
    value: Annotated[int, Meta(ge=-100, le=100)]
    expires: UnixSeconds | UnsetType = UNSET
    note: Annotated[str, Meta(min_length=1, max_length=280, pattern=_PLAIN)] | UnsetType = UNSET


class RevokeDocument(Signed, frozen=True, kw_only=True):
    """Withdraws one release (`name` is the app), or all that a key (`name`) signed after its last valid seq per app."""

    type: Annotated[str, Meta(pattern=r"^revoke\Z")]
    name: Annotated[str, Meta(max_length=64)]
    seq: Seq
    release: HexText | UnsetType = UNSET
    key: KeyText | UnsetType = UNSET
    last: Annotated[dict[AppIdText, Seq], Meta(max_length=256)] | UnsetType = UNSET
    reason: Annotated[str, Meta(max_length=280, pattern=_PLAIN)]


class ProviderDocument(Signed, frozen=True, kw_only=True):
    """A node that serves blobs: where, how fast, and of which apps. It is believed for an hour (NIP-40)."""

    type: Annotated[str, Meta(pattern=r"^provider\Z")]
    name: Annotated[str, Meta(pattern=r"^node\Z")]
    seq: Seq
    endpoints: Annotated[tuple[OriginText, ...], Meta(min_length=1, max_length=MAX_ORIGINS)]
    capacity: Annotated[int, Meta(ge=1, le=1_000_000)]
    """What the node is willing to send, in Mbit/s."""
    apps: Annotated[tuple[About, ...], Meta(max_length=MAX_PROVIDED)]
    expires: UnixSeconds


class ProofDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Two documents of one publisher that contradict each other. It proves itself, so it has no proof of its own, and
    anybody may carry it."""

    archy: Annotated[int, Meta(ge=FORMAT, le=FORMAT)]
    type: Annotated[str, Meta(pattern=r"^proof\Z")]
    documents: Annotated[tuple[dict[str, Any], ...], Meta(min_length=2, max_length=2)]


Document = (
    IdentityEntry
    | ManifestDocument
    | ReleaseDocument
    | HeadDocument
    | AttestDocument
    | RevokeDocument
    | ProviderDocument
)

_FORMS: Final[dict[str, type[Signed]]] = {
    "manifest": ManifestDocument,
    "release": ReleaseDocument,
    "head": HeadDocument,
    "attest": AttestDocument,
    "revoke": RevokeDocument,
    "provider": ProviderDocument,
}


def _unchecked(form: type[Signed] | type[IdentityEntry]) -> type[msgspec.Struct]:
    """The same type without the bounds and patterns of its own members, which make up most of what decoding costs."""
    hints = get_type_hints(form)
    members = [
        (member.name, hints[member.name]) if member.required else (member.name, hints[member.name], member.default)
        for member in msgspec.structs.fields(form)
    ]
    return msgspec.defstruct(form.__name__, members, bases=(form,), frozen=True, kw_only=True)


_REREAD: Final[dict[str, msgspec.json.Decoder[Any]]] = {
    "identity": msgspec.json.Decoder(_unchecked(IdentityEntry)),
    **{kind: msgspec.json.Decoder(_unchecked(form)) for kind, form in _FORMS.items()},
}
TYPES: Final = ("identity", "revoke", "release", "manifest", "head", "attest", "proof", "provider")
"""In the order in which a relay is asked: what others depend on comes first."""


def parse_document(document: Mapping[str, Any], unsigned: bytes | None = None) -> tuple[Document, Digest]:
    """The frozen document and its digest; the proof is not verified. Raises BadDocument, BadKey or NotCanonical.

    `unsigned`: the document's `unsigned_bytes`, if they are at hand.
    """
    kind = document.get("type")
    if kind == "identity":
        return parse_identity(document, unsigned)
    form = _FORMS.get(kind) if isinstance(kind, str) else None
    if form is None:
        raise BadDocument(f"no document type that is known here: {str(kind)[:40]!r}")
    parsed = strictly(document, form)
    key_text(parsed.publisher)
    _check_members(parsed)
    if not isinstance(parsed, Document):  # the table above holds exactly these types
        raise BadDocument(f"no document type that is known here: {kind!r}")
    return parsed, document_digest(document) if unsigned is None else digest_of(unsigned)


def reread_document(content: bytes, kind: str) -> Document:
    """A document of this type, from the canonical bytes that passed `parse_document` before."""
    document: Document = _REREAD[kind].decode(content)
    return document


def _check_members(document: Signed) -> None:
    """The rules that join two members."""
    match document:
        case ManifestDocument(icon=BlobForm() as icon):
            _check_blob(icon)
        case ReleaseDocument():
            if (document.install.get("id"), document.install.get("version")) != (document.name, document.version):
                raise BadDocument("the install manifest is of another app or version than the release")
        case HeadDocument():
            if not MIN_HEAD_LIFE <= document.expires - document.made <= MAX_HEAD_LIFE:
                raise BadDocument("a head lives 7 to 400 days")
        case AttestDocument():
            key_text(document.about.publisher)
            if document.subject != document.name:
                raise BadDocument("an attestation is named by its subject's digest")
        case RevokeDocument():
            _check_revocation(document)
        case ProviderDocument():
            if not document.made < document.expires <= document.made + MAX_PROVIDER_LIFE:
                raise BadDocument("a provider is announced for two hours at most")
            for app in document.apps:
                key_text(app.publisher)


def _check_blob(icon: BlobForm) -> None:
    try:
        icon.ref()
    except Refused as error:
        raise BadDocument(f"$.icon: {error.what}") from error


def _check_revocation(document: RevokeDocument) -> None:
    if document.key is not UNSET:
        decode_public(document.key)
        if document.release is not UNSET or document.last is UNSET or document.name != document.key:
            raise BadDocument("a key's revocation has `key` as its name, `last`, and no `release`")
        return
    if document.release is UNSET or document.last is not UNSET:
        raise BadDocument("a revocation names a release, or a key with its last valid numbers")
    AppName(document.publisher, document.name)


def required_role(document: Document) -> Role:
    """The role a key needs to sign this document."""
    match document:
        case IdentityEntry():
            return Role.ROOT
        case HeadDocument() | ProviderDocument():
            return Role.ONLINE
        case RevokeDocument(key=str()):
            return Role.ROOT
        case _:
            return Role.RELEASE


def number_of(document: Document) -> int:
    """The signed number that orders documents of one type and name: `epoch` of a head, `seq` of all others."""
    return document.epoch if isinstance(document, HeadDocument) else document.seq


def address(document: Document, digest: Digest) -> str:
    """The event's `d`. It is derived from the signed members, so that nobody else's address can be taken."""
    base = f"archy1:{document.type}:{key_text(document.publisher)}:{document.name}"
    match document:
        case ReleaseDocument():
            return f"{base}:{document.version}:{digest.hex[:16]}"
        case IdentityEntry() | RevokeDocument():
            return f"{base}:{document.seq}:{digest.hex[:16]}"
        case _:
            return base


def tags(document: Document, digest: Digest) -> list[list[str]]:
    """The event's tags: the address, and hints for filtering on relays."""
    subject = f"{key_text(document.publisher)}/{document.name}"
    if isinstance(document, AttestDocument):
        subject = f"{key_text(document.about.publisher)}/{document.about.id}"
    found = [["d", address(document, digest)], ["t", f"archy1-{document.type}"], ["i", subject]]
    if isinstance(document, ReleaseDocument):
        found.append(["c", document.channel])
    if isinstance(document, ProviderDocument):
        found.append(["expiration", str(document.expires)])  # NIP-40
    return found


def proof_body(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The proof that two signed documents contradict each other, the lower digest first: one spelling for one fact."""
    return {"archy": FORMAT, "type": "proof", "documents": sorted((dict(one), dict(other)), key=_digest_text)}


def proof_address(did: str, digest: Digest) -> str:
    """The `d` of a proof about this publisher; `digest` is the proof's own."""
    return f"archy1:proof:{key_text(did)}:{digest.hex[:16]}"


def proof_tags(did: str, digest: Digest) -> list[list[str]]:
    """The tags of the event that carries a proof."""
    return [["d", proof_address(did, digest)], ["t", "archy1-proof"], ["i", f"{key_text(did)}/proof"]]


def contradict(one: Document, other: Document) -> bool:
    """R-DS5: one publisher, type and name, and the same number or, of releases, the same version. The digests differ
    and the identity entries are of one seq; both are the caller's to check."""
    if (one.publisher, one.type, one.name) != (other.publisher, other.type, other.name):
        return False
    if isinstance(one, AttestDocument | ProviderDocument):
        return False
    if isinstance(one, ReleaseDocument) and isinstance(other, ReleaseDocument) and one.version == other.version:
        return True
    return number_of(one) == number_of(other)


def _digest_text(document: Mapping[str, Any]) -> str:
    return document_digest(document).hex


def to_release(document: ReleaseDocument, digest: Digest) -> Release:
    """As the rest of the market knows it."""
    return Release(
        app=AppName(document.publisher, document.name),
        version=document.version,
        seq=document.seq,
        digest=digest,
        manifest=document.install,
        origins=document.origins,
        source=document.source,
        channel=document.channel,
    )


def to_attestation(document: AttestDocument) -> Attestation:
    """As trust knows it."""
    return Attestation(
        voter=document.publisher,
        app=AppName(document.about.publisher, document.about.id),
        subject=Digest(document.subject),
        kind=document.kind,
        value=document.value,
        made=document.made,
        expires=None if document.expires is UNSET else document.expires,
        note="" if document.note is UNSET else document.note,
    )
