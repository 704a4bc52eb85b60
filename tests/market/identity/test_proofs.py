"""did:key and eddsa-jcs-2022, by what they accept and refuse."""

from __future__ import annotations

from typing import Any

import base58
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey

from market.identity import BadKey, BadProof, add_proof, did_of, is_did, key_of, key_text, verify_proof
from market.identity.didkey import decode_base58

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
        "did:key:z6Mk\ud800",
        "did:key:z6Mk\u00e9",
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


GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493
"""Of Ed25519's base point (RFC 8032, section 5.1)."""


def _with_signature(signed: dict[str, Any], signature: bytes) -> dict[str, Any]:
    return {**signed, "proof": {**signed["proof"], "proofValue": "z" + base58.b58encode(signature).decode()}}


def test_attack_a_second_spelling_of_a_signature_is_refused() -> None:
    signed = add_proof(DOCUMENT, SEED, created=NOW)
    signature = base58.b58decode(signed["proof"]["proofValue"][1:])
    scalar = int.from_bytes(signature[32:], "little") + GROUP_ORDER
    with pytest.raises(BadProof):
        verify_proof(_with_signature(signed, signature[:32] + scalar.to_bytes(32, "little")))


@pytest.mark.parametrize(
    "point",
    [
        bytes([1]) + bytes(31),  # the neutral element, under which R = 0, s = 0 signs everything
        bytes(32),  # of order 4
        bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),  # of order 2
        bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),  # of order 8
        bytes.fromhex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),  # 1, not canonically
    ],
)
def test_attack_a_key_under_which_everything_is_signed_is_refused(point: bytes) -> None:
    signed = add_proof(DOCUMENT, SEED, created=NOW)
    method = f"{did_of(point)}#{did_of(point).removeprefix('did:key:')}"
    forged = {**signed, "proof": {**signed["proof"], "verificationMethod": method}}
    for first in (bytes([1]) + bytes(31), point):
        with pytest.raises(BadProof, match="no point"):
            verify_proof(_with_signature(forged, first + bytes(32)))


@given(st.binary(min_size=32, max_size=32), st.text(max_size=40), st.integers(0, 511))
@settings(max_examples=100)
def test_signatures_are_those_of_another_implementation_and_one_flipped_bit_undoes_them(
    seed: bytes, title: str, bit: int
) -> None:
    document = {**DOCUMENT, "title": title}
    signed = add_proof(document, seed, created=NOW)  # libsodium signs
    assert verify_proof(signed) == SigningKey(seed).verify_key.encode()
    signature = bytearray(base58.b58decode(signed["proof"]["proofValue"][1:]))
    signature[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadProof):
        verify_proof(_with_signature(signed, bytes(signature)))


@given(st.binary(min_size=0, max_size=80))
def test_base58_is_read_as_the_reference_reads_it(raw: bytes) -> None:
    assert decode_base58(base58.b58encode(raw).decode(), len(raw)) == raw


@given(st.text("19zZOIl0ab", max_size=24), st.integers(0, 20))
def test_base58_has_one_spelling_for_every_value(text: str, size: int) -> None:
    try:
        raw = decode_base58(text, size)
    except BadKey:
        return
    assert base58.b58encode(raw).decode() == text
