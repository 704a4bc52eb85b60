"""did:key and eddsa-jcs-2022, by what they accept and refuse."""

from __future__ import annotations

from typing import Any

import base58
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey

from market.identity import BadKey, BadProof, add_proof, did_of, is_did, key_of, key_text, verify_proof

NOW = 1_800_000_000
SEED = bytes(range(32))
DOCUMENT = {"type": "release", "name": "hello", "seq": 1}


@given(st.binary(min_size=32, max_size=32))
def test_a_did_names_its_key_and_begins_as_all_ed25519_dids_do(key: bytes) -> None:
    did = did_of(key)
    assert key_of(did) == key
    assert did.startswith("did:key:z6Mk")
    assert did.endswith(key_text(did))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "did:web:example.org",
        "did:key:",
        "did:key:z6Mk",
        "did:key:z" + "1" * 200,
        "did:key:z6Mk0OIl",
        "did:key:" + "z" + base58.b58encode(b"\xe7\x01" + bytes(33)).decode(),
        did_of(bytes(32)) + "#x",
        did_of(bytes(32)).upper(),
    ],
)
def test_what_is_no_ed25519_did_is_refused(text: str) -> None:
    assert not is_did(text)
    with pytest.raises(BadKey):
        key_of(text)


def test_a_proof_verifies_and_names_its_signer() -> None:
    signed = add_proof(DOCUMENT, SEED, created=NOW)
    assert verify_proof(signed) == SigningKey(SEED).verify_key.encode()
    assert signed["proof"]["created"] == "2027-01-15T08:00:00Z"


@given(st.sampled_from(["type", "name", "seq"]), st.integers(2, 100))
@settings(max_examples=20)
def test_a_changed_document_does_not_verify(member: str, value: int) -> None:
    signed = add_proof(DOCUMENT, SEED, created=NOW)
    with pytest.raises(BadProof):
        verify_proof({**signed, member: value})


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("type", "Ed25519Signature2020"),
        ("cryptosuite", "ecdsa-jcs-2019"),
        ("proofPurpose", "authentication"),
        ("created", "2020-01-01T00:00:00Z"),
        ("created", "yesterday"),
        ("created", 5),
        ("verificationMethod", "did:web:example.org#key-1"),
        ("verificationMethod", "did:key:z6MkrJVnaZkeFzdQyMZu1cgjg7k1pZZ6pvBQ7XJPt4swbTQ2#other"),
        ("proofValue", "z111"),
        ("proofValue", "u" + "A" * 86),
        ("proofValue", "z" + "9" * 5000),
        ("domain", "example.org"),
        ("@context", ["https://www.w3.org/ns/credentials/v2"]),
    ],
)
def test_a_proof_with_a_changed_member_is_refused(member: str, value: Any) -> None:
    signed = add_proof(DOCUMENT, SEED, created=NOW)
    with pytest.raises(BadProof):
        verify_proof({**signed, "proof": {**signed["proof"], member: value}})


def test_a_proof_by_another_key_under_the_publishers_name_is_refused() -> None:
    signed = add_proof(DOCUMENT, SEED, created=NOW)
    thief = add_proof(DOCUMENT, bytes(32), created=NOW)
    proof = {**thief["proof"], "verificationMethod": signed["proof"]["verificationMethod"]}
    with pytest.raises(BadProof):
        verify_proof({**DOCUMENT, "proof": proof})


def test_a_document_without_proof_is_refused() -> None:
    with pytest.raises(BadProof, match="no proof"):
        verify_proof(DOCUMENT)
