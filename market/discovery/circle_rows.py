"""Who follows, trusts, mutes or distrusts whom: lists that people publish, as rows with integer ids.

A list is one row whose targets are packed 32-bit ids, in the form in which trust reads them, so that a million lists
load in seconds. Guarantees that a newer list replaces the one before whole, that what is left out of a list is counted,
and that a person whom no list names any longer takes no room. Every function runs inside its caller's transaction.
"""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from apps.names import Digest
from market.discovery.events import DISTRUSTING_LISTS, TRUSTING_LISTS, Event
from market.model import Edges, SignedBy

MAX_ENTRIES: Final = 5000
"""People in one list; 64 KiB hold fewer than a thousand, so this only matters if that bound ever grows."""

_CHUNK: Final = 500
"""Parameters of one statement; SQLite has always allowed 999."""

_RUN: Final = 1_000_000
"""Edges renumbered at once: 4 MiB beside the array itself."""

_PACKED: Final = np.dtype("<i4")
_T = TypeVar("_T")


def replace_list(db: sqlite3.Connection, event: Event, name: str) -> str | None:
    """Store the author's newest list of that name.

    Returns the id of the event it replaces, or "" when there was none before; None when this one is older.
    """
    before = db.execute(
        "SELECT l.created_at, l.event_id, l.targets FROM people_lists AS l JOIN people AS p ON p.id = l.author"
        " WHERE p.pubkey = ? AND l.list = ?",
        (bytes.fromhex(event.pubkey), name),
    ).fetchone()
    # NIP-01: of two replaceable events with one time the lower id stays.
    if before and (before[0], event.id) >= (event.created_at, before[1]):
        return None
    keys, left_out = _entries(event)
    ids = _numbers(db, [bytes.fromhex(event.pubkey), *keys])
    author, targets = ids[0], np.sort(np.array(ids[1:], dtype=_PACKED))
    old = np.frombuffer(before[2], dtype=_PACKED) if before else np.array([], dtype=_PACKED)
    db.execute(
        "INSERT OR REPLACE INTO people_lists (author, list, created_at, event_id, targets, left_out)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (author, name, event.created_at, event.id, targets.tobytes(), left_out),
    )
    _count(db, np.setdiff1d(targets, old), 1)
    _count(db, np.setdiff1d(old, targets), -1)
    if not before:
        _count(db, np.array([author]), 1)
    return before[1] if before else ""


def edges(db: sqlite3.Connection) -> tuple[Edges, Edges, dict[str, int]]:
    """Follows and trust, mutes and distrust, and what lists contained beyond that, counted by reason."""
    rows = db.execute("SELECT id, pubkey FROM people ORDER BY pubkey").fetchall()
    people = tuple(f"nostr:{key.hex()}" for _, key in rows)
    place = np.zeros(max((number for number, _ in rows), default=0) + 1, dtype=np.int32)
    place[[number for number, _ in rows]] = np.arange(len(rows), dtype=np.int32)
    (left_out,) = db.execute("SELECT coalesce(sum(left_out), 0) FROM people_lists").fetchone()
    ignored = {"entries of lists that name nobody, twice, themselves or too many": left_out} if left_out else {}
    return _edges(db, people, place, TRUSTING_LISTS), _edges(db, people, place, DISTRUSTING_LISTS), ignored


def signed_by(db: sqlite3.Connection, release: Digest) -> SignedBy | None:
    """Who signed the release, if it is known and not merely kept as a proof."""
    row = db.execute(
        "SELECT did, keys, signer FROM documents WHERE digest = ? AND type = 'release' AND NOT proof_only",
        (release.hex,),
    ).fetchone()
    return SignedBy(*row) if row else None


def list_of(db: sqlite3.Connection, pubkey: str) -> list[str]:
    """Hex keys of those whom the key follows or trusts, in order; empty when nothing is known."""
    rows = db.execute(
        "SELECT l.targets FROM people_lists AS l JOIN people AS p ON p.id = l.author"
        f" WHERE p.pubkey = ? AND l.list IN ({_marks(TRUSTING_LISTS)})",
        (bytes.fromhex(pubkey), *sorted(TRUSTING_LISTS)),
    ).fetchall()
    found: set[bytes] = set()
    for (targets,) in rows:
        for chunk in _chunks(np.frombuffer(targets, dtype=_PACKED).tolist()):
            found.update(
                row[0] for row in db.execute(f"SELECT pubkey FROM people WHERE id IN ({_marks(chunk)})", tuple(chunk))
            )
    return sorted(key.hex() for key in found)


def people_of_interest(db: sqlite3.Connection, seeds: Iterable[str], limit: int) -> list[str]:
    """Hex keys whose lists matter: the seeds, bound publishers, and whom they follow, at most `limit`."""
    found = dict.fromkeys(seeds)
    found.update(
        dict.fromkeys(row[0] for row in db.execute("SELECT pubkey FROM bindings ORDER BY seen LIMIT ?", (limit,)))
    )
    for author in list(found):
        if len(found) >= limit:
            break
        found.update(dict.fromkeys(list_of(db, author)))
    return list(found)[:limit]


def _edges(db: sqlite3.Connection, people: tuple[str, ...], place: NDArray[np.int32], lists: Iterable[str]) -> Edges:
    sources, targets, authors, counts = array("i"), array("i"), array("i"), array("i")
    names = sorted(lists)
    for author, packed in db.execute(
        f"SELECT author, targets FROM people_lists WHERE list IN ({_marks(names)}) ORDER BY author, list", names
    ):
        targets.frombytes(packed)
        authors.append(author)
        counts.append(len(packed) // _PACKED.itemsize)
    if targets:
        # All lists at once: a million small calls into numpy would take longer than everything else.
        numbered = np.frombuffer(targets, dtype=_PACKED)
        for start in range(0, numbered.size, _RUN):
            numbered[start : start + _RUN] = place[numbered[start : start + _RUN]]
        sources.frombytes(np.repeat(place[np.frombuffer(authors, dtype=np.int32)], counts).tobytes())
    return Edges(people, sources, targets)


def _entries(event: Event) -> tuple[list[bytes], int]:
    """Raw keys of the list's people, each once and never its author, and how many entries were left out."""
    named = event.tag("p")
    kept = dict.fromkeys(bytes.fromhex(key) for key in named if _is_key(key) and key != event.pubkey)
    keys = list(islice(kept, MAX_ENTRIES))
    return keys, len(named) - len(keys)


def _is_key(text: str) -> bool:
    return len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)


def _numbers(db: sqlite3.Connection, keys: Sequence[bytes]) -> list[int]:
    """The ids of these people, in the same order."""
    db.executemany("INSERT OR IGNORE INTO people (pubkey) VALUES (?)", ((key,) for key in keys))
    found: dict[bytes, int] = {}
    for chunk in _chunks(keys):
        found.update(db.execute(f"SELECT pubkey, id FROM people WHERE pubkey IN ({_marks(chunk)})", tuple(chunk)))
    return [found[key] for key in keys]


def _count(db: sqlite3.Connection, ids: NDArray[np.int32], by: int) -> None:
    """Lists that name them or are theirs, more or fewer; whom nothing names any longer is forgotten."""
    db.executemany("UPDATE people SET named = named + ? WHERE id = ?", ((by, number) for number in ids.tolist()))
    if by < 0:
        db.executemany("DELETE FROM people WHERE id = ? AND named <= 0", ((number,) for number in ids.tolist()))


def _chunks(values: Sequence[_T]) -> Iterator[Sequence[_T]]:
    return (values[start : start + _CHUNK] for start in range(0, len(values), _CHUNK))


def _marks(values: Iterable[object]) -> str:
    return ",".join("?" for _ in values)
