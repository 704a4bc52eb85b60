"""The publisher's side: from an install manifest to signed documents, and from documents to events.

Guarantees that every number is durably reserved before anything is signed with it, and that what is signed here would
be accepted by the same parsers that readers use. Refuses to know relays and networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from apps.names import AppName, Digest
from market.discovery.checks import MAX_AHEAD
from market.discovery.documents import DEFAULT_HEAD_LIFE, parse_document, required_role, tags
from market.discovery.events import DOCUMENT_KIND, MAX_EVENT_SIZE, sign_event
from market.errors import Problem, Refused
from market.identity.canonical import MAX_DOCUMENT_SIZE, canonical_bytes, document_digest
from market.identity.forms import FORMAT
from market.identity.history import Role
from market.identity.keyring import Keyring
from market.identity.proofs import verify_proof
from market.model import AttestKind

_PEOPLE: Final = ("title", "summary", "categories", "permissions", "homepage")
_ABSENT: Final[Mapping[str, Any]] = {"title": "", "summary": "", "categories": [], "permissions": {}, "homepage": ""}


PROVIDER_LIFE: Final = 3600
"""Seconds a provider is believed (NIP-40): a node that went away is asked in vain for an hour at most."""


class TooLarge(Refused):
    """A document or event above what relays and readers take."""

    kind = "too-large"


@dataclass(frozen=True, slots=True)
class SignedRelease:
    """What `archy app sign` writes: the documents in the order in which they are best published."""

    documents: list[dict[str, Any]]
    """The identity's whole history, then manifest, release, head."""
    app: AppName
    version: str
    digest: Digest
    """Of the release document."""


def sign_release(
    keyring: Keyring,
    manifest: Mapping[str, Any],
    *,
    origins: Sequence[str],
    source: str,
    channel: str = "stable",
    prev: str | None = None,
    now: float,
) -> SignedRelease:
    """Sign one version of an app: the app for people, the release, and the head that makes it the channel's newest.

    `manifest` is the canonical packed install manifest; `prev` the digest of the release before, by default the one the
    last head signed here names. `now` in Unix seconds. Blocks for a few fsyncs. Raises BadDocument with the member's
    path, NotCanonical, TooLarge, KeyNotHere, EnvironmentLacks.
    """
    app_id, version = str(manifest.get("id", "")), str(manifest.get("version", ""))
    app = AppName(keyring.did, app_id)
    last = keyring.ledger.head(app_id) or {"releases": {}, "revocations": []}
    before = prev or last["releases"].get(channel, {}).get("digest")
    release_body = {"install": dict(manifest), "origins": list(origins), "source": source, "channel": channel}
    release_body |= {"version": version} | ({"prev": before} if before else {})
    people = {name: manifest.get(name) or _ABSENT[name] for name in _PEOPLE}
    people |= {"title": people["title"] or app_id, "source": source if "://" in source else ""}
    signed_manifest = _signed(keyring, "manifest", app_id, people, now)
    release = _signed(keyring, "release", app_id, release_body, now)
    digest = document_digest(release)
    ref = {"digest": digest.hex, "keys": keyring.current.entry.seq, "seq": release["seq"], "version": version}
    state = {
        "manifest": document_digest(signed_manifest).hex,
        "releases": {**last["releases"], channel: ref},
        "revocations": last["revocations"],
    }
    head = _signed_head(keyring, app_id, state, now)
    return SignedRelease([*keyring.documents, signed_manifest, release, head], app, version, digest)


def refresh_head(keyring: Keyring, app_id: str, *, now: float, life: int = DEFAULT_HEAD_LIFE) -> dict[str, Any]:
    """Say again what is newest, for `life` seconds (7 to 400 days). Raises Problem when nothing was signed here."""
    last = keyring.ledger.head(app_id)
    if last is None:
        raise Problem("no release of this app was signed with these keys", where=app_id, remedy="archy app sign")
    return _signed_head(keyring, app_id, last, now, life)


def sign_revocation(
    keyring: Keyring, app_id: str, release: Digest, *, reason: str, now: float
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Withdraw one release for good: the revocation, and a head that names it (None before the first head)."""
    body = {"release": release.hex, "reason": reason}
    revocation = _signed(keyring, "revoke", app_id, body, now)
    last = keyring.ledger.head(app_id)
    if last is None:
        return revocation, None
    state = {**last, "revocations": [*last["revocations"], document_digest(revocation).hex]}
    return revocation, _signed_head(keyring, app_id, state, now)


def sign_key_revocation(
    keyring: Keyring, key: str, last: Mapping[str, int], *, reason: str, now: float
) -> dict[str, Any]:
    """Withdraw all that the key (z6Mk...) signed after the last valid number of each app. Needs the root key here."""
    return _signed(keyring, "revoke", key, {"key": key, "last": dict(last), "reason": reason}, now)


def sign_attestation(
    keyring: Keyring,
    app: AppName,
    subject: Digest,
    *,
    kind: AttestKind,
    value: int,
    expires: int | None = None,
    note: str = "",
    now: float,
) -> dict[str, Any]:
    """This identity's word on one release; it replaces the one before. `value` -100..100, `expires` in Unix seconds.

    `note` is a sentence of at most 280 characters for people. Raises BadDocument for one that is longer or not plain.
    """
    body: dict[str, Any] = {
        "about": {"publisher": app.publisher, "id": app.id},
        "subject": subject.hex,
        "kind": kind.value,
        "value": value,
    }
    if expires is not None:
        body["expires"] = expires
    if note:
        body["note"] = note
    return _signed(keyring, "attest", subject.hex, body, now)


def sign_provider(
    keyring: Keyring,
    endpoints: Iterable[str],
    capacity: int,
    apps: Iterable[AppName],
    *,
    now: float,
    life: int = PROVIDER_LIFE,
) -> dict[str, Any]:
    """This node's word that it serves the apps' blobs at these base URLs, `capacity` in Mbit/s, for `life` seconds."""
    made = keyring.ledger.reserve_time("provider", "node", now)
    body = {
        "endpoints": list(endpoints),
        "capacity": capacity,
        "apps": [{"publisher": app.publisher, "id": app.id} for app in apps],
        "expires": made + life,
    }
    return _signed(keyring, "provider", "node", body, now, made=made)


def to_events(keyring: Keyring, documents: Sequence[Mapping[str, Any]], now: float) -> list[dict[str, Any]]:
    """The documents as signed events (kind 30078), as plain JSON objects.

    An event's time is its document's, so that publishing again makes the same ids. Raises BadDocument, BadProof,
    TooLarge; Refused for another publisher's document or one dated ahead, which readers would only set aside.
    """
    events = []
    for body in documents:
        document, digest = parse_document(body)
        verify_proof(body)
        if document.publisher != keyring.did:
            raise Refused("a document of another publisher", where=document.publisher, remedy="publish with its keys")
        if document.made > now + MAX_AHEAD:
            raise Refused(
                "the document is dated in the future", where=document.type, remedy="check this clock: timedatectl"
            )
        event = sign_event(
            keyring,
            created_at=document.made,
            kind=DOCUMENT_KIND,
            tags=tags(document, digest),
            content=canonical_bytes(body).decode(),
        )
        if len(event.to_bytes()) > MAX_EVENT_SIZE:
            raise TooLarge(f"an event of more than {MAX_EVENT_SIZE} bytes", where=f"{document.type} {document.name}")
        events.append(event.to_json())
    return events


def _signed_head(
    keyring: Keyring, app_id: str, state: Mapping[str, Any], now: float, life: int = DEFAULT_HEAD_LIFE
) -> dict[str, Any]:
    kept = {name: state[name] for name in ("manifest", "releases", "revocations")}
    made = keyring.ledger.reserve_time("head", app_id, now)
    head = _signed(keyring, "head", app_id, {**kept, "expires": made + life}, now, made=made)
    keyring.ledger.keep_head(app_id, kept)
    return head


def _signed(
    keyring: Keyring, kind: str, name: str, members: Mapping[str, Any], now: float, *, made: int | None = None
) -> dict[str, Any]:
    """Checked as a reader would check it before a number is used, then numbered, then signed by the role's key."""
    number = "epoch" if kind == "head" else "seq"
    body: dict[str, Any] = {
        "archy": FORMAT,
        "type": kind,
        "publisher": keyring.did,
        "name": name,
        "identity": keyring.identity_digest.hex,
        "made": int(now) if made is None else made,
        number: 0,
        **members,
    }
    document, _ = parse_document(body | {"proof": _PLACEHOLDER})
    body["made"] = keyring.ledger.reserve_time(kind, name, now) if made is None else made
    body[number] = keyring.reserve(kind, name)
    signed = keyring.sign(body, Role(required_role(document)), now=now)
    if (size := len(canonical_bytes(signed))) > MAX_DOCUMENT_SIZE:
        raise TooLarge(
            f"{size} bytes, more than the {MAX_DOCUMENT_SIZE} a document may have",
            where=f"{kind} {name}",
            remedy="move lists and files into blobs",
        )
    return signed


_PLACEHOLDER: Final = {
    "type": "", "cryptosuite": "", "created": "", "verificationMethod": "", "proofPurpose": "", "proofValue": ""
}  # fmt: skip
