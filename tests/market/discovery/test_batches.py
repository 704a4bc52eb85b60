"""Events stored many at a time leave behind what they leave behind one at a time."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market.discovery import Event, Index, Outcome, open_index
from market.discovery.bounds import MAX_APPS
from market.discovery.reasons import Fate, Reason
from market.identity import add_proof
from tests.market.discovery.publishers import NOW, Publisher, carried, from_relay

_SEEN = {
    "events": "SELECT id, pubkey, kind, created_at, tags, content, sig FROM events",
    "documents": "SELECT d.digest, d.did, d.type, d.name, d.keys, d.number, d.version, d.channel, d.signer, d.made,"
    " e.id, d.body, d.proof_only, d.revoked_by FROM documents AS d LEFT JOIN events AS e ON e.number = d.event",
    "marks": "SELECT * FROM marks",
    "faults": "SELECT * FROM faults",
    "shown": "SELECT e.id, u.url FROM shown AS s JOIN events AS e ON e.number = s.event"
    " JOIN relay_urls AS u ON u.number = s.relay",
    "listings": "SELECT did, app, made, categories, archs, permissions, title FROM listings",
    "texts": "SELECT l.did, l.app, t.title, t.summary, t.categories, t.publisher, t.app FROM listing_text AS t"
    " JOIN listings AS l ON l.id = t.rowid",
    "aside": "SELECT event_id, relay, did, wake FROM aside",
}


def stored(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """All that can be told apart from outside; numbers of rows can not."""
    with closing(sqlite3.connect(path)) as db:
        return {name: sorted(db.execute(query).fetchall(), key=repr) for name, query in _SEEN.items()}


def manifest(publisher: Publisher, app: str, seq: int, title: str = "", made: int = NOW) -> Event:
    body = {
        "archy": 1, "type": "manifest", "publisher": publisher.did, "name": app, "seq": seq,
        "identity": publisher.keyring.identity_digest.hex, "made": made, "title": title or f"{app} {seq}",
        "summary": "Keeps photos", "categories": ["data"], "permissions": {"internet": "none"}, "homepage": "",
        "source": "",
    }  # fmt: skip
    return carried(add_proof(body, publisher.seed("release"), created=NOW), publisher.keyring)


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Event], list[Event]]:
    """Identities, and all kinds of events about three apps of two publishers that may meet in one batch."""
    folder = tmp_path_factory.mktemp("keys")
    alice, bob = Publisher(folder, "alice"), Publisher(folder, "bob")
    identities = [carried(one.keyring.identity_document(), one.keyring) for one in (alice, bob)]
    pool = [manifest(one, app, seq) for one in (alice, bob) for app in ("maps", "notes", "hello") for seq in (1, 2)]
    pool += [
        manifest(alice, "maps", 1, "Contradicts the first one"),
        manifest(alice, "notes", 3, made=NOW + 10**6),
        carried(json.loads(pool[1].content), bob.keyring),
        msgspec.structs.replace(pool[0], sig="0" * 128),
        *alice.events(*alice.release().documents),
    ]
    return identities, pool


def ingested(path: Path, batches: Sequence[Sequence[Event]]) -> list[Outcome]:
    with open_index(path, now=lambda: float(NOW)) as index:
        return [outcome for batch in batches for outcome in index.ingest(from_relay(*batch))]


def test_what_waits_for_an_identity_of_its_own_batch_is_stored_once(
    tmp_path: Path, events: tuple[list[Event], list[Event]]
) -> None:
    identity, waiting = events[0][0], events[1][0]
    outcomes = ingested(tmp_path / "batch.db", [[waiting, identity, waiting]])
    assert [one.fate for one in outcomes] == [Fate.ASIDE, Fate.ACCEPTED, Fate.ACCEPTED]
    ingested(tmp_path / "single.db", [[waiting], [identity], [waiting]])
    assert stored(tmp_path / "batch.db") == stored(tmp_path / "single.db")


def test_two_that_contradict_are_proven_whichever_of_them_waited(
    tmp_path: Path, events: tuple[list[Event], list[Event]]
) -> None:  # R-DS5
    identity, first, second = events[0][0], events[1][0], events[1][12]
    ingested(tmp_path / "batch.db", [[first, identity, second]])
    ingested(tmp_path / "single.db", [[first], [identity], [second]])
    for found in (stored(tmp_path / "batch.db"), stored(tmp_path / "single.db")):
        assert [row[1] for row in found["faults"]] == ["equivocation"]
        assert sorted(bool(row[12]) for row in found["documents"] if row[2] == "manifest") == [False, True]


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_batch_and_single_events_leave_the_same(
    tmp_path_factory: pytest.TempPathFactory, events: tuple[list[Event], list[Event]], data: st.DataObject
) -> None:
    identities, pool = events
    chosen = data.draw(st.lists(st.sampled_from(pool), min_size=1, max_size=14))
    # Alice is known: what waits for an identity of its own batch is looked at when the batch ends, see below.
    known = data.draw(st.sampled_from([identities, identities[:1]]))
    tail = data.draw(st.sampled_from([[], identities]))  # then those that waited for an identity are looked at again
    folder = tmp_path_factory.mktemp("index")
    at_once = ingested(folder / "batch.db", [known, [*chosen, *tail]])
    singly = ingested(folder / "single.db", [[one] for one in [*known, *chosen, *tail]])
    assert at_once == singly
    assert stored(folder / "batch.db") == stored(folder / "single.db")


def test_attack_one_batch_with_more_apps_than_a_publisher_may_have(index: Index, alice: Publisher) -> None:  # R-DS10
    index.ingest(from_relay(carried(alice.keyring.identity_document(), alice.keyring)))
    outcomes = index.ingest(from_relay(*(manifest(alice, f"app{n}", 1) for n in range(MAX_APPS + 2))))
    assert [one.fate for one in outcomes[:MAX_APPS]] == [Fate.ACCEPTED] * MAX_APPS
    assert [one.reason for one in outcomes[MAX_APPS:]] == [Reason.TOO_MANY] * 2
    again = index.ingest(from_relay(manifest(alice, "app0", 2), manifest(alice, "another", 1)))
    assert [one.fate for one in again] == [Fate.ACCEPTED, Fate.REFUSED]
