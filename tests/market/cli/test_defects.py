"""A defect of the program's own: a message with a file, and never a traceback."""

from __future__ import annotations

import errno
import json
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
import trio

from market.cli.main import archy, main


def plain() -> None:
    raise RuntimeError("the impossible")


def in_a_nursery() -> None:
    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 0)
            plain()

    trio.run(run)


@pytest.fixture(params=[plain, in_a_nursery])
def defective(request: pytest.FixtureRequest) -> Iterator[str]:
    """A command with a defect."""
    broken: Callable[[], None] = request.param
    archy.add_command(click.Command("broken", callback=broken))
    try:
        yield "broken"
    finally:
        del archy.commands["broken"]


@pytest.mark.parametrize("as_json", [False, True])
def test_a_defect_is_told_with_a_file_for_who_mends_it(
    defective: str, as_json: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["archy", *(["--json"] if as_json else []), defective])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 1
    [file] = tmp_path.glob("archy-fault-*.txt")
    assert "RuntimeError: the impossible" in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err
    assert str(file) in (json.loads(shown.out)["where"] if as_json else shown.err)


def test_a_full_disk_that_is_not_under_the_answer_is_told_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise OSError(errno.ENOSPC, "no watch is left")  # inotify_add_watch(2) says so too

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["archy", "broken"])
    monkeypatch.setitem(archy.commands, "broken", click.Command("broken", callback=broken))
    with pytest.raises(SystemExit):
        main()
    [file] = tmp_path.glob("archy-fault-*.txt")
    assert "no watch is left" in file.read_text()
    assert "could not be written" not in capsys.readouterr().err
