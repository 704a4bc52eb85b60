"""A node on a pretended machine: real orchestrator, state, unit folder and secrets; systemd and Podman are faked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import trio
from trio.testing import MockClock

from orchestrator.build_folder import BuildFolder
from orchestrator.derived import DerivedFolder
from orchestrator.engine import Orchestrator
from orchestrator.machine import Machine, Settings
from orchestrator.secret_files import SecretFiles
from orchestrator.state import State
from orchestrator.unit_folder import UnitFolder
from tests.fakes.podman import FakeCare, FakeHost, FakePodman, FakeProber
from tests.fakes.podman_machine import Machine as World
from tests.fakes.systemd import FakeSystemd

T = TypeVar("T")

ASKING = frozenset(
    (
        "show",
        "containers",
        "inventory",
        "images",
        "image",
        "version",
        "dry_run",
        "journal",
        "said",
        "reset_failed",
        "strangers",
    )
)
"""Calls that change nothing."""


class Node:
    """One node's home on one machine; `boot` starts a process of the orchestrator on it."""

    def __init__(self, home: Path, world: World | None = None, prefix: str = "archy") -> None:
        self.home = home
        self.world = world or World(home / "units")
        self.settings = Settings(home / "state.db", home / "data", self.world.unit_dir, prefix)
        self.host = FakeHost(self.world)
        self.systemd = FakeSystemd(self.world)
        self.podman = FakePodman(self.world)
        self.care = FakeCare(self.world)
        self.boot()

    def boot(self) -> Orchestrator:
        """A new process: nothing but what is on disk and on the machine is known to it."""
        self.world.revive()
        self.state = State.open(self.settings.state_db)
        self.world.on_crash = self.state.close
        self.machine = Machine(
            self.systemd,
            self.podman,
            FakeProber(self.world),
            self.host,
            UnitFolder(self.settings.unit_dir, self.settings.prefix),
            SecretFiles(self.settings.data_dir / "secrets"),
            self.settings.data_dir / "staging",
            self.settings.prefix,
            DerivedFolder(self.settings.data_dir / "derived"),
            BuildFolder(self.settings.data_dir / "builds"),
            self.care,
        )
        self.orchestrator = Orchestrator(self.settings, self.state, self.machine, "amd64")
        return self.orchestrator

    def restart(self) -> Orchestrator:
        """The process ends in order, and another begins."""
        self.state.close()
        return self.boot()

    async def tick(self) -> None:
        """One tick and the work it started."""
        async with trio.open_nursery() as nursery:
            await self.orchestrator.tick(nursery)

    async def settle(self) -> None:
        """Ticks until one changes nothing; a node that needs many is not converging."""
        for _ in range(6):
            before = len(self.changes())
            await self.tick()
            if len(self.changes()) == before and not self.state.open_operations():
                return
            await trio.sleep(400)  # past every back-off; the clock is a pretended one
        raise AssertionError("the node does not settle")

    def changes(self) -> list[tuple[str, str]]:
        """Calls that change something."""
        return [call for call in self.world.calls if call[0] not in ASKING]

    def units(self) -> list[str]:
        folder = self.settings.unit_dir
        return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else []


def run(work: Callable[[], Awaitable[T]]) -> T:
    """Run with a clock that jumps over every wait."""
    return trio.run(work, clock=MockClock(autojump_threshold=0))
