"""What a publisher signs: numbers never twice, refused before anything is used up, and the same ids every time."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.names import AppName
from market.discovery import TooLarge, refresh_head, sign_release, to_events
from market.errors import Problem, Refused
from market.identity import BadDocument, Keyring, NotCanonical, document_digest, verify_proof
from tests.market.discovery.publishers import NOW, Publisher, install_manifest


def test_a_signed_release_is_identity_manifest_release_and_head(alice: Publisher) -> None:
    signed = alice.release("1.0.0")
    assert [document["type"] for document in signed.documents] == ["identity", "manifest", "release", "head"]
    identity, manifest, release, head = signed.documents
    assert signed.app == AppName(alice.did, "hello")
    assert release["install"] == install_manifest()
    assert signed.digest == document_digest(release)
    assert head["manifest"] == document_digest(manifest).hex
    assert head["releases"]["stable"]["digest"] == signed.digest.hex
    assert {document["identity"] for document in signed.documents[1:]} == {document_digest(identity).hex}
    for document in signed.documents:
        verify_proof(document)


def test_releases_form_a_chain_and_a_head_keeps_the_other_channels(alice: Publisher) -> None:
    first = alice.release("1.0.0")
    beta = alice.release("2.0.0-rc1", channel="beta")
    second = alice.release("1.1.0")
    release, head = second.documents[2:]
    assert release["prev"] == first.digest.hex
    assert "prev" not in beta.documents[2]
    assert {name: ref["version"] for name, ref in head["releases"].items()} == {"stable": "1.1.0", "beta": "2.0.0-rc1"}
    assert [one.documents[2]["seq"] for one in (first, beta, second)] == [1, 2, 3]


def test_two_machines_with_one_folder_sign_no_number_twice(alice: Publisher) -> None:
    other = Keyring.load(alice.keyring.folder)
    numbers = [
        sign_release(keyring, install_manifest(version=f"1.{n}"), origins=[], source="", now=NOW).documents[3]["epoch"]
        for n, keyring in enumerate((alice.keyring, other, alice.keyring))
    ]
    assert numbers == [1, 2, 3]


@pytest.mark.parametrize(
    ("members", "error"),
    [
        ({"title": "x" * 500}, BadDocument),
        ({"version": "1:0"}, BadDocument),
        ({"categories": ["Not A Word"]}, BadDocument),
        ({"size": 1.5}, NotCanonical),
        ({"id": "Hello"}, Refused),
        ({"notes": "x" * 30_000}, TooLarge),
    ],
)
def test_what_readers_would_refuse_is_not_signed(
    alice: Publisher, members: dict[str, object], error: type[Problem]
) -> None:
    with pytest.raises(error):
        sign_release(alice.keyring, {**install_manifest(), **members}, origins=[], source="", now=NOW)


def test_origins_must_be_web_addresses(alice: Publisher) -> None:
    with pytest.raises(BadDocument, match="origins"):
        alice.release(origins=["file:///etc"])


def test_heads_are_refreshed_with_rising_epochs_and_times(alice: Publisher) -> None:
    head = alice.release().documents[3]
    again = refresh_head(alice.keyring, "hello", now=NOW)
    assert (again["epoch"], again["made"], again["releases"]) == (head["epoch"] + 1, head["made"] + 1, head["releases"])
    with pytest.raises(Problem, match="no release"):
        refresh_head(alice.keyring, "other", now=NOW)


def test_events_are_the_same_every_time(alice: Publisher) -> None:
    documents = alice.release().documents
    ids = [[event["id"] for event in to_events(alice.keyring, documents, NOW)] for _ in range(2)]
    assert ids[0] == ids[1]


def test_another_publishers_documents_are_not_published(alice: Publisher, mallory: Publisher) -> None:
    with pytest.raises(Refused, match="another publisher"):
        to_events(mallory.keyring, alice.release().documents, NOW)


def test_a_document_dated_ahead_is_not_published(alice: Publisher) -> None:
    documents = alice.release(now=NOW + 7200).documents
    with pytest.raises(Refused, match="future"):
        to_events(alice.keyring, documents, NOW)


def test_an_edited_document_is_not_published(alice: Publisher, tmp_path: Path) -> None:
    documents = alice.release().documents
    documents[2] = {**documents[2], "origins": ["https://evil.example"]}
    with pytest.raises(Refused):
        to_events(alice.keyring, documents, NOW)
