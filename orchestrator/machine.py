"""The seams to the machine in one value, and one bounded look at all of it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import trio

from apps.problems import Problem
from orchestrator.build_folder import BuildFolder
from orchestrator.derived import DerivedFolder
from orchestrator.host import Host
from orchestrator.names import check_prefix
from orchestrator.plan import Observed
from orchestrator.podman import ContainerSeen, Inventory, Podman
from orchestrator.podman_care import Care
from orchestrator.prober import Prober
from orchestrator.secret_files import SecretFiles
from orchestrator.systemd import Systemd, UnitState
from orchestrator.triggers import Trigger
from orchestrator.unit_folder import UnitFolder

log = logging.getLogger(__name__)


def default_unit_dir() -> Path:
    """Where the user's Quadlet files are (podman-systemd.unit(5))."""
    return Path.home() / ".config" / "containers" / "systemd"


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the orchestrator keeps things. `tick_seconds`: how often it looks without being asked (R-ST15)."""

    state_db: Path
    data_dir: Path
    unit_dir: Path
    prefix: str = "archy"
    tick_seconds: float = 30

    def __post_init__(self) -> None:
        check_prefix(self.prefix)


@dataclass(frozen=True, slots=True)
class Machine:
    """Everything outside that the orchestrator touches."""

    systemd: Systemd
    podman: Podman
    prober: Prober
    host: Host
    folder: UnitFolder
    secrets: SecretFiles
    staging: Path
    """A folder of our own for dry runs and imports; its content means nothing after a restart."""
    prefix: str
    derived: DerivedFolder
    builds: BuildFolder
    care: Care
    triggers: tuple[Trigger, ...] = ()
    """They make it look sooner; losing all of them is harmless."""

    async def look(
        self, services: Sequence[str], *, whole: bool, strict: bool = False, brief: bool = False, stem: str = ""
    ) -> Observed:
        """One look: services and containers, with `whole` also images, networks, volumes and secrets.

        `brief`: of services that are active nothing else, which is what a tick over many apps can pay for; `stem`:
        services of the app with this stem alone, which is what an operation on it needs to know.

        A part that does not answer is Unknown (R-ST18); with `strict` its Problem is raised instead. Raises Problem
        where this node's own folders can not be read.
        """
        seen = _Seen()

        async def units() -> None:
            seen.services = await self.systemd.show(stem or self.prefix, services, brief=brief)

        async def containers() -> None:
            seen.containers = await self.podman.containers(self.prefix)

        async def inventory() -> None:
            seen.inventory = await self.podman.inventory(self.prefix)

        async with self.podman.at_hand() if whole else nullcontext(), trio.open_nursery() as nursery:
            for ask in (units, containers, *((inventory,) if whole else ())):
                nursery.start_soon(_or_unknown, ask, seen)
        if strict and seen.problems:
            raise seen.problems[0]  # its caller tells it
        for said in dict.fromkeys(map(str, seen.problems)):
            log.warning("a look at the machine failed", extra={"problem": said})
        if whole and seen.inventory is None:
            seen.containers = None  # Podman answers in part only: unknown as a whole
        try:
            files, derived, builds = self.folder.read(), self.derived.read(), self.builds.read()
        except OSError as error:
            raise Problem(
                f"can not be read: {error.strerror}",
                where=str(error.filename),
                remedy="make it readable for this user",
            ) from error
        return Observed(files, seen.services, seen.containers, seen.inventory, derived, builds)


@dataclass
class _Seen:
    services: dict[str, UnitState] | None = None
    containers: tuple[ContainerSeen, ...] | None = None
    inventory: Inventory | None = None
    problems: list[Problem] = field(default_factory=list)


async def _or_unknown(ask: Callable[[], Awaitable[None]], seen: _Seen) -> None:
    try:
        await ask()
    except Problem as problem:
        seen.problems.append(problem)
