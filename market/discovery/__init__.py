"""Finding apps: signed documents in Nostr events, the order of checks, relay sessions, the index, publishing.

A part is loaded when it is first asked for: a verifier needs none of the database, of trio and of numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from market.parts import loader

if TYPE_CHECKING:
    from market.discovery.documents import DEFAULT_HEAD_LIFE
    from market.discovery.embedded import relay_command
    from market.discovery.events import Event, SchnorrSigner
    from market.discovery.examination import Candidate
    from market.discovery.faults import Fault, decide, faults_of, new_proof_events
    from market.discovery.index import Index, open_index
    from market.discovery.own import announced, due_heads, known_history, never_behind, refreshed_heads, relays_of
    from market.discovery.publishing import PublishResult, publish
    from market.discovery.reasons import EXPLAINED, Fate, Outcome, Reason
    from market.discovery.relay import Phase, RelayState
    from market.discovery.schema import BadIndex
    from market.discovery.searching import Wanted
    from market.discovery.service import Discovery, SyncReport
    from market.discovery.signing import (
        SignedRelease,
        TooLarge,
        refresh_head,
        sign_attestation,
        sign_key_revocation,
        sign_provider,
        sign_release,
        sign_revocation,
        to_events,
    )
else:
    __getattr__ = loader(
        __name__,
        globals(),
        {
            "documents": "DEFAULT_HEAD_LIFE",
            "embedded": "relay_command",
            "events": "Event SchnorrSigner",
            "examination": "Candidate",
            "faults": "Fault decide faults_of new_proof_events",
            "index": "Index open_index",
            "own": "announced due_heads known_history never_behind refreshed_heads relays_of",
            "publishing": "PublishResult publish",
            "reasons": "EXPLAINED Fate Outcome Reason",
            "relay": "Phase RelayState",
            "schema": "BadIndex",
            "searching": "Wanted",
            "service": "Discovery SyncReport",
            "signing": "SignedRelease TooLarge refresh_head sign_attestation"
            " sign_key_revocation sign_provider sign_release sign_revocation to_events",
        },
    )


__all__ = [
    "DEFAULT_HEAD_LIFE",
    "EXPLAINED",
    "BadIndex",
    "Candidate",
    "Discovery",
    "Event",
    "Fate",
    "Fault",
    "Index",
    "Outcome",
    "Phase",
    "PublishResult",
    "Reason",
    "RelayState",
    "SchnorrSigner",
    "SignedRelease",
    "SyncReport",
    "TooLarge",
    "Wanted",
    "announced",
    "decide",
    "due_heads",
    "faults_of",
    "known_history",
    "never_behind",
    "new_proof_events",
    "open_index",
    "publish",
    "refresh_head",
    "refreshed_heads",
    "relay_command",
    "relays_of",
    "sign_attestation",
    "sign_key_revocation",
    "sign_provider",
    "sign_release",
    "sign_revocation",
    "to_events",
]
