"""`archy id` on the command line: keys come and go sealed, a passphrase is never an argument."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PASSPHRASE = "correct horse battery staple"


def archy(home: Path, *words: str, code: int = 0) -> dict[str, Any]:
    argv = [sys.executable, "-m", "market.cli", "--home", str(home), "--json", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert PASSPHRASE not in done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def secret(tmp_path: Path) -> str:
    path = tmp_path / "passphrase"
    path.write_text(PASSPHRASE + "\n")
    return str(path)


def test_an_identity_moves_to_another_home_and_rotates_there(tmp_path: Path, relay_url: str, secret: str) -> None:
    first, second, file = tmp_path / "first", tmp_path / "second", tmp_path / "all.archy"
    made = archy(first, "id", "init", "--write-relay", relay_url)
    archy(first, "id", "export", str(file), "--passphrase-file", secret)
    assert file.stat().st_mode & 0o777 == 0o600
    archy(first, "id", "export", str(file), "--passphrase-file", secret, code=2)  # nothing is overwritten
    moved = archy(second, "id", "import", str(file), "--passphrase-file", secret)
    assert (moved["did"], moved["here"]) == (made["did"], ["inception", "next-root", "release", "online", "nostr"])
    planned = archy(second, "id", "rotate", "--role", "release", "--dry-run")
    assert planned["dry_run"] is True
    assert len(archy(second, "id", "show")["history"]) == 1
    rotated = archy(second, "id", "rotate", "--role", "release")
    assert [relay["accepted"] for relay in rotated["relays"]] == [2]
    history = archy(second, "id", "show")["history"]
    assert history[0]["release"] != history[1]["release"]
    old = history[0]["release"][0]
    revoked = archy(second, "id", "revoke", old, "--last", "hello=3", "--reason", "stolen", "--yes")
    assert revoked["took_all"] == 1
    archy(second, "id", "revoke", old, "--last", "hello", code=2)
    archy(second, "id", "rotate", "--relay", relay_url, "--at-least", "2", code=2)


def test_an_export_that_does_not_fit_leaves_no_half_of_it(tmp_path: Path, secret: str) -> None:
    archy(tmp_path / "home", "id", "init")
    target = tmp_path / "x.archy"
    argv = [sys.executable, "-m", "market.cli", "--home", str(tmp_path / "home"), "id", "export", str(target)]
    done = subprocess.run(
        ["sh", "-c", 'ulimit -f 1; trap "" XFSZ; exec "$@"', "sh", *argv, "--passphrase-file", secret],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 4, done.stderr
    assert "File too large" in done.stderr
    assert not target.exists()


def test_a_file_that_is_no_export_is_named(tmp_path: Path, secret: str) -> None:
    (tmp_path / "x").write_bytes(b"\x00" * 100)
    answer = archy(tmp_path / "home", "id", "import", str(tmp_path / "x"), "--passphrase-file", secret, code=3)
    assert answer["where"] == str(tmp_path / "x")


def test_without_a_terminal_a_passphrase_must_be_named(tmp_path: Path) -> None:
    archy(tmp_path, "id", "init")
    refused = archy(tmp_path, "id", "export", str(tmp_path / "x"), code=2)
    assert "passphrase" in json.dumps(refused)
