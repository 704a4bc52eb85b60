"""The user's systemd, over its bus or through `systemctl --user`, and Quadlet's generator; every call has a deadline.

Guarantees: one call observes all units of a node; foreign errors arrive as Problems. It refuses to know which units
should run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeVar

import trio

from apps.problems import EnvironmentLacks, Problem
from orchestrator import systemd_bus
from orchestrator.faults import CommandFailed, CommandTimedOut, JobFailed
from orchestrator.process import Completed, run
from orchestrator.systemd_bus import NoBus

log = logging.getLogger(__name__)
T = TypeVar("T")

QUICK: Final = 20.0
"""Seconds for a question: systemd answers in milliseconds unless the machine is overloaded."""
RELOAD: Final = 90.0
"""Seconds for a reload: all generators run; systemd's own limit is 90."""
GENERATORS: Final = ("/usr/libexec/podman/quadlet", "/usr/lib/podman/quadlet")
"""Where distributions put Quadlet's generator (Debian, Fedora; Arch)."""
MAX_LOG_LINES: Final = 5000
"""What one question may fetch from the journal."""


ACCEPTED: Final = 32
"""Sets of units that are not tried again: an installation tries them first, and once more before they are written."""


@dataclass(frozen=True, slots=True)
class UnitState:
    """What systemd says of a service. `load`: loaded, not-found, ...; `active`: active, activating, failed, ..."""

    name: str
    load: str
    active: str
    sub: str
    result: str = "success"
    restarts: int = 0
    needs_reload: bool = False
    cgroup: str = ""
    since: int | None = None
    """Unix seconds at which it became as it is."""
    ended: str = ""
    """How its main process ended last, in words; empty while that runs, and where it ended well."""


@dataclass(frozen=True, slots=True)
class DryRun:
    """What Quadlet makes of a folder: names of generated services, and what it complained about."""

    services: frozenset[str]
    complaints: tuple[str, ...]


class Systemd(Protocol):
    """The calls that the orchestrator makes. Services are named in full (`archy-x-web.service`)."""

    async def show(self, prefix: str, services: Sequence[str], *, brief: bool = False) -> dict[str, UnitState]:
        """The named services and every loaded service whose name begins with `<prefix>-`, by name.

        `brief`: of a service that is active only that it is; systemd takes 2 ms for all that it knows of one.
        """
        ...

    async def daemon_reload(self) -> None:
        """Run the generators and read all units again."""
        ...

    async def start(self, services: Sequence[str], *, seconds: float) -> None:
        """Start and wait until they are up. Raises CommandFailed, CommandTimedOut."""
        ...

    async def stop(self, services: Sequence[str], *, seconds: float) -> None:
        """Stop and wait until they are down; an unknown service counts as stopped."""
        ...

    async def restart(self, services: Sequence[str], *, seconds: float) -> None:
        """Stop, then start, and wait."""
        ...

    async def reset_failed(self, services: Sequence[str]) -> None:
        """Forget failures and start counters; unknown services are passed over."""
        ...

    async def dry_run(self, folder: Path) -> DryRun:
        """Run Quadlet's generator on a folder without writing anything."""
        ...

    async def journal(self, containers: Sequence[str], *, lines: int) -> list[str]:
        """The newest lines that containers wrote, oldest first, also of containers that are gone."""
        ...

    async def said(self, service: str, *, lines: int) -> list[str]:
        """The newest lines that a service of no container wrote, oldest first, without time and name."""
        ...


_PROPERTIES: Final = (
    "Id,LoadState,ActiveState,SubState,Result,NRestarts,NeedDaemonReload,ControlGroup,"
    "StateChangeTimestampMonotonic,ExecMainCode,ExecMainStatus"
)


class UserSystemd:
    """The real one."""

    def __init__(self) -> None:
        self._accepted: dict[bytes, DryRun] = {}

    async def show(self, prefix: str, services: Sequence[str], *, brief: bool = False) -> dict[str, UnitState]:
        if not brief:
            return await self._show((*dict.fromkeys(services), f"{prefix}-*.service"))
        found = await self._listed(f"{prefix}-*.service")
        asked = [name for name in dict.fromkeys(services) if name not in found or found[name].active != "active"]
        return {**found, **(await self._show(asked))} if asked else found

    async def _show(self, names: Sequence[str]) -> dict[str, UnitState]:
        done = await self._ask(("show", f"--property={_PROPERTIES}", "--", *names))
        states = [_state(block) for block in done.stdout.decode(errors="replace").split("\n\n") if block.strip()]
        return {state.name: state for state in states if state.name}

    async def _listed(self, pattern: str) -> dict[str, UnitState]:
        try:
            return {unit[0]: UnitState(*unit) for unit in await systemd_bus.units(pattern)}
        except NoBus as lack:
            _tell(lack)
        done = await self._ask(("list-units", "--all", "--output=json", "--", pattern))
        try:
            units = [(str(unit["unit"]), unit["load"], unit["active"], unit["sub"]) for unit in json.loads(done.stdout)]
        except (ValueError, TypeError, KeyError) as error:
            raise Problem("systemctl list-units wrote something that is not a list of units") from error
        return {name: UnitState(name, str(load), str(active), str(sub)) for name, load, active, sub in units}

    async def daemon_reload(self) -> None:
        argv = ("daemon-reload",)
        try:
            await _within(RELOAD, argv, systemd_bus.reload)
        except NoBus as lack:
            _tell(lack)
            await self._ask(argv, seconds=RELOAD)

    async def start(self, services: Sequence[str], *, seconds: float) -> None:
        await self._begin("StartUnit", "start", services, seconds)

    async def stop(self, services: Sequence[str], *, seconds: float) -> None:
        try:
            await self._ask(("stop", "--", *services), seconds=seconds)
        except CommandFailed as error:
            if error.code != 5:  # systemctl(1): 5 is "unit not loaded"
                raise

    async def restart(self, services: Sequence[str], *, seconds: float) -> None:
        await self._begin("RestartUnit", "restart", services, seconds)

    async def _begin(self, method: str, verb: str, services: Sequence[str], seconds: float) -> None:
        argv = (verb, "--", *services)
        try:
            results = await _within(seconds, argv, partial(systemd_bus.jobs, method, services))
        except NoBus as lack:
            _tell(lack)
            await self._ask(argv, seconds=seconds)
            return
        for service, result in results.items():
            if result not in ("done", "skipped"):
                raise JobFailed(verb, service, result)

    async def reset_failed(self, services: Sequence[str]) -> None:
        if services:
            await run(("systemctl", "--user", "reset-failed", "--", *services), seconds=QUICK)

    async def dry_run(self, folder: Path) -> DryRun:
        generator = generator_path()
        key = await trio.to_thread.run_sync(_digest, generator, folder)
        if key in self._accepted:
            return self._accepted[key]
        done = await run(
            (generator, "--user", "--dryrun"), seconds=QUICK, environment={"QUADLET_UNIT_DIRS": str(folder)}
        )
        written = done.stdout.decode(errors="replace").splitlines()
        names = {line[3:-3].rsplit("/", 1)[-1] for line in written if line.startswith("---") and line.endswith("---")}
        complaints = tuple(line for line in done.stderr.splitlines() if _complains(line))
        if done.code != 0 and not complaints:
            complaints = (f"quadlet ended with {done.code}",)
        made = DryRun(frozenset(names), complaints)
        if not complaints:
            self._accepted = dict([*self._accepted.items(), (key, made)][-ACCEPTED:])
        return made

    async def journal(self, containers: Sequence[str], *, lines: int) -> list[str]:
        # conmon(8) marks what a container wrote with its name; Podman's own messages do not carry it
        names = tuple(f"CONTAINER_NAME={name}" for name in containers)
        count = min(max(lines, 1), MAX_LOG_LINES)
        argv = ("--quiet", "--no-pager", "--no-hostname", "--output=short-iso", f"--lines={count}", *names)
        done = (await run(("journalctl", "--user", *argv), seconds=QUICK)).checked()
        return done.stdout.decode(errors="replace").splitlines()

    async def said(self, service: str, *, lines: int) -> list[str]:
        argv = ("--quiet", "--no-pager", "--output=cat", f"--lines={min(max(lines, 1), MAX_LOG_LINES)}")
        done = (await run(("journalctl", "--user", *argv, f"--user-unit={service}"), seconds=QUICK)).checked()
        return done.stdout.decode(errors="replace").splitlines()

    async def _ask(self, argv: Sequence[str], *, seconds: float = QUICK) -> Completed:
        done = await run(("systemctl", "--user", *argv), seconds=seconds)
        if done.code != 0 and "Failed to connect to" in done.stderr:
            raise EnvironmentLacks(
                "there is no systemd for this user",
                remedy="log in as the user (not with su), or: loginctl enable-linger USER, and set XDG_RUNTIME_DIR",
            )
        return done.checked()


async def _within(seconds: float, argv: tuple[str, ...], ask: Callable[[], Awaitable[T]]) -> T:
    """As long as the program may take. Raises CommandTimedOut, NoBus."""
    with trio.move_on_after(seconds):
        return await ask()
    raise CommandTimedOut(("systemctl", "--user", *argv), seconds)


def _tell(lack: NoBus) -> None:
    log.debug("systemd is asked by systemctl", extra={"problem": str(lack)})


def _digest(generator: str, folder: Path) -> bytes:
    """Of all that an answer of the generator depends on."""
    program = Path(generator).stat()
    digest = hashlib.sha256(f"{generator} {program.st_ino} {program.st_size} {program.st_mtime_ns}".encode())
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"\0{path.relative_to(folder)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.digest()


def generator_path() -> str:
    """Where Quadlet's generator is. Raises EnvironmentLacks."""
    for path in GENERATORS:
        if Path(path).exists():
            return path
    raise EnvironmentLacks(
        "Podman's Quadlet generator is not installed", remedy="install Podman 5 or newer: apt-get install podman"
    )


def _complains(line: str) -> bool:
    return bool(line.strip()) and "Loading source " not in line


def _state(block: str) -> UnitState:
    values = dict(line.partition("=")[::2] for line in block.strip().splitlines())
    restarts = values.get("NRestarts", "0")
    return UnitState(
        values.get("Id", ""),
        values.get("LoadState", ""),
        values.get("ActiveState", ""),
        values.get("SubState", ""),
        values.get("Result", ""),
        int(restarts) if restarts.isdigit() else 0,
        values.get("NeedDaemonReload") == "yes",
        values.get("ControlGroup", ""),
        _since(values.get("StateChangeTimestampMonotonic", "")),
        _ended(values),
    )


def _since(microseconds: str) -> int | None:
    """Of the clock that systemd counts by, as Unix seconds: as text, systemd writes times in words."""
    if not microseconds.isdigit() or microseconds == "0":
        return None
    return int(time.time() - time.monotonic() + int(microseconds) / 1e6)


def _ended(values: Mapping[str, str]) -> str:
    code, status = values.get("ExecMainCode", "0"), values.get("ExecMainStatus", "0")
    if values.get("Result") == "oom-kill":
        return "killed: out of memory"
    if code == "1":  # waitid(2): exited; 2 and 3 are ended by a signal
        by = int(status) - 128 if status.isdigit() else 0  # a container's first process that a signal ended
        return f"exit code {status}{f' ({_signal(by)})' if by > 0 else ''}" if status != "0" else ""
    return f"killed by {_signal(int(status))}" if code in ("2", "3") and status.isdigit() else ""


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
