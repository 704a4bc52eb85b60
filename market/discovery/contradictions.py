"""Proofs that a publisher said two things at once: how they are read from events, and whether they hold.

Guarantees that a proof counts only if both documents were signed by keys that had the role under one and the same entry
of the publisher's key history (R-DS5), whoever carries it. Refuses to know relays, SQLite and time; a proof is as true
tomorrow as today, and one that can not be decided yet is set aside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apps.names import Digest
from market.discovery.documents import (
    MAX_PROOF_SIZE,
    Document,
    ProofDocument,
    contradict,
    parse_document,
    proof_body,
    proof_tags,
    required_role,
)
from market.discovery.events import Event
from market.discovery.reasons import Reason, Refusal, SetAside
from market.identity.canonical import NotCanonical, canonical_bytes, document_digest, parse_canonical
from market.identity.didkey import BadKey
from market.identity.forms import BadDocument, IdentityEntry, strictly
from market.identity.history import Folded, KeyHistory, SignedEntry
from market.identity.proofs import BadProof, verify_proof


@dataclass(frozen=True, slots=True)
class Half:
    """One of the two documents: its form and signature are right."""

    body: Mapping[str, Any]
    document: Document
    digest: Digest
    signer: bytes


@dataclass(frozen=True, slots=True)
class Contradiction:
    """A proof whose two halves are genuine and contradict each other, if their signers had the role."""

    event: Event
    digest: Digest
    """Of the proof."""
    halves: tuple[Half, Half]

    @property
    def publisher(self) -> str:
        return self.halves[0].document.publisher


def is_proof(event: Event) -> bool:
    """Whether the event says that it carries a proof."""
    return "archy1-proof" in event.tag("t")


def check_contradiction(event: Event) -> Contradiction | Refusal:
    """Canonical form, both documents' forms and proofs, that they contradict each other, and the address."""
    content = event.content.encode()
    try:
        body = parse_canonical(content, MAX_PROOF_SIZE)
        one, other = (_half(document) for document in strictly(body, ProofDocument).documents)
        digest = document_digest(body)
        expected = proof_body(one.body, other.body)
    except NotCanonical as error:
        return Refusal(Reason.NOT_CANONICAL, str(error))
    except BadProof as error:
        return Refusal(Reason.BAD_PROOF, str(error))
    except (BadDocument, BadKey) as error:
        return Refusal(Reason.BAD_DOCUMENT, str(error))
    if one.digest == other.digest or not contradict(one.document, other.document):
        return Refusal(Reason.NO_PROOF)
    if canonical_bytes(expected) != content:
        return Refusal(Reason.BAD_DOCUMENT, "the lower digest comes first in a proof")
    have = sorted(list(tag[:2]) for tag in event.tags if tag and tag[0] in {"d", "t", "i"})
    if have != sorted(proof_tags(one.document.publisher, digest)):
        return Refusal(Reason.WRONG_ADDRESS, f"d is {''.join(event.tag('d'))[:120]!r}")
    return Contradiction(event, digest, (one, other))


def _half(body: Mapping[str, Any]) -> Half:
    document, digest = parse_document(body)
    return Half(body, document, digest, verify_proof(body))


def judge_contradiction(proof: Contradiction, history: KeyHistory) -> Reason | Refusal | SetAside:
    """EQUIVOCATION or FORK when the proof holds; set aside while the entries it speaks of are unknown."""
    one, other = proof.halves
    if isinstance(one.document, IdentityEntry) and isinstance(other.document, IdentityEntry):
        return _judge_fork(one, other, history)
    entries = []
    for half in proof.halves:
        if isinstance(half.document, IdentityEntry):
            return Refusal(Reason.NO_PROOF)
        entry = history.entry(Digest(half.document.identity))
        if entry is None:
            return SetAside(Reason.UNKNOWN_IDENTITY)
        if not history.holds(half.signer, required_role(half.document), entry):
            return Refusal(Reason.NO_ROLE, "one half was signed by a key without the role")
        entries.append(entry.entry.seq)
    # Numbers begin anew with a rotation, so the same number under two entries contradicts nothing.
    return Reason.EQUIVOCATION if entries[0] == entries[1] else Refusal(Reason.NO_PROOF)


def _judge_fork(one: Half, other: Half, history: KeyHistory) -> Reason | Refusal | SetAside:
    folded = []
    for half in (one, other):
        assert isinstance(half.document, IdentityEntry)
        history, outcome = history.fold(SignedEntry(half.document, half.digest, half.signer))
        if outcome is Folded.EARLY:
            return SetAside(Reason.UNKNOWN_IDENTITY)
        folded.append(outcome)
    if Folded.WRONG_SIGNER in folded or Folded.WRONG_CHAIN in folded:
        return Refusal(Reason.NO_PROOF, "one of the entries does not continue the history")
    return Reason.FORK
