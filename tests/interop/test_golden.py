"""Documents of every type, byte for byte as they were when the vectors were made."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
import rfc8785

from apps.names import Digest
from market.discovery.contradictions import Contradiction, check_contradiction
from market.discovery.documents import parse_document, reread_document
from market.discovery.events import DOCUMENT_KIND, sign_event
from market.identity import canonical_bytes, document_digest, parse_canonical, verify_proof
from market.identity.didkey import decode_public
from tests.interop.golden import FILE, NOSTR, NOW, documents, vector

VECTORS: list[dict[str, Any]] = json.loads(FILE.read_bytes())["vectors"]
TYPES = ["identity", "manifest", "release", "head", "attest", "revoke", "revoke", "provider", "proof"]


def test_every_type_has_a_vector() -> None:
    assert [one["document"]["type"] for one in VECTORS] == TYPES


@pytest.mark.parametrize("made", range(len(TYPES)), ids=[f"{n}-{name}" for n, name in enumerate(TYPES)])
def test_a_document_is_made_byte_for_byte_as_before(made: int) -> None:
    assert vector(documents()[made]) == VECTORS[made]


@pytest.mark.parametrize("stored", VECTORS, ids=TYPES)
def test_a_stored_document_reads_verifies_and_has_its_digest(stored: dict[str, Any]) -> None:
    raw = stored["canonical"].encode()
    document = parse_canonical(raw, 64 * 1024)
    assert canonical_bytes(document) == raw == rfc8785.dumps(stored["document"])
    assert document_digest(document) == Digest(stored["digest"])
    if document["type"] == "proof":
        event = sign_event(NOSTR, created_at=NOW, kind=DOCUMENT_KIND, tags=stored["tags"], content=raw.decode())
        assert isinstance(check_contradiction(event), Contradiction)
        return
    parsed, digest = parse_document(document)
    assert digest.hex == stored["digest"]
    assert verify_proof(document) == decode_public(document["proof"]["verificationMethod"].partition("#")[2])
    assert parsed.type == document["type"]
    again = reread_document(raw, parsed.type)
    assert isinstance(again, type(parsed))
    assert msgspec.structs.asdict(again) == msgspec.structs.asdict(parsed)
