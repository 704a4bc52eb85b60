"""Data Integrity proofs of the cryptosuite eddsa-jcs-2022 (W3C Data Integrity EdDSA Cryptosuites 1.0, section 3.3).

Guarantees that a proof which verifies was made over exactly this document and these proof options, by the Ed25519 key
that `verificationMethod` names. Whether that key *may* sign this type of document is `history`'s question.

Signatures are verified by ZIP 215's rules, which leave no case open: every node accepts exactly the same ones. Keys are
held to a stricter rule, see `_signing_key`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

import base58
from ed25519_zebra import ed_verify
from nacl.bindings import crypto_core_ed25519_is_valid_point
from nacl.signing import SigningKey

from market.errors import Refused
from market.identity.canonical import canonical_bytes, unsigned_bytes, written_again
from market.identity.didkey import BadKey, decode_base58, decode_public, did_of, encode_public

CRYPTOSUITE: Final = "eddsa-jcs-2022"
PURPOSE: Final = "assertionMethod"
_TYPE: Final = "DataIntegrityProof"
_TEXTS: Final = ("type", "cryptosuite", "created", "verificationMethod", "proofPurpose", "proofValue")
_MEMBERS: Final = frozenset({*_TEXTS, "@context"})
_CREATED = re.compile(r"\d{4}-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-6]\dZ")
_MAX_PROOF_VALUE: Final = 96
"""Characters; 64 bytes are 88 in base58btc."""


class BadProof(Refused):
    """The proof is missing, malformed, of another kind, or does not verify."""

    kind = "bad-proof"


def add_proof(document: Mapping[str, Any], seed: bytes, *, created: int) -> dict[str, Any]:
    """The document with a proof by the Ed25519 key of `seed` (32 bytes); `created` in Unix seconds.

    An older proof is replaced. Raises NotCanonical when the document has no canonical form.
    """
    unsigned = {key: value for key, value in document.items() if key != "proof"}
    signer = SigningKey(seed)
    public = signer.verify_key.encode()
    options: dict[str, Any] = {
        "type": _TYPE,
        "cryptosuite": CRYPTOSUITE,
        "created": datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "verificationMethod": f"{did_of(public)}#{encode_public(public)}",
        "proofPurpose": PURPOSE,
    }
    if "@context" in unsigned:
        options["@context"] = unsigned["@context"]
    signature = signer.sign(_hash(canonical_bytes(unsigned), canonical_bytes(options))).signature
    return {**unsigned, "proof": {**options, "proofValue": "z" + base58.b58encode(signature).decode("ascii")}}


def verify_proof(document: Mapping[str, Any], unsigned: bytes | None = None) -> bytes:
    """The 32 raw bytes of the Ed25519 key that signed the document.

    `unsigned`: its `unsigned_bytes`, if the document comes from `parse_canonical` and they are at hand.

    Raises BadProof for anything but a valid eddsa-jcs-2022 assertion, NotCanonical when the document has no such form.
    """
    proof = document.get("proof")
    if not isinstance(proof, Mapping):
        raise BadProof("there is no proof", remedy="publish the document signed")
    _check_options(proof)
    options = {key: value for key, value in proof.items() if key != "proofValue"}
    configuration = canonical_bytes(options) if unsigned is None else written_again(options)
    if "@context" in options:
        _check_context(document.get("@context"), options["@context"])
        unsigned = unsigned_bytes({**document, "@context": options["@context"]})
    elif unsigned is None:
        unsigned = unsigned_bytes(document)
    key = _signing_key(proof["verificationMethod"])
    if not ed_verify(_signature(proof["proofValue"]), _hash(unsigned, configuration), key):
        raise BadProof("the signature is not over this document by this key")
    return key


def _check_options(proof: Mapping[str, Any]) -> None:
    for name in _TEXTS:
        if not isinstance(proof.get(name), str):
            raise BadProof("the proof lacks one of its texts")
    if not _MEMBERS.issuperset(proof):
        raise BadProof("the proof has members that this cryptosuite does not know")
    if proof["type"] != _TYPE or proof["cryptosuite"] != CRYPTOSUITE:
        raise BadProof(f"not a {CRYPTOSUITE} proof")
    if proof["proofPurpose"] != PURPOSE:
        raise BadProof(f"the proof was not made as {PURPOSE}")
    if not _CREATED.fullmatch(proof["created"]):
        raise BadProof("the proof's time is not an XML Schema dateTime in UTC")


def _check_context(document: object, proof: object) -> None:
    # Section 3.3.2 step 4: the document's context starts with all of the proof's, in order.
    have = document if isinstance(document, list) else [document]
    want = proof if isinstance(proof, list) else [proof]
    if have[: len(want)] != want:
        raise BadProof("the proof was made under another @context")


@lru_cache(maxsize=4096)
def _signing_key(method: str) -> bytes:
    """The key's 32 raw bytes. It has to be a canonical point of the prime-order group: a point of small order would let
    anybody sign in its name."""
    did, _, fragment = method.partition("#")
    try:
        key = decode_public(fragment)
    except BadKey as error:
        raise BadProof("verificationMethod names no Ed25519 key") from error
    if did != did_of(key):
        raise BadProof("verificationMethod is not of the form did:key:K#K")
    if not crypto_core_ed25519_is_valid_point(key):
        raise BadProof("verificationMethod names no point that an Ed25519 key can be")
    return key


def _signature(text: str) -> bytes:
    if len(text) > _MAX_PROOF_VALUE or not text.startswith("z"):
        raise BadProof("proofValue is not multibase base58btc")
    try:
        return decode_base58(text[1:], 64)
    except BadKey as error:
        raise BadProof("proofValue is not 64 bytes in base58") from error


def _hash(unsigned: bytes, configuration: bytes) -> bytes:
    # Section 3.3.4: the proof configuration's hash comes first.
    return hashlib.sha256(configuration).digest() + hashlib.sha256(unsigned).digest()
