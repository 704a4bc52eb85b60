"""Contradictions: proofs that travel, decisions that open installs again, and branches that are chosen. R-DS5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from market.discovery import Event, Fate, Index, Reason, Wanted, decide, faults_of, new_proof_events, open_index
from market.discovery.documents import proof_body, proof_tags
from market.discovery.events import sign_event
from market.discovery.signing import sign_provider
from market.errors import UsageProblem
from market.identity import canonical_bytes, document_digest
from market.model import AppName, FlagKind
from tests.market.discovery.conftest import Clock
from tests.market.discovery.publishers import NOW, NostrKey, Publisher, carried, from_relay
from tests.market.discovery.test_attacks import ACCEPTED, flags, offered, published, reasons


def rival_of(publisher: Publisher, documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    document = next(one for one in documents if one["type"] == kind)
    change = {"expires": document["expires"] + 1} if kind == "head" else {"made": NOW + 1}
    return publisher.resigned(document, "online" if kind == "head" else "release", **change)


def proof_event(one: dict[str, Any], other: dict[str, Any]) -> Event:
    body = proof_body(one, other)
    tags = proof_tags(one["publisher"], document_digest(body))
    return sign_event(NostrKey(), created_at=NOW, kind=30078, tags=tags, content=canonical_bytes(body).decode())


@pytest.mark.parametrize("kind", ["head", "manifest", "release"])
def test_a_proof_reaches_a_node_that_saw_only_one_of_two_documents(
    index: Index, tmp_path: Path, alice: Publisher, kind: str
) -> None:  # R-DS5
    documents = published(index, alice)
    index.ingest(from_relay(carried(rival_of(alice, documents, kind), alice.keyring)))
    [gossip] = new_proof_events(index, NostrKey(), NOW)
    with open_index(tmp_path / "other.db", now=lambda: NOW) as other:
        published_there = other.ingest(from_relay(*alice.events(*documents)))
        assert published_there == [ACCEPTED] * 4
        assert flags(other, alice) == set()
        event = msgspec.convert(gossip, Event)
        assert other.ingest(from_relay(event)) == [ACCEPTED]
        assert flags(other, alice) == {FlagKind.EQUIVOCATION}
        assert new_proof_events(other, NostrKey(), NOW) == []
    assert index.ingest(from_relay(msgspec.convert(gossip, Event)))[0].fate is Fate.ACCEPTED
    assert new_proof_events(index, NostrKey(), NOW) == []


def test_a_proof_waits_for_the_identity_it_speaks_of(index: Index, alice: Publisher) -> None:
    documents = alice.release().documents
    event = proof_event(documents[3], rival_of(alice, documents, "head"))
    assert reasons(index.ingest(from_relay(event))) == [Reason.UNKNOWN_IDENTITY]
    index.ingest(from_relay(*alice.events(*documents)))
    assert flags(index, alice) == {FlagKind.EQUIVOCATION}


def test_nobody_can_make_up_a_proof(index: Index, alice: Publisher, mallory: Publisher) -> None:
    documents = published(index, alice)
    later = published(index, alice, "1.1.0")
    rival = rival_of(alice, documents, "head")
    unsigned = {**rival, "expires": rival["expires"] + 5}
    forged = mallory.resigned(rival)
    for one, other, reason in (
        (documents[3], later[3], Reason.NO_PROOF),
        (documents[3], documents[3], Reason.NO_PROOF),
        (documents[3], documents[1], Reason.NO_PROOF),
        (documents[3], unsigned, Reason.BAD_PROOF),
        (documents[3], forged, Reason.NO_ROLE),
    ):
        assert reasons(index.ingest(from_relay(proof_event(one, other)))) == [reason]
    event = proof_event(documents[3], rival)
    swapped = json.loads(event.content)
    swapped["documents"].reverse()
    body = canonical_bytes(swapped).decode()
    tags = proof_tags(alice.did, document_digest(swapped))
    backwards = sign_event(NostrKey(), created_at=NOW, kind=30078, tags=tags, content=body)
    assert reasons(index.ingest(from_relay(backwards))) == [Reason.BAD_DOCUMENT]
    assert flags(index, alice) == set()


def test_the_operators_decision_opens_installs_and_covers_no_third_document(index: Index, alice: Publisher) -> None:
    documents = published(index, alice)
    rival = rival_of(alice, documents, "release")
    index.ingest(from_relay(carried(rival, alice.keyring)))
    [fault] = faults_of(index, alice.did)
    assert set(fault.evidence) == {document_digest(documents[2]).hex, document_digest(rival).hex}
    with pytest.raises(UsageProblem, match="no contradiction"):
        decide(index, alice.did, "00" * 32)
    assert decide(index, alice.did, document_digest(documents[2]).hex).chosen == document_digest(documents[2]).hex
    assert (flags(index, alice), offered(index, alice)) == (set(), "1.0.0")
    third = alice.resigned(documents[2], made=NOW + 2)
    index.ingest(from_relay(carried(third, alice.keyring)))
    assert flags(index, alice) == {FlagKind.EQUIVOCATION}


def test_choosing_the_other_branch_of_a_fork_takes_what_was_signed_under_the_first(
    index: Index, alice: Publisher, mallory: Publisher
) -> None:
    """The node saw the thief's entry 0 first; the operator learns which is genuine and says so."""
    genuine = alice.keyring.identity_document()
    thiefs = alice.resigned(genuine, "inception", nostr=[mallory.keyring.nostr_pubkey])
    evil = alice.resigned(alice.release("6.6.6").documents[1], identity=document_digest(thiefs).hex, seq=99)
    index.ingest(from_relay(carried(thiefs, mallory.keyring), carried(evil, mallory.keyring)))
    assert index.listing(AppName(alice.did, "hello")) is not None
    assert reasons(index.ingest(from_relay(*alice.events(genuine)))) == [Reason.FORK]
    decide(index, alice.did, document_digest(genuine).hex)
    history = index.identity(alice.did)
    assert history is not None
    assert [entry.digest for entry in history.entries] == [document_digest(genuine)]
    index.ingest(from_relay(*alice.events(*alice.release("1.0.0").documents)))
    assert (flags(index, alice), offered(index, alice)) == (set(), "1.0.0")
    assert reasons(index.ingest(from_relay(carried(evil, mallory.keyring)))) == [Reason.UNKNOWN_IDENTITY]


def test_a_flood_of_contradictions_costs_a_bounded_number_of_rows(index: Index, alice: Publisher) -> None:  # R-DS10
    documents = published(index, alice)
    many = [alice.resigned(documents[1], made=NOW + number) for number in range(1, 40)]
    index.ingest(from_relay(*(carried(one, alice.keyring) for one in many)))
    [fault] = faults_of(index, alice.did)
    assert 2 <= len(fault.evidence) <= 8


def test_a_deletion_hides_and_takes_nothing_back(index: Index, alice: Publisher, mallory: Publisher) -> None:
    events = alice.events(*alice.release().documents)
    index.ingest(from_relay(*events))
    published(index, mallory, app_id="other")
    tags = [["e", events[1].id], ["k", "30078"]]
    theirs = sign_event(mallory.keyring, created_at=NOW, kind=5, tags=tags, content="")
    assert index.ingest(from_relay(theirs)) == [ACCEPTED]
    assert len(index.search(Wanted(publisher=alice.did))) == 1
    own = sign_event(alice.keyring, created_at=NOW, kind=5, tags=tags, content="")
    assert index.ingest(from_relay(own)) == [ACCEPTED]
    assert index.search(Wanted(publisher=alice.did)) == []
    assert len(index.search(Wanted(publisher=alice.did, hidden=True))) == 1
    assert offered(index, alice) == "1.0.0"
    stranger = sign_event(NostrKey(), created_at=NOW, kind=5, tags=tags, content="")
    assert reasons(index.ingest(from_relay(stranger))) == [Reason.UNBOUND]


def test_write_relays_come_from_the_identity_and_from_nip_65(index: Index, alice: Publisher) -> None:
    from market.discovery.reading import write_relays

    published(index, alice)
    tags = [["r", "wss://write.example/", "write"], ["r", "wss://read.example", "read"], ["r", "wss://both.example"],
            ["r", "http://no.example"]]  # fmt: skip
    listed = sign_event(alice.keyring, created_at=NOW, kind=10002, tags=tags, content="")
    assert index.ingest(from_relay(listed)) == [ACCEPTED]
    with index.reading() as db:
        assert set(write_relays(db, [alice.did])) == {"wss://write.example", "wss://both.example"}


def test_a_provider_is_believed_for_its_hour(index: Index, alice: Publisher, clock: Clock) -> None:
    from market.discovery.reading import providers

    published(index, alice)
    app = AppName(alice.did, "hello")
    word = sign_provider(alice.keyring, ["https://node.example"], 100, [app], now=NOW)
    [event] = alice.events(word)
    assert ("expiration", str(NOW + 3600)) in event.tags
    assert index.ingest(from_relay(event)) == [ACCEPTED]
    with index.reading() as db:
        assert [one.endpoints for one in providers(db, app, NOW)] == [("https://node.example",)]
        assert providers(db, app, NOW + 3601) == []
    clock.time = NOW + 3601
    index.revisit()
    assert reasons(index.ingest(from_relay(event))) == [Reason.EXPIRED]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Wanted("hello"), True),
        (Wanted(category="demo"), True),
        (Wanted(category="dem"), False),
        (Wanted("hello", category="music"), False),
        (Wanted(arch="amd64"), True),
        (Wanted(arch="arm64"), False),
        (Wanted(without=("internet",)), False),
        (Wanted(without=("gpu",)), True),
        (Wanted("hello", publisher="did:key:z6MkOther"), False),
    ],
)
def test_filters_narrow_a_search(index: Index, alice: Publisher, wanted: Wanted, found: bool) -> None:
    members = {
        "permissions": {"internet": "outbound"},
        "containers": {"web": {"image": {"platforms": {"amd64": {}}}}},
    }
    published(index, alice, manifest=members)
    assert bool(index.search(wanted)) is found
    assert bool(index.search(Wanted(publisher=alice.did)))
    assert bool(index.search(Wanted(publisher=alice.did.removeprefix("did:key:")[:10])))


def test_rank_is_text_times_standing_and_an_unknown_publisher_is_still_found(
    index: Index, alice: Publisher, mallory: Publisher
) -> None:  # R-TR4
    for publisher in (alice, mallory):
        published(index, publisher)
    for first, second in ((alice, mallory), (mallory, alice)):
        found = index.search(Wanted("hello", standing={first.did: 2.0}))
        assert [listing.app.publisher for listing in found] == [first.did, second.did]
