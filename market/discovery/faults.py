"""What is proven against publishers, and what the operator has decided about it.

Guarantees that a proof blocks until the operator has named the document that counts (R-DS5), that a decision covers
exactly the documents it was made about, and that taking the other branch of a forked history takes everything with it
that was signed under the branch which is left. Refuses to know trust, and who is right.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from apps.names import AppName
from market.discovery import rows
from market.discovery.checks import Mark
from market.discovery.documents import proof_body, proof_tags
from market.discovery.event_rows import drop_event
from market.discovery.events import DOCUMENT_KIND, MAX_EVENT_SIZE, SchnorrSigner, sign_event
from market.discovery.index import Index
from market.errors import UsageProblem
from market.identity.canonical import canonical_bytes, document_digest
from market.model import FlagKind

MAX_GOSSIPED: Final = 100
"""Proofs that are handed on at a time."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Documents of one publisher that contradict each other. `chosen` is the digest the operator decided for, or ""."""

    publisher: str
    kind: FlagKind
    type: str
    name: str
    number: int
    evidence: tuple[str, ...]
    chosen: str

    def to_json(self) -> dict[str, Any]:
        """For a door."""
        return {
            "kind": self.kind.value,
            "type": self.type,
            "name": self.name,
            "number": self.number,
            "evidence": list(self.evidence),
            "chosen": self.chosen,
        }


def faults_of(index: Index, publisher: str) -> tuple[Fault, ...]:
    """Everything proven against the publisher, decided or not."""
    with index.reading() as db:
        return _faults(db, publisher)


def decide(index: Index, publisher: str, digest: str) -> Fault:
    """The operator's word: of the documents that contradict each other, this one (its digest) counts.

    It can be changed by deciding again. Raises UsageProblem when no proof has that digest in it.
    """
    with index.writing() as (db, now):
        matching = [fault for fault in _faults(db, publisher) if digest in fault.evidence]
        if not matching:
            raise UsageProblem(
                "no contradiction of this publisher has that document in it",
                where=digest[:64],
                remedy=f"archy publisher show {publisher}",
            )
        for fault in matching:
            _store(db, fault, digest, int(now))
            if fault.kind is FlagKind.FORK:
                _take_branch(db, publisher, fault, digest)
            else:
                _take_document(db, fault, digest)
        _refresh(db, publisher)
        index.forget_history(publisher)
    return next(fault for fault in faults_of(index, publisher) if digest in fault.evidence)


def new_proof_events(index: Index, signer: SchnorrSigner, now: float) -> list[dict[str, Any]]:
    """Events, by the given Nostr key, for contradictions that this node found and no relay has handed on yet.

    Forks need none: each entry of a history has an address of its own, and is handed on as it was signed.
    """
    with index.reading() as db:
        pairs = db.execute(
            "SELECT f.did, a.body, b.body FROM faults AS f"
            " JOIN documents AS a ON a.digest = json_extract(f.evidence, '$[0]')"
            " JOIN documents AS b ON b.digest = json_extract(f.evidence, '$[1]')"
            " WHERE f.kind = ? ORDER BY f.did, f.name, f.number LIMIT ?",
            (FlagKind.EQUIVOCATION.value, MAX_GOSSIPED),
        ).fetchall()
        known = {row[0] for row in db.execute("SELECT digest FROM documents WHERE type = 'proof'")}
    events = []
    for did, one, other in pairs:
        body = proof_body(msgspec.json.decode(one), msgspec.json.decode(other))
        digest = document_digest(body)
        if digest.hex in known:
            continue
        content = canonical_bytes(body).decode()
        event = sign_event(
            signer, created_at=int(now), kind=DOCUMENT_KIND, tags=proof_tags(did, digest), content=content
        )
        if len(event.to_bytes()) <= MAX_EVENT_SIZE:
            events.append(event.to_json())
    return events


def _faults(db: sqlite3.Connection, publisher: str) -> tuple[Fault, ...]:
    found = db.execute(
        "SELECT f.kind, f.type, f.name, f.number, f.evidence, coalesce(d.chosen, '') FROM faults AS f"
        " LEFT JOIN decisions AS d USING (did, kind, type, name, number, evidence) WHERE f.did = ?"
        " ORDER BY f.kind, f.type, f.name, f.number",
        (publisher,),
    ).fetchall()
    return tuple(
        Fault(publisher, FlagKind(kind), type_, name, number, tuple(msgspec.json.decode(evidence)), chosen)
        for kind, type_, name, number, evidence, chosen in found
    )


def _store(db: sqlite3.Connection, fault: Fault, chosen: str, now: int) -> None:
    db.execute(
        "INSERT OR REPLACE INTO decisions VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            fault.publisher,
            fault.kind.value,
            fault.type,
            fault.name,
            fault.number,
            msgspec.json.encode(list(fault.evidence)).decode(),
            chosen,
            now,
        ),
    )


def _take_document(db: sqlite3.Connection, fault: Fault, chosen: str) -> None:
    for digest in fault.evidence:
        db.execute("UPDATE document_rows SET proof_only = ? WHERE digest = ?", (digest != chosen, digest))


def _take_branch(db: sqlite3.Connection, publisher: str, fault: Fault, chosen: str) -> None:
    """The chosen entry and what follows it are in force; what was signed under the entries that go, goes with them."""
    row = db.execute("SELECT proof_only FROM documents WHERE digest = ?", (chosen,)).fetchone()
    if row is None or not row[0]:
        return
    left = [
        digest
        for (digest,) in db.execute(
            "SELECT digest FROM documents WHERE did = ? AND type = 'identity' AND number >= ? AND NOT proof_only",
            (publisher, fault.number),
        ).fetchall()
    ]
    db.execute(
        "UPDATE document_rows SET proof_only = (digest != ?) WHERE publisher = ? AND type = 'identity' AND number >= ?",
        (chosen, rows.number_publisher(db, publisher), fault.number),
    )
    for entry in left:
        gone = db.execute(
            "SELECT digest, event FROM documents WHERE did = ? AND type != 'identity'"
            " AND json_extract(CAST(body AS TEXT), '$.identity') = ?",
            (publisher, entry),
        ).fetchall()
        for digest, event in gone:
            db.execute("DELETE FROM document_rows WHERE digest = ?", (digest,))
            db.execute("DELETE FROM revocations WHERE did = ? AND digest = ?", (publisher, digest))
            drop_event(db, event)
    _recount_marks(db, publisher)


def _recount_marks(db: sqlite3.Connection, publisher: str) -> None:
    db.execute("DELETE FROM mark_rows WHERE publisher = ?", (rows.number_publisher(db, publisher),))
    for type_, name, keys, number in db.execute(
        "SELECT type, name, keys, number FROM documents WHERE did = ? AND NOT proof_only AND revoked_by IS NULL"
        " AND type NOT IN ('identity', 'proof')",
        (publisher,),
    ).fetchall():
        rows.raise_mark(db, publisher, type_, name, Mark(keys, number))


def _refresh(db: sqlite3.Connection, publisher: str) -> None:
    for (app,) in db.execute("SELECT app FROM listings WHERE did = ?", (publisher,)).fetchall():
        rows.advance_offers(db, publisher, app)
        rows.refresh_listing(db, AppName(publisher, app))
