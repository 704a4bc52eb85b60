"""The W3C's eddsa-jcs-2022 vector and RFC 8785's test data, where this machine has them.

Set ARCHY_VECTORS to the folder, or keep it as ../shared/vectors; without it no test is collected here, and the
generated cases of the other tests stand alone.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from market.identity import BadProof, NotCanonical, add_proof, canonical_bytes, verify_proof
from market.identity.didkey import decode_private, decode_public

VECTORS = Path(os.environ.get("ARCHY_VECTORS", Path(__file__).parents[3] / "shared" / "vectors"))
PROOFS = sorted((VECTORS / "eddsa-jcs-2022").glob("signedJCS.json"))
CANONICAL = sorted((VECTORS / "jcs" / "input").glob("*.json"))


if PROOFS:

    @pytest.mark.parametrize("signed", PROOFS, ids=lambda path: path.name)
    def test_the_w3c_vector_verifies_and_a_changed_one_does_not(signed: Path) -> None:
        document = json.loads(signed.read_bytes())
        pair = json.loads((signed.parent / "keyPair.json").read_bytes())
        assert verify_proof(document) == decode_public(pair["publicKeyMultibase"])
        with pytest.raises(BadProof):
            verify_proof({**document, "name": "Another"})

    @pytest.mark.parametrize("signed", PROOFS, ids=lambda path: path.name)
    def test_the_same_key_and_document_give_the_vectors_signature(signed: Path) -> None:
        document = json.loads(signed.read_bytes())
        pair = json.loads((signed.parent / "keyPair.json").read_bytes())
        ours = add_proof(document, decode_private(pair["privateKeyMultibase"]), created=1677281798)
        assert ours["proof"] == document["proof"]
        unsigned = {name: value for name, value in document.items() if name != "proof"}
        assert canonical_bytes(unsigned) == (signed.parent / "canonDocJCS.txt").read_bytes()


if CANONICAL:

    @pytest.mark.parametrize("given", CANONICAL, ids=lambda path: path.name)
    def test_rfc_8785_data_is_written_as_published_or_lies_outside_of_what_documents_hold(given: Path) -> None:
        value = json.loads(given.read_bytes())
        expected = (VECTORS / "jcs" / "output" / given.name).read_bytes()
        try:
            ours = canonical_bytes({"a": value})
        except NotCanonical:
            assert given.name in {"structures.json", "values.json", "weird.json", "french.json"}  # floats, other keys
            return
        assert ours == b'{"a":' + expected + b"}"
