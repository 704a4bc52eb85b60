"""The orchestrator: the operator's word and the running machine, kept the same.

Guarantees: at most one operation per app at a time, different apps in parallel (R-ST20); an operation that fails or is
cut off leaves the old generation or the new one, whole; what its user stopped is never started by itself (R-ST2); an
observation that fails changes nothing (R-ST18). Every change goes through `plan`. It refuses to know where bundles
come from.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from apps.manifest import Manifest, parse_manifest_json
from apps.names import AppName
from apps.problems import NotRunning, Problem, RolledBack
from orchestrator import guard
from orchestrator.apply import Source, take
from orchestrator.bundle import Bundle
from orchestrator.faults import Busy, Unhealthy
from orchestrator.health import ContainerStatus, app_state, checks, judge, ready, window
from orchestrator.images import verify_layers
from orchestrator.machine import Machine, Settings
from orchestrator.names import Names
from orchestrator.plan import (
    Absent,
    ImportImage,
    Observed,
    Restart,
    Start,
    Step,
    StopUnits,
    Wanted,
    WriteSecrets,
    WriteUnits,
    plan,
    stop_seconds,
    unclaimed,
)
from orchestrator.quadlet.keys import Version
from orchestrator.quadlet.render import RenderedApp, Target, render
from orchestrator.state import AppRecord, Generation, Operation, OpState, State
from orchestrator.status import AppStatus, Progress, urls
from orchestrator.supported import require_supported

log = logging.getLogger(__name__)

MAX_ROUNDS = 5
"""Looks until an app must have settled; two suffice when nothing else interferes."""
POLL = 0.25
"""Seconds between two health checks of an app that is being started."""
CRASHES = 3
"""Restarts by systemd after which a new generation is given up before its window ends."""
UNDO_SECONDS = 120
"""What an undo may take when its caller was cancelled; the journal finishes the rest at the next start."""
BACKOFF = (0, 10, 30, 60, 120, 300)
"""Seconds to wait after so many failures in a row of one app; it starts at 0 again after a success."""
WHOLE_EVERY = 20
"""Every so many ticks images, networks, volumes and secrets are looked at too (10 minutes)."""

Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A generation, ready to be planned for."""

    manifest: Manifest
    app: RenderedApp
    source: Source


class Orchestrator:
    """The facade. One per node; the node's lock keeps others away from its state."""

    def __init__(self, settings: Settings, state: State, machine: Machine, arch: str) -> None:
        self._settings = settings
        self._state = state
        self._machine = machine
        self._arch = arch
        self._locks: dict[str, trio.Lock] = {}
        self._operating: dict[str, str] = {}
        self._wake = trio.Event()
        self._last: dict[str, AppStatus] = {}
        self._failures: dict[str, tuple[int, float]] = {}
        self._podman: Version | None = None
        self._ticks = 0

    # -- what others ask -------------------------------------------------------------------------------------------

    def installed(self) -> tuple[tuple[AppName, str, str], ...]:
        """(name, version, release digest) of every installed app, from the database."""
        found = []
        for record in self._state.apps():
            if record.generation is not None:
                generation = self._state.generation(record.name, record.generation)
                found.append((record.name, generation.version, generation.digest))
        return tuple(found)

    def wake(self) -> None:
        """Look now instead of at the next tick. Losing a wake-up is harmless (R-ST15)."""
        self._wake.set()

    async def install(self, bundle: Bundle, *, report: Report = lambda progress: None) -> AppStatus:
        """Install an app, or update it to the bundle's generation; return when it is healthy.

        Raises Problem with the node as it was: Refused, PortTaken, EnvironmentLacks, Unhealthy after a first
        installation, RolledBack when the old generation runs again.
        """
        name = bundle.name
        async with self._operation(name, "installing"):
            report(Progress(name, "verify"))
            loaded = await self._verify(bundle)
            seen = await self._machine.look(loaded.app.services, whole=True, strict=True)
            await self._dry_run(loaded)
            operation = self._begin(bundle, loaded, seen)
            await self._carry_out(operation, loaded, report)
            report(Progress(name, "done"))
        return await self._status_of(name)

    async def start(self, name: AppName) -> AppStatus:
        """Start what its user stopped, and wait until it is healthy. Raises Unhealthy (it stays started)."""
        async with self._operation(name, "starting"):
            record = self._record(name)
            loaded = await self._load(record)
            if record.desired == "stopped":
                own = tuple(guard.claims(name, loaded.manifest))
                guard.check_ports(own, self._claims(name), self._machine.host.port_problem)
            self._state.want(name, "running")
            self._failures.pop(name.slug, None)
            await self._converge(self._wanted(name, loaded, running=True), loaded.source)
            await self._wait_healthy(loaded, window(loaded.manifest, update=False))
        return await self._status_of(name)

    async def stop(self, name: AppName) -> AppStatus:
        """Stop an app; it stays stopped until `start` or `install` (R-ST2)."""
        async with self._operation(name, "stopping"):
            record = self._record(name)
            self._state.want(name, "stopped")
            loaded = await self._load(record)
            await self._converge(self._wanted(name, loaded, running=False), loaded.source)
        return await self._status_of(name)

    async def uninstall(self, name: AppName, *, purge: bool) -> None:
        """Remove an app's units, containers, network, images and Podman's secrets (R-ST10).

        Volumes and the secrets' values are its data; they go only with `purge`.
        """
        async with self._operation(name, "removing", settle=False):
            left = self._open(name)
            if left is not None and left.kind != "uninstall":
                await self._settle(left)
                left = None
            if left is None:
                self._record(name)
                left = self._state.begin_uninstall(name, purge=purge)
            await self._uninstall(left)
        self._last.pop(name.slug, None)

    async def status(self) -> tuple[AppStatus, ...]:
        """Every app. When the machine does not answer, what was last known, marked stale (R-ST11)."""
        records = self._state.apps()
        if not records:
            return ()
        try:
            loaded = {record.name: await self._load(record) for record in records}
        except Problem as problem:
            return tuple(self._stale(record.name, str(problem)) for record in records)
        services = [service for item in loaded.values() for service in item.app.services]
        seen = await self._machine.look(services, whole=False)
        if seen.services is None or seen.containers is None:
            return tuple(self._stale(record.name, "the machine does not answer") for record in records)
        answers = await self._machine.prober.ask(
            [check for item in loaded.values() for check in checks(item.manifest, item.app.names)]
        )
        for record in records:
            item = loaded[record.name]
            self._last[record.name.slug] = self._describe(record, item, self._judge(item, seen, answers))
        return tuple(self._last[record.name.slug] for record in records)

    async def logs(self, name: AppName, *, lines: int) -> list[str]:
        """The newest lines of an app's containers, oldest first. Raises NotRunning for an unknown app."""
        loaded = await self._load(self._record(name))
        return await self._machine.systemd.journal(loaded.app.services, lines=lines)

    async def unclaimed(self) -> tuple[str, ...]:
        """Units and containers that carry this node's mark and match no app; nothing removes them by itself."""
        seen = await self._machine.look((), whole=False, strict=True)
        return unclaimed(frozenset(record.name.slug for record in self._state.apps()), seen)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Finish what a crash left, then keep reality as wanted until cancelled."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                await self._tick(nursery)
                with trio.move_on_after(self._settings.tick_seconds):
                    await self._wake.wait()
                self._wake = trio.Event()

    # -- one tick --------------------------------------------------------------------------------------------------

    async def _tick(self, nursery: trio.Nursery) -> None:
        """One look for all apps; a task for each that is not as wanted, so that none waits for another (R-ST4)."""
        try:
            await self.tick(nursery)
        except Problem as problem:
            log.warning("a tick failed", extra={"problem": str(problem)})

    async def tick(self, nursery: trio.Nursery) -> None:
        """The same, once, with Problems raised: what `run` does over and over."""
        whole = self._ticks % WHOLE_EVERY == 0
        self._ticks += 1
        pending = {operation.name for operation in self._state.open_operations()}
        for name in pending:
            self._mend(nursery, name)
        records = [record for record in self._state.apps() if record.name not in pending]
        loaded = {record.name: await self._load(record) for record in records}
        services = [service for item in loaded.values() for service in item.app.services]
        seen = await self._machine.look(services, whole=whole)
        for record in records:
            want = self._wanted(record.name, loaded[record.name], running=record.desired == "running")
            if plan(want, seen):
                self._mend(nursery, record.name)
            else:
                self._failures.pop(record.name.slug, None)

    def _mend(self, nursery: trio.Nursery, name: AppName) -> None:
        failures, not_before = self._failures.get(name.slug, (0, -math.inf))
        if name.slug not in self._operating and trio.current_time() >= not_before:
            nursery.start_soon(self._mend_one, name, failures)

    async def _mend_one(self, name: AppName, failures: int) -> None:
        lock = self._lock(name)
        if lock.locked():
            return
        async with lock:
            try:
                if (left := self._open(name)) is not None:
                    await self._settle(left)
                record = self._state.app(name)
                if record is not None and record.generation is not None:
                    loaded = await self._load(record)
                    want = self._wanted(name, loaded, running=record.desired == "running")
                    await self._converge(want, loaded.source)
            except Problem as problem:
                wait = BACKOFF[min(failures + 1, len(BACKOFF) - 1)]
                self._failures[name.slug] = (failures + 1, trio.current_time() + wait)
                log.warning("an app is not as wanted", extra={"app": name.slug, "problem": str(problem)})

    # -- operations ------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _operation(self, name: AppName, what: str, *, settle: bool = True) -> AsyncIterator[None]:
        """One operation of a user at a time; a mending tick is waited for."""
        if (other := self._operating.get(name.slug)) is not None:
            raise Busy(f"{name.id} is {other}", remedy="wait for that to end")
        self._operating[name.slug] = what
        try:
            async with self._lock(name):
                if settle and (left := self._open(name)) is not None:
                    await self._settle(left)
                yield
        finally:
            del self._operating[name.slug]

    def _lock(self, name: AppName) -> trio.Lock:
        return self._locks.setdefault(name.slug, trio.Lock())

    def _open(self, name: AppName) -> Operation | None:
        return next((op for op in self._state.open_operations() if op.name == name), None)

    async def _verify(self, bundle: Bundle) -> _Loaded:
        """Everything that can be refused before anything is changed."""
        podman = await self._machine.podman.version()
        self._podman = podman
        manifest = bundle.checked().manifest
        require_supported(manifest, podman=".".join(map(str, podman)), where=bundle.name.id)
        layouts = guard.check_images(bundle, self._arch)
        for layout in layouts:
            await trio.to_thread.run_sync(lambda at=layout: verify_layers(at, where=bundle.name.id))
        guard.check_disk(manifest, self._settings.data_dir, self._machine.host.free_bytes(self._settings.data_dir))
        names = Names(self._settings.prefix, bundle.name)
        app = render(manifest, names, self._target(podman))
        return _Loaded(manifest, app, Source(names, manifest, bundle.root, self._arch))

    async def _dry_run(self, loaded: _Loaded) -> None:
        from orchestrator.apply import dry_run

        await dry_run(self._machine, loaded.app.files)

    def _begin(self, bundle: Bundle, loaded: _Loaded, seen: Observed) -> Operation:
        """Ports and journal in one stretch without waiting: of two installations, one gets the port."""
        name = bundle.name
        record = self._state.app(name)
        own = set()
        if record is not None and record.generation is not None and record.desired == "running":
            current = self._manifest(self._state.generation(name, record.generation))
            own = {(claim.port, claim.protocol) for claim in guard.claims(name, current)}
        wanted = tuple(guard.claims(name, loaded.manifest))
        held = self._machine.host.port_problem
        guard.check_ports(
            wanted,
            self._claims(name),
            lambda port, bind, protocol: "" if (port, protocol) in own else held(port, bind, protocol),
        )
        volumes = seen.inventory.volumes if seen.inventory is not None else {}
        return self._state.begin_install(
            name,
            version=bundle.version,
            digest=bundle.digest,
            root=bundle.root,
            manifest=json.dumps(loaded.manifest.canonical(), ensure_ascii=False),
            volumes=tuple(sorted(volume for volume, owner in volumes.items() if owner == name.slug)),
            secrets=tuple(sorted(self._machine.secrets.known(name))),
        )

    async def _carry_out(self, operation: Operation, loaded: _Loaded, report: Report) -> None:
        name = operation.name
        want = self._wanted(name, loaded, running=True)
        try:
            await self._provide(want, loaded.source, report)
            self._state.advance(operation, OpState.SWITCHING)
            await self._converge(want, loaded.source, report)
            self._state.advance(operation, OpState.VERIFYING)
            report(Progress(name, "health"))
            await self._wait_healthy(loaded, window(loaded.manifest, update=operation.kind == "update"))
        except Problem as problem:
            await self._undo(operation)
            if operation.kind == "update" and not isinstance(problem, Busy):
                raise self._rolled_back(operation, problem) from problem
            raise
        except BaseException:
            # Cancelled: the same undo, bounded; the journal finishes what does not fit.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + UNDO_SECONDS):
                await self._undo(operation)
            raise
        self._state.commit(operation)
        await self._collect(name, loaded)

    async def _provide(self, want: Wanted, source: Source, report: Report) -> None:
        """Images and secrets: what can be prepared while the old generation runs."""
        seen = await self._machine.look(want.app.services, whole=True, strict=True)
        for step in plan(want, seen):
            if isinstance(step, ImportImage | WriteSecrets):
                self._tell(source.names.app, step, report)
                await take(self._machine, step, source)

    async def _collect(self, name: AppName, loaded: _Loaded) -> None:
        """Remove images of forgotten generations. The operation has succeeded already."""
        try:
            await self._converge(self._wanted(name, loaded, running=True), loaded.source)
        except Problem as problem:
            log.warning("old images stay for now", extra={"app": name.slug, "problem": str(problem)})

    def _rolled_back(self, operation: Operation, problem: Problem) -> RolledBack:
        record = self._state.app(operation.name)
        version = ""
        if record is not None and record.generation is not None:
            version = self._state.generation(operation.name, record.generation).version
        return RolledBack(
            f"the update did not prove itself, version {version} is back: {problem.what}",
            where=problem.where or operation.name.id,
            remedy=problem.remedy,
        )

    async def _undo(self, operation: Operation) -> None:
        """Back to the generation before; without one, nothing is left behind."""
        name = operation.name
        self._state.advance(operation, OpState.ROLLING_BACK)
        record = self._state.app(name)
        if record is None or record.generation is None:
            await self._converge(self._absent(name, purge=True, spare=frozenset(operation.volumes)), None)
            made = self._machine.secrets.known(name) - set(operation.secrets)
            self._machine.secrets.remove(name, frozenset(made))
        else:
            loaded = await self._load(record)
            await self._converge(
                self._wanted(name, loaded, running=operation.was_desired == "running", without=operation.generation),
                loaded.source,
            )
        self._state.undo(operation)

    async def _uninstall(self, operation: Operation) -> None:
        name = operation.name
        await self._converge(self._absent(name, purge=operation.purge, spare=frozenset()), None)
        if operation.purge:
            self._machine.secrets.remove(name)
        self._state.forget(operation)

    async def _settle(self, operation: Operation) -> None:
        """Finish an operation that was cut off: prove it, go on removing, or undo it."""
        log.info("settling", extra={"app": operation.name.slug, "state": operation.state.value})
        if operation.state is OpState.REMOVING:
            await self._uninstall(operation)
            return
        if operation.state is OpState.VERIFYING and operation.generation is not None:
            loaded = await self._load_generation(self._state.generation(operation.name, operation.generation))
            try:
                await self._converge(self._wanted(operation.name, loaded, running=True), loaded.source)
                await self._wait_healthy(loaded, window(loaded.manifest, update=operation.kind == "update"))
            except Problem as problem:
                log.warning("undoing", extra={"app": operation.name.slug, "problem": str(problem)})
            else:
                self._state.commit(operation)
                return
        await self._undo(operation)

    # -- towards what is wanted ------------------------------------------------------------------------------------

    async def _converge(
        self, want: Wanted | Absent, source: Source | None, report: Report = lambda progress: None
    ) -> Observed:
        """Look, plan, take the steps, look again, until there is nothing to do. Raises Problem."""
        services = want.app.services if isinstance(want, Wanted) else want.services
        names = want.app.names if isinstance(want, Wanted) else want.names
        if source is None:
            source = Source(names, _NOTHING, self._settings.data_dir, self._arch)
        for _ in range(MAX_ROUNDS):
            seen = await self._machine.look(services, whole=True, strict=True)
            steps = plan(want, seen)
            if not steps:
                return seen
            for step in steps:
                self._tell(names.app, step, report)
                await take(self._machine, step, source)
        raise Problem(f"{names.app.id} does not settle", where=names.slug, remedy="archy logs, archy doctor")

    def _tell(self, name: AppName, step: Step, report: Report) -> None:
        match step:
            case ImportImage(container, _):
                report(Progress(name, "import", container))
            case WriteUnits():
                report(Progress(name, "write"))
            case Start(service, _) | Restart(service, _):
                report(Progress(name, "start", service))
            case StopUnits(services, _):
                report(Progress(name, "start", f"stopping {len(services)}"))

    async def _wait_healthy(self, loaded: _Loaded, seconds: float) -> None:
        """Raises Unhealthy when the window ends, or earlier when it crashes again and again."""
        statuses: tuple[ContainerStatus, ...] = ()
        with trio.move_on_after(seconds):
            while True:
                seen = await self._machine.look(loaded.app.services, whole=False)
                if seen.services is not None and seen.containers is not None:
                    answers = await self._machine.prober.ask(checks(loaded.manifest, loaded.app.names))
                    statuses = self._judge(loaded, seen, answers)
                    if ready(statuses):
                        return
                    if any(status.state == "failed" or status.restarts >= CRASHES for status in statuses):
                        break
                await trio.sleep(POLL)
        bad = [status for status in statuses if not ready((status,))]
        said = "; ".join(f"{s.name} is {s.state}, {s.detail or f'health {s.health}'}" for s in bad)
        raise Unhealthy(
            f"{loaded.manifest.id} {loaded.manifest.version} did not become healthy within {seconds:g} s: {said}",
            where=loaded.app.names.slug,
            remedy=f"journalctl --user -u '{loaded.app.names.stem}-*' shows what it said",
        )

    # -- reading ---------------------------------------------------------------------------------------------------

    def _record(self, name: AppName) -> AppRecord:
        record = self._state.app(name)
        if record is None or record.generation is None:
            raise NotRunning(f"{name.id} is not installed", where=str(name), remedy="archy ps lists what is")
        return record

    def _manifest(self, generation: Generation) -> Manifest:
        return parse_manifest_json(
            json.loads(generation.manifest), where=f"{generation.name.slug} {generation.version}"
        )

    def _target(self, podman: Version) -> Target:
        return Target(self._settings.prefix, podman, self._arch)

    async def _load(self, record: AppRecord) -> _Loaded:
        """What holds for an app: its generation, or the one that its first installation is about."""
        number = record.generation
        if number is None:
            number = self._state.generations(record.name)[-1].number
        return await self._load_generation(self._state.generation(record.name, number))

    async def _load_generation(self, generation: Generation) -> _Loaded:
        if self._podman is None:
            self._podman = await self._machine.podman.version()
        names = Names(self._settings.prefix, generation.name)
        manifest = self._manifest(generation)
        app = render(manifest, names, self._target(self._podman))
        return _Loaded(manifest, app, Source(names, manifest, generation.root, self._arch))

    def _wanted(self, name: AppName, loaded: _Loaded, *, running: bool, without: int | None = None) -> Wanted:
        keep: set[str] = set()
        for generation in self._state.generations(name):
            if generation.number != without and self._podman is not None:
                rendered = render(
                    self._manifest(generation), Names(self._settings.prefix, name), self._target(self._podman)
                )
                keep |= {container.image for container in rendered.containers}
        return Wanted(loaded.app, running, frozenset(keep))

    def _absent(self, name: AppName, *, purge: bool, spare: frozenset[str]) -> Absent:
        names = Names(self._settings.prefix, name)
        services: dict[str, None] = {}
        secrets = {names.secret(label) for label in self._machine.secrets.known(name)}
        seconds = 60
        for generation in self._state.generations(name):
            manifest = self._manifest(generation)
            app = render(manifest, names, self._target(self._podman or (5, 4, 0)))
            services |= dict.fromkeys(reversed(app.services))
            secrets |= {names.secret(secret) for secret in app.secrets}
            seconds = max(seconds, stop_seconds(app))
        return Absent(names, tuple(services), tuple(sorted(secrets)), seconds, purge, spare)

    def _claims(self, other_than: AppName) -> tuple[guard.Claim, ...]:
        """Ports of all other apps: of the generation that holds and of one being installed."""
        found: list[guard.Claim] = []
        pending = {op.name: op.generation for op in self._state.open_operations()}
        for record in self._state.apps():
            if record.name == other_than:
                continue
            for number in {record.generation, pending.get(record.name)} - {None}:
                manifest = self._manifest(self._state.generation(record.name, number or 0))
                found += guard.claims(record.name, manifest)
        return tuple(found)

    async def _status_of(self, name: AppName) -> AppStatus:
        return next(status for status in await self.status() if status.name == name)

    def _judge(self, loaded: _Loaded, seen: Observed, answers: object) -> tuple[ContainerStatus, ...]:
        containers = {container.name: container for container in seen.containers or ()}
        return judge(loaded.manifest, loaded.app.names, seen.services or {}, containers, dict(answers))  # type: ignore

    def _describe(self, record: AppRecord, loaded: _Loaded, statuses: tuple[ContainerStatus, ...]) -> AppStatus:
        number = record.generation
        generation = self._state.generation(record.name, number) if number is not None else None
        state = self._operating.get(record.name.slug) or app_state(record.desired, statuses)
        return AppStatus(
            record.name,
            loaded.manifest.version,
            generation.digest if generation else "",
            record.desired,
            state,
            statuses,
            urls(loaded.manifest, self._machine.host.lan_address()),
            loaded.app.services,
        )

    def _stale(self, name: AppName, why: str) -> AppStatus:
        known = self._last.get(name.slug)
        detail = f"stale: {why}"
        if known is None:
            return AppStatus(name, "", "", "", "unknown", (), (), (), detail)
        return AppStatus(
            name,
            known.version,
            known.digest,
            known.desired,
            known.state,
            known.containers,
            known.urls,
            known.units,
            detail,
        )


_NOTHING = parse_manifest_json(
    {
        "schema": 1,
        "id": "nothing",
        "version": "0",
        "title": "nothing",
        "containers": {"none": {"image": {"ref": "localhost/none:0"}}},
    },
    where="",
)
"""Removing draws on no manifest."""
