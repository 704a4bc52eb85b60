"""What hostile publishers, key thieves and relays try, against the whole order of checks. R-DS2 to R-DS7, R-TR6.

Each test hands signed events to a real index and reads the outcome and what the index says afterwards.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from apps.names import AppName
from market.discovery import (
    Event,
    Fate,
    Index,
    Outcome,
    Reason,
    refresh_head,
    sign_key_revocation,
    sign_revocation,
)
from market.discovery.events import event_id, sign_event
from market.identity import Change, did_of, document_digest
from market.model import FlagKind, Listing
from tests.market.discovery.conftest import Clock
from tests.market.discovery.publishers import NOW, NostrKey, Publisher, carried, from_relay

ACCEPTED = Outcome(Fate.ACCEPTED)
KNOWN = Outcome(Fate.KNOWN)


def reasons(outcomes: list[Outcome]) -> list[Reason | None]:
    return [outcome.reason for outcome in outcomes]


def listed(index: Index, publisher: Publisher, app_id: str = "hello") -> Listing:
    listing = index.listing(AppName(publisher.did, app_id))
    assert listing is not None
    return listing


def offered(index: Index, publisher: Publisher) -> str | None:
    release = listed(index, publisher).release
    return release.version if release else None


def flags(index: Index, publisher: Publisher) -> set[FlagKind]:
    return {flag.kind for flag in listed(index, publisher).flags}


def published(index: Index, publisher: Publisher, version: str = "1.0.0", **options: Any) -> list[dict[str, Any]]:
    """Sign and ingest a release; all of it is accepted (or known, for the identity)."""
    documents = publisher.release(version, **options).documents
    outcomes = index.ingest(from_relay(*publisher.events(*documents)))
    assert {outcome.fate for outcome in outcomes} <= {Fate.ACCEPTED, Fate.KNOWN}
    return documents


# The honest case


def test_a_published_app_is_listed_with_its_release_and_no_flag(index: Index, alice: Publisher) -> None:  # R-DS1
    signed = alice.release("1.0.0")
    assert index.ingest(from_relay(*alice.events(*signed.documents))) == [ACCEPTED] * 4
    listing = listed(index, alice)
    assert listing.release is not None
    assert (listing.release.version, listing.release.seq, listing.release.digest) == ("1.0.0", 1, signed.digest)
    assert listing.release.manifest["id"] == "hello"
    assert listing.release.origins == ("https://origin.example",)
    assert (listing.title, listing.categories, listing.flags) == ("Hello", ("demo",), ())
    assert listing.nostr_pubkeys == (alice.keyring.nostr_pubkey,)
    assert listing.relays == ("ws://relay.test",)


def test_events_may_come_in_any_order(index: Index, alice: Publisher) -> None:
    events = alice.events(*alice.release().documents)
    outcomes = index.ingest(from_relay(*reversed(events)))
    assert reasons(outcomes) == [Reason.UNKNOWN_IDENTITY] * 3 + [None]
    assert offered(index, alice) == "1.0.0"
    assert index.ingest(from_relay(*events)) == [KNOWN] * 4


def test_publishing_again_changes_nothing(index: Index, alice: Publisher) -> None:
    documents = published(index, alice)
    first = alice.events(*documents)
    assert [event.id for event in alice.events(*documents)] == [event.id for event in first]
    assert index.ingest(from_relay(*first, relay="ws://second.test")) == [KNOWN] * 4
    assert listed(index, alice).relays == ("ws://relay.test", "ws://second.test")


# Events: forged ids, signatures, and the liar who is first


def test_an_event_with_a_forged_id_is_refused(index: Index, alice: Publisher) -> None:  # R-DS2
    event = alice.events(*alice.release().documents)[0]
    forged = msgspec.structs.replace(event, id="00" * 32)
    assert reasons(index.ingest(from_relay(forged))) == [Reason.FORGED_ID]


def test_a_genuine_event_is_accepted_after_a_liar_sent_other_content_under_its_id(
    index: Index, alice: Publisher, mallory: Publisher
) -> None:  # R-DS2, R-DS9
    events = alice.events(*alice.release().documents)
    other = mallory.events(*mallory.release().documents)
    lies = [msgspec.structs.replace(lie, id=event.id) for lie, event in zip(other, events, strict=True)]
    assert reasons(index.ingest(from_relay(*lies, relay="ws://liar.test"))) == [Reason.FORGED_ID] * 4
    assert index.ingest(from_relay(*events)) == [ACCEPTED] * 4


def test_a_genuine_event_is_accepted_after_its_id_came_with_a_bad_signature(index: Index, alice: Publisher) -> None:
    events = alice.events(*alice.release().documents)
    lies = [msgspec.structs.replace(event, sig="11" * 64) for event in events]
    assert reasons(index.ingest(from_relay(*lies, *events))) == [Reason.BAD_SIGNATURE] * 4 + [None] * 4


def test_an_event_by_a_key_that_is_no_curve_point_is_refused(index: Index, alice: Publisher) -> None:
    event = alice.events(*alice.release().documents)[0]
    pubkey = "ff" * 32
    digest = event_id(pubkey, event.created_at, event.kind, event.tags, event.content).hex()
    forged = msgspec.structs.replace(event, pubkey=pubkey, id=digest)
    assert reasons(index.ingest(from_relay(forged))) == [Reason.BAD_SIGNATURE]


# Documents: form, proof, role, address


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.replace('{"archy":1', '{ "archy":1', 1),
        lambda text: text.replace('"archy":1', '"archy":1.0', 1),
        lambda text: text.replace('{"archy":1', '{"archy":1,"archy":1', 1),
        lambda text: json.dumps(dict(reversed(list(json.loads(text).items()))), separators=(",", ":")),
        lambda text: text.replace('"stable"', '"st\\u0061ble"', 1),
    ],
    ids=["whitespace", "float", "duplicate key", "key order", "escape"],
)
def test_a_document_that_is_not_in_canonical_form_is_refused(index: Index, alice: Publisher, spoil: Any) -> None:
    documents = published(index, alice)
    release = next(one for one in alice.release("2.0.0").documents if one["type"] == "release")
    content = alice.events(release)[0].content
    event = carried(release, alice.keyring, content=spoil(content))
    assert reasons(index.ingest(from_relay(event))) == [Reason.NOT_CANONICAL]
    assert offered(index, alice) == documents[2]["version"]


def test_an_unsigned_or_wrongly_signed_release_is_refused(index: Index, alice: Publisher, mallory: Publisher) -> None:
    release = published(index, alice)[2]
    changed = {**release, "origins": ["https://evil.example"]}
    theirs = mallory.resigned(release, origins=["https://evil.example"])
    assert reasons(index.ingest(from_relay(carried(changed, alice.keyring), carried(theirs, alice.keyring)))) == [
        Reason.BAD_PROOF,
        Reason.NO_ROLE,
    ]
    unsigned = {key: value for key, value in release.items() if key != "proof"}
    event = carried(release, alice.keyring, content=json.dumps(unsigned, sort_keys=True, separators=(",", ":")))
    assert index.ingest(from_relay(event))[0].fate is Fate.REFUSED


@pytest.mark.parametrize(
    ("kind", "signer"),
    [
        ("release", "online"),
        ("release", "inception"),
        ("release", "next-root"),
        ("manifest", "online"),
        ("head", "release"),
        ("head", "inception"),
    ],
)
def test_a_key_without_the_role_signs_nothing(index: Index, alice: Publisher, kind: str, signer: str) -> None:
    published(index, alice)
    document = next(one for one in alice.release("2.0.0").documents if one["type"] == kind)
    event = carried(alice.resigned(document, signer), alice.keyring)
    assert reasons(index.ingest(from_relay(event))) == [Reason.NO_ROLE]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d, t, i, c: [["d", d[1] + "x"], t, i, c],
        lambda d, t, i, c: [t, i, c],
        lambda d, t, i, c: [d, ["t", "archy1-head"], i, c],
        lambda d, t, i, c: [d, t, ["i", "z6Mkcelebrity/hello"], c],
        lambda d, t, i, c: [d, t, i, ["c", "beta"]],
        lambda d, t, i, c: [d, t, i, c, ["d", "another"]],
    ],
    ids=["other address", "no address", "other type", "other subject", "other channel", "two addresses"],
)
def test_an_event_whose_tags_differ_from_the_signed_document_is_refused(
    index: Index, alice: Publisher, spoil: Any
) -> None:
    published(index, alice)
    release = alice.release("2.0.0").documents[2]
    honest = [list(tag) for tag in alice.events(release)[0].tags]
    event = carried(release, alice.keyring, tags=spoil(*honest))
    assert reasons(index.ingest(from_relay(event))) == [Reason.WRONG_ADDRESS]


def test_a_release_whose_install_manifest_is_another_apps_is_refused(index: Index, alice: Publisher) -> None:
    release = published(index, alice)[2]
    changed = alice.resigned(release, install={**release["install"], "id": "other"}, seq=2)
    digest_free = {**release, "seq": 2}
    event = carried(digest_free, alice.keyring, content=json.dumps(changed, sort_keys=True, separators=(",", ":")))
    assert reasons(index.ingest(from_relay(event))) == [Reason.BAD_DOCUMENT]


def test_a_title_that_would_rewrite_the_terminal_is_refused(index: Index, alice: Publisher) -> None:
    manifest = published(index, alice)[1]
    for title in ("a\x1b[2Jb", "safe\u202etxt.exe", "line\nbreak"):
        changed = alice.resigned(manifest, title=title, seq=2)
        content = json.dumps(changed, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        event = carried(manifest, alice.keyring, content=content)
        assert index.ingest(from_relay(event))[0].reason in {Reason.BAD_DOCUMENT, Reason.NOT_CANONICAL}
    assert listed(index, alice).title == "Hello"


# Binding of DID and Nostr key


def test_a_valid_manifest_republished_under_another_nostr_key_is_refused(
    index: Index, alice: Publisher, mallory: Publisher
) -> None:  # R-DS2, R-TR6
    published(index, mallory)
    documents = alice.release().documents
    index.ingest(from_relay(*alice.events(documents[0])))
    thief = [carried(document, mallory.keyring) for document in documents]
    assert reasons(index.ingest(from_relay(*thief))) == [None] + [Reason.UNBOUND] * 3
    assert index.evidence().bound == {mallory.keyring.nostr_pubkey: mallory.did, alice.keyring.nostr_pubkey: alice.did}
    assert index.ingest(from_relay(*alice.events(*documents)))[1:] == [ACCEPTED] * 3


def test_an_identity_that_claims_a_celebritys_nostr_key_does_not_inherit_its_standing(
    index: Index, mallory: Publisher
) -> None:  # R-TR6
    celebrity = NostrKey()
    own = mallory.keyring.nostr_pubkey
    claiming = mallory.resigned(mallory.keyring.identity_document(), "inception", nostr=[celebrity.nostr_pubkey, own])
    assert index.ingest(from_relay(carried(claiming, mallory.keyring))) == [ACCEPTED]
    assert dict(index.evidence().bound) == {own: mallory.did}
    follows = sign_event(celebrity, created_at=NOW, kind=3, tags=[["p", "22" * 32]], content="")
    assert index.ingest(from_relay(follows)) == [ACCEPTED]
    assert index.evidence().follows == ((f"nostr:{celebrity.nostr_pubkey}", f"nostr:{'22' * 32}"),)


def test_an_identity_that_names_only_a_celebritys_key_binds_nobody_when_another_key_carries_it(
    index: Index, mallory: Publisher
) -> None:  # R-TR6
    celebrity = NostrKey()
    claiming = mallory.resigned(mallory.keyring.identity_document(), "inception", nostr=[celebrity.nostr_pubkey])
    index.ingest(from_relay(carried(claiming, mallory.keyring)))
    assert index.evidence().bound == {}
    digest = document_digest(claiming).hex
    manifest = mallory.resigned(mallory.release().documents[1], identity=digest)
    assert reasons(index.ingest(from_relay(carried(manifest, mallory.keyring)))) == [Reason.UNBOUND]


def test_a_history_proves_itself_when_the_first_nostr_key_is_lost(index: Index, alice: Publisher) -> None:  # R-DS7
    first = alice.keyring.identity_document()
    rotated = alice.keyring.rotate(Change(nostr=True), now=NOW + 1)
    outcomes = index.ingest(from_relay(carried(first, rotated), carried(rotated.identity_document(), rotated)))
    assert outcomes == [ACCEPTED] * 2
    assert index.evidence().bound == {rotated.nostr_pubkey: alice.did}


def test_a_document_waits_until_its_named_nostr_key_has_carried_the_identity(index: Index, alice: Publisher) -> None:
    second = NostrKey()
    keys = [alice.keyring.nostr_pubkey, second.nostr_pubkey]
    identity = alice.resigned(alice.keyring.identity_document(), "inception", nostr=keys)
    digest = document_digest(identity).hex
    documents = [
        alice.resigned(one, "online" if one["type"] == "head" else "release", identity=digest)
        for one in alice.release().documents[1:]
    ]
    index.ingest(from_relay(carried(identity, alice.keyring)))
    waiting = [carried(document, second) for document in documents[:2]]
    assert reasons(index.ingest(from_relay(*waiting))) == [Reason.AWAITS_BINDING] * 2
    assert index.search("hello") == []
    assert index.ingest(from_relay(carried(identity, second))) == [ACCEPTED]
    assert [listing.title for listing in index.search("hello")] == ["Hello"]


def test_a_nostr_key_that_two_publishers_carry_counts_for_the_first_only(
    index: Index, alice: Publisher, mallory: Publisher
) -> None:
    published(index, alice)
    both = [mallory.keyring.nostr_pubkey, alice.keyring.nostr_pubkey]
    claiming = mallory.resigned(mallory.keyring.identity_document(), "inception", nostr=both)
    assert index.ingest(from_relay(carried(claiming, alice.keyring))) == [ACCEPTED]  # alice's Nostr key was stolen
    assert index.evidence().bound[alice.keyring.nostr_pubkey] == alice.did


# Rollback, freeze, mix and match, equivocation, revocation


def test_an_older_release_after_a_newer_one_is_history_and_no_offer(index: Index, alice: Publisher) -> None:  # R-DS3
    old, new = alice.release("1.0.0").documents, alice.release("1.1.0").documents
    index.ingest(from_relay(*alice.events(*new)))
    outcomes = index.ingest(from_relay(*alice.events(*old[1:])))
    assert reasons(outcomes) == [Reason.ROLLBACK, None, Reason.ROLLBACK]
    assert offered(index, alice) == "1.1.0"
    assert [release.version for release in index.releases(AppName(alice.did, "hello"))] == ["1.1.0", "1.0.0"]


def test_a_later_created_at_does_not_make_an_old_head_new(index: Index, alice: Publisher) -> None:  # R-DS3
    old = published(index, alice, "1.0.0")[3]
    published(index, alice, "1.1.0")
    event = carried(old, alice.keyring, created_at=NOW + 600)
    assert reasons(index.ingest(from_relay(event))) == [Reason.ROLLBACK]


def test_a_thief_of_the_online_key_can_not_lead_back_to_an_old_release(index: Index, alice: Publisher) -> None:
    old = published(index, alice, "1.0.0")[3]
    new = published(index, alice, "1.1.0")[3]
    back = alice.resigned(new, "online", epoch=99, releases=old["releases"], made=NOW + 5, expires=NOW + 5 + 90 * 86400)
    assert reasons(index.ingest(from_relay(carried(back, alice.keyring)))) == [Reason.ROLLBACK]
    assert offered(index, alice) == "1.1.0"


def test_a_head_that_misstates_the_seq_of_an_old_release_offers_nothing(index: Index, alice: Publisher) -> None:
    old = published(index, alice, "1.0.0")[3]
    new = published(index, alice, "1.1.0")[3]
    lie = {"stable": {**old["releases"]["stable"], "seq": 50}}
    index.ingest(from_relay(carried(alice.resigned(new, "online", epoch=99, releases=lie), alice.keyring)))
    assert offered(index, alice) is None


def test_a_head_and_release_of_two_apps_do_not_mix(index: Index, alice: Publisher) -> None:
    other = published(index, alice, "9.0.0", app_id="other")[3]
    head = published(index, alice)[3]
    mixed = alice.resigned(head, "online", epoch=2, releases={"stable": {**other["releases"]["stable"], "seq": 9}})
    index.ingest(from_relay(carried(mixed, alice.keyring)))
    assert offered(index, alice) is None


def test_an_expired_head_makes_the_listing_stale_and_says_for_how_long(
    index: Index, alice: Publisher, clock: Clock
) -> None:  # R-DS4
    published(index, alice)
    clock.time = NOW + 120 * 86_400
    [flag] = listed(index, alice).flags
    assert flag.kind is FlagKind.STALE
    assert "120 days" in flag.text
    index.ingest(from_relay(*alice.events(refresh_head(alice.keyring, "hello", now=clock.time), now=clock.time)))
    assert listed(index, alice).flags == ()


def test_an_app_without_a_head_has_no_offer(index: Index, alice: Publisher) -> None:
    index.ingest(from_relay(*alice.events(*alice.release().documents[:3])))
    assert offered(index, alice) is None
    assert flags(index, alice) == {FlagKind.NO_HEAD}


@pytest.mark.parametrize("kind", ["release", "head", "manifest"])
def test_two_documents_for_one_number_are_kept_as_proof_and_flagged(
    index: Index, alice: Publisher, kind: str
) -> None:  # R-DS5
    documents = published(index, alice)
    document = next(one for one in documents if one["type"] == kind)
    change: dict[str, Any] = {"made": NOW + 1} if kind != "head" else {"expires": document["expires"] + 1}
    rival = alice.resigned(document, "online" if kind == "head" else "release", **change)
    assert reasons(index.ingest(from_relay(carried(rival, alice.keyring)))) == [Reason.EQUIVOCATION]
    [flag] = listed(index, alice).flags
    assert flag.kind is FlagKind.EQUIVOCATION
    assert set(flag.evidence) == {document_digest(document).hex, document_digest(rival).hex}
    assert offered(index, alice) == "1.0.0"
    published(index, alice, "1.1.0")
    assert FlagKind.EQUIVOCATION in flags(index, alice)


def test_two_releases_of_one_version_are_an_equivocation(index: Index, alice: Publisher) -> None:  # R-DS5
    release = published(index, alice)[2]
    rival = alice.resigned(release, seq=7, origins=["https://evil.example"])
    assert reasons(index.ingest(from_relay(carried(rival, alice.keyring)))) == [Reason.EQUIVOCATION]


def test_signing_the_same_document_twice_is_no_equivocation(index: Index, alice: Publisher) -> None:
    release = published(index, alice)[2]
    again = alice.resigned(release)
    assert index.ingest(from_relay(carried(again, alice.keyring, created_at=NOW + 9))) == [KNOWN]
    assert flags(index, alice) == set()


def test_a_forked_identity_flags_everything_of_the_publisher(index: Index, alice: Publisher) -> None:  # R-DS5
    published(index, alice)
    rival = alice.resigned(alice.keyring.identity_document(), "inception", relays=["wss://evil.example"])
    assert reasons(index.ingest(from_relay(carried(rival, alice.keyring)))) == [Reason.FORK]
    assert flags(index, alice) == {FlagKind.FORK}
    history = index.identity(alice.did)
    assert history is not None
    assert len(history.forks) == 1


@pytest.mark.parametrize("first", ["release", "revocation"])
def test_a_revoked_release_stays_revoked_whichever_came_first(
    index: Index, alice: Publisher, first: str
) -> None:  # R-DS6
    signed = alice.release()
    revocation, head = sign_revocation(alice.keyring, "hello", signed.digest, reason="leaks keys", now=NOW)
    assert head is not None
    events = alice.events(*signed.documents)
    withdrawal = alice.events(revocation, head)
    order = [*events, *withdrawal] if first == "release" else [events[0], *withdrawal, *events[1:]]
    for event in order:
        index.ingest(from_relay(event))
    assert FlagKind.REVOKED in flags(index, alice)
    assert index.releases(AppName(alice.did, "hello")) == []
    index.ingest(from_relay(*events))
    assert FlagKind.REVOKED in flags(index, alice)


def test_nobody_revokes_the_release_of_another_publisher(index: Index, alice: Publisher, mallory: Publisher) -> None:
    release = published(index, alice)[2]
    published(index, mallory)
    revocation, _ = sign_revocation(mallory.keyring, "hello", document_digest(release), reason="spite", now=NOW)
    assert index.ingest(from_relay(*mallory.events(revocation))) == [ACCEPTED]
    assert (offered(index, alice), flags(index, alice)) == ("1.0.0", set())


@pytest.mark.parametrize("order", ["before", "after"])
def test_what_a_revoked_key_signed_after_its_last_valid_seq_is_refused_or_flagged(
    index: Index, alice: Publisher, order: str
) -> None:  # R-DS6
    published(index, alice, "1.0.0")
    stolen = alice.events(*alice.release("6.6.6").documents[1:])
    key = alice.keyring.current.entry.keys.release[0]
    revocation = sign_key_revocation(alice.keyring, key, {"hello": 1}, reason="stolen", now=NOW)
    withdrawal = alice.events(revocation)
    if order == "before":
        index.ingest(from_relay(*withdrawal))
        assert reasons(index.ingest(from_relay(*stolen)))[:2] == [Reason.REVOKED] * 2
    else:
        index.ingest(from_relay(*stolen))
        index.ingest(from_relay(*withdrawal))
        assert FlagKind.REVOKED in flags(index, alice)
    assert offered(index, alice) is None
    assert [release.version for release in index.releases(AppName(alice.did, "hello"))] == ["1.0.0"]


def test_a_release_key_can_not_revoke_keys(index: Index, alice: Publisher) -> None:
    published(index, alice)
    key = alice.keyring.current.entry.keys.online[0]
    honest = sign_key_revocation(alice.keyring, key, {}, reason="", now=NOW)
    event = carried(alice.resigned(honest, "release"), alice.keyring)
    assert reasons(index.ingest(from_relay(event))) == [Reason.NO_ROLE]


# Rotation


def test_after_a_rotation_marks_begin_anew_and_undo_a_fast_forward(
    index: Index, alice: Publisher
) -> None:  # R-DS3, R-DS7
    documents = published(index, alice)
    far = 2**53 - 2
    forward = alice.resigned(documents[3], "online", epoch=far)
    assert index.ingest(from_relay(carried(forward, alice.keyring))) == [ACCEPTED]
    entry = alice.identity_entry(documents[0], "next-root")
    assert index.ingest(from_relay(carried(entry, alice.keyring))) == [ACCEPTED]
    recovered = alice.resigned(documents[3], "online", identity=document_digest(entry).hex, epoch=2)
    assert index.ingest(from_relay(carried(recovered, alice.keyring))) == [ACCEPTED]
    assert listed(index, alice).head_epoch == 2
    assert offered(index, alice) == "1.0.0"


def test_an_online_key_that_was_rotated_away_signs_no_more_heads(index: Index, alice: Publisher) -> None:
    documents = published(index, alice)
    keys = {"release": documents[0]["keys"]["release"], "online": [did_of(bytes(32)).removeprefix("did:key:")]}
    entry = alice.identity_entry(documents[0], "next-root", keys=keys)
    index.ingest(from_relay(carried(entry, alice.keyring)))
    later = alice.resigned(documents[3], "online", epoch=2)
    assert reasons(index.ingest(from_relay(carried(later, alice.keyring)))) == [Reason.NO_ROLE]


def test_a_publisher_that_dropped_all_its_nostr_keys_is_unbound(index: Index, alice: Publisher) -> None:
    documents = published(index, alice)
    second = NostrKey()
    entry = alice.identity_entry(documents[0], "next-root", nostr=[second.nostr_pubkey])
    index.ingest(from_relay(carried(entry, second)))
    assert listed(index, alice).nostr_pubkeys == (second.nostr_pubkey,)
    assert reasons(index.ingest(from_relay(*alice.events(refresh_head(alice.keyring, "hello", now=NOW))))) == [
        Reason.UNBOUND
    ]


# Time


def test_a_future_dated_document_is_set_aside_and_looked_at_when_its_time_has_come(
    index: Index, alice: Publisher, clock: Clock
) -> None:
    events = alice.events(*alice.release("1.0.0", now=NOW + 3600).documents)
    assert reasons(index.ingest(from_relay(*events))) == [None] + [Reason.FUTURE] * 3
    index.revisit()
    assert index.search("") == []
    clock.time = NOW + 3600 - 15 * 60
    index.revisit()
    assert offered(index, alice) == "1.0.0"


def test_a_clock_that_is_ten_minutes_behind_locks_nobody_out(index: Index, alice: Publisher) -> None:
    events = alice.events(*alice.release("1.0.0", now=NOW + 600).documents)
    assert index.ingest(from_relay(*events)) == [ACCEPTED] * 4


def test_a_future_dated_follow_list_waits_too(index: Index, clock: Clock) -> None:
    person = NostrKey()
    ahead = sign_event(person, created_at=NOW + 7200, kind=3, tags=[["p", "33" * 32]], content="")
    assert reasons(index.ingest(from_relay(ahead))) == [Reason.FUTURE]
    clock.time = NOW + 7200
    index.revisit()
    assert len(index.evidence().follows) == 1


# Floods


def test_a_relay_that_floods_pushes_out_only_what_itself_set_aside(
    index: Index, alice: Publisher, mallory: Publisher
) -> None:  # R-DS10
    events = alice.events(*alice.release().documents)
    index.ingest(from_relay(*events[1:], relay="ws://liar.test"))
    index.ingest(from_relay(*events[1:], relay="ws://honest.test"))
    genuine = mallory.release().documents[1]
    flood = [carried(mallory.resigned(genuine, seq=10 + number), mallory.keyring) for number in range(1100)]
    assert reasons(index.ingest(from_relay(*flood, relay="ws://liar.test"))) == [Reason.UNKNOWN_IDENTITY] * 1100
    index.ingest(from_relay(events[0]))
    assert offered(index, alice) == "1.0.0"


# Lists, lag and unknown kinds


def test_an_older_follow_list_does_not_replace_a_newer_one(index: Index) -> None:
    person = NostrKey()
    lists = [
        sign_event(person, created_at=NOW - age, kind=3, tags=[["p", letter * 64], ["p", "bad"]], content="")
        for age, letter in ((0, "a"), (10, "b"))
    ]
    assert reasons(index.ingest(from_relay(*lists))) == [None, Reason.ROLLBACK]
    assert index.evidence().follows == ((f"nostr:{person.nostr_pubkey}", f"nostr:{'a' * 64}"),)


def test_withholding_shows_as_the_lag_of_the_relay(index: Index, alice: Publisher) -> None:  # R-DS8
    old, new = (alice.events(*alice.release(version).documents) for version in ("1.0.0", "1.1.0"))
    index.ingest(from_relay(*old, relay="ws://slow.test"))
    index.ingest(from_relay(*new, relay="ws://fast.test"))
    assert index.lags() == {"ws://slow.test": (f"{alice.did}/hello",)}
    index.ingest(from_relay(*new, relay="ws://slow.test"))
    assert index.lags() == {}


def test_an_event_of_an_unknown_kind_of_document_is_refused(index: Index, alice: Publisher) -> None:
    event = sign_event(alice.keyring, created_at=NOW, kind=30078, tags=[["d", "x"]], content='{"type":"provider"}')
    assert reasons(index.ingest(from_relay(event))) == [Reason.BAD_DOCUMENT]
    other = sign_event(alice.keyring, created_at=NOW, kind=1, tags=[], content="hello")
    assert reasons(index.ingest(from_relay(other))) == [Reason.UNMATCHED]


def test_an_event_comes_back_out_exactly_as_it_was_signed(index: Index, alice: Publisher) -> None:
    events = alice.events(*alice.release().documents)
    index.ingest(from_relay(*events))
    stored = {event["id"]: msgspec.convert(event, Event) for event in index.events_of(AppName(alice.did, "hello"))}
    assert stored == {event.id: event for event in events}
