"""How much of one publisher is kept: named bounds, and what goes when they are reached.

Every function runs inside a transaction that its caller holds.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from market.discovery.documents import Document, HeadDocument
from market.discovery.event_rows import drop_event
from market.discovery.rows import newest

MAX_RELEASES_KEPT: Final = 200
"""By app, newest first: 5 MiB at worst. What a head offers and what proves an equivocation is kept besides."""

MAX_APPS: Final = 1000
"""Of one publisher."""

MAX_VOTES: Final = 5000
"""Of one voter."""


def prune_releases(db: sqlite3.Connection, did: str, app: str) -> None:
    """Keep the newest releases of the app, within the bound."""
    older = db.execute(
        "SELECT digest, event FROM documents AS d WHERE did = ? AND type = 'release' AND name = ?"
        " AND NOT EXISTS (SELECT 1 FROM faults AS f WHERE f.did = d.did AND instr(f.evidence, d.digest))"
        " ORDER BY keys DESC, number DESC LIMIT -1 OFFSET ?",
        (did, app, MAX_RELEASES_KEPT),
    ).fetchall()
    if not older:
        return
    head = newest(db, did, "head", app)
    offered = {ref.digest for ref in head.releases.values()} if isinstance(head, HeadDocument) else set()
    for digest, event in older:
        if digest not in offered:
            db.execute("DELETE FROM document_rows WHERE digest = ?", (digest,))
            drop_event(db, event)


def has_room(db: sqlite3.Connection, document: Document, apps: dict[str, int]) -> bool:
    """Whether one more app, or one more vote, of this publisher is within the bounds. `apps` remembers, for as long as
    the transaction lasts, how many apps publishers have; the one that is allowed here is counted."""
    did = document.publisher
    if document.type == "attest":
        found = db.execute("SELECT count(*) FROM documents WHERE did = ? AND type = 'attest'", (did,)).fetchone()
        return bool(found[0] < MAX_VOTES)
    if document.type not in {"manifest", "release", "head"}:
        return True
    if db.execute("SELECT 1 FROM listings WHERE did = ? AND app = ?", (did, document.name)).fetchone():
        return True
    return count_app(db, did, apps)


def count_app(db: sqlite3.Connection, did: str, apps: dict[str, int]) -> bool:
    """Whether an app that is not listed yet is within the bounds; then it is counted."""
    if did not in apps:
        (apps[did],) = db.execute("SELECT count(*) FROM listings WHERE did = ?", (did,)).fetchone()
    if apps[did] >= MAX_APPS:
        return False
    apps[did] += 1
    return True
