"""Lists that a publisher's Nostr key signs: where it writes (NIP-65), and what it asks to hide (NIP-09).

Guarantees that of replaceable lists the newest stays, and that a list costs no more rows than its bound. A deletion
hides and removes nothing: a thief of a Nostr key must not be able to take a revocation back.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from market.discovery.event_rows import drop_event_of_id
from market.discovery.events import Event
from market.identity.forms import MAX_WRITE_RELAYS, RELAY_URL

MAX_TARGETS: Final = 200
"""Events named by one deletion request."""


def is_bound(db: sqlite3.Connection, pubkey: str) -> bool:
    """Whether the Nostr key has ever carried an identity that names it."""
    return db.execute("SELECT 1 FROM bindings WHERE pubkey = ? LIMIT 1", (pubkey,)).fetchone() is not None


def store_deletions(db: sqlite3.Connection, event: Event) -> None:
    """NIP-09: what this author asks not to be shown any more. It hides, and removes nothing."""
    targets = [*event.tag("e"), *event.tag("a")][:MAX_TARGETS]
    db.executemany(
        "INSERT INTO deletions VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET made = excluded.made"
        " WHERE excluded.made > made",
        [(event.pubkey, target[:300], event.created_at) for target in targets],
    )


def replace_write_relays(db: sqlite3.Connection, event: Event) -> bool:
    """NIP-65: the author's newest list of write relays; whether it was newer than the one before."""
    before = db.execute("SELECT created_at, event_id FROM relay_lists WHERE author = ?", (event.pubkey,)).fetchone()
    if before and (before[0], event.id) >= (event.created_at, before[1]):
        return False
    if before:
        drop_event_of_id(db, before[1])
    urls = [tag[1] for tag in event.tags if len(tag) > 1 and tag[0] == "r" and tag[2:3] in ((), ("write",))]
    db.execute("DELETE FROM write_relays WHERE author = ?", (event.pubkey,))
    db.executemany(
        "INSERT OR IGNORE INTO write_relays VALUES (?, ?)",
        [(event.pubkey, url.rstrip("/")) for url in urls if RELAY_URL.fullmatch(url)][:MAX_WRITE_RELAYS],
    )
    db.execute("INSERT OR REPLACE INTO relay_lists VALUES (?, ?, ?)", (event.pubkey, event.created_at, event.id))
    return True
