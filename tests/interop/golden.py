"""Makes tests/vectors/documents.json: one document of each type from fixed keys, as it is signed and as an event.

    python -m tests.interop.golden

The file is made once. A change in it means that documents made before are no longer what they were.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from market.discovery.documents import parse_document, proof_body, proof_tags, required_role, tags
from market.discovery.events import DOCUMENT_KIND, event_id
from market.identity import Role, add_proof, canonical_bytes, did_of, document_digest
from market.identity.didkey import encode_public
from market.identity.history import SignedEntry, identity_body
from tests.market.discovery.publishers import NostrKey

FILE: Final = Path(__file__).parents[1] / "vectors" / "documents.json"
NOW: Final = 1_800_000_000
SEEDS: Final = {name: bytes([number]) * 32 for number, name in enumerate(("inception", "root", "release", "online"), 1)}
NOSTR: Final = NostrKey(bytes(range(1, 33)))
NUMBER: Final = {"head": "epoch"}


def public(name: str) -> bytes:
    from nacl.signing import SigningKey

    return SigningKey(SEEDS[name]).verify_key.encode()


def documents() -> list[dict[str, Any]]:
    """One of each type, in the order in which they depend on each other."""
    did = did_of(public("inception"))
    first = add_proof(
        identity_body(
            did, prev=None, next_root=public("root"), release=(public("release"),), online=(public("online"),),
            nostr=(NOSTR.nostr_pubkey,), relays=("wss://relay.example",), made=NOW,
        ),
        SEEDS["inception"], created=NOW,
    )  # fmt: skip
    entry = document_digest(first).hex
    assert SignedEntry.from_document(first).entry.seq == 0

    def signed(type_: str, name: str, /, **members: Any) -> dict[str, Any]:
        body = {
            "archy": 1, "type": type_, "publisher": did, "name": name, "identity": entry, "made": NOW,
            NUMBER.get(type_, "seq"): 1, **members,
        }  # fmt: skip
        empty = dict.fromkeys(
            ("type", "cryptosuite", "created", "verificationMethod", "proofPurpose", "proofValue"), ""
        )
        role = Role(required_role(parse_document({**body, "proof": empty})[0]))
        return add_proof(body, SEEDS[role.value], created=NOW)

    manifest = signed(
        "manifest", "hello", title="Hello — grüße", summary='"quotes" and \\ backslashes', categories=["demo"],
        permissions={"internet": "none"}, homepage="https://hello.example", source="",
        icon={"blake3": "ab" * 32, "size": 1000}, minimum="1.0.0",
    )  # fmt: skip
    release = signed(
        "release", "hello", version="1.0.0", channel="stable", install={"schema": 1, "id": "hello", "version": "1.0.0"},
        origins=["https://origin.example"], source="commit abc",
    )  # fmt: skip
    ref: dict[str, Any] = {"digest": document_digest(release).hex, "keys": 0, "seq": 1, "version": "1.0.0"}
    head = signed(
        "head", "hello", expires=NOW + 90 * 86_400, manifest=document_digest(manifest).hex,
        releases={"stable": ref}, revocations=[],
    )  # fmt: skip
    about: dict[str, Any] = {"publisher": did, "id": "hello"}
    attest = signed(
        "attest", ref["digest"], about=about, subject=ref["digest"], kind="reviewed", value=80, expires=NOW + 10
    )
    withdrawn = signed("revoke", "hello", release=ref["digest"], reason="leaks")
    key = encode_public(public("release"))
    key_revoked = signed("revoke", key, key=key, last={"hello": 1}, reason="stolen")
    provider = signed(
        "provider", "node", endpoints=["https://node.example"], capacity=100, apps=[about], expires=NOW + 3600
    )
    rival = add_proof({**release, "made": NOW + 1}, SEEDS["release"], created=NOW)
    return [first, manifest, release, head, attest, withdrawn, key_revoked, provider, proof_body(release, rival)]


def vector(document: dict[str, Any]) -> dict[str, Any]:
    """What any implementation must compute from it."""
    digest = document_digest(document)
    if document["type"] == "proof":
        found = proof_tags(document["documents"][0]["publisher"], digest)
    else:
        found = tags(*parse_document(document))
    content = canonical_bytes(document).decode()
    return {
        "document": document,
        "canonical": content,
        "digest": digest.hex,
        "tags": found,
        "event_id": event_id(NOSTR.nostr_pubkey, NOW, DOCUMENT_KIND, found, content).hex(),
    }


def main() -> None:
    keys = {"nostr": NOSTR.nostr_pubkey, "seeds": {name: seed.hex() for name, seed in SEEDS.items()}}
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps({"keys": keys, "vectors": [vector(one) for one in documents()]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
