"""Manifests of apps that the index has not met, collected and stored together: the bulk of what a relay brings to a
node that asks it for the first time.

One statement for many rows costs half of one for each. Guarantees that what waits here is stored before anything reads
it: whatever is not such a manifest itself has `store` called first. For one transaction; knows rows and no rules.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from market.discovery import bounds, event_rows, rows
from market.discovery.checks import Claim, Mark
from market.discovery.documents import ManifestDocument
from market.discovery.examination import Verified


@dataclass(frozen=True, slots=True)
class _Newcomer:
    claim: Claim
    manifest: ManifestDocument
    relay: str
    mark: Mark


class Newcomers:
    """`meet` a batch, `take` what is accepted of it, and `close` before anything but the batch is looked at."""

    def __init__(self, db: sqlite3.Connection, apps: dict[str, int]) -> None:
        """`apps`: how many apps publishers have, as `bounds.has_room` counts them."""
        self._db = db
        self._apps = apps
        self._unmet: set[tuple[str, str]] = set()
        """(DID, app) of manifests in the batch of which nothing is stored, or waits."""
        self._waiting: list[_Newcomer] = []

    def meet(self, batch: Sequence[Verified]) -> None:
        """Find out which apps of the batch the index has not met."""
        found = [
            ((one.claim.document.publisher, one.claim.document.name), one.claim.digest.hex)
            for one in batch
            if one.new and isinstance(one.claim, Claim) and one.claim.document.type == "manifest"
        ]
        if not found:
            return
        listed = self._db.execute(
            "SELECT l.did, l.app FROM json_each(?) AS j JOIN listings AS l"
            " ON l.app = json_extract(j.value, '$[1]') AND l.did = json_extract(j.value, '$[0]')",
            (_text(sorted({app for app, _ in found})),),
        ).fetchall()
        # A document may be stored although its app is not listed: as half of a proof.
        stored = self._db.execute(
            "SELECT digest FROM documents WHERE digest IN (SELECT value FROM json_each(?))",
            (_text([digest for _, digest in found]),),
        ).fetchall()
        known = {digest for (digest,) in stored}
        self._unmet = {app for app, _ in found}.difference(listed, (app for app, digest in found if digest in known))

    def expects(self, one: Verified) -> bool:
        """Whether the event may be judged while others wait; if not, `store` comes first."""
        if not (isinstance(one.claim, Claim) and isinstance(one.claim.document, ManifestDocument)):
            return False
        return (one.claim.document.publisher, one.claim.document.name) in self._unmet

    def take(self, one: Verified, mark: Mark) -> bool:
        """Keep an accepted manifest until `store`; False when it has to be stored by itself."""
        claim = one.claim
        if not (isinstance(claim, Claim) and isinstance(claim.document, ManifestDocument) and self.expects(one)):
            return False
        app = (claim.document.publisher, claim.document.name)
        if not bounds.count_app(self._db, app[0], self._apps):
            return False
        self._unmet.discard(app)
        self._waiting.append(_Newcomer(claim, claim.document, one.relay, mark))
        return True

    def forget(self, one: Verified) -> None:
        """Its app is met by another way, from here on."""
        if isinstance(one.claim, Claim):
            self._unmet.discard((one.claim.document.publisher, one.claim.document.name))

    def close(self) -> None:
        """Store what waits, and expect nothing more."""
        self.store()
        self._unmet.clear()

    def store(self) -> None:
        """Everything that waits."""
        if not self._waiting:
            return
        db, waiting, self._waiting = self._db, self._waiting, []
        first = event_rows.next_number(db)
        publishers = {did: rows.number_publisher(db, did) for did in {one.manifest.publisher for one in waiting}}
        relays = {relay: event_rows.number_of_relay(db, relay) for relay in {one.relay for one in waiting}}
        db.executemany(
            event_rows.INSERT_EVENT,
            [
                event_rows.event_row(one.claim.event, number=number, has_document=True)
                for number, one in enumerate(waiting, first)
            ],
        )
        db.executemany(
            event_rows.INSERT_SHOWN, [(number, relays[one.relay]) for number, one in enumerate(waiting, first)]
        )
        db.executemany(
            rows.INSERT_DOCUMENT,
            [
                rows.claim_row(one.claim, publishers[one.manifest.publisher], number, one.mark)
                for number, one in enumerate(waiting, first)
            ],
        )
        db.executemany(
            rows.RAISE_MARK,
            sorted(
                (publishers[one.manifest.publisher], "manifest", one.manifest.name, one.mark.keys, one.mark.number)
                for one in waiting
            ),
        )
        rows.list_new(db, [one.manifest for one in waiting], publishers)


def _text(values: object) -> str:
    return _ENCODER.encode(values).decode()


_ENCODER: Final = msgspec.json.Encoder()
