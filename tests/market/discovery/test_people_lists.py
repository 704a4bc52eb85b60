"""Lists of people (NIP-02, NIP-51): which count, what they replace, and what stays when they go."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from market.discovery import Fate, Index, Reason, sign_attestation
from market.discovery.events import Event
from market.identity.forms import BadDocument
from market.model import AttestKind, Digest
from tests.market.discovery.publishers import NOW, NostrKey, Publisher, from_relay, people_list

ADA, BEN, EVE = NostrKey(), NostrKey(), NostrKey()


def person(key: NostrKey) -> str:
    return f"nostr:{key.nostr_pubkey}"


def take(index: Index, *events: Event) -> list[Fate]:
    return [outcome.fate for outcome in index.ingest(from_relay(*events))]


def test_follows_and_explicit_trust_are_edges_and_mutes_and_distrust_are_kept_apart(index: Index) -> None:  # R-TR1
    ben, eve = BEN.nostr_pubkey, EVE.nostr_pubkey
    take(
        index,
        people_list(ADA, ben),
        people_list(ADA, eve, kind=30_000, name="archy-trust"),
        people_list(BEN, eve, kind=10_000),
        people_list(EVE, ben, kind=30_000, name="archy-distrust"),
        people_list(BEN, ADA.nostr_pubkey, kind=30_000, name="mute"),
    )
    found = index.evidence()
    assert set(found.follows) == {(person(ADA), person(BEN)), (person(ADA), person(EVE))}
    assert set(found.mutes) == {(person(BEN), person(EVE)), (person(EVE), person(BEN)), (person(BEN), person(ADA))}


def test_a_set_of_people_without_a_known_meaning_is_no_trust(index: Index) -> None:
    # Sets called "spammers" and "mute" exist; following somebody into one is no vote for them.
    [outcome] = index.ingest(from_relay(people_list(ADA, BEN.nostr_pubkey, kind=30_000, name="spammers")))
    assert (outcome.fate, outcome.reason) == (Fate.REFUSED, Reason.UNMATCHED)
    assert index.evidence().follows == ()


def test_each_list_is_replaced_by_its_own_kind_and_name_only(index: Index) -> None:
    ben, eve = BEN.nostr_pubkey, EVE.nostr_pubkey
    take(index, people_list(ADA, ben), people_list(ADA, eve, kind=30_000, name="archy-trust"))
    assert take(index, people_list(ADA, made=NOW + 1), people_list(ADA, ben, made=NOW)) == [Fate.ACCEPTED, Fate.REFUSED]
    assert index.evidence().follows == ((person(ADA), person(EVE)),)


def test_entries_that_name_nobody_oneself_or_somebody_twice_are_counted_and_left_out(index: Index) -> None:
    ben = BEN.nostr_pubkey
    take(index, people_list(ADA, ben, ben, ADA.nostr_pubkey, "not hex", "AB" * 32, ben[:-1]))
    found = index.evidence()
    assert found.follows == ((person(ADA), person(BEN)),)
    assert list(found.ignored.values()) == [5]


def test_a_list_that_is_rewritten_for_ever_leaves_no_trace_of_whom_it_named(index: Index, tmp_path: Path) -> None:
    # R-DS10: otherwise anybody who is followed could fill the disk with keys that he makes up.
    for turn in range(20):
        made_up = [f"{turn:032x}{number:032x}" for number in range(50)]
        take(index, people_list(ADA, *made_up, made=NOW + turn))
    with sqlite3.connect(tmp_path / "market.db") as db:
        (people,) = db.execute("SELECT count(*) FROM people").fetchone()
    assert people == 51


def test_whom_somebody_follows_is_read_back_by_key(index: Index) -> None:
    take(index, people_list(ADA, BEN.nostr_pubkey, EVE.nostr_pubkey))
    assert index.follows_of(ADA.nostr_pubkey) == sorted([BEN.nostr_pubkey, EVE.nostr_pubkey])
    assert index.follows_of(EVE.nostr_pubkey) == []


@pytest.mark.parametrize("entries", [0, 1, 700])
def test_lists_of_any_length_are_read_as_they_were_written(index: Index, entries: int) -> None:
    named = sorted(f"{number:064x}" for number in range(1, entries + 1))
    take(index, people_list(ADA, *named))
    assert index.follows_of(ADA.nostr_pubkey) == named
    assert len(index.evidence().follows) == entries


def test_a_vote_carries_a_plain_note_and_no_other(index: Index, alice: Publisher, mallory: Publisher) -> None:
    signed = alice.release()

    def word(note: str) -> dict[str, Any]:
        kind = AttestKind.REVIEWED
        return sign_attestation(mallory.keyring, signed.app, signed.digest, kind=kind, value=80, note=note, now=NOW)

    take(index, *alice.events(*signed.documents))
    take(index, *mallory.events(*mallory.keyring.documents, word("Read all of it.")))
    assert [vote.note for vote in index.evidence().attestations] == ["Read all of it."]
    for hostile in ("\x1b[2J", "\u202eevil", "x" * 281):
        with pytest.raises(BadDocument):
            word(hostile)


def test_who_signed_a_release_is_known_by_key_and_history_entry(index: Index, alice: Publisher) -> None:
    signed = alice.release()
    take(index, *alice.events(*signed.documents))
    found = index.signed_by(signed.digest)
    assert found is not None
    assert (found.publisher, found.keys) == (alice.did, 0)
    assert found.key in alice.keyring.current.entry.keys.release
    assert index.signed_by(Digest("00" * 32)) is None


def test_a_vote_about_a_release_that_nobody_published_is_counted_and_not_heard(
    index: Index, alice: Publisher, mallory: Publisher
) -> None:
    signed = alice.release()
    word = sign_attestation(
        mallory.keyring, signed.app, Digest("00" * 32), kind=AttestKind.MALWARE, value=-100, now=NOW
    )
    take(index, *alice.events(*signed.documents), *mallory.events(*mallory.keyring.documents, word))
    found = index.evidence()
    assert found.attestations == ()
    assert found.ignored == {"votes about releases that are not known here": 1}
