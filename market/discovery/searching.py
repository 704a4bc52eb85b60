"""Search: which apps match the words and filters, in which order.

Guarantees that rank is text match times standing, ties by freshness, and that an app of unknown or no standing is
ranked low and never left out (R-TR4). What a search costs is bounded, however many apps match. Refuses to know where
standing comes from.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from apps.names import AppName

MAX_WORDS: Final = 8
"""Words of a search that count; FTS5 intersects one list for each."""

MAX_RANKED: Final = 400
"""Matches that are ranked, the newest first; more than anybody reads. Apps of publishers with standing come besides."""

MAX_STANDING: Final = 40
"""Publishers whose apps are looked at however old they are, the weightiest first."""

MAX_OF_ONE: Final = 20
"""Apps of one such publisher in a list without words."""

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
    filters, values = _filters(wanted)
    trusted = sorted(wanted.standing, key=lambda did: (-wanted.standing[did], did))[:MAX_STANDING]
    if match := _match(words, wanted):
        found = _matching(db, match, filters, values, trusted)
    else:
        found = _newest(db, filters, values, trusted)
    scored = [
        (-_text(words, row) * (FLOOR + (1 - FLOOR) * _lift(wanted.standing.get(row[1], 0.0))), -row[3], row[2], row[1])
        for row in found
    ]
    return [AppName(did, app) for _, _, app, did in sorted(set(scored))[:limit]]


_Row = tuple[int, str, str, int, str, str]
"""Row id, publisher, app, time, title, categories."""
_COLUMNS: Final = "l.id, l.did, l.app, l.made, l.title, l.categories"


def _matching(
    db: sqlite3.Connection, match: str, filters: str, values: tuple[object, ...], trusted: list[str]
) -> list[_Row]:
    # Only the newest matches are ranked, so that a word which everybody uses costs no more than a rare one; and those
    # of publishers with standing besides, which FTS5 finds by their keys. Its bm25 would look at every match.
    keys = " OR ".join(f'"{did.removeprefix("did:key:").lower()}"' for did in trusted if did.startswith("did:key:"))
    found: list[_Row] = []
    for expression in (match, f"({match}) AND publisher : ({keys})" if keys else ""):
        if expression:
            found += db.execute(
                f"SELECT {_COLUMNS} FROM listing_text AS t JOIN listings AS l ON l.id = t.rowid"
                f" WHERE listing_text MATCH ?{filters} ORDER BY t.rowid DESC LIMIT ?",
                (expression, *values, MAX_RANKED),
            ).fetchall()
    return found


def _newest(db: sqlite3.Connection, filters: str, values: tuple[object, ...], trusted: list[str]) -> list[_Row]:
    query = f"SELECT {_COLUMNS} FROM listings AS l WHERE 1{filters}"
    found: list[_Row] = db.execute(f"{query} ORDER BY l.made DESC, l.id LIMIT ?", (*values, MAX_RANKED)).fetchall()
    for did in trusted:
        found += db.execute(
            f"{query} AND l.did = ? ORDER BY l.made DESC, l.id LIMIT ?", (*values, did, MAX_OF_ONE)
        ).fetchall()
    return found


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


_EXACT, _NAMED, _BEGINS, _TAGGED, _MENTIONED = 1.0, 0.8, 0.6, 0.5, 0.3


def _text(words: list[str], row: _Row) -> float:
    """How well a match fits, 0 to 1: the mean over the words of where each was found. The rest is in the summary."""
    if not words:
        return 1.0
    app, title, categories = row[2], row[4].lower(), row[5]
    if " ".join(words) in (app, title):
        return _EXACT
    named = {*_WORD.findall(title), *_WORD.findall(app)}
    return sum(_one(word, named, categories) for word in words) / len(words)


def _one(word: str, named: set[str], categories: str) -> float:
    if word in named:
        return _NAMED
    if any(one.startswith(word) for one in named):
        return _BEGINS
    return _TAGGED if f" {word}" in categories else _MENTIONED


def _lift(weight: float) -> float:
    """0 for nobody, one half for somebody as near as a direct follow, 1 at infinity."""
    return max(weight, 0.0) / (1.0 + max(weight, 0.0))
