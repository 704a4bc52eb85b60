"""`archy app` and `archy id` as they publish: what is refused before anything changes, and what is said of relays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from market.identity import Keyring
from tests.market.cli.archy import Archy
from tests.market.square import Publisher

DEAD = "ws://127.0.0.1:1"


@pytest.fixture
def archy(tmp_path: Path) -> Archy:
    made = Archy(tmp_path / "home")
    Keyring.create(made.home / "identity")
    return made


def keyring(archy: Archy) -> Keyring:
    return Keyring.load(archy.home / "identity")


def entries(archy: Archy) -> int:
    return len(keyring(archy).history.entries)


@pytest.mark.parametrize("text", [None, "folder", "", "[]", "5", "[5]", "[" * 100_000, "\x00"])
def test_what_packing_and_signing_did_not_write_is_told_with_its_file(tmp_path: Path, text: str | None) -> None:
    archy = Archy(tmp_path / "home")
    Keyring.create(archy.home / "identity")
    for name, words in (
        ("manifest.json", ("app", "sign", str(tmp_path), "--origin", "https://a.example")),
        ("signed.json", ("app", "publish", str(tmp_path), "--relay", DEAD)),
    ):
        if text == "folder":
            (tmp_path / name).mkdir()
        elif text is not None:
            (tmp_path / name).write_text(text)
        answer = archy(*words)
        assert (answer.code, answer.out) == (2, ""), answer
        assert str(tmp_path / name) in answer.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--role", "release"], "no relay to publish to"),
        (["--role", "release", "--relay", DEAD, "--at-least", "2"], "--at-least 2 of 1 relays"),
        (["--relay", "http://x"], "--relay http://x"),
        (["--write-relay", "ws://a..b", "--relay", DEAD], "--write-relay ws://a..b"),
        (["--add-online", "z6Mk", "--relay", DEAD], "--add-online z6Mk"),
    ],
)
def test_a_rotation_that_could_not_be_told_of_does_not_happen(archy: Archy, words: list[str], told: str) -> None:
    answer = archy("id", "rotate", *words)
    assert answer.code == 2, answer
    assert told in answer.err
    assert entries(archy) == 1


def test_a_planned_rotation_shows_the_entry_that_would_be_appended(archy: Archy) -> None:
    answer = archy("id", "rotate", "--role", "release", "--dry-run", "--json")
    assert [one["type"] for one in answer.json["would"]] == ["identity", "identity"]
    assert entries(archy) == 1
    refused = archy("id", "rotate", "--write-relay", "http://x", "--dry-run")
    assert refused.code == 2


def test_a_rotation_reaches_the_old_write_relays_and_the_new_ones(
    tmp_path: Path, relay_url: str, another_relay: str
) -> None:  # R-DS7
    archy = Archy(tmp_path / "home")
    archy("id", "init", "--write-relay", relay_url)
    answer = archy("id", "rotate", "--write-relay", another_relay, "--json").json
    assert {row["url"]: row["accepted"] for row in answer["relays"]} == {relay_url: 2, another_relay: 2}


def test_when_no_relay_takes_a_rotation_it_is_not_to_be_made_twice(archy: Archy) -> None:
    answer = archy("id", "rotate", "--relay", DEAD, "--wait", "1")
    assert answer.code == 1
    assert "archy app refresh" in answer.err
    assert entries(archy) == 2


def test_a_dead_relay_beside_a_good_one_is_named_and_not_waited_for(archy: Archy, relay_url: str) -> None:
    answer = archy("app", "refresh", "--relay", relay_url, "--relay", DEAD, "--json")
    assert answer.code == 0
    good, dead = answer.json["relays"]
    assert (good["accepted"], dead["accepted"]) == (1, 0)
    assert dead["error"] == "can not be reached: connection refused"
    assert dead["seconds"] < 10


@pytest.mark.parametrize("last", ["hello", "hello=\u00b2", "hello=" + "9" * 5000])
def test_a_last_number_that_is_none_withdraws_nothing(archy: Archy, last: str) -> None:
    [key] = keyring(archy).current.entry.keys.release
    answer = archy("id", "revoke", key, "--last", last, "--relay", DEAD, "--yes")
    assert answer.code == 2, answer
    assert "APP=SEQ" in answer.err


def test_a_revocation_asks_first_and_a_no_changes_nothing(archy: Archy, relay_url: str) -> None:  # R-DS6
    [key] = keyring(archy).current.entry.keys.release
    words = ("id", "revoke", key, "--last", "hello=3", "--relay", relay_url)
    assert archy(*words).code == 2
    code, shown = archy.at_a_terminal(*words, types="n\n")
    assert code == 1
    assert "except hello up to 3" in shown
    assert "nothing was changed" in shown
    assert not (archy.home / "identity" / "ledger.json").exists()
    code, shown = archy.at_a_terminal(*words, types="y\n")
    assert code == 0, shown
    assert "2 of 2" in shown


def test_why_an_app_has_its_score_is_shown_by_show_too(archy: Archy, tmp_path: Path, relay_url: str) -> None:  # R-TR1
    Publisher(tmp_path / "publisher", relay_url).bring("1.0.0", ["http://127.0.0.1:1"], app="curious")
    archy("relays", "add", relay_url)
    why = archy("show", "curious", "--why")
    assert why.code == 0, why.err
    assert why.out == archy("trust", "explain", "curious", "--offline").out
    assert json.loads(archy("show", "curious", "--why", "--offline", "--json").out)["schema"] == "archy/verdict/1"
