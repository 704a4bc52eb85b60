"""Podman's own state: is it whole, and if not, what mends it without touching a volume (R-FM6).

Guarantees: every look and every cure is bounded in time; a cure follows from evidence, never from silence (a Podman
that is only slow gets none); a database is moved aside, never deleted; `podman system reset` is never called. Apps are
then rebuilt from their units by the planner. What could not be mended is told.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sqlite3
import sys
import time
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final, Protocol

import trio

from apps.problems import Problem
from orchestrator.podman_answers import ContainerSeen
from orchestrator.process import run

log = logging.getLogger(__name__)

PROBE: Final = 30.0
"""Seconds for Podman to answer about itself."""
CURE: Final = 60.0
KEPT_DATABASES: Final = 3
"""Broken databases that are kept for whoever wants to look; each has a few hundred KiB."""


class Ailment(Enum):
    """What can be wrong, in the order in which it is mended."""

    DATABASE = "Podman's database can not be read"
    NAMESPACE = "the network namespace of running apps is gone"
    LINK = "the program that links the apps' network to this machine's has ended"
    NAMES = "the name server of the apps' networks has ended"
    SILENT = "Podman does not answer"


REMEDIES: Final = {
    Ailment.DATABASE: "podman info; move ~/.local/share/containers/storage/db.sql aside",
    Ailment.NAMESPACE: "systemctl --user stop 'archy-*', then archy up",
    Ailment.LINK: "podman unshare --rootless-netns true",
    Ailment.NAMES: "podman network reload --all",
    Ailment.SILENT: "podman info says why; is the disk full, or the machine overloaded?",
}


@dataclass(frozen=True, slots=True)
class Signs:
    """What was seen. `refusal`: what Podman said instead of an answer, empty when it answered."""

    refusal: str = ""
    database_broken: bool = False
    """Podman failed, and SQLite's own check fails too."""
    namespace_gone: bool = False
    link_dead: bool = False
    names_dead: bool = False


def diagnose(signs: Signs) -> tuple[Ailment, ...]:
    """Every ailment that the signs prove. Pure."""
    if signs.refusal:
        return (Ailment.DATABASE,) if signs.database_broken else (Ailment.SILENT,)
    if signs.namespace_gone:
        return (Ailment.NAMESPACE,)  # the other two live and die with it
    found = ((signs.link_dead, Ailment.LINK), (signs.names_dead, Ailment.NAMES))
    return tuple(ailment for seen, ailment in found if seen)


class Care(Protocol):
    """Looks and mends."""

    async def look(self, *, answered: bool, living: Sequence[ContainerSeen] = ()) -> Signs:
        """`answered`: Podman just did, and has containers that run; `living`: those of which to look whether they are
        linked to the present network namespace, too."""
        ...

    async def mend(self, ailment: Ailment) -> None:
        """Raises Problem when the cure fails, or when there is none."""
        ...


class RootlessCare:
    """The real one, for this user's Podman. Paths: containers-storage.conf(5), podman's rootless network folder."""

    def __init__(self, runtime: Path | None = None, storage: Path | None = None) -> None:
        runtime = runtime or Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
        networks = runtime / "containers" / "networks"
        self._namespace = networks / "rootless-netns" / "rootless-netns"
        self._link = networks / "rootless-netns" / "rootless-netns-conn.pid"
        self._names = networks / "aardvark-dns" / "aardvark.pid"
        self._database = (storage or _graph_root()) / "db.sql"

    async def look(self, *, answered: bool, living: Sequence[ContainerSeen] = ()) -> Signs:
        if not answered:
            refusal = await self._refusal()
            return Signs(refusal, bool(refusal) and await trio.to_thread.run_sync(_is_broken, self._database))
        gone = not self._namespace.exists() or await _are_cut_off(living)
        return Signs("", False, gone, _is_dead(self._link), _is_dead(self._names))

    async def mend(self, ailment: Ailment) -> None:
        match ailment:
            case Ailment.DATABASE:
                await trio.to_thread.run_sync(_move_aside, self._database)
                if refusal := await self._refusal():
                    raise Problem(f"Podman still fails with a new database: {refusal}")
            case Ailment.NAMESPACE:
                _end(self._names, "aardvark-dns")  # it serves the lost namespace, and keeps new ones without names
            case Ailment.LINK:
                # Podman starts the link again when it enters the namespace.
                (await run(("podman", "unshare", "--rootless-netns", "true"), seconds=CURE)).checked()
            case Ailment.NAMES:
                await run(("podman", "network", "reload", "--all"), seconds=CURE)
                if _is_dead(self._names):
                    raise Problem("the name server did not come back")
            case Ailment.SILENT:
                raise Problem("nothing is known that mends this")

    async def _refusal(self) -> str:
        try:
            done = await run(("podman", "info", "--format", "{{.Store.GraphRoot}}"), seconds=PROBE)
        except Problem as problem:
            return problem.what
        lines = done.stderr.strip().splitlines()
        return "" if done.code == 0 else (lines[-1] if lines else f"podman info ended with {done.code}")


async def _are_cut_off(containers: Sequence[ContainerSeen]) -> bool:
    """Does one of them have its links in another namespace than the present one? What is not seen is no proof.

    The present one must be seen to have links of others, or none at all: else the question itself may not work here.
    """
    asked = {container.pid: container.id for container in containers if container.networks}
    asked = {pid: id_ for pid, id_ in asked.items() if _is_alive(pid, id_)}
    if not asked:
        return False
    program = str(Path(__file__).with_name("attached_inside.py"))
    argv = ("podman", "unshare", "--rootless-netns", sys.executable, "-I", program)
    try:
        done = (await run(argv, seconds=PROBE, stdin=json.dumps(list(asked)).encode())).checked()
        found = json.loads(done.stdout)
        attached, links = set(found["attached"]), int(found["links"])
    except (Problem, ValueError, KeyError, TypeError) as error:
        log.warning("the apps' network namespace can not be looked at", extra={"problem": str(error)})
        return False
    lost = [id_ for pid, id_ in asked.items() if pid not in attached and _is_alive(pid, id_)]
    return bool(lost) and (bool(attached) or links == 0)


def _is_alive(pid: int, container: str) -> bool:
    """Is this process still the container's? Its control group is named after it (conmon(8), `libpod-payload-<id>`)."""
    try:
        return bool(container) and container in Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return False


def _graph_root() -> Path:
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "containers" / "storage.conf"
    try:
        named = tomllib.loads(config.read_text()).get("storage", {}).get("graphroot")
    except (OSError, ValueError):
        named = None
    return Path(named) if isinstance(named, str) and named.startswith("/") else data / "containers" / "storage"


def _is_broken(database: Path) -> bool:
    """SQLite's own opinion; a database that is locked, absent or unreadable is not proven broken."""
    if not database.is_file():
        return False
    try:
        connection = sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=2)
        try:
            return bool(connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",))
        finally:
            connection.close()
    except sqlite3.OperationalError:
        return False
    except sqlite3.DatabaseError:
        return True


_PARTS: Final = ("-shm", "-wal", "")
"""A database and what SQLite keeps beside it (sqlite.org/walformat.html), the database last: until then it is found."""


def _move_aside(database: Path) -> None:
    old = sorted(database.parent.glob(f"{database.name}.broken-*[0-9]"))
    for path in old[: max(0, len(old) - KEPT_DATABASES + 1)]:
        for suffix in _PARTS:
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    aside = f"{database.name}.broken-{time.time_ns()}"
    try:
        for suffix in _PARTS:
            with suppress(FileNotFoundError):
                database.with_name(database.name + suffix).rename(database.with_name(aside + suffix))
    except OSError as error:
        raise Problem(f"the database can not be moved aside: {error.strerror}", where=str(database)) from error
    log.warning("moved a broken database of Podman aside", extra={"path": str(database)})


def _pid(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _is_dead(file: Path) -> bool:
    """The file names a process that is gone; no file is no evidence."""
    pid = _pid(file)
    return pid is not None and not Path(f"/proc/{pid}").exists()


def _end(file: Path, name: str) -> None:
    pid = _pid(file)
    try:
        if pid is not None and Path(f"/proc/{pid}/comm").read_text().strip() == name:
            os.kill(pid, signal.SIGTERM)
    except (OSError, ProcessLookupError):
        return
