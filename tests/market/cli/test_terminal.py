"""What a terminal is shown: what fits it, in colours that its owner wants; a pipe gets neither."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import termios
from typing import Any

PROGRAM = """
import json, sys
from pathlib import Path
from market.cli.reading import ps
from market.cli.session import Session
from market.node.home import Home

class Told(Session):
    def call(self, name, **params):
        return json.loads(sys.argv[1])

ps.main([], obj=Told(Home(Path("/nowhere")), False), standalone_mode=False)
"""
URLS = ["http://127.0.0.1:18080/photos", "http://192.168.100.200:18080/photos"]
ROW: dict[str, Any] = {
    "publisher": "did:key:zA",
    "id": "photo-library",
    "version": "1.0.0",
    "desired": "running",
    "state": "running",
    "containers": [],
    "urls": URLS,
    "detail": "",
    "adopted": False,
}


def on_a_terminal(row: dict[str, Any], columns: int, **environment: str) -> list[str]:
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    env = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "TERM")}
    argv = [sys.executable, "-c", PROGRAM, json.dumps({"apps": [row]})]
    subprocess.run(argv, stdout=theirs, stderr=subprocess.DEVNULL, env=env | environment, timeout=60, check=True)
    shown = os.read(ours, 65536).decode().splitlines()
    os.close(theirs)
    os.close(ours)
    return shown


def test_a_wide_terminal_gets_a_table_and_a_narrow_one_whole_addresses() -> None:
    assert on_a_terminal(ROW, 200, NO_COLOR="1")[1].split() == ["photo-library", "1.0.0", "running", "-", *URLS]
    assert on_a_terminal(ROW, 60, NO_COLOR="1") == ["photo-library 1.0.0  running  -", *(f"  {url}" for url in URLS)]


def test_a_terminal_without_a_width_gets_the_table() -> None:
    assert len(on_a_terminal(ROW, 0, NO_COLOR="1")) == 2


def test_colours_are_for_who_wants_them() -> None:
    assert "\x1b[32mrunning\x1b[0m" in on_a_terminal(ROW, 200, TERM="xterm")[1]
    for environment in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b" not in "".join(on_a_terminal(ROW, 200, **environment))


def test_what_a_stranger_wrote_is_escaped_within_the_colours() -> None:
    for columns in (60, 200):
        shown = "\n".join(on_a_terminal(ROW | {"urls": ["http://x/\x1b[2J"]}, columns, TERM="xterm"))
        assert "\x1b[2J" not in shown
        assert "\\u{1b}[2J" in shown
