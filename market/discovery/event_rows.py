"""What the index remembers of events: which are stored, which relay showed them, and which wait for their time.

Guarantees that an event can be written out again exactly as it was signed, and that a document's text is stored once:
with its document. Every function runs inside a transaction that its caller holds; knows rows and no rules.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec

from market.discovery.events import Event

MAX_ASIDE_PER_RELAY: Final = 1024
"""Events that wait, by relay: a relay that floods pushes out what itself brought, and nothing of others. At 64 KiB each
the worst relay costs 64 MiB of disk."""

_ENCODER = msgspec.json.Encoder()


def known_events(db: sqlite3.Connection, ids: Sequence[str]) -> frozenset[str]:
    """Which of these (a few thousand at most) are stored."""
    found = db.execute(f"SELECT id FROM events WHERE id IN ({','.join('?' * len(ids))})", [*map(bytes.fromhex, ids)])
    return frozenset(row[0].hex() for row in found.fetchall())


def number_of_event(db: sqlite3.Connection, id_: str) -> int | None:
    """The stored event's number, by which other tables name it."""
    row: tuple[int] | None = db.execute("SELECT number FROM events WHERE id = ?", (bytes.fromhex(id_),)).fetchone()
    return row[0] if row else None


def name_relays(db: sqlite3.Connection, urls: Iterable[str]) -> None:
    """Give each relay a number, so that it can be noted who showed an event."""
    db.executemany("INSERT OR IGNORE INTO relay_urls (url) VALUES (?)", [(url,) for url in urls])


INSERT_EVENT: Final = (
    "INSERT OR IGNORE INTO events (number, id, pubkey, kind, created_at, tags, content, sig)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
"""One `event_row`."""

INSERT_SHOWN: Final = "INSERT OR IGNORE INTO shown (event, relay) VALUES (?, ?)"
"""The event's number and the relay's."""


def event_row(event: Event, *, number: int | None = None, has_document: bool) -> tuple[object, ...]:
    """`number` None: the next one. `has_document`: its content is the text of the one document that is stored under the
    number, and is not stored a second time."""
    tags = _ENCODER.encode(event.tags).decode()
    content = None if has_document else event.content
    id_, pubkey, sig = bytes.fromhex(event.id), bytes.fromhex(event.pubkey), bytes.fromhex(event.sig)
    return number, id_, pubkey, event.kind, event.created_at, tags, content, sig


def next_number(db: sqlite3.Connection) -> int:
    """The number of the event that is stored next."""
    row: tuple[int] = db.execute("SELECT coalesce(max(number), 0) + 1 FROM events").fetchone()
    return row[0]


def number_of_relay(db: sqlite3.Connection, url: str) -> int:
    """The number of a relay that was named before."""
    row: tuple[int] = db.execute("SELECT number FROM relay_urls WHERE url = ?", (url,)).fetchone()
    return row[0]


def store_event(db: sqlite3.Connection, event: Event, relay: str, *, has_document: bool = False) -> tuple[int, bool]:
    """The event's number, and whether it is new. `has_document` as in `event_row`."""
    cursor = db.execute(INSERT_EVENT, event_row(event, has_document=has_document))
    is_new = cursor.rowcount == 1
    number = cursor.lastrowid if is_new else number_of_event(db, event.id)
    assert number is not None
    note_relay(db, number, relay)
    return number, is_new


def note_relay(db: sqlite3.Connection, number: int, relay: str) -> None:
    """The relay, named before, showed the event."""
    db.execute("INSERT OR IGNORE INTO shown SELECT ?, number FROM relay_urls WHERE url = ?", (number, relay))


def drop_event(db: sqlite3.Connection, number: int) -> None:
    db.execute("DELETE FROM events WHERE number = ?", (number,))
    db.execute("DELETE FROM shown WHERE event = ?", (number,))


def drop_event_of_id(db: sqlite3.Connection, id_: str) -> None:
    """The same; nothing happens when it is not stored."""
    number = number_of_event(db, id_)
    if number is not None:
        drop_event(db, number)


def shown_by(db: sqlite3.Connection, relay: str, ids: Iterable[str]) -> frozenset[str]:
    """Which of these events the relay has shown at some time."""
    found = db.execute(
        "SELECT e.id FROM events AS e JOIN shown AS s ON s.event = e.number JOIN relay_urls AS u ON u.number = s.relay"
        " WHERE u.url = ? AND e.id IN (SELECT from_hex(value) FROM json_each(?))",
        (relay, _ENCODER.encode(list(ids)).decode()),
    )
    return frozenset(row[0].hex() for row in found.fetchall())


def read_events(db: sqlite3.Connection, numbers: Iterable[int]) -> list[dict[str, Any]]:
    """The events as they were signed, the oldest first."""
    found = db.execute(
        "SELECT e.id, e.pubkey, e.kind, e.created_at, e.tags, e.sig, coalesce(e.content, CAST(d.body AS TEXT))"
        " FROM events AS e LEFT JOIN document_rows AS d ON e.content IS NULL AND d.event = e.number"
        " WHERE e.number IN (SELECT value FROM json_each(?)) ORDER BY e.created_at, e.id",
        (_ENCODER.encode(list(numbers)).decode(),),
    )
    return [
        {
            "id": id_.hex(),
            "pubkey": pubkey.hex(),
            "created_at": created_at,
            "kind": kind,
            "tags": msgspec.json.decode(tags),
            "content": content,
            "sig": sig.hex(),
        }
        for id_, pubkey, kind, created_at, tags, sig, content in found.fetchall()
        if content is not None
    ]


def set_aside(db: sqlite3.Connection, event: Event, relay: str, did: str, wake: int) -> None:
    """Keep an event for later, within the relay's share."""
    db.execute(
        "INSERT OR IGNORE INTO aside (event_id, relay, did, wake, raw) VALUES (?, ?, ?, ?, ?)",
        (event.id, relay, did, wake, event.to_bytes()),
    )
    db.execute(
        "DELETE FROM aside WHERE added IN"
        " (SELECT added FROM aside WHERE relay = ? ORDER BY added DESC LIMIT -1 OFFSET ?)",
        (relay, MAX_ASIDE_PER_RELAY),
    )


def take_waiting(db: sqlite3.Connection, did: str) -> Iterator[tuple[Event, str]]:
    """Remove and yield the events that wait for this publisher, with the relay that brought each."""
    rows = db.execute("DELETE FROM aside WHERE did = ? RETURNING added, raw, relay", (did,)).fetchall()
    return _read_aside(rows)


def take_due(db: sqlite3.Connection, now: float, limit: int) -> Iterator[tuple[Event, str]]:
    """Remove and yield at most `limit` events whose time has come."""
    rows = db.execute(
        "DELETE FROM aside WHERE added IN (SELECT added FROM aside WHERE wake > 0 AND wake <= ? ORDER BY wake LIMIT ?)"
        " RETURNING added, raw, relay",
        (int(now), limit),
    ).fetchall()
    return _read_aside(rows)


def _read_aside(rows: list[tuple[int, bytes, str]]) -> Iterator[tuple[Event, str]]:
    for _, raw, relay in sorted(rows):
        yield msgspec.json.decode(raw, type=Event), relay
