"""The index's tables, as numbered migrations, and the one place where SQLite's faults become problems with a remedy.

Guarantees that a database is at the newest schema or is not opened: each migration is one transaction together with its
number, a file of a newer program or of another one is refused untouched. Refuses to know what the rows mean.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from market.errors import EnvironmentLacks, Problem, StillRunning

APPLICATION_ID: Final = 0x41524359  # "ARCY": sqlite(5), PRAGMA application_id
_BUSY_SECONDS: Final = 10.0

MIGRATIONS: Final[tuple[str, ...]] = (
    """
    CREATE TABLE events (
        id TEXT PRIMARY KEY, pubkey TEXT NOT NULL, kind INTEGER NOT NULL, created_at INTEGER NOT NULL, raw BLOB NOT NULL
    );
    CREATE TABLE event_relays (event_id TEXT, relay TEXT, PRIMARY KEY (event_id, relay)) WITHOUT ROWID;
    CREATE TABLE documents (
        digest TEXT PRIMARY KEY, did TEXT NOT NULL, type TEXT NOT NULL, name TEXT NOT NULL,
        keys INTEGER NOT NULL, number INTEGER NOT NULL, version TEXT NOT NULL, channel TEXT NOT NULL,
        signer TEXT NOT NULL, made INTEGER NOT NULL, event_id TEXT NOT NULL, body BLOB NOT NULL,
        proof_only INTEGER NOT NULL, revoked_by TEXT
    );
    CREATE INDEX documents_by_name ON documents (did, type, name, keys, number);
    CREATE INDEX documents_by_type ON documents (type, name);
    CREATE TABLE bindings (
        seen INTEGER PRIMARY KEY, did TEXT NOT NULL, pubkey TEXT NOT NULL, event_id TEXT NOT NULL, UNIQUE (did, pubkey)
    );
    CREATE TABLE marks (
        did TEXT, type TEXT, name TEXT, keys INTEGER NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (did, type, name)
    ) WITHOUT ROWID;
    CREATE TABLE revocations (
        did TEXT, target TEXT, digest TEXT, kind TEXT NOT NULL, last TEXT NOT NULL, PRIMARY KEY (did, target, digest)
    ) WITHOUT ROWID;
    CREATE TABLE faults (
        did TEXT, kind TEXT, type TEXT, name TEXT, number INTEGER, evidence TEXT NOT NULL,
        PRIMARY KEY (did, kind, type, name, number)
    ) WITHOUT ROWID;
    CREATE TABLE listings (id INTEGER PRIMARY KEY, did TEXT NOT NULL, app TEXT NOT NULL, UNIQUE (did, app));
    CREATE INDEX listings_by_app ON listings (app);
    CREATE VIRTUAL TABLE listing_text USING fts5 (
        title, summary, categories, publisher, app, tokenize = 'unicode61 remove_diacritics 2', prefix = '2 3'
    );
    CREATE TABLE follow_lists (author TEXT PRIMARY KEY, created_at INTEGER NOT NULL, event_id TEXT NOT NULL);
    CREATE TABLE follows (author TEXT, target TEXT, PRIMARY KEY (author, target)) WITHOUT ROWID;
    CREATE TABLE aside (
        added INTEGER PRIMARY KEY, event_id TEXT NOT NULL, relay TEXT NOT NULL, did TEXT NOT NULL,
        wake INTEGER NOT NULL, raw BLOB NOT NULL, UNIQUE (event_id, relay)
    );
    CREATE INDEX aside_by_did ON aside (did);
    CREATE INDEX aside_by_wake ON aside (wake);
    CREATE INDEX aside_by_relay ON aside (relay, added);
    CREATE TABLE relays (added INTEGER PRIMARY KEY, url TEXT NOT NULL UNIQUE);
    CREATE TABLE served (
        relay TEXT, did TEXT, app TEXT, keys INTEGER NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (relay, did, app)
    ) WITHOUT ROWID;
    """,
    # Lists of people with integer ids. The lists of schema 1 are forgotten whole, so that relays bring them again.
    """
    CREATE TABLE people (id INTEGER PRIMARY KEY, pubkey BLOB NOT NULL UNIQUE, named INTEGER NOT NULL DEFAULT 0);
    CREATE TABLE people_lists (
        id INTEGER PRIMARY KEY, author INTEGER NOT NULL, list TEXT NOT NULL, created_at INTEGER NOT NULL,
        event_id TEXT NOT NULL, targets BLOB NOT NULL, left_out INTEGER NOT NULL, UNIQUE (author, list)
    );
    DELETE FROM event_relays WHERE event_id IN (SELECT event_id FROM follow_lists);
    DELETE FROM events WHERE id IN (SELECT event_id FROM follow_lists);
    DROP TABLE follows;
    DROP TABLE follow_lists;
    """,
    """
    CREATE TABLE decisions (
        did TEXT, kind TEXT, type TEXT, name TEXT, number INTEGER, evidence TEXT NOT NULL, chosen TEXT NOT NULL,
        made INTEGER NOT NULL, PRIMARY KEY (did, kind, type, name, number)
    ) WITHOUT ROWID;
    CREATE TABLE deletions (
        pubkey TEXT, target TEXT, made INTEGER NOT NULL, PRIMARY KEY (pubkey, target)
    ) WITHOUT ROWID;
    CREATE TABLE relay_lists (author TEXT PRIMARY KEY, created_at INTEGER NOT NULL, event_id TEXT NOT NULL);
    CREATE TABLE write_relays (author TEXT, url TEXT, PRIMARY KEY (author, url)) WITHOUT ROWID;
    CREATE TABLE provided (
        did TEXT, publisher TEXT, app TEXT, expires INTEGER NOT NULL, PRIMARY KEY (publisher, app, did)
    ) WITHOUT ROWID;
    CREATE INDEX provided_by_did ON provided (did);
    ALTER TABLE listings ADD COLUMN made INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE listings ADD COLUMN categories TEXT NOT NULL DEFAULT '';
    ALTER TABLE listings ADD COLUMN archs TEXT NOT NULL DEFAULT '';
    ALTER TABLE listings ADD COLUMN permissions TEXT NOT NULL DEFAULT '';
    ALTER TABLE listings ADD COLUMN title TEXT NOT NULL DEFAULT '';
    CREATE INDEX listings_by_made ON listings (made DESC, id);
    CREATE INDEX documents_by_event ON documents (event_id);
    CREATE INDEX events_by_kind ON events (kind, created_at, id)
    """,
    "CREATE INDEX listings_by_publisher ON listings (did, made DESC, id)",
    # Tables name an event by a number that rises, not by its id: random keys in five indexes made every batch write
    # most of their pages anew. A document's text is stored once, with its document.
    """
    DROP INDEX events_by_kind;
    ALTER TABLE events RENAME TO events_4;
    CREATE TABLE events (
        number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, pubkey TEXT NOT NULL, kind INTEGER NOT NULL,
        created_at INTEGER NOT NULL, tags TEXT NOT NULL, content TEXT, sig TEXT NOT NULL
    );
    INSERT INTO events (id, pubkey, kind, created_at, tags, content, sig)
        SELECT id, pubkey, kind, created_at, json_extract(CAST(raw AS TEXT), '$.tags'),
            CASE WHEN EXISTS (SELECT 1 FROM documents AS d WHERE d.event_id = e.id
                AND d.body = CAST(json_extract(CAST(e.raw AS TEXT), '$.content') AS BLOB) AND d.type != 'proof')
            THEN NULL ELSE json_extract(CAST(raw AS TEXT), '$.content') END,
            json_extract(CAST(raw AS TEXT), '$.sig')
        FROM events_4 AS e ORDER BY rowid;
    CREATE INDEX events_by_kind ON events (kind, created_at);
    CREATE TABLE relay_urls (number INTEGER PRIMARY KEY, url TEXT NOT NULL UNIQUE);
    INSERT INTO relay_urls (url) SELECT DISTINCT relay FROM event_relays;
    INSERT OR IGNORE INTO relay_urls (url) SELECT DISTINCT relay FROM aside;
    CREATE TABLE shown (event INTEGER, relay INTEGER, PRIMARY KEY (event, relay)) WITHOUT ROWID;
    INSERT INTO shown SELECT e.number, u.number FROM event_relays AS r
        JOIN events AS e ON e.id = r.event_id JOIN relay_urls AS u ON u.url = r.relay;
    ALTER TABLE documents ADD COLUMN event INTEGER NOT NULL DEFAULT 0;
    UPDATE documents SET event = coalesce((SELECT number FROM events WHERE id = event_id), 0);
    DROP INDEX documents_by_event;
    DROP INDEX documents_by_type;
    ALTER TABLE documents DROP COLUMN event_id;
    CREATE INDEX documents_by_event ON documents (event);
    CREATE INDEX documents_by_type ON documents (type);
    DROP TABLE event_relays;
    DROP TABLE events_4
    """,
    # One index less: apps by id, then publisher, answers both questions.
    """
    DROP INDEX listings_by_app;
    DROP INDEX listings_by_made;
    DROP INDEX listings_by_publisher;
    ALTER TABLE listings RENAME TO listings_5;
    CREATE TABLE listings (
        id INTEGER PRIMARY KEY, did TEXT NOT NULL, app TEXT NOT NULL, made INTEGER NOT NULL DEFAULT 0,
        categories TEXT NOT NULL DEFAULT '', archs TEXT NOT NULL DEFAULT '', permissions TEXT NOT NULL DEFAULT '',
        title TEXT NOT NULL DEFAULT '', UNIQUE (app, did)
    );
    INSERT INTO listings SELECT id, did, app, made, categories, archs, permissions, title FROM listings_5;
    DROP TABLE listings_5;
    CREATE INDEX listings_by_made ON listings (made DESC, id);
    CREATE INDEX listings_by_publisher ON listings (did, made DESC, id)
    """,
    # Indexes of short prefixes made up most of what a text costs to store. Without them two letters are as quick to
    # look for as a common word, and nothing asks how long a column is.
    """
    CREATE VIRTUAL TABLE listing_text_7 USING fts5 (
        title, summary, categories, publisher, app, tokenize = 'unicode61 remove_diacritics 2', columnsize = 0
    );
    INSERT INTO listing_text_7 (rowid, title, summary, categories, publisher, app)
        SELECT rowid, title, summary, categories, publisher, app FROM listing_text;
    DROP TABLE listing_text;
    ALTER TABLE listing_text_7 RENAME TO listing_text
    """,
    # Publishers by number and events by bytes: keys half as long, in indexes whose pages every batch writes anew. What
    # reads sees the tables as they were, as views.
    """
    CREATE TABLE publishers (number INTEGER PRIMARY KEY, did TEXT NOT NULL UNIQUE);
    INSERT INTO publishers (did)
        SELECT did FROM documents UNION SELECT did FROM marks UNION SELECT did FROM listings;
    CREATE TABLE document_rows (
        digest TEXT PRIMARY KEY, publisher INTEGER NOT NULL, type TEXT NOT NULL, name TEXT NOT NULL,
        keys INTEGER NOT NULL, number INTEGER NOT NULL, version TEXT NOT NULL, channel TEXT NOT NULL,
        signer TEXT NOT NULL, made INTEGER NOT NULL, event INTEGER NOT NULL, body BLOB NOT NULL,
        proof_only INTEGER NOT NULL, revoked_by TEXT
    );
    INSERT INTO document_rows
        SELECT d.digest, p.number, d.type, d.name, d.keys, d.number, d.version, d.channel, d.signer, d.made, d.event,
            d.body, d.proof_only, d.revoked_by
        FROM documents AS d JOIN publishers AS p ON p.did = d.did ORDER BY d.rowid;
    DROP TABLE documents;
    CREATE INDEX documents_by_name ON document_rows (publisher, type, name, keys, number);
    CREATE INDEX documents_by_event ON document_rows (event);
    CREATE INDEX documents_by_type ON document_rows (type);
    CREATE VIEW documents AS
        SELECT r.digest, p.did, r.type, r.name, r.keys, r.number, r.version, r.channel, r.signer, r.made, r.event,
            r.body, r.proof_only, r.revoked_by
        FROM document_rows AS r JOIN publishers AS p ON p.number = r.publisher;
    CREATE TABLE mark_rows (
        publisher INTEGER, type TEXT, name TEXT, keys INTEGER NOT NULL, number INTEGER NOT NULL,
        PRIMARY KEY (publisher, type, name)
    ) WITHOUT ROWID;
    INSERT INTO mark_rows
        SELECT p.number, m.type, m.name, m.keys, m.number FROM marks AS m JOIN publishers AS p ON p.did = m.did;
    DROP TABLE marks;
    CREATE VIEW marks AS
        SELECT p.did, r.type, r.name, r.keys, r.number
        FROM mark_rows AS r JOIN publishers AS p ON p.number = r.publisher;
    CREATE TABLE listing_rows (
        id INTEGER PRIMARY KEY, publisher INTEGER NOT NULL, app TEXT NOT NULL, made INTEGER NOT NULL DEFAULT 0,
        categories TEXT NOT NULL DEFAULT '', archs TEXT NOT NULL DEFAULT '', permissions TEXT NOT NULL DEFAULT '',
        title TEXT NOT NULL DEFAULT '', UNIQUE (app, publisher)
    );
    INSERT INTO listing_rows
        SELECT l.id, p.number, l.app, l.made, l.categories, l.archs, l.permissions, l.title
        FROM listings AS l JOIN publishers AS p ON p.did = l.did;
    DROP TABLE listings;
    CREATE INDEX listings_by_made ON listing_rows (made DESC, id);
    CREATE INDEX listings_by_publisher ON listing_rows (publisher, made DESC, id);
    CREATE VIEW listings AS
        SELECT r.id, p.did, r.app, r.made, r.categories, r.archs, r.permissions, r.title
        FROM listing_rows AS r JOIN publishers AS p ON p.number = r.publisher;
    DROP INDEX events_by_kind;
    ALTER TABLE events RENAME TO events_7;
    CREATE TABLE events (
        number INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, pubkey BLOB NOT NULL, kind INTEGER NOT NULL,
        created_at INTEGER NOT NULL, tags TEXT NOT NULL, content TEXT, sig BLOB NOT NULL
    );
    INSERT INTO events
        SELECT number, from_hex(id), from_hex(pubkey), kind, created_at, tags, content, from_hex(sig) FROM events_7;
    DROP TABLE events_7;
    CREATE INDEX events_by_kind ON events (kind, created_at)
    """,
)


class BadIndex(Problem):
    """The index file is damaged, of a newer program, or of another one."""

    kind = "bad-index"


def connect(path: Path) -> sqlite3.Connection:
    """A connection in autocommit mode; transactions are explicit. It may be used by one thread at a time."""
    with faults_of(path):
        connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            connection.create_function("from_hex", 1, bytes.fromhex, deterministic=True)  # `unhex` came with 3.41
            # Of a file that is made here: half as many pages to write for the rows of a flood.
            connection.execute("PRAGMA page_size = 8192")
            connection.execute("PRAGMA journal_mode = WAL")
            # sqlite(5): in WAL mode NORMAL loses no consistency, only the last transactions at a power cut; the relays
            # still have those events.
            connection.execute("PRAGMA synchronous = NORMAL")
            # 16 MiB: a transaction of 2048 manifests fits, and is written once.
            connection.execute("PRAGMA cache_size = -16384")
            # Pages that many transactions change are then copied to the file once: 64 MiB of log while a flood lasts.
            connection.execute("PRAGMA wal_autocheckpoint = 8192")
            connection.execute(f"PRAGMA journal_size_limit = {16 * 1024**2}")
        except sqlite3.Error:
            connection.close()
            raise
        return connection


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the file to the newest schema. Raises BadIndex when it is newer, or no index at all."""
    with faults_of(path), transaction(connection):
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (owner,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if owner != APPLICATION_ID and (owner or version or tables):
            raise BadIndex("the file is another program's database", where=str(path), remedy="choose another --home")
        if version > len(MIGRATIONS):
            raise BadIndex(
                f"made by a newer version of this program (schema {version}, this one knows {len(MIGRATIONS)})",
                where=str(path),
                remedy="update this program; the file was not changed",
            )
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            for statement in filter(str.strip, script.split(";")):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing; takes SQLite's write lock at once, so that what was read inside still holds at the end."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # after a full disk it may be, or not; a COMMIT that failed may leave it open
            connection.execute("ROLLBACK")
        raise


@contextmanager
def faults_of(path: Path) -> Iterator[None]:
    """Translate SQLite's errors about this file."""
    try:
        yield
    except sqlite3.OperationalError as error:
        text = str(error)
        if "locked" in text or "busy" in text:
            raise StillRunning("another process holds the index", where=str(path), remedy="try again") from error
        if "full" in text:
            raise EnvironmentLacks(
                "the disk is full", where=str(path), remedy=f"make room: df -h {path.parent}"
            ) from error
        raise EnvironmentLacks(
            f"the index can not be used: {text}",
            where=str(path),
            remedy=f"make it writable: ls -ld {path.parent} {path}",
        ) from error
    except sqlite3.DatabaseError as error:
        raise BadIndex(
            f"the index is damaged: {error}",
            where=str(path),
            remedy=f"mv {path} {path}.damaged; it is filled again from the relays",
        ) from error
