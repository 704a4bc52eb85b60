"""Who publishes: did:key identities, their key history, proofs with roles, and the private keys on disk.

What handles private keys is loaded when it is first asked for: who only verifies needs none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from market.identity.canonical import (
    MAX_DOCUMENT_SIZE,
    NotCanonical,
    canonical_bytes,
    document_digest,
    parse_canonical,
)
from market.identity.didkey import BadKey, did_of, is_did, key_of, key_text
from market.identity.didkey import decode_public as public_key
from market.identity.forms import BadDocument, IdentityEntry
from market.identity.history import Folded, KeyHistory, Role, SignedEntry
from market.identity.proofs import BadProof, add_proof, verify_proof
from market.parts import loader

if TYPE_CHECKING:
    from market.identity.export import MAX_EXPORT_SIZE, BadExport, Keys, export_identity, import_identity
    from market.identity.keyring import Change, DamagedKey, KeyNotHere, Keyring
    from market.identity.ledger import DamagedLedger
    from market.identity.private_files import LaxPermissions, NoSuchFile
else:
    __getattr__ = loader(
        __name__,
        globals(),
        {
            "export": "MAX_EXPORT_SIZE BadExport Keys export_identity import_identity",
            "keyring": "Change DamagedKey KeyNotHere Keyring",
            "ledger": "DamagedLedger",
            "private_files": "LaxPermissions NoSuchFile",
        },
    )

__all__ = [
    "MAX_DOCUMENT_SIZE",
    "MAX_EXPORT_SIZE",
    "BadDocument",
    "BadExport",
    "BadKey",
    "BadProof",
    "Change",
    "DamagedKey",
    "DamagedLedger",
    "Folded",
    "IdentityEntry",
    "KeyHistory",
    "KeyNotHere",
    "Keyring",
    "Keys",
    "LaxPermissions",
    "NoSuchFile",
    "NotCanonical",
    "Role",
    "SignedEntry",
    "add_proof",
    "canonical_bytes",
    "did_of",
    "document_digest",
    "export_identity",
    "import_identity",
    "is_did",
    "key_of",
    "key_text",
    "parse_canonical",
    "public_key",
    "verify_proof",
]
