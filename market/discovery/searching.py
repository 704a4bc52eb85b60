"""Search: which apps match the words and filters, in which order.

Guarantees that rank is text match times standing, ties by freshness, and that an app of unknown or no standing is
ranked low and never left out (R-TR4). What a search costs is bounded, however many apps match. Refuses to know where
standing comes from.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from apps.names import AppName

MAX_WORDS: Final = 8
"""Words of a search that count; FTS5 intersects one list for each."""

MAX_RANKED: Final = 400
"""Matches that are ranked, the newest first; more than anybody reads. Apps of publishers with standing come besides."""

MAX_STANDING: Final = 300
"""Publishers whose standing lifts their apps, the weightiest first."""

FLOOR: Final = 0.25
"""What the text match of an unknown publisher's app counts, beside 1 at most: a good match is still found."""

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is searched for. Every filter narrows; empty ones do not."""

    text: str = ""
    category: str = ""
    publisher: str = ""
    """A DID, or the beginning of its key (z6Mk...)."""
    arch: str = ""
    without: tuple[str, ...] = ()
    """Permissions that the app must not ask for."""
    hidden: bool = False
    """Show what its publisher asked to hide (NIP-09), too."""
    standing: Mapping[str, float] = field(default_factory=dict)
    """Publisher -> weight in direct follows of this operator; absent is none."""


def search(db: sqlite3.Connection, wanted: Wanted, limit: int) -> list[AppName]:
    """The apps, best first, at most `limit`."""
    words = _WORD.findall(wanted.text.lower())[:MAX_WORDS]
    match = _match(words, wanted)
    filters, values = _filters(wanted)
    trusted = sorted(wanted.standing, key=lambda did: (-wanted.standing[did], did))[:MAX_STANDING]
    found: dict[int, tuple[float, int, str, str]] = {}
    for part, extra in ((" AND l.did IN (SELECT value FROM json_each(?))", (_json(trusted),)), ("", ())):
        if extra and not trusted:
            continue
        for row, did, app, made, rank in _query(db, match, filters + part, (*values, *extra)):
            found[row] = (rank, made, did, app)
    best = min((rank for rank, *_ in found.values()), default=0.0)
    scored = [
        (-_text(rank, best) * (FLOOR + (1 - FLOOR) * _lift(wanted.standing.get(did, 0.0))), -made, app, did)
        for rank, made, did, app in found.values()
    ]
    return [AppName(did, app) for _, _, app, did in sorted(scored)[:limit]]


def _query(
    db: sqlite3.Connection, match: str, filters: str, values: tuple[object, ...]
) -> Iterable[tuple[int, str, str, int, float]]:
    if match:
        # Only the newest matches are ranked, so that a word which everybody uses costs no more than a rare one.
        return db.execute(
            "SELECT l.id, l.did, l.app, l.made, bm25(listing_text, 8.0, 2.0, 4.0, 1.0, 8.0)"
            " FROM listing_text AS t JOIN listings AS l ON l.id = t.rowid"
            f" WHERE listing_text MATCH ?{filters} ORDER BY t.rowid DESC LIMIT ?",
            (match, *values, MAX_RANKED),
        ).fetchall()
    return db.execute(
        "SELECT l.id, l.did, l.app, l.made, -1.0 FROM listings AS l"
        f" WHERE 1{filters} ORDER BY l.made DESC, l.id LIMIT ?",
        (*values, MAX_RANKED),
    ).fetchall()


def _match(words: list[str], wanted: Wanted) -> str:
    # Quoted, so that a searcher's AND, NEAR or * is a word like any other (sqlite FTS5, section 3.2).
    terms = [f'"{word}"*' for word in words]
    if category := " ".join(_WORD.findall(wanted.category.lower())):
        terms.append(f'categories : "{category}"')
    return " AND ".join(terms)


def _filters(wanted: Wanted) -> tuple[str, tuple[object, ...]]:
    parts: list[tuple[str, object]] = []
    if wanted.category:
        parts.append(("instr(l.categories, ?)", f" {wanted.category.lower()} "))
    if wanted.publisher:
        key = wanted.publisher.removeprefix("did:key:")
        parts.append(("l.did >= ?", f"did:key:{key}"))
        parts.append(("l.did < ?", f"did:key:{key}{{"))  # `{` follows every letter of base58
    if wanted.arch:
        parts.append(("instr(l.archs, ?)", f" {wanted.arch} "))
    parts += [("NOT instr(l.permissions, ?)", f" {word} ") for word in wanted.without]
    return "".join(f" AND {text}" for text, _ in parts), tuple(value for _, value in parts)


def _text(rank: float, best: float) -> float:
    """1 for the best match; bm25 is below zero, and lower is better."""
    return rank / best if best < 0 else 1.0


def _lift(weight: float) -> float:
    """0 for nobody, one half for somebody as near as a direct follow, 1 at infinity."""
    return max(weight, 0.0) / (1.0 + max(weight, 0.0))


def _json(values: list[str]) -> str:
    return msgspec.json.encode(values).decode()
