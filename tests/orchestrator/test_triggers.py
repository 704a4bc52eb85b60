"""Triggers: what makes the orchestrator look sooner, and that nothing is lost when they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from apps.problems import Problem
from orchestrator.faults import CommandMissing
from orchestrator.triggers import FolderWatch, PodmanEvents

SECONDS = 20.0


class Woken:
    """Counts, and lets a test wait for the next wake-up."""

    def __init__(self) -> None:
        self.count = 0
        self._event = trio.Event()

    def __call__(self) -> None:
        self.count += 1
        self._event.set()
        self._event = trio.Event()

    async def wait_more_than(self, count: int) -> None:
        with trio.fail_after(SECONDS):
            while self.count <= count:
                await self._event.wait()


async def test_files_that_come_change_and_go_wake(tmp_path: Path) -> None:  # R-ST15
    folder = tmp_path / "units"
    woken = Woken()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(FolderWatch(folder).listen, woken)
        await woken.wait_more_than(0)
        path = folder / "archy-x.container"
        for change in (lambda: path.write_text("a"), lambda: path.write_text("b"), path.unlink):
            before = woken.count
            change()
            await woken.wait_more_than(before)
        nursery.cancel_scope.cancel()


async def test_a_folder_that_goes_ends_the_watch(tmp_path: Path) -> None:
    woken = Woken()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(FolderWatch(tmp_path / "units").listen, woken)
        await woken.wait_more_than(0)
        nursery.cancel_scope.deadline = trio.current_time() + SECONDS
        (tmp_path / "units").rmdir()
    assert not nursery.cancel_scope.cancelled_caught


async def test_a_folder_that_can_not_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Problem, match="can not be made"):
        await FolderWatch(tmp_path / "file" / "units").listen(lambda: None)


def pretend(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "podman").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "podman").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


async def test_only_events_of_this_nodes_things_wake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = ['{"Name":"archy-x-web","Status":"died"}', '{"Name":"mine"}', "garbage", "[1]", '{"Name":"archyother-x"}']
    pretend(tmp_path, "\n".join(f"echo '{line}'; sleep 0.05" for line in said), monkeypatch)
    woken = Woken()
    with trio.fail_after(SECONDS):
        await PodmanEvents("archy").listen(woken)
    assert woken.count == 1


async def test_a_line_without_an_end_is_refused_and_the_program_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(tmp_path, "exec cat /dev/zero", monkeypatch)
    with trio.fail_after(SECONDS), pytest.raises(Problem, match="without an end"):
        await PodmanEvents("archy").listen(lambda: None)


async def test_without_podman_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CommandMissing):
        await PodmanEvents("archy").listen(lambda: None)
