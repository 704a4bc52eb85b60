"""Look, plan, take the steps, look again, until there is nothing to do; then wait until the app is well."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

import trio

from apps.names import AppName
from apps.problems import Problem
from orchestrator.apply import Source, take
from orchestrator.faults import Unhealthy
from orchestrator.generations import Loaded
from orchestrator.health import ContainerStatus, checks, judge, ready
from orchestrator.machine import Machine
from orchestrator.names import Names
from orchestrator.plan import Absent, Observed, Wanted, plan
from orchestrator.status import Progress
from orchestrator.steps import BuildImage, ImportImage, Restart, Start, Step, StopUnits, WriteSecrets, WriteUnits
from orchestrator.systemd import UnitState

log = logging.getLogger(__name__)

MAX_ROUNDS = 5
"""Looks until an app must have settled; two suffice when nothing else interferes."""
POLL = 0.25
"""Seconds between two health checks of an app that is being started."""
FIRST_POLL = 0.02
"""Seconds after the first of them; each pause is twice as long as the one before, up to `POLL`."""
CRASHES = 3
"""Restarts by systemd after which a start is given up before its window ends."""

Report = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """A report that nobody reads."""


async def converge(
    machine: Machine,
    want: Wanted | Absent,
    source: Source | None,
    report: Report = silent,
    before_start: Callable[[], Awaitable[None]] | None = None,
    first: Observed | None = None,
) -> Observed:
    """Make an app as it is wanted; the last look. Raises Problem, with what was done so far left in place.

    `before_start` may raise a Problem when the app's services are not to be started yet. `first` is a whole look after
    which nothing was changed.
    """
    names = want.app.names if isinstance(want, Wanted) else want.names
    services = want.app.services if isinstance(want, Wanted) else want.services
    started: set[str] = set()
    given_up: set[str] = set()
    aside = {box.service for box in want.app.containers if box.companion} if isinstance(want, Wanted) else set()
    for turn in range(MAX_ROUNDS):
        # A step that changes images, networks, volumes or secrets raises when it did not work. What else happens to
        # them meanwhile is for the next tick to see; likewise a unit that waits for a reload, which a brief look
        # leaves out.
        whole = turn == 0 or isinstance(want, Absent)
        seen = first or await machine.look(services, whole=whole, strict=True, brief=not whole, stem=names.stem)
        first = None
        steps = tuple(s for s in plan(want, seen) if not (isinstance(s, Start | Restart) and s.service in given_up))
        if not steps:
            if isinstance(want, Absent):
                machine.folder.sweep(names.stem)
            return seen
        for step in steps:
            if isinstance(step, Start):
                if before_start is not None and not started:
                    await before_start()
                if step.service in started and step.service in aside:
                    given_up.add(step.service)
                    continue
                if step.service in started:
                    raise _ends_at_once(step.service, names, (seen.services or {}).get(step.service))
                started.add(step.service)
            _tell(names.app, step, report)
            try:
                await take(machine, step, source, names)
            except Unhealthy as problem:
                if not isinstance(step, Start | Restart) or step.service not in aside:
                    raise
                # The next tick tries again; neither the app nor others wait for it (R-ST4)
                given_up.add(step.service)
                log.warning("a companion does not start", extra={"app": names.slug, "problem": str(problem)})
        if isinstance(want, Wanted) and any(isinstance(step, BuildImage) for step in steps):
            want = replace(want, app=want.app.with_built(machine.builds.built(names.app)))
    raise Problem(f"{names.app.id} does not settle", where=names.slug, remedy="archy logs, archy doctor")


def _ends_at_once(service: str, names: Names, unit: UnitState | None) -> Unhealthy:
    how = f": {unit.ended}" if unit and unit.ended else ""
    return Unhealthy(
        f"{service} ends as soon as it is started{how}",
        where=names.slug,
        remedy=f"journalctl --user -u {service} shows what it said",
    )


async def provide(
    machine: Machine, want: Wanted, source: Source, report: Report, first: Observed | None = None
) -> Observed | None:
    """Images and secrets: what can be prepared while the old generation runs. The look, unless it is out of date.

    `first` is a whole look after which nothing was changed.
    """
    seen = first or await machine.look(want.app.services, whole=True, strict=True, stem=want.app.names.stem)
    steps = plan(want, seen)
    if not any(isinstance(step, BuildImage) for step in steps):  # a plan that builds does nothing else
        steps = tuple(step for step in steps if isinstance(step, ImportImage | WriteSecrets))
    for step in steps:
        _tell(source.names.app, step, report)
        await take(machine, step, source, source.names)
    return None if steps else seen


def _tell(name: AppName, step: Step, report: Report) -> None:
    match step:
        case ImportImage(container, _):
            report(Progress(name, "import", container))
        case BuildImage(container, _):
            report(Progress(name, "build", container))
        case WriteUnits(files, removed) if removed or not all(unit.endswith(".build") for unit in files):
            report(Progress(name, "write"))
        case Start(service, _) | Restart(service, _):
            report(Progress(name, "start", service))
        case StopUnits(services, _):
            report(Progress(name, "start", f"stopping {', '.join(services)}"))


def statuses(loaded: Loaded, seen: Observed, answers: Mapping[str, str]) -> tuple[ContainerStatus, ...]:
    """The status of every container, from one look and one round of checks."""
    containers = {container.name: container for container in seen.containers or ()}
    return judge(loaded.manifest, loaded.app.names, seen.services or {}, containers, answers)


async def wait_healthy(
    machine: Machine, loaded: Loaded, seconds: float, first: Observed | None = None
) -> tuple[ContainerStatus, ...]:
    """How its containers are once all is well. `first` is a look that was made just now.

    Raises Unhealthy when the window ends, or earlier when a container fails or crashes again and again.
    """
    last: tuple[ContainerStatus, ...] = ()
    how = f"did not become healthy in time ({seconds:g} s)"
    before: dict[str, int] = {}
    ends: dict[str, str] = {}  # also of those that were started again since
    pause, stem = FIRST_POLL, loaded.app.names.stem
    with trio.move_on_after(seconds):
        while True:
            counted = first is None  # a brief look does not count the restarts of what runs
            seen, first = first or await machine.look(loaded.app.services, whole=False, stem=stem), None
            if seen.services is not None and seen.containers is not None:
                answers = await machine.prober.ask(checks(loaded.manifest, loaded.app.names))
                last = statuses(loaded, seen, answers)
                if ready(last):
                    return last
                ends |= {s.name: s.detail for s in last if s.state != "running" and s.detail}
                if counted:
                    before = before or {status.name: status.restarts for status in last}
                needed = [status for status in last if not status.companion]
                if any(s.state == "failed" or s.restarts - before.get(s.name, s.restarts) >= CRASHES for s in needed):
                    how = "does not stay up"
                    break
            await trio.sleep(pause)
            pause = min(pause * 2, POLL)
    bad = [_told(status, ends.get(status.name, "")) for status in last if not ready((status,))]
    said = bad or ["systemd or Podman did not answer"]
    raise Unhealthy(
        f"{loaded.manifest.id} {loaded.manifest.version} {how}: {'; '.join(said)}",
        where=loaded.app.names.slug,
        remedy=f"journalctl --user -u '{loaded.app.names.stem}-*' shows what it said",
    )


def _told(status: ContainerStatus, ended: str) -> str:
    often = f"restarted {status.restarts} time{'s' * (status.restarts > 1)}" if status.restarts else ""
    why = list(dict.fromkeys(filter(None, (ended, status.detail)))) or [f"health {status.health}"]
    return ", ".join(filter(None, (f"{status.name} is {status.state}", often, *why)))
