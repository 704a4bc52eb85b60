"""Keys on disk: whole or not at all, private, and never a number twice."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from market.errors import EnvironmentLacks, Refused
from market.identity import (
    DamagedKey,
    DamagedLedger,
    KeyNotHere,
    Keyring,
    LaxPermissions,
    NoSuchFile,
    Role,
    verify_proof,
)
from market.identity.history import commitment

NOW = 1_800_000_000.0


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return Keyring.create(tmp_path / "identity", now=NOW, relays=["wss://relay.example"])


def body(keyring: Keyring) -> dict[str, object]:
    return {"type": "release", "publisher": keyring.did, "identity": keyring.identity_digest.hex}


def test_create_makes_private_files_and_an_entry_zero_by_the_inception_key(keyring: Keyring) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in keyring.folder.iterdir()}
    assert set(modes) == {"inception.key", "next-root.key", "release.key", "online.key", "nostr.key", "history.json"}
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(keyring.folder.stat().st_mode) == 0o700
    document = keyring.identity_document()
    assert keyring.did.endswith(document["proof"]["verificationMethod"].partition("#")[2])
    assert commitment(verify_proof(keyring.sign(body(keyring), Role.ROOT, now=NOW))) == document["next"]
    assert document["nostr"] == [keyring.nostr_pubkey]
    assert keyring.npub.startswith("npub1")


def test_load_gives_what_create_made(keyring: Keyring) -> None:
    again = Keyring.load(keyring.folder)
    assert (again.did, again.nostr_pubkey, again.documents) == (keyring.did, keyring.nostr_pubkey, keyring.documents)


def test_create_never_overwrites_an_identity(keyring: Keyring) -> None:
    before = (keyring.folder / "inception.key").read_bytes()
    with pytest.raises(Refused, match="identity here already"):
        Keyring.create(keyring.folder)
    assert (keyring.folder / "inception.key").read_bytes() == before


def test_create_leaves_nothing_when_the_place_can_not_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(EnvironmentLacks):
        Keyring.create(blocked / "identity")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["release.key", "nostr.key", "history.json"])
def test_a_key_that_others_can_read_is_refused_with_the_command_that_mends_it(keyring: Keyring, name: str) -> None:
    path = keyring.folder / name
    path.chmod(0o644)
    with pytest.raises(LaxPermissions) as caught:
        Keyring.load(keyring.folder).sign(body(keyring), Role.RELEASE, now=NOW)
    assert caught.value.remedy == f"chmod 600 {path}"


def test_a_folder_that_others_may_enter_is_refused(keyring: Keyring) -> None:
    keyring.folder.chmod(0o755)
    with pytest.raises(LaxPermissions) as caught:
        Keyring.load(keyring.folder)
    assert caught.value.remedy == f"chmod 700 {keyring.folder}"


def test_everything_but_the_root_role_works_while_two_keys_are_offline(keyring: Keyring) -> None:
    (keyring.folder / "inception.key").unlink()
    (keyring.folder / "next-root.key").unlink()
    again = Keyring.load(keyring.folder)
    for role in (Role.RELEASE, Role.ONLINE):
        verify_proof(again.sign(body(again), role, now=NOW))
    with pytest.raises(KeyNotHere):
        again.sign(body(again), Role.ROOT, now=NOW)


@pytest.mark.parametrize("name", ["release.key", "history.json", "ledger.json"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_told_and_waited_for_by_nobody(
    keyring: Keyring, name: str, make: Callable[[Path], None]
) -> None:
    (keyring.folder / name).unlink(missing_ok=True)
    make(keyring.folder / name)

    def use() -> None:
        Keyring.load(keyring.folder).sign(body(keyring), Role.RELEASE, now=NOW)
        keyring.reserve("release", "hello")

    with pytest.raises(Refused, match="not a file") as caught:
        use()
    assert caught.value.where == str(keyring.folder / name)


@pytest.mark.parametrize("text", ["", "[]", "[{}]", "[5]", "{", '[{"type":"identity"}]'])
def test_a_damaged_history_is_named(keyring: Keyring, text: str) -> None:
    (keyring.folder / "history.json").write_text(text)
    with pytest.raises(DamagedKey, match="history") as caught:
        Keyring.load(keyring.folder)
    assert caught.value.where == str(keyring.folder / "history.json")


def test_a_file_where_the_identity_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "identity").touch()
    for call in (Keyring.create, Keyring.load):
        with pytest.raises(Refused, match="not a folder"):
            call(tmp_path / "identity")


def test_a_key_file_of_somebody_else_is_not_signed_with(keyring: Keyring, tmp_path: Path) -> None:
    other = Keyring.create(tmp_path / "other", now=NOW)
    (keyring.folder / "release.key").write_bytes((other.folder / "release.key").read_bytes())
    with pytest.raises(DamagedKey):
        keyring.sign(body(keyring), Role.RELEASE, now=NOW)


def test_a_damaged_key_is_named_and_never_quoted(keyring: Keyring) -> None:
    for name in ("release.key", "nostr.key"):
        path = keyring.folder / name
        secret = path.read_text().strip()
        path.write_text(secret[:-3] + "zzz")
        with pytest.raises(DamagedKey) as caught:
            Keyring.load(keyring.folder).sign(body(keyring), Role.RELEASE, now=NOW)
        assert secret[4:20] not in str(caught.value)
        assert caught.value.where == str(path)


def test_no_secret_shows_in_the_keyrings_own_text(keyring: Keyring) -> None:
    text = repr(keyring)
    for name in ("inception.key", "next-root.key", "release.key", "online.key", "nostr.key"):
        assert (keyring.folder / name).read_text().strip() not in text


def test_a_missing_identity_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NoSuchFile, match="archy id init"):
        Keyring.load(tmp_path / "identity")


def test_a_document_of_another_publisher_is_not_signed(keyring: Keyring) -> None:
    with pytest.raises(Refused):
        keyring.sign({**body(keyring), "publisher": "did:key:z6Mkother"}, Role.RELEASE, now=NOW)


def test_numbers_rise_by_name_and_survive_a_restart(keyring: Keyring) -> None:
    assert [keyring.reserve("release", "hello"), keyring.reserve("release", "hello")] == [1, 2]
    assert Keyring.load(keyring.folder).reserve("release", "hello") == 3
    assert keyring.reserve("release", "other") == 1
    assert keyring.reserve("head", "hello", above=40) == 41


def test_signing_times_rise_even_when_the_clock_does_not(keyring: Keyring) -> None:
    times = [keyring.ledger.reserve_time("head", "hello", now) for now in (NOW, NOW, NOW - 3600, NOW + 10)]
    assert times == [int(NOW), int(NOW) + 1, int(NOW) + 2, int(NOW) + 10]


def test_a_damaged_ledger_stops_signing_instead_of_beginning_anew(keyring: Keyring) -> None:
    keyring.reserve("release", "hello")
    (keyring.folder / "ledger.json").write_text('{"numbers": 5}')
    with pytest.raises(DamagedLedger):
        keyring.reserve("release", "hello")


RESERVER = """
import sys
from pathlib import Path
from market.identity import Keyring
keyring = Keyring.load(Path(sys.argv[1]))
for _ in range(int(sys.argv[2])):
    print(keyring.reserve("release", "hello"), flush=True)
"""


def test_two_processes_never_get_the_same_number(keyring: Keyring) -> None:
    argv = [sys.executable, "-c", RESERVER, str(keyring.folder), "25"]
    both = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    numbers = [int(line) for process in both for line in process.communicate(timeout=60)[0].split()]
    assert sorted(numbers) == list(range(1, 51))


def test_a_kill_while_reserving_repeats_no_number(keyring: Keyring) -> None:
    argv = [sys.executable, "-c", RESERVER, str(keyring.folder), "100000"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    seen = [int(process.stdout.readline()) for _ in range(10)]
    os.kill(process.pid, signal.SIGKILL)
    seen += [int(line) for line in process.stdout if line.endswith("\n")]
    process.wait()
    process.stdout.close()
    assert keyring.reserve("release", "hello") > max(seen)
