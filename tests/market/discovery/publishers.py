"""Publishers for tests: real keys on disk, honest documents by the public doors, and dishonest ones by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from coincurve import PrivateKey, PublicKeyXOnly

from market.discovery import Candidate, Event, SignedRelease, sign_release, to_events
from market.discovery.documents import parse_document, tags
from market.discovery.events import DOCUMENT_KIND, sign_event
from market.identity import Keyring, SignedEntry, add_proof, canonical_bytes
from market.identity.didkey import decode_private
from market.identity.history import identity_body

NOW = 1_800_000_000
RELAY = "ws://relay.test"


class NostrKey:
    """A Nostr key that belongs to nobody's keyring."""

    def __init__(self, secret: bytes | None = None) -> None:
        self._key = PrivateKey(secret)
        self.nostr_pubkey = PublicKeyXOnly.from_secret(self._key.secret).format().hex()

    def sign_schnorr(self, digest: bytes) -> bytes:
        return self._key.sign_schnorr(digest)


def install_manifest(app_id: str = "hello", version: str = "1.0.0", **members: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "id": app_id,
        "version": version,
        "title": "Hello",
        "summary": "Says hello to everybody",
        "categories": ["demo"],
        "permissions": {"internet": "none"},
        **members,
    }


class Publisher:
    """A keyring with the shortcuts that tests need."""

    def __init__(self, folder: Path, name: str = "alice") -> None:
        self.keyring = Keyring.create(folder / name, now=NOW)

    @property
    def did(self) -> str:
        return self.keyring.did

    def seed(self, role: str) -> bytes:
        return decode_private((self.keyring.folder / f"{role}.key").read_text().strip())

    def release(self, version: str = "1.0.0", *, now: float = NOW, **options: Any) -> SignedRelease:
        members = options.pop("manifest", {})
        app_id = options.pop("app_id", "hello")
        manifest = install_manifest(app_id, version, **members)
        defaults: dict[str, Any] = {"origins": ["https://origin.example"], "source": "commit abc", "now": now}
        return sign_release(self.keyring, manifest, **{**defaults, **options})

    def events(self, *documents: Mapping[str, Any], now: float = NOW) -> list[Event]:
        return [msgspec.convert(event, Event) for event in to_events(self.keyring, documents, now + 10**6)]

    def resigned(self, document: Mapping[str, Any], role: str = "release", **changes: Any) -> dict[str, Any]:
        """The document with changed members, properly signed again by the key in that file."""
        changed = {key: value for key, value in {**document, **changes}.items() if value is not None}
        return add_proof(changed, self.seed(role), created=NOW)

    def identity_entry(self, prev: Mapping[str, Any] | None, role: str, **changes: Any) -> dict[str, Any]:
        """An identity document that keeps this publisher's keys, signed by the key in that file."""
        current = self.keyring.current.entry
        body = identity_body(
            self.did,
            prev=SignedEntry.from_document(prev) if prev else None,
            next_root=bytes(32),
            release=(),
            online=(),
            nostr=current.nostr,
            relays=(),
            made=NOW + 1,
        )
        body["keys"] = {"release": list(current.keys.release), "online": list(current.keys.online)}
        return add_proof({**body, **changes}, self.seed(role), created=NOW)


def carried(document: Mapping[str, Any], signer: Any, **changes: Any) -> Event:
    """An event by any Nostr key with the document in it; address and tags are those of the document unless changed."""
    parsed, digest = parse_document(document)
    members: dict[str, Any] = {
        "created_at": parsed.made,
        "kind": DOCUMENT_KIND,
        "tags": tags(parsed, digest),
        "content": canonical_bytes(document).decode(),
        **changes,
    }
    return sign_event(signer, **members)


def from_relay(*events: Event, relay: str = RELAY) -> list[Candidate]:
    return [Candidate(event, relay) for event in events]


def people_list(
    author: NostrKey, *named: str, kind: int = 3, name: str | None = None, made: int = NOW, p: str = "p"
) -> Event:
    """A signed list of people: NIP-02 by default, a named set of NIP-51 with kind 30000 and a name."""
    tags = [[p, key] for key in named]
    return sign_event(
        author, created_at=made, kind=kind, tags=[["d", name], *tags] if name is not None else tags, content=""
    )
