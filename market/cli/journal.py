"""The user's journal, where it is read without the node: words as they come, and those of apps that are gone.

Guarantees: nothing of others is shown, journalctl never outlives the command, and whoever stops reading ends it at
once. Interface: journalctl(1); conmon(8) marks what a container wrote with its name.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Final, TextIO

from market.cli.text import safe
from market.errors import EnvironmentLacks, Problem

SECONDS: Final = 20.0
"""For a question to the journal, which answers in tenths of one unless it is huge."""
MAX_LINE: Final = 1024 * 1024
"""Bytes of a line without an end that are waited for; conmon(8) cuts what containers write at far less."""
CHUNK: Final = 64 * 1024

_SHORT: Final = ("--quiet", "--no-pager", "--no-hostname", "--output=short-iso")
_WRITER: Final = re.compile(r"(\S+) \S+-[0-9a-f]{10}-([a-z0-9-]+)\[\d+\]: ")
"""Time and writer, as journalctl's short-iso has them; ten digits of the publisher end an app's name."""


def told(line: str) -> str:
    """`<time> <container>: <text>`: whose app it is was asked for, and stands in no line again."""
    return safe(_WRITER.sub(r"\1 \2: ", line, count=1) if _WRITER.match(line) else line)


def left_by(app: str, prefix: str, lines: int) -> list[str]:
    """The newest lines of containers of apps with this id, installed or not; none without a journal."""
    theirs = re.compile(rf"{re.escape(prefix)}-{re.escape(app)}-[0-9a-f]{{10}}-[a-z0-9-]+")
    names = [name for name in _asked("--quiet", "--field=CONTAINER_NAME") if theirs.fullmatch(name)]
    return _asked(*_SHORT, f"--lines={lines}", *_marks(names)) if names else []


def _asked(*words: str) -> list[str]:
    try:
        done = subprocess.run(
            ("journalctl", "--user", *words),
            capture_output=True,
            timeout=SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):  # what is asked for more than that is told by who asks
        return []
    return done.stdout.decode(errors="replace").splitlines()


def following(containers: Sequence[str], lines: int) -> Iterator[str]:
    """The newest lines and then every one as it comes, until nobody reads this program's output any more."""
    argv = ("journalctl", "--user", *_SHORT, "--follow", f"--lines={lines}", *_marks(containers))
    try:
        journal = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    except FileNotFoundError as error:
        raise EnvironmentLacks("journalctl is not installed", remedy="apt-get install systemd") from error
    with journal:
        try:
            assert journal.stdout is not None
            yield from _lines(journal.stdout.fileno())
        finally:
            journal.terminate()
    if journal.returncode > 0:
        raise Problem(f"journalctl ended with {journal.returncode}", remedy="journalctl --user says why")


def _marks(containers: Sequence[str]) -> list[str]:
    return [f"CONTAINER_NAME={name}" for name in containers]


def _lines(source: int) -> Iterator[str]:
    waiting = select.poll()
    waiting.register(source, select.POLLIN)
    stdout: TextIO | None = sys.stdout
    if stdout is None:  # who started this program had closed it: nobody will ever read
        raise BrokenPipeError
    waiting.register(stdout.fileno(), 0)  # only whether its reader went away: a quiet app would never find out
    rest = b""
    while True:
        ready = dict(waiting.poll())
        if source not in ready:
            raise BrokenPipeError
        chunk = os.read(source, CHUNK)
        *whole, rest = (rest + chunk).split(b"\n")
        if rest and (not chunk or len(rest) > MAX_LINE):
            whole, rest = [*whole, rest], b""
        yield from (line.decode(errors="replace") for line in whole)
        if not chunk:
            return
