"""The attacks that The Update Framework names, and those of this protocol, each as a test. R-DS2 to R-DS7, R-TR6.

A real index receives signed events; what counts is what it offers afterwards, and why not.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from apps.names import AppName
from market.discovery import (
    Event,
    Fate,
    Index,
    Outcome,
    Reason,
    open_index,
    refresh_head,
    sign_key_revocation,
    sign_release,
    sign_revocation,
)
from market.discovery.documents import MAX_HEAD_LIFE
from market.identity import Change, Keyring, Role, document_digest
from market.model import FlagKind
from tests.market.discovery.conftest import Clock
from tests.market.discovery.publishers import NOW, NostrKey, Publisher, carried, from_relay, install_manifest
from tests.market.discovery.test_attacks import ACCEPTED, flags, offered, published, reasons


def test_rollback_attack(index: Index, alice: Publisher) -> None:  # R-DS3
    """A relay serves yesterday's genuine head and manifest after today's."""
    old = alice.release("1.0.0").documents
    published(index, alice, "1.1.0")
    assert reasons(index.ingest(from_relay(*alice.events(*old[1:])))) == [Reason.ROLLBACK, None, Reason.ROLLBACK]
    assert offered(index, alice) == "1.1.0"


def test_freeze_attack(index: Index, alice: Publisher, clock: Clock) -> None:  # R-DS4
    """A relay serves one genuine head for ever: it ends, and the operator is told since when it is silent."""
    published(index, alice)
    clock.time += 91 * 86_400
    assert flags(index, alice) == {FlagKind.STALE}


def test_no_head_outlives_its_bound(index: Index, alice: Publisher) -> None:
    """A thief of the online key can not freeze an app for longer than a head may live."""
    head = published(index, alice)[3]
    with pytest.raises(Exception, match="7 to 400 days"):
        refresh_head(alice.keyring, "hello", now=NOW, life=MAX_HEAD_LIFE + 1)
    assert head["expires"] - head["made"] <= MAX_HEAD_LIFE


def test_fast_forward_attack_and_its_recovery(index: Index, alice: Publisher) -> None:  # R-DS3, R-DS7
    """A thief of the online key uses up the epochs; marks belong to a key epoch, and a rotation begins a new one."""
    documents = published(index, alice)
    forward = alice.resigned(documents[3], "online", epoch=2**53 - 2)
    assert index.ingest(from_relay(carried(forward, alice.keyring))) == [ACCEPTED]
    assert reasons(index.ingest(from_relay(*alice.events(refresh_head(alice.keyring, "hello", now=NOW))))) == [
        Reason.ROLLBACK
    ]
    rotated = alice.keyring.rotate(Change(roles=frozenset({Role.ONLINE})), now=NOW)
    recovery = [rotated.identity_document(), refresh_head(rotated, "hello", now=NOW + 2)]
    assert index.ingest(from_relay(*(carried(one, rotated) for one in recovery))) == [ACCEPTED] * 2
    assert offered(index, alice) == "1.0.0"
    later = alice.resigned(forward, "release", epoch=2**53 - 1, identity=rotated.identity_digest.hex)
    assert reasons(index.ingest(from_relay(carried(later, alice.keyring)))) == [Reason.NO_ROLE]


def test_mix_and_match_attack(index: Index, alice: Publisher) -> None:
    """A head of one app with a release of another, and a head whose release was never signed so."""
    other = published(index, alice, "9.0.0", app_id="other")[3]
    head = published(index, alice)[3]
    mixed = alice.resigned(head, "online", epoch=2, releases={"stable": {**other["releases"]["stable"], "seq": 9}})
    index.ingest(from_relay(carried(mixed, alice.keyring)))
    assert offered(index, alice) is None


def test_mix_and_match_by_withholding_a_revocation(index: Index, alice: Publisher) -> None:  # R-DS6
    """A relay shows the newest head and hides the revocation that it names: the app is not installed meanwhile."""
    first = alice.release("1.0.0")
    second = alice.release("1.1.0")
    revocation, head = sign_revocation(alice.keyring, "hello", first.digest, reason="leaks", now=NOW)
    assert head is not None
    index.ingest(from_relay(*alice.events(*first.documents, *second.documents[1:3], head)))
    assert flags(index, alice) == {FlagKind.WITHHELD}
    index.ingest(from_relay(*alice.events(revocation)))
    assert flags(index, alice) == set()
    assert offered(index, alice) == "1.1.0"


def test_wrong_key_attack(index: Index, alice: Publisher, mallory: Publisher) -> None:
    """Documents that name alice as their publisher, signed by somebody else's keys."""
    documents = published(index, alice)
    published(index, mallory)
    stolen = [mallory.resigned(documents[2], seq=9), mallory.resigned(documents[3], "online", epoch=9)]
    assert reasons(index.ingest(from_relay(*(carried(one, alice.keyring) for one in stolen)))) == [Reason.NO_ROLE] * 2


def test_key_compromise_with_pre_rotation(index: Index, alice: Publisher) -> None:  # R-DS7
    """A thief has every key of the daily machine. The owner's next root key is in a drawer: the thief loses."""
    published(index, alice)
    evil = alice.release("6.6.6").documents
    thief = alice.keyring  # keeps signing with what was stolen
    rotated = alice.keyring.rotate(Change(roles=frozenset(Role), nostr=True), now=NOW)
    thiefs_entry = alice.identity_entry(evil[0], "release")
    assert reasons(index.ingest(from_relay(carried(thiefs_entry, thief)))) == [Reason.NO_ROLE]
    old_key = thief.current.entry.keys.release[0]
    revocation = sign_key_revocation(rotated, old_key, {"hello": 1}, reason="stolen", now=NOW)
    head = refresh_head(rotated, "hello", now=NOW)
    index.ingest(from_relay(*(carried(one, rotated) for one in (rotated.identity_document(), revocation, head))))
    outcomes = index.ingest(from_relay(*(carried(one, rotated) for one in evil[1:3])))
    assert reasons(outcomes) == [Reason.REVOKED] * 2
    assert index.ingest(from_relay(carried(evil[3], thief)))[0].fate is Fate.REFUSED
    releases = [one.version for one in index.releases(AppName(alice.did, "hello"))]
    assert releases == ["1.0.0"]


def test_key_compromise_without_pre_rotation(index: Index, alice: Publisher, mallory: Publisher) -> None:  # R-DS5
    """A thief has the inception key and tells new readers another entry 0. Who saw the first one sees a fork."""
    published(index, alice)
    history = index.identity(alice.did)
    other = alice.resigned(alice.keyring.identity_document(), "inception", nostr=[mallory.keyring.nostr_pubkey])
    assert reasons(index.ingest(from_relay(carried(other, mallory.keyring)))) == [Reason.FORK]
    assert flags(index, alice) == {FlagKind.FORK}
    after = index.identity(alice.did)
    assert after is not None
    assert history is not None
    assert after.entries == history.entries


def test_endless_data_attack(index: Index, alice: Publisher) -> None:  # R-DS10
    """Documents and events above their bounds are refused by size before anything is parsed."""
    from market.discovery.checks import check_document
    from market.discovery.events import MAX_EVENT_SIZE, decode_event
    from market.discovery.reasons import Refusal

    event = alice.events(*alice.release().documents)[2]
    huge = msgspec.structs.replace(event, content="x" * 30_000)
    outcome = check_document(huge)
    assert isinstance(outcome, Refusal)
    assert outcome.reason is Reason.OVERSIZE
    raw = decode_event(msgspec.structs.replace(event, content="x" * MAX_EVENT_SIZE).to_bytes())
    assert isinstance(raw, Refusal)
    assert raw.reason is Reason.OVERSIZE


def test_replay_under_another_key(index: Index, alice: Publisher, mallory: Publisher) -> None:  # R-TR6
    """Genuine documents, carried by a Nostr key that the publisher does not name."""
    documents = alice.release().documents
    index.ingest(from_relay(*alice.events(documents[0])))
    replayed = [carried(one, mallory.keyring) for one in documents[1:]]
    assert reasons(index.ingest(from_relay(*replayed))) == [Reason.UNBOUND] * 3


def test_revoked_release_republished(index: Index, alice: Publisher) -> None:  # R-DS6
    """A withdrawn release, sent again in a new event, and offered again by a thief of the online key."""
    signed = alice.release()
    index.ingest(from_relay(*alice.events(*signed.documents)))
    revocation, head = sign_revocation(alice.keyring, "hello", signed.digest, reason="leaks keys", now=NOW)
    assert head is not None
    index.ingest(from_relay(*alice.events(revocation, head)))
    again = carried(signed.documents[2], alice.keyring, created_at=NOW + 500)
    assert index.ingest(from_relay(again))[0].fate is not Fate.ACCEPTED
    thiefs = alice.resigned(head, "online", epoch=50, revocations=[])
    index.ingest(from_relay(carried(thiefs, alice.keyring)))
    assert FlagKind.REVOKED in flags(index, alice)


def test_state_is_not_persisted_before_the_check(index: Index, alice: Publisher, mallory: Publisher) -> None:  # R-DS3
    """A head with an enormous epoch that fails a late check moves no mark: the next genuine one is accepted."""
    head = published(index, alice)[3]
    published(index, mallory)
    for lie in (
        carried(mallory.resigned(head, "online", epoch=2**52), alice.keyring),
        carried(alice.resigned(head, "online", epoch=2**52), mallory.keyring),
        carried(alice.resigned(head, "online", epoch=2**52, made=NOW + 7200, expires=NOW + 90 * 86_400), alice.keyring),
        msgspec.structs.replace(carried(alice.resigned(head, "online", epoch=2**52), alice.keyring), sig="11" * 64),
    ):
        assert index.ingest(from_relay(lie))[0].fate is not Fate.ACCEPTED
    assert index.ingest(from_relay(*alice.events(refresh_head(alice.keyring, "hello", now=NOW)))) == [ACCEPTED]


@pytest.mark.parametrize("minutes", [-30, 30])
def test_a_clock_30_minutes_off(tmp_path: Path, alice: Publisher, minutes: int) -> None:
    """A node's clock is half an hour wrong: nothing fresh goes stale, and what seems ahead waits and is not lost."""
    clock = Clock()
    with open_index(tmp_path / "off.db", now=clock) as index:
        clock.time = NOW + minutes * 60
        index.ingest(from_relay(*alice.events(*alice.release("1.0.0").documents)))
        clock.time = NOW + 60
        index.revisit()
        assert (offered(index, alice), flags(index, alice)) == ("1.0.0", set())


def test_a_celebritys_nostr_key_is_claimed(index: Index, mallory: Publisher) -> None:  # R-TR6
    celebrity = NostrKey()
    own = mallory.keyring.nostr_pubkey
    claiming = mallory.resigned(mallory.keyring.identity_document(), "inception", nostr=[celebrity.nostr_pubkey, own])
    index.ingest(from_relay(carried(claiming, mallory.keyring)))
    assert dict(index.evidence().bound) == {own: mallory.did}


def test_a_thief_of_the_nostr_key_overwrites_a_releases_address(index: Index, alice: Publisher) -> None:
    """The thief can take the address on relays, but signs no document: who has the release keeps it, the publisher
    gives it a new address under its next Nostr key, and the histories prove themselves there."""
    documents = published(index, alice)
    thief = alice.keyring
    [release] = alice.events(documents[2])
    emptied = carried(documents[2], thief, created_at=NOW + 300, content="{}", tags=[list(tag) for tag in release.tags])
    assert index.ingest(from_relay(emptied))[0].fate is Fate.REFUSED
    assert offered(index, alice) == "1.0.0"
    rotated = thief.rotate(Change(nostr=True), now=NOW)
    moved = [carried(one, rotated) for one in (*rotated.documents, *documents[1:])]
    assert index.ingest(from_relay(*moved))[1] == ACCEPTED
    assert offered(index, alice) == "1.0.0"
    assert reasons(index.ingest(from_relay(carried(refresh_head(rotated, "hello", now=NOW), thief)))) == [
        Reason.UNBOUND
    ]


def test_a_release_that_follows_a_newer_one_is_refused(index: Index, alice: Publisher) -> None:
    """The chain of releases runs forward only."""
    published(index, alice, "1.0.0")
    newest = published(index, alice, "1.1.0")[2]
    forged = alice.resigned(newest, seq=1_000, prev=document_digest(newest).hex, version="1.2.0",
                            install={**newest["install"], "version": "1.2.0"})  # fmt: skip
    assert index.ingest(from_relay(carried(forged, alice.keyring))) == [ACCEPTED]
    back = alice.resigned(newest, seq=500, prev=document_digest(forged).hex, version="1.1.9",
                          install={**newest["install"], "version": "1.1.9"})  # fmt: skip
    assert reasons(index.ingest(from_relay(carried(back, alice.keyring)))) == [Reason.BROKEN_CHAIN]


def test_two_machines_that_share_an_export_do_not_equivocate(tmp_path: Path, index: Index, alice: Publisher) -> None:
    from nacl.pwhash import argon2id

    from market.identity import export_identity, import_identity

    data = export_identity(
        alice.keyring, "correct horse battery", rounds=argon2id.OPSLIMIT_MIN, memory=argon2id.MEMLIMIT_MIN
    )
    other = import_identity(data, "correct horse battery", tmp_path / "other")
    published(index, alice)
    second = sign_release(other, install_manifest(version="1.1.0"), origins=["https://o.example"], source="", now=NOW)
    outcomes: list[Outcome] = []
    for document in second.documents:
        outcomes += index.ingest(from_relay(carried(document, other)))
    assert Reason.EQUIVOCATION not in reasons(outcomes)
    assert isinstance(other, Keyring)
    assert flags(index, alice) == set()


def test_events_are_what_this_file_builds(alice: Publisher) -> None:
    assert all(isinstance(event, Event) for event in alice.events(*alice.release().documents))
