"""What the index remembers of publishers, as plain functions over one SQLite connection.

Guarantees nothing by itself: every function runs inside a transaction that its caller holds. Knows rows and no rules;
the rules are in `checks`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import UNSET

from apps.names import AppName, Digest
from market.discovery.checks import Claim, Mark, Standing, entry_of
from market.discovery.contradictions import Contradiction
from market.discovery.documents import (
    Document,
    HeadDocument,
    ManifestDocument,
    ProviderDocument,
    ReleaseDocument,
    RevokeDocument,
    number_of,
    parse_document,
)
from market.discovery.event_rows import drop_event
from market.discovery.facets import facets
from market.identity.canonical import canonical_bytes
from market.identity.didkey import decode_public, encode_public, key_text
from market.identity.forms import IdentityEntry
from market.identity.history import KeyHistory, SignedEntry


def number_publisher(db: sqlite3.Connection, did: str) -> int:
    """The number by which tables name a publisher; it has one from now on."""
    row: tuple[int] | None = db.execute("SELECT number FROM publishers WHERE did = ?", (did,)).fetchone()
    number = row[0] if row else db.execute("INSERT INTO publishers (did) VALUES (?)", (did,)).lastrowid
    assert number is not None
    return number


def load_history(db: sqlite3.Connection, did: str) -> KeyHistory:
    """The publisher's history as it was folded."""
    rows = db.execute(
        "SELECT body, digest, signer, proof_only FROM documents WHERE did = ? AND type = 'identity'"
        " ORDER BY proof_only, number",
        (did,),
    ).fetchall()
    # What is stored has passed every check; its proof is not verified again.
    signed = [
        (SignedEntry(msgspec.json.decode(body, type=IdentityEntry), Digest(digest), decode_public(signer)), bool(fork))
        for body, digest, signer, fork in rows
    ]
    return KeyHistory(
        did,
        tuple(entry for entry, fork in signed if not fork),
        tuple(entry for entry, fork in signed if fork),
    )


@dataclass(frozen=True, slots=True)
class Publisher:
    """What is stored of a publisher and changes seldom: its history, who carried it, what it revoked."""

    history: KeyHistory
    carried: frozenset[str]
    revoked_keys: Mapping[str, Mapping[str, int]]
    revoked_releases: frozenset[str]
    is_faulty: bool
    """Something is proven against it, so that documents may be stored which moved no mark."""


def load_publisher(db: sqlite3.Connection, did: str) -> Publisher:
    keys, releases = _revocations(db, did)
    carried = frozenset(row[0] for row in db.execute("SELECT pubkey FROM bindings WHERE did = ?", (did,)))
    return Publisher(load_history(db, did), carried, keys, releases, count_faults(db, did) > 0)


class Marks:
    """High-water marks, looked up for a whole batch at once. For one transaction, in which nobody else moves those of
    documents."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._known: dict[tuple[str, str, str], Mark | None] = {}

    def look_up(self, documents: Iterable[Document]) -> None:
        wanted = {(one.publisher, one.type, one.name) for one in documents}
        found = self._db.execute(
            "SELECT m.did, m.type, m.name, m.keys, m.number FROM json_each(?) AS j JOIN marks AS m"
            " ON m.did = json_extract(j.value, '$[0]') AND m.type = json_extract(j.value, '$[1]')"
            " AND m.name = json_extract(j.value, '$[2]')",
            (msgspec.json.encode(sorted(wanted)).decode(),),
        )
        self._known |= dict.fromkeys(wanted)
        self._known |= {(did, type_, name): Mark(keys, number) for did, type_, name, keys, number in found.fetchall()}

    def of(self, document: Document) -> Mark | None:
        key = (document.publisher, document.type, document.name)
        if key not in self._known:
            self._known[key] = load_mark(self._db, *key)
        return self._known[key]

    def remember(self, document: Document, mark: Mark) -> None:
        """It is, or will be, moved here by others."""
        self._known[document.publisher, document.type, document.name] = mark

    def lift(self, document: Document, mark: Mark) -> None:
        """Move it forward; it never moves back."""
        before = self.of(document)
        if before is None or mark > before:
            self.remember(document, mark)
            raise_mark(self._db, document.publisher, document.type, document.name, mark)


def load_standing(db: sqlite3.Connection, claim: Claim, publisher: Publisher, marks: Marks) -> Standing:
    """What `checks.judge` needs for this claim."""
    document, did, history = claim.document, claim.document.publisher, publisher.history
    entry, mark = entry_of(claim, history), marks.of(document)
    return Standing(
        history=history,
        carried=publisher.carried,
        revoked_keys=publisher.revoked_keys,
        revoked_releases=publisher.revoked_releases,
        mark=mark,
        # What was accepted has moved a mark, and what only proves something is a fault.
        rivals=_rivals(db, document, entry.entry.seq) if entry and (mark or publisher.is_faulty) else frozenset(),
        offers=_offers(db, did, document) if isinstance(document, HeadDocument) else {},
        follows=_follows(db, document) if isinstance(document, ReleaseDocument) else None,
    )


def _follows(db: sqlite3.Connection, release: ReleaseDocument) -> Mark | None:
    if release.prev is UNSET:
        return None
    row = db.execute(
        "SELECT keys, number FROM documents WHERE digest = ? AND did = ? AND type = 'release' AND name = ?",
        (release.prev, release.publisher, release.name),
    ).fetchone()
    return Mark(*row) if row else None


def _revocations(db: sqlite3.Connection, did: str) -> tuple[dict[str, dict[str, int]], frozenset[str]]:
    keys: dict[str, dict[str, int]] = {}
    releases: set[str] = set()
    for kind, target, last in db.execute("SELECT kind, target, last FROM revocations WHERE did = ?", (did,)):
        if kind == "release":
            releases.add(target)
            continue
        limits = msgspec.json.decode(last, type=dict[str, int])
        before = keys.get(target)
        # Two revocations of one key: the stricter holds, and an app that one of them leaves out has no valid number.
        keys[target] = limits if before is None else {a: min(n, before[a]) for a, n in limits.items() if a in before}
    return keys, frozenset(releases)


def _rivals(db: sqlite3.Connection, document: Document, keys: int) -> frozenset[str]:
    version = document.version if isinstance(document, ReleaseDocument) else None
    rows = db.execute(
        "SELECT digest FROM documents WHERE did = ? AND type = ? AND name = ? AND keys = ?"
        " AND (number = ? OR version = ?) AND revoked_by IS NULL",
        (document.publisher, document.type, document.name, keys, number_of(document), version),
    )
    return frozenset(row[0] for row in rows.fetchall())


def _offers(db: sqlite3.Connection, did: str, head: HeadDocument) -> dict[str, Mark]:
    found = {channel: load_offer(db, AppName(did, head.name), channel) for channel in head.releases}
    return {channel: mark for channel, mark in found.items() if mark}


def _still_valid(db: sqlite3.Connection, did: str, app: str, mark: Mark) -> bool:
    row = db.execute(
        "SELECT 1 FROM documents AS d WHERE did = ? AND type = 'release' AND name = ? AND keys = ? AND number = ?"
        " AND revoked_by IS NULL"
        " AND NOT EXISTS (SELECT 1 FROM revocations AS r WHERE r.did = d.did AND r.target = d.digest)",
        (did, app, mark.keys, mark.number),
    ).fetchone()
    return row is not None


def load_mark(db: sqlite3.Connection, did: str, type_: str, name: str) -> Mark | None:
    row = db.execute(
        "SELECT keys, number FROM marks WHERE did = ? AND type = ? AND name = ?", (did, type_, name)
    ).fetchone()
    return Mark(*row) if row else None


RAISE_MARK: Final = (
    "INSERT INTO mark_rows VALUES (?, ?, ?, ?, ?)"
    " ON CONFLICT DO UPDATE SET keys = excluded.keys, number = excluded.number"
    " WHERE (excluded.keys, excluded.number) > (keys, number)"
)
"""The publisher's number, type, name, keys, number."""


def raise_mark(db: sqlite3.Connection, did: str, type_: str, name: str, mark: Mark) -> None:
    """Move a high-water mark forward; it never moves back."""
    db.execute(RAISE_MARK, (number_publisher(db, did), type_, name, mark.keys, mark.number))


INSERT_DOCUMENT: Final = (
    "INSERT OR IGNORE INTO document_rows"
    " (digest, publisher, type, name, keys, number, version, channel, signer, made, event, body, proof_only)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
"""One `claim_row`."""


def claim_row(claim: Claim, publisher: int, event: int, mark: Mark, *, proof_only: bool = False) -> tuple[object, ...]:
    """`publisher` is its number, `event` that of the event that carried it."""
    body = claim.event.content.encode()
    return _document_row(
        claim.document, publisher, claim.digest, claim.signer, event, body, mark, proof_only=proof_only
    )


def store_document(db: sqlite3.Connection, claim: Claim, event: int, mark: Mark, *, proof_only: bool = False) -> bool:
    """Whether it is new."""
    row = claim_row(claim, number_publisher(db, claim.document.publisher), event, mark, proof_only=proof_only)
    return db.execute(INSERT_DOCUMENT, row).rowcount == 1


def _document_row(
    document: Document,
    publisher: int,
    digest: Digest,
    signer: bytes,
    event: int,
    body: bytes,
    mark: Mark,
    *,
    proof_only: bool,
) -> tuple[object, ...]:
    version, channel = (document.version, document.channel) if isinstance(document, ReleaseDocument) else ("", "")
    return (
        digest.hex,
        publisher,
        document.type,
        document.name,
        mark.keys,
        mark.number,
        version,
        channel,
        encode_public(signer),
        document.made,
        event,
        body,
        proof_only,
    )


def prune_older(db: sqlite3.Connection, document: Document, mark: Mark) -> None:
    """Of what is replaced by newer numbers only the newest stays, and what proves an equivocation."""
    rows = db.execute(
        "SELECT digest, event FROM documents AS d"
        " WHERE did = ? AND type = ? AND name = ? AND (keys, number) < (?, ?)"
        " AND NOT EXISTS (SELECT 1 FROM faults AS f WHERE f.did = d.did AND instr(f.evidence, d.digest))",
        (document.publisher, document.type, document.name, mark.keys, mark.number),
    ).fetchall()
    for digest, event in rows:
        db.execute("DELETE FROM document_rows WHERE digest = ?", (digest,))
        drop_event(db, event)


def store_provided(db: sqlite3.Connection, document: ProviderDocument) -> None:
    """Which apps the node serves now; what it said before is replaced."""
    db.execute("DELETE FROM provided WHERE did = ?", (document.publisher,))
    db.executemany(
        "INSERT OR REPLACE INTO provided VALUES (?, ?, ?, ?)",
        [(document.publisher, app.publisher, app.id, document.expires) for app in document.apps],
    )


def drop_expired(db: sqlite3.Connection, now: float) -> None:
    """Forget providers whose hour is over."""
    gone = db.execute("SELECT DISTINCT did FROM provided WHERE expires <= ?", (int(now),)).fetchall()
    for (did,) in gone:
        db.execute("DELETE FROM provided WHERE did = ?", (did,))
        for digest, event in db.execute(
            "SELECT digest, event FROM documents WHERE did = ? AND type = 'provider'", (did,)
        ).fetchall():
            db.execute("DELETE FROM document_rows WHERE digest = ?", (digest,))
            drop_event(db, event)


def bind(db: sqlite3.Connection, did: str, pubkey: str, event_id: str) -> bool:
    """Whether the Nostr key is new for this publisher."""
    cursor = db.execute(
        "INSERT OR IGNORE INTO bindings (did, pubkey, event_id) VALUES (?, ?, ?)", (did, pubkey, event_id)
    )
    return cursor.rowcount == 1


def store_fault(
    db: sqlite3.Connection, did: str, kind: str, document: Document, number: int, evidence: tuple[str, ...]
) -> None:
    proof = msgspec.json.encode(sorted(evidence)).decode()
    # A third document at one number is news to an operator who has decided about the first two.
    db.execute(
        "INSERT INTO faults VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET evidence = excluded.evidence"
        " WHERE length(excluded.evidence) > length(evidence)",
        (did, kind, document.type, document.name, number, proof),
    )


def count_faults(db: sqlite3.Connection, did: str) -> int:
    row: tuple[int] = db.execute("SELECT count(*) FROM faults WHERE did = ?", (did,)).fetchone()
    return row[0]


def store_proof(db: sqlite3.Connection, proof: Contradiction, event: int, keys: int) -> None:
    """The proof itself, and of its two documents the one that is new, which from here on only proves."""
    publisher = number_publisher(db, proof.publisher)
    for half in proof.halves:
        number = number_of(half.document)
        mark = Mark(number if isinstance(half.document, IdentityEntry) else keys, number)
        content = canonical_bytes(half.body)
        row = _document_row(half.document, publisher, half.digest, half.signer, event, content, mark, proof_only=True)
        db.execute(INSERT_DOCUMENT, row)
    body = proof.event.content.encode()
    row = (proof.digest.hex, publisher, "proof", "proof", keys, 0, "", "", "", 0, event, body, True)
    db.execute(INSERT_DOCUMENT, row)


def store_revocation(db: sqlite3.Connection, document: RevokeDocument, digest: Digest) -> None:
    """From here on the target is revoked; what it had signed too late is marked so."""
    did = document.publisher
    if document.release is not UNSET:
        db.execute(
            "INSERT OR IGNORE INTO revocations VALUES (?, ?, ?, 'release', '{}')", (did, document.release, digest.hex)
        )
        return
    last: Mapping[str, int] = document.last if document.last is not UNSET else {}
    db.execute(
        "INSERT OR IGNORE INTO revocations VALUES (?, ?, ?, 'key', ?)",
        (did, document.name, digest.hex, msgspec.json.encode(dict(last)).decode()),
    )
    signed = db.execute(
        "SELECT digest, name, number FROM documents WHERE did = ? AND signer = ? AND type != 'identity'",
        (did, document.name),
    ).fetchall()
    for known, name, number in signed:
        if number > last.get(name, -1):
            db.execute("UPDATE document_rows SET revoked_by = ? WHERE digest = ?", (digest.hex, known))


def advance_offers(db: sqlite3.Connection, did: str, app: str) -> None:
    """A release counts as offered once both the head that names it and the release itself have passed every check."""
    head = newest(db, did, "head", app)
    if not isinstance(head, HeadDocument):
        return
    for channel, ref in head.releases.items():
        row = db.execute(
            "SELECT 1 FROM documents WHERE digest = ? AND did = ? AND type = 'release' AND name = ?"
            " AND keys = ? AND number = ? AND revoked_by IS NULL",
            (ref.digest, did, app, ref.keys, ref.seq),
        ).fetchone()
        if row:
            raise_mark(db, did, "offer", f"{app}/{channel}", Mark(ref.keys, ref.seq))


def newest(db: sqlite3.Connection, did: str, type_: str, name: str) -> Document | None:
    """The highest document that is neither revoked nor kept only as a proof."""
    row = db.execute(
        "SELECT body FROM documents WHERE did = ? AND type = ? AND name = ? AND revoked_by IS NULL AND NOT proof_only"
        " ORDER BY keys DESC, number DESC LIMIT 1",
        (did, type_, name),
    ).fetchone()
    return stored_document(row[0])[0] if row else None


def stored_document(body: bytes) -> tuple[Document, Digest]:
    """A document that passed the checks before it was stored."""
    decoded: dict[str, Any] = msgspec.json.decode(body)
    return parse_document(decoded)


def note_served(db: sqlite3.Connection, relay: str, did: str, app: str, mark: Mark) -> None:
    """R-DS8: the newest head that this relay has shown for the app."""
    db.execute(
        "INSERT INTO served VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET keys = excluded.keys, number = excluded.number"
        " WHERE (excluded.keys, excluded.number) > (keys, number)",
        (relay, did, app, mark.keys, mark.number),
    )


def note_served_again(db: sqlite3.Connection, relay: str, event: int) -> None:
    """The same for an event that is stored already, if it is a head's."""
    row = db.execute(
        # The sign keeps SQLite from looking at all heads for it.
        "SELECT did, name, keys, number FROM documents WHERE event = ? AND +type = 'head'",
        (event,),
    ).fetchone()
    if row:
        note_served(db, relay, row[0], row[1], Mark(row[2], row[3]))


def refresh_listing(db: sqlite3.Connection, app: AppName) -> None:
    """What search finds of the app, from all that is stored: the newest manifest's texts, or its bare id."""
    manifest = newest(db, app.publisher, "manifest", app.id)
    list_manifest(db, app, manifest if isinstance(manifest, ManifestDocument) else None)
    release = newest(db, app.publisher, "release", app.id)
    if isinstance(release, ReleaseDocument):
        list_release(db, app, release)


def ensure_listed(db: sqlite3.Connection, app: AppName) -> None:
    """The app is found by its bare id until a manifest arrives."""
    if db.execute("SELECT 1 FROM listings WHERE did = ? AND app = ?", (app.publisher, app.id)).fetchone() is None:
        list_manifest(db, app, None)


def list_manifest(db: sqlite3.Connection, app: AppName, manifest: ManifestDocument | None) -> None:
    """The texts of the newest manifest are what is searched."""
    row = _listing_row(app, manifest)
    found = db.execute("SELECT id FROM listings WHERE did = ? AND app = ?", (app.publisher, app.id)).fetchone()
    if found is None:
        number = db.execute(_INSERT_LISTING, (None, number_publisher(db, app.publisher), *row)).lastrowid
    else:
        (number,) = found
        db.execute(
            "UPDATE listing_rows SET made = max(made, ?), title = ?, categories = ? WHERE id = ?", (*row[1:], number)
        )
        db.execute("DELETE FROM listing_text WHERE rowid = ?", (number,))
    db.execute(_INSERT_TEXT, (number, *_text_row(app, manifest)))


def list_new(db: sqlite3.Connection, manifests: Sequence[ManifestDocument], publishers: Mapping[str, int]) -> None:
    """The same for many apps of which none is listed; `publishers` has their numbers."""
    (first,) = db.execute("SELECT coalesce(max(id), 0) + 1 FROM listing_rows").fetchone()
    numbered = [(n, AppName(one.publisher, one.name), one) for n, one in enumerate(manifests, first)]
    db.executemany(
        _INSERT_LISTING,
        [(number, publishers[app.publisher], *_listing_row(app, one)) for number, app, one in numbered],
    )
    db.executemany(_INSERT_TEXT, [(number, *_text_row(app, one)) for number, app, one in numbered])


_INSERT_LISTING: Final = (
    "INSERT INTO listing_rows (id, publisher, app, made, title, categories) VALUES (?, ?, ?, ?, ?, ?)"
)
_INSERT_TEXT: Final = (
    "INSERT INTO listing_text (rowid, title, summary, categories, publisher, app) VALUES (?, ?, ?, ?, ?, ?)"
)


def _listing_row(app: AppName, manifest: ManifestDocument | None) -> tuple[object, ...]:
    if manifest is None:
        return app.id, 0, app.id, "  "
    return app.id, manifest.made, manifest.title, f" {' '.join(manifest.categories)} "


def _text_row(app: AppName, manifest: ManifestDocument | None) -> tuple[object, ...]:
    key = key_text(app.publisher)
    if manifest is None:
        return app.id, "", "", key, app.id
    return manifest.title, manifest.summary, " ".join(manifest.categories), key, app.id


def list_release(db: sqlite3.Connection, app: AppName, release: ReleaseDocument) -> None:
    """Where the newest release runs and what it asks for is what search filters by."""
    ensure_listed(db, app)
    archs, permissions = facets(release)
    db.execute(
        "UPDATE listing_rows SET made = max(made, ?), archs = ?, permissions = ? WHERE publisher = ? AND app = ?",
        (release.made, archs, permissions, number_publisher(db, app.publisher), app.id),
    )


def load_offer(db: sqlite3.Connection, app: AppName, channel: str) -> Mark | None:
    """The newest release offered before on the channel, unless it was withdrawn."""
    mark = load_mark(db, app.publisher, "offer", f"{app.id}/{channel}")
    return mark if mark and _still_valid(db, app.publisher, app.id, mark) else None
