"""Rotation, export and import of keys: nothing is lost by a kill, nothing is opened without its passphrase. R-DS7."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from nacl.pwhash import argon2id
from nacl.signing import SigningKey

from market.errors import Refused, UsageProblem
from market.identity import (
    BadDocument,
    BadExport,
    Change,
    DamagedKey,
    Folded,
    KeyHistory,
    KeyNotHere,
    Keyring,
    Keys,
    NoSuchFile,
    Role,
    SignedEntry,
    add_proof,
    export_identity,
    import_identity,
)
from market.identity.history import commitment

NOW = 1_800_000_000.0
WORDS = "correct horse battery staple"
FAST = {"rounds": argon2id.OPSLIMIT_MIN, "memory": argon2id.MEMLIMIT_MIN}


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return Keyring.create(tmp_path / "identity", now=NOW, relays=["wss://relay.example"])


def sealed(keyring: Keyring, keys: Keys = Keys.ALL) -> bytes:
    return export_identity(keyring, WORDS, keys, **FAST)


def secrets(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("*.key")}


def test_a_rotation_is_signed_by_the_committed_key_and_commits_to_a_new_one(keyring: Keyring) -> None:  # R-DS7
    before = secrets(keyring.folder)
    rotated = keyring.rotate(Change(roles=frozenset({Role.RELEASE}), relays=("wss://new.example",)), now=NOW + 5)
    first, second = rotated.history.entries
    assert commitment(second.signer) == first.entry.next != second.entry.next
    assert second.entry.keys.release != first.entry.keys.release
    assert (second.entry.keys.online, second.entry.nostr) == (first.entry.keys.online, first.entry.nostr)
    assert second.entry.relays == ("wss://new.example",)
    after = secrets(keyring.folder)
    assert {name for name in after if after[name] != before[name]} == {"next-root.key", "release.key"}
    history, outcome = keyring.history.fold(SignedEntry.from_document(rotated.identity_document()))
    assert (outcome, history) == (Folded.ADDED, rotated.history)


def test_a_rotated_nostr_key_speaks_and_the_old_one_does_no_more(keyring: Keyring) -> None:
    rotated = keyring.rotate(Change(nostr=True), now=NOW)
    assert rotated.current.entry.nostr == (rotated.nostr_pubkey,)
    assert rotated.nostr_pubkey != keyring.nostr_pubkey


def test_a_thief_of_every_daily_key_can_not_rotate(keyring: Keyring) -> None:  # R-DS7
    (keyring.folder / "next-root.key").unlink()
    with pytest.raises(KeyNotHere):
        Keyring.load(keyring.folder).rotate(Change(), now=NOW)
    (keyring.folder / "next-root.key").write_text((keyring.folder / "release.key").read_text())
    (keyring.folder / "next-root.key").chmod(0o600)
    with pytest.raises(DamagedKey):
        Keyring.load(keyring.folder).rotate(Change(), now=NOW)


def test_an_online_key_can_be_delegated_to_another_machine(keyring: Keyring, tmp_path: Path) -> None:
    server = Keyring.create(tmp_path / "server", now=NOW)
    key = server.history.entries[0].signer
    rotated = keyring.rotate(Change(also_online=(key,)), now=NOW)
    assert rotated.history.holds(key, Role.ONLINE, rotated.current)
    assert not rotated.history.holds(key, Role.RELEASE, rotated.current)


def test_a_folder_that_is_behind_what_relays_show_does_not_fork_its_history(keyring: Keyring, tmp_path: Path) -> None:
    old = import_identity(sealed(keyring), WORDS, tmp_path / "old")
    newest = keyring.rotate(Change(), now=NOW)
    with pytest.raises(Refused, match="would fork"):
        old.rotate(Change(), now=NOW, known=newest.history)
    assert len(Keyring.load(old.folder).history.entries) == 1
    assert len(newest.rotate(Change(), now=NOW, known=KeyHistory(keyring.did)).history.entries) == 3


def test_what_readers_would_refuse_is_not_rotated_to(keyring: Keyring) -> None:
    before = secrets(keyring.folder)
    with pytest.raises(BadDocument):
        keyring.rotate(Change(relays=("https://not-a-relay",)), now=NOW)
    assert secrets(keyring.folder) == before


ROTATER = """
import os, sys
from pathlib import Path
from market.identity import Change, Keyring, Role
stop = int(sys.argv[2])
def count(path, *rest, _real=os.replace, calls=[0]):
    calls[0] += 1
    if calls[0] > stop:
        os._exit(9)
    return _real(path, *rest)
Path.replace = count
Keyring.load(Path(sys.argv[1])).rotate(Change(roles=frozenset(Role), nostr=True), now=1_800_000_000)
"""


@pytest.mark.parametrize("writes", range(6))
def test_a_kill_after_any_write_of_a_rotation_leaves_the_old_identity_or_the_new(keyring: Keyring, writes: int) -> None:
    argv = [sys.executable, "-c", ROTATER, str(keyring.folder), str(writes)]
    assert subprocess.run(argv, timeout=60, check=False).returncode == 9
    found = Keyring.load(keyring.folder)
    assert len(found.history.entries) == (1 if writes == 0 else 2)
    assert Keyring.load(found.folder).documents == found.documents
    for role in Role:
        body = {"type": "x", "publisher": found.did, "identity": found.identity_digest.hex}
        found.sign(body, role, now=NOW)
    assert not (found.folder / "rotation.json").exists()


def test_an_export_comes_back_whole_on_another_machine(keyring: Keyring, tmp_path: Path) -> None:
    keyring.reserve("release", "hello")
    data = sealed(keyring)
    for text in secrets(keyring.folder).values():
        assert text.strip().encode() not in data
    found = import_identity(data, WORDS, tmp_path / "new" / "identity")
    assert secrets(found.folder) == secrets(keyring.folder)
    assert found.documents == keyring.documents
    assert os.stat(found.folder).st_mode & 0o777 == 0o700


def test_an_imported_identity_uses_no_number_that_the_exporting_machine_used_since(
    keyring: Keyring, tmp_path: Path
) -> None:  # R-DS5
    keyring.reserve("release", "hello")
    data = sealed(keyring)
    since = [keyring.reserve("release", "hello") for _ in range(20)] + [keyring.reserve("release", "newer")]
    found = import_identity(data, WORDS, tmp_path / "new")
    assert found.reserve("release", "hello") > max(since)
    assert found.reserve("release", "newer") > max(since)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: b"",
        lambda d: b"{}",
        lambda d: d[:-30] + b'"}',
        lambda d: msgspec.json.encode(msgspec.json.decode(d) | {"rounds": 17}),
        lambda d: msgspec.json.encode(msgspec.json.decode(d) | {"memory": 2**40}),
        lambda d: msgspec.json.encode(msgspec.json.decode(d) | {"salt": "AAAA"}),
        lambda d: msgspec.json.encode(msgspec.json.decode(d) | {"extra": 1}),
        lambda d: b" " * 3_000_000,
    ],
)
def test_a_file_that_is_no_export_is_refused_and_leaves_nothing(
    keyring: Keyring, tmp_path: Path, spoil: object
) -> None:
    assert callable(spoil)
    with pytest.raises(BadExport):
        import_identity(spoil(sealed(keyring)), WORDS, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_wrong_passphrase_opens_nothing(keyring: Keyring, tmp_path: Path) -> None:
    with pytest.raises(BadExport, match="passphrase"):
        import_identity(sealed(keyring), "correct horse battery stable", tmp_path / "new")
    with pytest.raises(UsageProblem):
        export_identity(keyring, "short")


def test_offline_keys_are_exported_alone_and_brought_back_to_rotate(keyring: Keyring) -> None:
    drawer = sealed(keyring, Keys.OFFLINE)
    for name in ("inception.key", "next-root.key"):
        (keyring.folder / name).unlink()
    with pytest.raises(KeyNotHere):
        Keyring.load(keyring.folder).rotate(Change(), now=NOW)
    back = import_identity(drawer, WORDS, keyring.folder)
    assert len(back.rotate(Change(), now=NOW).history.entries) == 2


def test_offline_keys_alone_make_no_identity(keyring: Keyring, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="offline keys"):
        import_identity(sealed(keyring, Keys.OFFLINE), WORDS, tmp_path / "new")


@pytest.mark.parametrize(("keys", "roles"), [(Keys.DAILY, {Role.RELEASE, Role.ONLINE}), (Keys.ONLINE, {Role.ONLINE})])
def test_an_export_for_a_server_holds_only_its_roles(
    keyring: Keyring, tmp_path: Path, keys: Keys, roles: set[Role]
) -> None:
    found = import_identity(sealed(keyring, keys), WORDS, tmp_path / "new")
    body = {"type": "x", "publisher": found.did, "identity": found.identity_digest.hex}
    for role in Role:
        if role in roles:
            found.sign(body, role, now=NOW)
        else:
            with pytest.raises(KeyNotHere):
                found.sign(body, role, now=NOW)


def test_an_export_from_before_a_rotation_brings_no_old_key_back(keyring: Keyring) -> None:
    old = sealed(keyring)
    rotated = keyring.rotate(Change(roles=frozenset({Role.RELEASE, Role.ONLINE}), nostr=True), now=NOW)
    newest = secrets(rotated.folder)
    (rotated.folder / "release.key").unlink()
    found = import_identity(old, WORDS, rotated.folder)
    assert secrets(found.folder) == {name: text for name, text in newest.items() if name != "release.key"}


def test_an_export_from_after_a_rotation_brings_the_folder_up_to_date(keyring: Keyring, tmp_path: Path) -> None:
    behind = import_identity(sealed(keyring), WORDS, tmp_path / "behind")
    rotated = keyring.rotate(Change(roles=frozenset(Role), nostr=True), now=NOW)
    found = import_identity(sealed(rotated), WORDS, behind.folder)
    assert (found.documents, secrets(found.folder)) == (rotated.documents, secrets(rotated.folder))


def test_a_newer_history_whose_nostr_key_is_nowhere_is_not_taken(keyring: Keyring, tmp_path: Path) -> None:
    behind = import_identity(sealed(keyring), WORDS, tmp_path / "behind")
    rotated = keyring.rotate(Change(nostr=True), now=NOW)
    with pytest.raises(Refused, match="another Nostr key"):
        import_identity(sealed(rotated, Keys.OFFLINE), WORDS, behind.folder)
    assert Keyring.load(behind.folder).documents == behind.documents
    import_identity(sealed(rotated, Keys.DAILY), WORDS, behind.folder)
    assert import_identity(sealed(rotated, Keys.OFFLINE), WORDS, behind.folder).documents == rotated.documents


def damaged(keyring: Keyring, folder: Path, how: str) -> bytes:
    """An export that its passphrase opens, and that holds nonsense."""
    shutil.copytree(keyring.folder, folder)
    copy = Keyring.load(folder)
    if how == "history":
        thief = import_identity(sealed(keyring), WORDS, folder.parent / "thief").rotate(Change(), now=NOW)
        forged = add_proof({**thief.documents[-1], "made": 5}, SigningKey.generate().encode(), created=5)
        copy = replace(copy, documents=(*copy.documents, forged))
    else:
        (folder / how).write_text("nonsense")
    return sealed(copy)


@pytest.mark.parametrize("how", ["history", "nostr.key", "release.key", "inception.key"])
def test_attack_an_export_that_holds_nonsense_changes_nothing(keyring: Keyring, tmp_path: Path, how: str) -> None:
    data, before = damaged(keyring, tmp_path / "copy", how), secrets(keyring.folder)
    for folder in (keyring.folder, tmp_path / "new"):
        with pytest.raises(BadExport, match="damaged") as caught:
            import_identity(data, WORDS, folder)
        assert "nonsense" not in str(caught.value)
    assert (secrets(keyring.folder), (tmp_path / "new").exists()) == (before, False)
    assert Keyring.load(keyring.folder).documents == keyring.documents


def test_who_loads_while_another_rotates_sees_one_whole_identity(keyring: Keyring) -> None:
    ended = threading.Event()

    def load() -> int:
        times = 0
        while not ended.is_set() or times == 0:
            found = Keyring.load(keyring.folder)
            assert found.nostr_pubkey in found.current.entry.nostr
            times += 1
        return times

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(load) for _ in range(2)]
        try:
            for _ in range(20):
                keyring = keyring.rotate(Change(roles=frozenset(Role), nostr=True), now=NOW)
        finally:
            ended.set()
        assert all(reader.result() for reader in readers)
    assert len(Keyring.load(keyring.folder).history.entries) == 21


def test_an_entry_is_planned_without_being_appended(keyring: Keyring) -> None:
    planned = keyring.planned(Change(relays=("wss://new.example",)), now=NOW)
    assert SignedEntry.from_document(planned).entry.relays == ("wss://new.example",)
    assert Keyring.load(keyring.folder).documents == keyring.documents
    with pytest.raises(BadDocument, match="not a relay's address"):
        keyring.planned(Change(relays=("ws://a..b",)), now=NOW)


def test_another_identity_is_never_mixed_in(keyring: Keyring, tmp_path: Path) -> None:
    other = Keyring.create(tmp_path / "other", now=NOW)
    before = secrets(keyring.folder)
    with pytest.raises(Refused, match="export is of"):
        import_identity(sealed(other), WORDS, keyring.folder)
    forked = import_identity(sealed(keyring), WORDS, tmp_path / "forked").rotate(Change(), now=NOW)
    keyring.rotate(Change(), now=NOW + 1)
    with pytest.raises(Refused, match="another key history"):
        import_identity(sealed(forked), WORDS, keyring.folder)
    assert before["inception.key"] == secrets(keyring.folder)["inception.key"]


def test_a_key_that_is_not_here_can_not_be_exported(keyring: Keyring) -> None:
    (keyring.folder / "next-root.key").unlink()
    with pytest.raises(NoSuchFile):
        sealed(Keyring.load(keyring.folder), Keys.OFFLINE)
