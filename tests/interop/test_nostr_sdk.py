"""Our events against nostr-sdk's own verification, and its events against ours."""

from __future__ import annotations

from pathlib import Path

import nostr_sdk
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.discovery.events import Event, decode_event, sign_event, verify
from market.discovery.reasons import Reason, Refusal
from tests.market.discovery.publishers import NOW, NostrKey, Publisher

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=60)
TAGS = st.lists(st.lists(TEXTS, min_size=1, max_size=4), max_size=4)
KEY = NostrKey(bytes(range(1, 33)))
THEIR_KEYS = nostr_sdk.Keys.parse(bytes(range(1, 33)).hex())


def test_the_keys_agree() -> None:
    assert THEIR_KEYS.public_key().to_hex() == KEY.nostr_pubkey


@given(TEXTS, TAGS)
@settings(max_examples=60, deadline=None)
def test_our_events_verify_in_nostr_sdk(content: str, tags: list[list[str]]) -> None:
    ours = sign_event(KEY, created_at=NOW, kind=30078, tags=tags, content=content)
    theirs = nostr_sdk.Event.from_json(ours.to_bytes().decode())
    assert theirs.verify()
    assert theirs.id().to_hex() == ours.id


@given(TEXTS)
@settings(max_examples=60, deadline=None)
def test_events_of_nostr_sdk_verify_here(content: str) -> None:
    tag = nostr_sdk.Tag.parse(["d", content or "x"])
    theirs = nostr_sdk.EventBuilder(nostr_sdk.Kind(30078), content).tags([tag]).finalize(THEIR_KEYS)
    ours = decode_event(theirs.as_json().encode())
    assert isinstance(ours, Event)
    assert verify(ours) is None


def test_what_both_refuse() -> None:
    event = sign_event(KEY, created_at=NOW, kind=1, tags=[], content="hello")
    forged = event.to_bytes().replace(b"hello", b"hellO")
    ours = decode_event(forged)
    assert isinstance(ours, Event)
    refusal = verify(ours)
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.FORGED_ID
    assert not nostr_sdk.Event.from_json(forged.decode()).verify()


@pytest.mark.parametrize("kind", ["identity", "manifest", "release", "head"])
def test_documents_as_events_verify_in_nostr_sdk(tmp_path: Path, kind: str) -> None:
    alice = Publisher(tmp_path)
    document = next(one for one in alice.release().documents if one["type"] == kind)
    [event] = alice.events(document)
    assert nostr_sdk.Event.from_json(event.to_bytes().decode()).verify()
    assert nostr_sdk.PublicKey.parse(alice.keyring.npub).to_hex() == alice.keyring.nostr_pubkey
