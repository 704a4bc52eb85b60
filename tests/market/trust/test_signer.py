"""Signer changes: a rotation is one only if the publisher's own key history says so; all else is a change."""

from __future__ import annotations

from pathlib import Path

import pytest

from market.identity import KeyHistory, Keyring, SignedEntry
from market.model import SignedBy
from market.trust import Anchors, Continuity, GateState, Outcome, Signer, compare, judge
from market.trust.gates import GateKind
from tests.market.discovery.publishers import Publisher
from tests.market.trust.people import NOW, PUBLISHER, evidence, listing


@pytest.fixture
def alice(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path, "alice")


def history_of(publisher: Publisher, *more: SignedEntry) -> KeyHistory:
    history = KeyHistory(publisher.did)
    for entry in (*(SignedEntry.from_document(one) for one in publisher.keyring.documents), *more):
        history, _ = history.fold(entry)
    return history


def release_key(keyring: Keyring) -> str:
    return keyring.current.entry.keys.release[0]


def rotated(alice: Publisher) -> tuple[KeyHistory, str]:
    """A second entry, signed by the key that the first one committed to, with another release key."""
    fresh = Publisher(alice.keyring.folder.parent, "fresh keys")
    new = release_key(fresh.keyring)
    first = alice.keyring.documents[0]
    keys = {"release": [new], "online": list(alice.keyring.current.entry.keys.online)}
    entry = SignedEntry.from_document(alice.identity_entry(first, "next-root", keys=keys))
    return history_of(alice, entry), new


def test_the_first_release_of_a_name_is_compared_to_nothing(alice: Publisher) -> None:
    now = SignedBy(alice.did, 0, release_key(alice.keyring))
    assert compare(None, now, history_of(alice)).continuity is Continuity.FIRST_SEEN


def test_the_same_key_is_the_same_signer(alice: Publisher) -> None:
    now = SignedBy(alice.did, 0, release_key(alice.keyring))
    assert compare(now, now, history_of(alice)).continuity is Continuity.SAME


def test_a_key_that_the_history_leads_to_is_a_valid_rotation_with_its_entries_as_evidence(alice: Publisher) -> None:
    history, new = rotated(alice)
    assert len(history.entries) == 2, "the entry must belong to the history"
    found = compare(SignedBy(alice.did, 0, release_key(alice.keyring)), SignedBy(alice.did, 1, new), history)
    assert found.continuity is Continuity.ROTATED
    assert "valid rotation" in found.text
    assert found.evidence == tuple(entry.digest.hex for entry in history.entries)


def test_a_key_that_the_history_does_not_name_is_a_change_and_no_rotation(alice: Publisher) -> None:  # R-DS7
    before = SignedBy(alice.did, 0, release_key(alice.keyring))
    for keys in (0, 1, 7):
        found = compare(before, SignedBy(alice.did, keys, "z6MkThief"), history_of(alice))
        assert found.continuity is Continuity.CHANGED
        assert "no rotation" in found.text
    assert compare(before, SignedBy(alice.did, 0, "z6MkThief"), None).continuity is Continuity.CHANGED


def test_going_back_to_an_older_key_is_a_change(alice: Publisher) -> None:  # R-DS7
    history, new = rotated(alice)
    old = release_key(alice.keyring)
    assert compare(SignedBy(alice.did, 1, new), SignedBy(alice.did, 0, old), history).continuity is Continuity.CHANGED


def test_another_publisher_under_the_same_name_is_a_change_whatever_its_history(alice: Publisher) -> None:  # R-MF14
    now = SignedBy(alice.did, 0, release_key(alice.keyring))
    found = compare(SignedBy(PUBLISHER, 0, now.key), now, history_of(alice))
    assert found.continuity is Continuity.CHANGED
    assert PUBLISHER in found.text
    assert alice.did in found.text


def test_a_change_asks_names_both_and_is_not_answered_by_yes() -> None:  # R-TR3
    changed = Signer(Continuity.CHANGED, "Another publisher: A signed this, B what you know.", ("d1",))
    found = judge(listing(), evidence(), Anchors.of([PUBLISHER]), now=NOW, signer=changed)
    assert (found.outcome, found.answerable) == (Outcome.ASK, False)
    gate = next(gate for gate in found.gates if gate.kind is GateKind.SIGNER)
    assert (gate.state, gate.text, gate.evidence) == (GateState.ASK, changed.text, ("d1",))
    assert found.to_json()["signer"] == {"continuity": "changed", "text": changed.text, "evidence": ["d1"]}
