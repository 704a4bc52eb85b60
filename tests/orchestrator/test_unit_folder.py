"""The unit folder when a process is killed in the middle of writing to it, and beside other people's files."""

from __future__ import annotations

import errno
import itertools
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from apps.problems import Problem
from orchestrator.unit_folder import UnitFolder

STEM = "archy-hello-64e1204941"
FILES = {
    f"{STEM}-web.container": "# Owner: hello\n",
    f"{STEM}-web.container.d/10-boot.conf": "[Install]\nWantedBy=default.target\n",
    f"{STEM}.network": "[Network]\n",
}
OTHERS = (
    "mine.container",
    "archy-hello-64e12049411-web.container.d",
    f".{STEM}-web.container.swp",
    f"{STEM}-web.bak.d",
)
KILLED_AT = ("mkdir", "open", "fsync", "replace")
"""Calls that one file takes, in order."""


def write_and_die(folder: UnitFolder, call: str, nth: int) -> bool:
    """Write the files in a process that is killed at the n-th such call; whether it came to that."""
    child = os.fork()
    if child:
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert ended in (0, -signal.SIGKILL)
        return ended != 0
    code = 1  # whatever happens, the child must not go on as a second test run
    where = os if call == "fsync" else Path
    real, calls = getattr(where, call), itertools.count()

    def call_or_die(*given: Any, **named: Any) -> Any:
        if next(calls) == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **named)

    try:
        setattr(where, call, call_or_die)
        folder.write(FILES)
        code = 0
    finally:
        os._exit(code)


@pytest.mark.parametrize("call", KILLED_AT)
def test_a_write_that_was_killed_anywhere_leaves_nothing_once_it_is_undone(tmp_path: Path, call: str) -> None:
    folder = UnitFolder(tmp_path / "units", "archy")
    folder.folder.mkdir()
    for other in OTHERS:
        path = folder.folder / other
        path.mkdir() if other.endswith(".d") else path.write_text("not ours")
    kills = 0
    for nth in range(2 * len(FILES) + 1):
        kills += write_and_die(folder, call, nth)
        folder.remove(tuple(name for name in FILES if (folder.folder / name).exists()))
        folder.sweep(STEM)
        assert sorted(path.name for path in folder.folder.iterdir()) == sorted(OTHERS), f"killed at {call} {nth}"
    assert kills >= len(FILES)


@pytest.mark.parametrize("nth", range(len(FILES)))
def test_a_disk_that_is_full_in_the_middle_leaves_every_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    folder = UnitFolder(tmp_path, "archy")
    folder.write(FILES)
    real, calls = os.fsync, itertools.count()

    def full(descriptor: int) -> None:
        if next(calls) == nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Problem, match="No space left"):
        folder.write({name: f"{text}# newer\n" for name, text in FILES.items()})
    found = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == FILES
