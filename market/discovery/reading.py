"""What the index tells: listings, releases, evidence, as plain functions over one SQLite connection.

Guarantees that a listing offers a release only when the newest valid head names it and the release itself passed every
check, and that whatever speaks against it is a flag. Refuses to know trust: a flag is a fact, not a verdict.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from apps.names import AppName, Digest
from market.discovery import circle_rows, event_rows, rows
from market.discovery.checks import Mark
from market.discovery.documents import (
    AttestDocument,
    HeadDocument,
    ManifestDocument,
    ProviderDocument,
    ReleaseDocument,
    to_attestation,
    to_release,
)
from market.discovery.events import Filter
from market.identity.didkey import key_text
from market.identity.history import KeyHistory
from market.model import Attestation, Flag, FlagKind, Listing, Release, TrustEvidence


def candidates(db: sqlite3.Connection, app_id: str) -> list[AppName]:
    """Every publisher's app of this id."""
    found = db.execute("SELECT did, app FROM listings WHERE app = ? ORDER BY did", (app_id,))
    return [AppName(*row) for row in found.fetchall()]


def exists(db: sqlite3.Connection, app: AppName) -> bool:
    """Whether anything valid is known of the app."""
    found = db.execute("SELECT 1 FROM listings WHERE did = ? AND app = ?", (app.publisher, app.id))
    return found.fetchone() is not None


def read_listing(db: sqlite3.Connection, app: AppName, channel: str, now: float) -> Listing:
    """The app for people, the release on offer and every flag, for an app that exists."""
    manifest = rows.newest(db, app.publisher, "manifest", app.id)
    manifest = manifest if isinstance(manifest, ManifestDocument) else None
    head = rows.newest(db, app.publisher, "head", app.id)
    head = head if isinstance(head, HeadDocument) else None
    release = _offered(db, app, head, channel) if head else None
    return Listing(
        app=app,
        title=manifest.title if manifest else app.id,
        summary=manifest.summary if manifest else "",
        categories=manifest.categories if manifest else (),
        homepage=manifest.homepage if manifest else "",
        release=release,
        head_epoch=head.epoch if head else None,
        head_expires=head.expires if head else None,
        nostr_pubkeys=bound_keys(db, app.publisher),
        flags=_flags(db, app, head, channel, now),
        relays=_relays(db, app, release),
        extra=_extra(manifest, head) | ({"hidden": True} if _hidden(db, app) else {}),
    )


def releases(db: sqlite3.Connection, app: AppName) -> list[Release]:
    """Every valid release, newest first by its signed number; withdrawn ones are left out."""
    found = db.execute(
        "SELECT body FROM documents AS d WHERE did = ? AND type = 'release' AND name = ? AND revoked_by IS NULL"
        " AND NOT proof_only AND NOT EXISTS"
        " (SELECT 1 FROM revocations AS r WHERE r.did = d.did AND r.target = d.digest)"
        " ORDER BY keys DESC, number DESC",
        (app.publisher, app.id),
    )
    read = [rows.stored_document(body) for (body,) in found.fetchall()]
    return [to_release(document, digest) for document, digest in read if isinstance(document, ReleaseDocument)]


def bound_keys(db: sqlite3.Connection, did: str) -> tuple[str, ...]:
    """Nostr keys bound to the publisher in both directions, first seen first."""
    latest = _latest_nostr(db, did)
    found = db.execute("SELECT pubkey FROM bindings WHERE did = ? ORDER BY seen", (did,))
    return tuple(row[0] for row in found.fetchall() if row[0] in latest)


def evidence(db: sqlite3.Connection) -> TrustEvidence:
    """Edges between people, votes and bindings. A Nostr key that two publishers carry counts for the one seen first."""
    bound: dict[str, str] = {}
    named: dict[str, frozenset[str]] = {}
    for did, pubkey in db.execute("SELECT did, pubkey FROM bindings ORDER BY seen").fetchall():
        if did not in named:
            named[did] = _latest_nostr(db, did)
        if pubkey in named[did]:
            bound.setdefault(pubkey, did)
    follows, mutes, ignored = circle_rows.edges(db)
    votes = _attestations(db)
    subjects = {(AppName(did, app), digest) for did, app, digest in db.execute(
        "SELECT did, name, digest FROM documents WHERE type = 'release' AND NOT proof_only"
    )}  # fmt: skip
    known = tuple(vote for vote in votes if (vote.app, vote.subject.hex) in subjects)
    (stored,) = db.execute("SELECT count(*) FROM documents WHERE type = 'attest'").fetchone()
    if stored > MAX_VOTES_READ:
        ignored[f"votes beyond the {MAX_VOTES_READ} of those who were seen first"] = stored - MAX_VOTES_READ
    if len(known) < len(votes):
        ignored["votes about releases that are not known here"] = len(votes) - len(known)
    return TrustEvidence(follows, known, bound, mutes, ignored)


def lags(db: sqlite3.Connection) -> dict[str, tuple[str, ...]]:
    """R-DS8: for each relay, the apps of which it showed an older head than the newest known, as PUBLISHER/ID."""
    found: dict[str, list[str]] = {}
    for relay, did, app in db.execute(
        "SELECT s.relay, s.did, s.app FROM served AS s"
        " JOIN marks AS m ON m.did = s.did AND m.type = 'head' AND m.name = s.app"
        " WHERE (s.keys, s.number) < (m.keys, m.number) ORDER BY s.relay, s.did, s.app"
    ):
        found.setdefault(relay, []).append(f"{did}/{app}")
    return {relay: tuple(apps) for relay, apps in found.items()}


def held(db: sqlite3.Connection, wanted: Filter, limit: int) -> list[tuple[int, bytes]] | None:
    """What is stored of the events that a filter matches, for reconciling; None when it is more than `limit`."""
    parts: list[tuple[str, Sequence[object]]] = [
        ("e.kind", wanted.kinds),
        ("e.pubkey", [*map(bytes.fromhex, wanted.authors)]),
    ]
    where = [f"{column} IN ({','.join('?' * len(values))})" for column, values in parts if values]
    values: list[object] = [value for _, values in parts for value in values]
    types = [name.removeprefix("archy1-") for name in wanted.tags.get("t", ())]
    if types:
        where.append(
            f"e.number IN (SELECT d.event FROM document_rows AS d WHERE d.type IN ({','.join('?' * len(types))}))"
        )
        values += types
    if set(wanted.tags) - {"t"}:
        return None
    for bound, column in ((wanted.until, "e.created_at <= ?"), (wanted.since, "e.created_at >= ?")):
        if bound is not None:
            where.append(column)
            values.append(bound)
    query = f"SELECT e.created_at, e.id FROM events AS e WHERE {' AND '.join(where or ['1'])} LIMIT ?"
    found = db.execute(query, (*values, limit + 1)).fetchall()
    return None if len(found) > limit else found


def events_of(db: sqlite3.Connection, app: AppName) -> list[dict[str, Any]]:
    """The stored events of the app and of its publisher's identity, as they were signed, for broadcasting again."""
    found = db.execute(
        "SELECT DISTINCT event FROM documents WHERE did = ? AND (type IN ('identity', 'revoke') OR name = ?)",
        (app.publisher, app.id),
    )
    return event_rows.read_events(db, [number for (number,) in found.fetchall()])


MAX_CHAIN: Final = 256
"""Releases walked back from the newest: more than are kept of one app."""


def chain(db: sqlite3.Connection, app: AppName, release: Release) -> tuple[tuple[str, ...], str]:
    """Versions from the release back along `prev`, and the digest at which the chain breaks off here, or ""."""
    versions: list[str] = []
    digest = release.digest.hex
    while digest and len(versions) < MAX_CHAIN:
        row = db.execute(
            "SELECT version, json_extract(CAST(body AS TEXT), '$.prev') FROM documents"
            " WHERE digest = ? AND did = ? AND type = 'release' AND name = ?",
            (digest, app.publisher, app.id),
        ).fetchone()
        if row is None:
            return tuple(versions), digest
        versions.append(row[0])
        digest = row[1] or ""
    return tuple(versions), ""


def providers(db: sqlite3.Connection, app: AppName, now: float) -> list[ProviderDocument]:
    """Nodes that say they serve the app's blobs, the quickest first. Their word is checked by the blobs' digests."""
    found = db.execute(
        "SELECT d.body FROM provided AS p CROSS JOIN documents AS d ON d.did = p.did AND d.type = 'provider'"
        " WHERE p.publisher = ? AND p.app = ? AND p.expires > ? AND NOT d.proof_only AND d.revoked_by IS NULL",
        (app.publisher, app.id, now),
    )
    read = [msgspec.json.decode(body, type=ProviderDocument) for (body,) in found.fetchall()]
    return sorted(read, key=lambda one: (-one.capacity, one.publisher))[:MAX_PROVIDERS]


MAX_PROVIDERS: Final = 32
"""Providers told of one app; a fetch asks a handful."""


def numbers_of(db: sqlite3.Connection, did: str) -> dict[str, int]:
    """The highest number seen for each `<type>/<name>` of the publisher, whoever signed it and under which entry."""
    found = db.execute("SELECT type, name, max(number) FROM documents WHERE did = ? GROUP BY type, name", (did,))
    return {f"{type_}/{name}": number for type_, name, number in found.fetchall() if type_ not in ("identity", "proof")}


def head_of(db: sqlite3.Connection, app: AppName) -> HeadDocument | None:
    """The newest valid head."""
    found = rows.newest(db, app.publisher, "head", app.id)
    return found if isinstance(found, HeadDocument) else None


def write_relays(db: sqlite3.Connection, publishers: Iterable[str]) -> dict[str, frozenset[str]]:
    """Where these publishers write, by their own signed word or their Nostr key's (NIP-65): URL -> Nostr keys."""
    found: dict[str, set[str]] = {}
    for did in publishers:
        history = rows.load_history(db, did)
        keys = bound_keys(db, did)
        named = list(history.latest.entry.relays) if history.latest else []
        for key in keys:
            named += [row[0] for row in db.execute("SELECT url FROM write_relays WHERE author = ?", (key,))]
        for url in named:
            found.setdefault(url.rstrip("/"), set()).update(keys)
    return {url: frozenset(keys) for url, keys in found.items() if keys}


def read_history(db: sqlite3.Connection, did: str) -> KeyHistory | None:
    """The publisher's key history, or None when nothing is known of it."""
    history = rows.load_history(db, did)
    return history if history.entries else None


def _offered(db: sqlite3.Connection, app: AppName, head: HeadDocument, channel: str) -> Release | None:
    ref = head.releases.get(channel)
    if ref is None:
        return None
    row = db.execute(
        "SELECT body, keys, number FROM documents WHERE digest = ? AND did = ? AND type = 'release' AND name = ?"
        " AND revoked_by IS NULL",
        (ref.digest, app.publisher, app.id),
    ).fetchone()
    if row is None or (row[1], row[2]) != (ref.keys, ref.seq):
        return None
    best = rows.load_offer(db, app, channel)
    if best is not None and Mark(row[1], row[2]) < best:
        return None
    document, digest = rows.stored_document(row[0])
    return to_release(document, digest) if isinstance(document, ReleaseDocument) else None


def _flags(
    db: sqlite3.Connection, app: AppName, head: HeadDocument | None, channel: str, now: float
) -> tuple[Flag, ...]:
    did = app.publisher
    found: list[Flag] = []
    if not bound_keys(db, did):
        found.append(Flag(FlagKind.UNBOUND, "no Nostr key speaks for the publisher any more"))
    for kind, type_, name, number, proof in db.execute(
        "SELECT f.kind, f.type, f.name, f.number, f.evidence FROM faults AS f WHERE did = ? AND NOT EXISTS ("
        "SELECT 1 FROM decisions AS d WHERE (d.did, d.kind, d.type, d.name, d.number, d.evidence)"
        " = (f.did, f.kind, f.type, f.name, f.number, f.evidence)) ORDER BY f.kind, f.type, f.name, f.number",
        (did,),
    ).fetchall():
        text = f"the publisher signed two different documents as {type_} {name} number {number}"
        found.append(Flag(FlagKind(kind), text, tuple(msgspec.json.decode(proof))))
    if head is None or channel not in head.releases:
        found.append(Flag(FlagKind.NO_HEAD, f"the publisher says of no release that it is the newest on {channel}"))
    if head is not None and channel in head.releases:
        found.extend(_revoked(db, did, head.releases[channel].digest))
    if head is not None and (missing := _missing(db, did, head)):
        text = f"the publisher has withdrawn something in {len(missing)} documents that no relay shows"
        found.append(Flag(FlagKind.WITHHELD, text, missing))
    if head is not None and head.expires <= now:
        silent = int(now - head.made) // 86_400
        until = datetime.fromtimestamp(head.expires, UTC).date().isoformat()
        text = f"the publisher has confirmed nothing for {silent} days (its word was good until {until})"
        found.append(Flag(FlagKind.STALE, text))
    return tuple(found)


def _hidden(db: sqlite3.Connection, app: AppName) -> bool:
    """NIP-09: whether the Nostr key that carried the newest manifest asks that it is not shown."""
    if db.execute("SELECT 1 FROM deletions LIMIT 1").fetchone() is None:
        return False
    row = db.execute(
        "SELECT 1 FROM documents AS d JOIN events AS e ON e.number = d.event"
        " JOIN deletions AS x ON x.pubkey = lower(hex(e.pubkey))"
        " WHERE d.did = ? AND d.type = 'manifest' AND d.name = ? AND NOT d.proof_only"
        " AND (x.target = lower(hex(e.id))"
        " OR (x.target = e.kind || ':' || x.pubkey || ':' || ? AND x.made >= e.created_at))",
        (app.publisher, app.id, f"archy1:manifest:{key_text(app.publisher)}:{app.id}"),
    ).fetchone()
    return row is not None


def _missing(db: sqlite3.Connection, did: str, head: HeadDocument) -> tuple[str, ...]:
    """Revocations that the head names and this node has not seen: a relay that hides one must not go unnoticed."""
    held = {row[0] for row in db.execute("SELECT digest FROM revocations WHERE did = ?", (did,))}
    return tuple(digest for digest in head.revocations if digest not in held)


def _revoked(db: sqlite3.Connection, did: str, digest: str) -> list[Flag]:
    by_name = db.execute("SELECT digest FROM revocations WHERE did = ? AND target = ?", (did, digest)).fetchall()
    by_key = db.execute(
        "SELECT revoked_by FROM documents WHERE did = ? AND digest = ? AND revoked_by IS NOT NULL", (did, digest)
    ).fetchall()
    flags = []
    if by_name:
        flags.append(Flag(FlagKind.REVOKED, "the publisher withdrew this release", tuple(row[0] for row in by_name)))
    if by_key:
        flags.append(Flag(FlagKind.REVOKED, "it was signed by a revoked key", tuple(row[0] for row in by_key)))
    return flags


def _relays(db: sqlite3.Connection, app: AppName, release: Release | None) -> tuple[str, ...]:
    found = db.execute(
        "SELECT DISTINCT u.url FROM documents AS d JOIN shown AS s ON s.event = d.event"
        " JOIN relay_urls AS u ON u.number = s.relay"
        " WHERE d.did = ? AND d.name = ? AND (d.type = 'head' OR d.digest = ?) AND NOT d.proof_only ORDER BY u.url",
        (app.publisher, app.id, release.digest.hex if release else ""),
    )
    return tuple(row[0] for row in found.fetchall())


def _extra(manifest: ManifestDocument | None, head: HeadDocument | None) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    if manifest is not None:
        extra |= {"permissions": manifest.permissions, "source": manifest.source, "manifest_seq": manifest.seq}
    if head is not None:
        extra |= {"head_made": head.made, "channels": {name: ref.version for name, ref in head.releases.items()}}
    return extra


def _latest_nostr(db: sqlite3.Connection, did: str) -> frozenset[str]:
    row = db.execute(
        "SELECT body FROM documents WHERE did = ? AND type = 'identity' AND NOT proof_only"
        " ORDER BY number DESC LIMIT 1",
        (did,),
    ).fetchone()
    return frozenset(msgspec.json.decode(row[0])["nostr"]) if row else frozenset()


MAX_VOTES_READ: Final = 100_000
"""Votes that trust is told of: some 60 MB while it counts. Identities cost nothing, so votes of voters that were seen
first come first: a crowd that arrives later can not push them out."""


def _attestations(db: sqlite3.Connection) -> list[Attestation]:
    found = db.execute(
        "SELECT d.body FROM documents AS d JOIN (SELECT did, min(seen) AS first FROM bindings GROUP BY did) AS b"
        " ON b.did = d.did WHERE d.type = 'attest' AND d.revoked_by IS NULL AND NOT d.proof_only"
        " ORDER BY b.first, d.name, d.keys DESC, d.number DESC, d.digest LIMIT ?",
        (MAX_VOTES_READ,),
    )
    latest: dict[tuple[str, Digest], Attestation] = {}
    for (body,) in found:
        document, _ = rows.stored_document(body)
        if isinstance(document, AttestDocument):
            vote = to_attestation(document)
            latest.setdefault((vote.voter, vote.subject), vote)
    return list(latest.values())
