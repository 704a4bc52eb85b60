"""The anchor book: what names a person, and a file that is whole, private and never silently empty."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.errors import EnvironmentLacks, UsageProblem
from market.trust import AnchorBook, Anchors, DamagedAnchors, NotAPerson, UnknownAnchor, person_id
from market.trust.anchors import MAX_ANCHORS
from tests.market.trust.people import did

# NIP-19's own example pair.
NPUB = "npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg"
HEX = "7e7e9c42a91bfef19fa929e5fda1b72e0ebc1a4c1141673e2794234d86addf4e"
DID = did("ada")


@pytest.mark.parametrize("text", [NPUB, HEX, f"nostr:{HEX}", f" {NPUB}\n", HEX.upper(), f"nostr:{NPUB}"])
def test_a_nostr_key_is_one_person_however_it_is_written(text: str) -> None:
    assert person_id(text) == f"nostr:{HEX}"


def test_a_did_is_itself() -> None:
    assert person_id(DID) == DID


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ada",
        NPUB[:-1] + "q",
        NPUB[:-6],
        HEX[:-2],
        "f" * 64,
        "did:key:z6Mk",
        "did:web:ada.example",
        DID + "1",
        "\x00" * 64,
    ],
)
def test_what_names_nobody_is_refused_with_a_remedy(text: str) -> None:
    with pytest.raises(NotAPerson) as found:
        person_id(text)
    assert found.value.remedy


def test_a_secret_key_pasted_by_mistake_is_refused_and_not_repeated() -> None:
    secret = "nsec1vl029mgpspedva04g90vltkh6fvh240zqtv9k0t9af8935ke9laqsnlfe5"
    with pytest.raises(NotAPerson) as found:
        person_id(secret)
    assert secret[5:] not in str(found.value)


@given(st.text(max_size=100))
def test_any_text_is_a_person_or_refused_as_one(text: str) -> None:
    try:
        person = person_id(text)
    except NotAPerson:
        return
    assert person_id(person) == person


def test_a_book_remembers_replaces_and_forgets(tmp_path: Path) -> None:
    book = AnchorBook(tmp_path / "home" / "anchors.json")
    assert book.list() == ()
    book.add(NPUB, label="Ada's phone")
    book.add(DID, weight=3)
    book.add(HEX, label="Ada")
    reopened = AnchorBook(book.path)
    assert [(a.person, a.label, a.weight) for a in reopened.list()] == [(DID, "", 3), (f"nostr:{HEX}", "Ada", 1)]
    assert reopened.remove(NPUB).label == "Ada"
    assert [a.person for a in book.list()] == [DID]
    with pytest.raises(UnknownAnchor):
        book.remove(NPUB)


def test_the_file_is_private_and_nothing_else_is_left_beside_it(tmp_path: Path) -> None:
    book = AnchorBook(tmp_path / "anchors.json")
    old_mask = os.umask(0)
    try:
        book.add(DID)
    finally:
        os.umask(old_mask)
    assert stat.S_IMODE(book.path.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["anchors.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"schema":2,"anchors":[]}',
        b'{"schema":1,"anchors":[{}]}',
        b'{"schema":1,"anchors":[{"who":"ada","label":"","weight":1}]}',
        json.dumps({"schema": 1, "anchors": [{"who": DID, "label": "", "weight": 1.5}]}).encode(),
        json.dumps({"schema": 1, "anchors": [{"who": DID, "label": "\x1b[2J", "weight": 1}]}).encode(),
        b"[" * 100_000,
        b" " * 2_000_000,
        b"\xff\xfe",
    ],
)
def test_a_damaged_file_is_a_fault_and_never_an_empty_book(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "anchors.json"
    path.write_bytes(content)
    with pytest.raises(DamagedAnchors) as found:
        AnchorBook(path).add(DID)
    assert str(path) in str(found.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize(("label", "weight"), [("x" * 101, 1), ("\u202eada", 1), ("", 0), ("", 101)])
def test_labels_and_weights_out_of_bounds_are_refused_and_nothing_is_written(
    tmp_path: Path, label: str, weight: int
) -> None:
    book = AnchorBook(tmp_path / "anchors.json")
    with pytest.raises(UsageProblem):
        book.add(DID, label=label, weight=weight)
    assert not book.path.exists()


def test_more_anchors_than_anybody_names_by_hand_are_refused() -> None:
    with pytest.raises(UsageProblem, match="more than"):
        Anchors.of(did(str(number)) for number in range(MAX_ANCHORS + 1))


def test_a_place_that_can_not_be_read_or_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "gone").symlink_to("/proc/nowhere")
    with pytest.raises(EnvironmentLacks, match="can not be read"):
        AnchorBook(tmp_path / "folder").list()
    with pytest.raises(EnvironmentLacks, match="can not be written"):
        AnchorBook(tmp_path / "gone" / "anchors.json").add(DID)
