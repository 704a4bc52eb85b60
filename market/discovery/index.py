"""The index: what this node knows of apps and publishers, in one SQLite file (WAL, one writer, many readers).

Guarantees that everything in it passed the whole order of checks, and that a read-only, full, damaged or newer file is
a clear problem and is left as it was. Methods are synchronous and may be called from any thread: point reads take
microseconds; whatever writes may wait for a second while a flood is stored, and belongs in a worker thread.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from apps.names import AppName, Digest
from market.discovery import circle_rows, event_rows, reading, searching
from market.discovery.events import Filter
from market.discovery.examination import Answer, Candidate, Verified, examine, settle
from market.discovery.ingest import Publishers, Writing
from market.discovery.reasons import Outcome
from market.discovery.schema import connect, faults_of, migrate, transaction
from market.discovery.searching import Wanted
from market.errors import EnvironmentLacks, UsageProblem
from market.identity.history import KeyHistory
from market.model import Listing, Release, SignedBy, TrustEvidence

MAX_INDEX_BYTES: Final = 16 * 1024**3
"""Beyond this, publishers that are new are refused: strangers could fill a disk with identities, which cost nothing.
A million manifests with their releases take some 8 GiB."""

MAX_RELAY_URL: Final = 255
"""Characters; the bound that identity documents set for write relays too."""


class Index:
    """Opened by `open_index`, closed by leaving it as a context manager or by `close`."""

    def __init__(self, path: Path, now: Callable[[], float]) -> None:
        self._path = path
        self._now = now
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._publishers = Publishers()
        self._writer = connect(path)
        try:
            migrate(self._writer, path)
            self._reader = connect(path)
        except BaseException:
            self._writer.close()
            raise

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Finish what is being written, then close the file."""
        with self._write_lock, self._read_lock:
            self._writer.close()
            self._reader.close()

    # Reading

    def search(self, text: str | Wanted, limit: int = 50, channel: str = "stable") -> list[Listing]:
        """Apps whose title, summary, categories, id or publisher hold every word of the text, best first."""
        wanted = Wanted(text) if isinstance(text, str) else text
        with self.reading() as db:
            names = searching.search(db, wanted, limit)
            found = [reading.read_listing(db, name, channel, self._now()) for name in names]
        return [listing for listing in found if wanted.hidden or not listing.extra.get("hidden")]

    def candidates(self, app_id: str, channel: str = "stable") -> list[Listing]:
        """One listing for each publisher that has an app of this id."""
        with self.reading() as db:
            names = reading.candidates(db, app_id)
            return [reading.read_listing(db, name, channel, self._now()) for name in names]

    def listing(self, app: AppName, channel: str = "stable") -> Listing | None:
        """What is known of the app, or None."""
        with self.reading() as db:
            return reading.read_listing(db, app, channel, self._now()) if reading.exists(db, app) else None

    def releases(self, app: AppName) -> list[Release]:
        """Every valid release of the app, newest first by its signed number."""
        with self.reading() as db:
            return reading.releases(db, app)

    def evidence(self) -> TrustEvidence:
        """What trust is computed from."""
        with self.reading() as db:
            return reading.evidence(db)

    def identity(self, did: str) -> KeyHistory | None:
        """The publisher's key history, or None when it is unknown."""
        with self.reading() as db:
            return reading.read_history(db, did)

    def events_of(self, app: AppName) -> list[dict[str, Any]]:
        """The app's stored events with its publisher's identity, for relays that lost them."""
        with self.reading() as db:
            return reading.events_of(db, app)

    def people_of_interest(self, seeds: Iterable[str], limit: int) -> list[str]:
        """Hex Nostr keys whose follow lists matter, the seeds first."""
        with self.reading() as db:
            return circle_rows.people_of_interest(db, seeds, limit)

    def signed_by(self, release: Digest) -> SignedBy | None:
        """Who signed a release, and under which entry of the publisher's key history; None for an unknown one."""
        with self.reading() as db:
            return circle_rows.signed_by(db, release)

    def follows_of(self, pubkey: str) -> list[str]:
        """Hex Nostr keys of those whom this key follows or trusts, as far as its lists are known."""
        with self.reading() as db:
            return circle_rows.list_of(db, pubkey)

    def lags(self) -> dict[str, tuple[str, ...]]:
        """For each relay, the apps of which it showed an older head than the newest one known (R-DS8)."""
        with self.reading() as db:
            return reading.lags(db)

    def held(self, wanted: Filter, limit: int) -> list[tuple[int, bytes]] | None:
        """(Unix seconds, raw id) of every stored event that the filter matches; None when there are more than that."""
        with self.reading() as db:
            return reading.held(db, wanted, limit)

    def authors(self, limit: int) -> list[str]:
        """Hex Nostr keys of publishers, the first seen first."""
        with self.reading() as db:
            found = db.execute("SELECT DISTINCT pubkey FROM bindings ORDER BY seen LIMIT ?", (limit,))
            return [row[0] for row in found.fetchall()]

    def relays(self) -> tuple[str, ...]:
        """The operator's relays, in the order they were added."""
        with self.reading() as db:
            return tuple(row[0] for row in db.execute("SELECT url FROM relays ORDER BY added").fetchall())

    # Writing

    def add_relay(self, url: str) -> None:
        """Remember a relay. Raises UsageProblem for anything but ws:// or wss://."""
        if not url.startswith(("ws://", "wss://")) or len(url) > MAX_RELAY_URL or not url.isprintable() or " " in url:
            raise UsageProblem("not a relay's address", where=url[:80], remedy="use wss://HOST or ws://HOST:PORT")
        with self.writing() as (db, _):
            db.execute("INSERT OR IGNORE INTO relays (url) VALUES (?)", (url.rstrip("/"),))

    def remove_relay(self, url: str) -> None:
        """Forget a relay; what it served stays."""
        with self.writing() as (db, _):
            db.execute("DELETE FROM relays WHERE url = ?", (url.rstrip("/"),))

    def ingest(self, batch: Sequence[Candidate]) -> list[Outcome]:
        """Put a batch (a few thousand at most) through all checks after the filter's; one outcome each, in order.

        Call it in a worker thread. Raises EnvironmentLacks when the disk is full: then nothing of the batch is stored,
        and everything will be asked for again.
        """
        new = self.unstored(batch)
        answers = [examine(one.event, is_new=fresh) for one, fresh in zip(batch, new, strict=True)]
        return self.commit(batch, new, answers)

    def unstored(self, batch: Sequence[Candidate]) -> list[bool]:
        """Of each event, whether its document has to be looked at: its id is not stored yet.

        An id counts as known only once an event with a genuine id and signature was accepted, so that this says
        nothing about an event that claims a stored id: its signature is verified all the same.
        """
        with self.reading() as db:
            known = event_rows.known_events(db, [candidate.event.id for candidate in batch])
        return [candidate.event.id not in known for candidate in batch]

    def commit(self, batch: Sequence[Candidate], new: Sequence[bool], answers: Sequence[Answer]) -> list[Outcome]:
        """Store what the answers say is genuine, in one transaction; one outcome for each event, in order."""
        found = [settle(one, answer, is_new=fresh) for one, fresh, answer in zip(batch, new, answers, strict=True)]
        genuine = [one for one in found if isinstance(one, Verified)]
        stored = iter(self._write(genuine) if genuine else ())
        return [next(stored) if isinstance(one, Verified) else one.outcome for one in found]

    def revisit(self) -> None:
        """Look again at events that were dated ahead and are due now."""
        self._write(())

    def _write(self, batch: Sequence[Verified]) -> list[Outcome]:
        with self.writing() as (db, now):
            return Writing(db, now, self._publishers, _has_room(db)).apply(batch)

    # For the other modules of this package

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection that reads, for one thread at a time."""
        with self._read_lock, faults_of(self._path):
            yield self._reader

    @contextmanager
    def writing(self) -> Iterator[tuple[sqlite3.Connection, float]]:
        """A transaction of the one connection that writes, and the time. What was remembered of histories is dropped
        when it fails, for then it was not stored."""
        with self._write_lock, faults_of(self._path):
            try:
                with transaction(self._writer):
                    yield self._writer, self._now()
            except BaseException:
                self._publishers.clear()
                raise

    def forget_history(self, did: str) -> None:
        """Read the publisher's history anew, inside of a transaction that has changed it."""
        self._publishers.forget(did)


def _has_room(db: sqlite3.Connection) -> bool:
    (pages,), (size,) = db.execute("PRAGMA page_count").fetchone(), db.execute("PRAGMA page_size").fetchone()
    return bool(pages * size < MAX_INDEX_BYTES)


def open_index(path: Path, *, now: Callable[[], float] = time.time) -> Index:
    """The index in the file, made or migrated if need be. Use it as a context manager, or close it.

    `now` gives Unix seconds. Raises EnvironmentLacks (read-only or full), BadIndex (damaged, newer, not an index).
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentLacks(
            f"can not be made: {error.strerror}", where=str(path.parent), remedy="choose another --home"
        ) from error
    return Index(path, now)
