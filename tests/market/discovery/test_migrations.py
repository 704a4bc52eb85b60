"""An index made by an older program: everything in it is there after the update, and events are as they were signed."""

from __future__ import annotations

import gzip
from pathlib import Path

import msgspec

from market.discovery import Event, Index, open_index
from market.discovery.events import Filter, verify
from market.discovery.faults import faults_of
from market.model import FlagKind
from tests.market.discovery.publishers import NOW, from_relay

SCHEMA_4 = Path(__file__).parents[2] / "vectors" / "index-schema-4.db.gz"
"""Two publishers; one offers 2.0.0 after 1.0.0, the other signed two releases of one number, and the proof is there."""


def test_an_index_of_schema_4_keeps_listings_proofs_and_events(tmp_path: Path) -> None:
    path = tmp_path / "market.db"
    path.write_bytes(gzip.decompress(SCHEMA_4.read_bytes()))
    with open_index(path, now=lambda: NOW + 60) as index:
        found = {listing.release.version if listing.release else "": listing for listing in index.search("hello")}
        assert set(found) == {"2.0.0", "1.0.0"}
        honest, torn = found["2.0.0"], found["1.0.0"]
        assert honest.flags == ()
        assert [one.version for one in index.releases(honest.app)] == ["2.0.0", "1.0.0"]
        assert honest.relays == torn.relays != ()
        assert FlagKind.EQUIVOCATION in {flag.kind for flag in torn.flags}
        assert len(faults_of(index, torn.app.publisher)) == 1
        assert index.relays() == ("wss://relay.example",)
        events = [event for app in (honest.app, torn.app) for event in _events(index, app)]
        assert len(events) == len({event.id for event in events}) >= 9
        assert [verify(event) for event in events] == [None] * len(events)  # each is whole, with its content
        held = index.held(Filter(kinds=(30078,)), 100)
        assert held is not None
        assert {raw.hex() for _, raw in held} >= {event.id for event in events}
        again = index.ingest(from_relay(*events))
        assert {outcome.fate.value for outcome in again} == {"known"}


def _events(index: Index, app: object) -> list[Event]:
    return [msgspec.convert(event, Event) for event in index.events_of(app)]  # type: ignore[arg-type]  # an AppName
