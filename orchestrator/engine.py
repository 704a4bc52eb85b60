"""The orchestrator: the operator's word and the running machine, kept the same.

Guarantees: at most one operation per app at a time, different apps in parallel (R-ST20); what its user stopped is
never started by itself (R-ST2); an observation that fails changes nothing (R-ST18); one app that fails never delays
another (R-ST4). Every change goes through `plan`. It refuses to know where bundles come from.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from functools import partial

import trio

from apps.manifest import Manifest
from apps.names import AppName
from apps.problems import NotRunning, Problem, Refused, UsageProblem
from orchestrator import guard
from orchestrator.adoption import Orphan, is_here, orphans, recognise
from orchestrator.apply import take
from orchestrator.bundle import Bundle
from orchestrator.checkup import lost_secrets, orphaned, orphans_unknown
from orchestrator.converge import Report, silent, wait_healthy
from orchestrator.generations import Generations
from orchestrator.health import window
from orchestrator.keeping import Keeper
from orchestrator.links import StillNeeded
from orchestrator.machine import Machine, Settings
from orchestrator.offer import Offer
from orchestrator.operations import Operations, Proven
from orchestrator.plan import Observed, unclaimed
from orchestrator.plan_units import stop_seconds
from orchestrator.rounds import Rounds
from orchestrator.standing import Standing
from orchestrator.state import State
from orchestrator.status import AppStatus, Finding, Progress, SettingStatus, setting_statuses
from orchestrator.steps import StopUnits
from orchestrator.takeover import Takeovers
from orchestrator.together import all_of
from orchestrator.turns import Turns

log = logging.getLogger(__name__)

FRESH = 10.0
"""Seconds for which the look before an installation holds: what it found was verified in that time, and nothing of the
app was changed."""


class Orchestrator:
    """The facade. One per node; the node's lock keeps others away from its state."""

    def __init__(self, settings: Settings, state: State, machine: Machine, arch: str) -> None:
        self._settings = settings
        self._state = state
        self._machine = machine
        self._generations = Generations(state, machine, arch)
        self._operations = Operations(settings, state, machine, self._generations, arch)
        self._takeovers = Takeovers(settings, state, machine, self._generations, self._operations, arch)
        self._turns = Turns()
        self._keeper = Keeper(state, machine, self._generations, self._turns.lock)
        self._standing = Standing(state, machine, self._generations, self._turns.under_way)
        self._rounds = Rounds(
            state, machine, self._generations, self._operations, self._keeper, self._turns, settings.tick_seconds
        )

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
        self._rounds.wake()

    async def install(self, bundle: Bundle, *, report: Report = silent) -> AppStatus:
        """Install an app, or update it to the bundle's generation; return when it is healthy.

        Raises Problem with the node as it was: Refused, PortTaken, EnvironmentLacks, StateProblem, Unhealthy after a
        first installation, RolledBack when the old generation is back.
        """
        name = bundle.name
        known = self._state.app(name)
        updating = known is not None and known.generation is not None
        async with self._operation(name, "updating" if updating else "installing"):
            report(Progress(name, "verify"))
            looked = trio.current_time()
            _, seen, _ = await all_of(
                partial(self._generations.podman, again=True),
                partial(self._machine.look, (), whole=True, strict=True, brief=not updating),
                partial(self._operations.inspect, bundle),
            )
            here = self._state.app(name) is None and is_here(name.slug, seen)
            if here and await self._take_back(bundle, seen, asked=True):
                report(Progress(name, "health"))
                loaded = await self._generations.load(self._generations.record(name))
                found = await wait_healthy(self._machine, loaded, window(loaded.manifest, update=False))
            else:
                loaded, found = await self._install_anew(bundle, seen, looked, report)
            self._rounds.forgive(name)
        report(Progress(name, "done"))
        return self._standing.told(name, loaded, found)

    async def _install_anew(self, bundle: Bundle, seen: Observed, looked: float, report: Report) -> Proven:
        loaded = await self._operations.verify(bundle, seen)
        await self._keeper.wait_for(loaded.providers)
        operation = self._operations.begin(bundle, seen)
        first = seen if trio.current_time() - looked < FRESH else None
        try:
            return await self._operations.carry_out(
                operation, report, lambda: self._keeper.bring_in(loaded.providers), first
            )
        except BaseException:
            self.wake()  # those that had joined a network with it leave it again
            raise

    async def adopt(self, bundle: Bundle) -> AppStatus:
        """Know an app again whose units are here and which the database lost; what runs is not touched (R-ST7).

        One that its user had stopped stays stopped (R-ST2). Raises Refused when what is here is of another release, and
        whatever an installation of the bundle would be refused for.
        """
        name = bundle.name
        async with self._operation(name, "adopting"):
            if self._state.app(name) is not None:
                raise Refused(f"{name.id} is installed", where=str(name), remedy=f"archy update {name.id}")
            await self._operations.inspect(bundle)
            await self._take_back(bundle, await self._machine.look((), whole=True, strict=True), asked=False)
        return await self._standing.of(name)

    async def offer(self, name: AppName, manifest: Manifest) -> Offer:
        """What taking over the containers that a manifest names would mean. Raises NotAdoptable (R-ST7, R-MF14)."""
        return await self._takeovers.offer(name, manifest)

    async def present(self, manifest: Manifest) -> tuple[str, ...]:
        """Containers that a manifest names and that are nobody's app: an installation does not touch them."""
        return await self._takeovers.present(manifest)

    async def take_over(self, bundle: Bundle, agreed: Collection[str]) -> AppStatus:
        """Let containers that somebody else made be the app, as they are; `agreed` are their ids, as `offer` told them.

        They become units by the next restart that is asked for. Raises Refused, PortTaken with nothing changed.
        """
        async with self._operation(bundle.name, "adopting"):
            await self._takeovers.take(bundle, agreed)
        return await self._standing.of(bundle.name)

    def adopted_data(self, name: AppName) -> tuple[str, ...]:
        """Folders and volumes with an app's data that this node did not make, and does not remove."""
        return tuple(sorted({home.source for home in self._state.kept.homes(name).values()}))

    async def orphans(self) -> tuple[Orphan, ...]:
        """Apps that have units here and that the database does not know."""
        seen = await self._machine.look((), whole=False, strict=True)
        return orphans(self._known(), self._machine.prefix, seen)

    async def _take_back(self, bundle: Bundle, seen: Observed, *, asked: bool) -> bool:
        """Adopt; with `asked` it is to run whatever its user said before, and False when the remains of another release
        lie there dead, over which it can be installed."""
        name = bundle.name
        self._operations.remember(bundle, self._machine.folder.read())
        loaded = await self._operations.verify(bundle, seen, here=True)
        try:
            running = recognise(loaded.app, seen)
        except Refused:
            if asked and not any(box.labels.get("archy.app") == name.slug for box in seen.containers or ()):
                return False
            raise
        record = self._operations.adopt(bundle, loaded, running=running or asked)
        log.info("adopted", extra={"app": name.slug})
        try:
            await self._keeper.make_so(record, await self._generations.load(record), running=running or asked)
            await self._keeper.bring_in(loaded.providers)
        except Problem as problem:  # it is known again, and the next tick goes on
            log.warning("an adopted app is not as wanted", extra={"app": name.slug, "problem": str(problem)})
        return True

    def _known(self) -> frozenset[str]:
        return frozenset(record.name.slug for record in self._state.apps())

    async def start(self, name: AppName) -> AppStatus:
        """Start what its user stopped, and wait until it is healthy. Raises Unhealthy (it stays started)."""
        async with self._operation(name, "starting"):
            record = self._generations.record(name)
            loaded = await self._generations.load(record)
            await self._keeper.require_known(name)
            if record.desired == "stopped":
                own = tuple(guard.claims(name, loaded.manifest))
                guard.check_ports(own, self._generations.claims_of_others(name), self._machine.host.port_problem)
            await self._keeper.wait_for(loaded.providers)
            self._rounds.forgive(name)
            if not loaded.kept:
                self._state.want(name, "running")
                await self._keeper.make_so(record, loaded, running=True)
                await wait_healthy(self._machine, loaded, window(loaded.manifest, update=False))
            elif record.desired == "stopped":
                await self._operations.convert(record)  # its process begins anew in any case
        return await self._standing.of(name)

    async def stop(self, name: AppName) -> AppStatus:
        """Stop an app; it stays stopped until `start` or `install` (R-ST2)."""
        async with self._operation(name, "stopping"):
            record = self._generations.record(name)
            await self._keeper.require_known(name)
            self._state.want(name, "stopped")
            await self._keeper.make_so(record, await self._generations.load(record), running=False)
        return await self._standing.of(name)

    async def restart(self, name: AppName) -> AppStatus:
        """Stop a running app in reverse order, start it in order, and wait until it is healthy.

        Raises NotRunning for one that its user stopped (only `start` takes that word back, R-ST2), Unhealthy.
        """
        async with self._operation(name, "restarting"):
            record = self._generations.record(name)
            if record.desired == "stopped":
                raise NotRunning(f"{name.id} was stopped", where=str(name), remedy=f"archy start {name.id}")
            loaded = await self._generations.load(record)
            await self._keeper.require_known(name)
            self._rounds.forgive(name)
            if loaded.kept:
                await self._keeper.wait_for(loaded.providers)
                await self._operations.convert(record)
            else:
                services = tuple(reversed(loaded.app.services))
                await take(self._machine, StopUnits(services, stop_seconds(loaded.app)), None, loaded.app.names)
                await self._keeper.make_so(record, loaded, running=True)
                await wait_healthy(self._machine, loaded, window(loaded.manifest, update=False))
        return await self._standing.of(name)

    def settings(self, name: AppName) -> tuple[SettingStatus, ...]:
        """What the operator may change of an app, and what holds now. Raises NotRunning."""
        return setting_statuses(self._generations.signed_now(name), self._state.choices.settings(name))

    async def configure(self, name: AppName, values: Mapping[str, str | None]) -> tuple[SettingStatus, ...]:
        """Change settings (None: the default again), restart what they reach, wait until the app is healthy.

        Raises UsageProblem with nothing changed, RolledBack with the old values in force again.
        """
        async with self._operation(name, "configuring"):
            record = self._generations.record(name)
            await self._keeper.require_known(name)
            await self._operations.adjustments.configure(record, values)
            self._rounds.forgive(name)
        return self.settings(name)

    def secrets(self, name: AppName) -> Mapping[str, str]:
        """An app's generated secrets, for its operator's eyes. Raises NotRunning for an unknown app."""
        self._generations.record(name)
        return self._machine.secrets.read(name)

    async def rotate(self, name: AppName, secret: str) -> None:
        """Make a secret anew and let everything that reads it know; return when the app is healthy with it.

        Raises UsageProblem for what is no secret of the app, RolledBack with the old value in force again.
        """
        async with self._operation(name, "rotating a secret"):
            record = self._generations.record(name)
            await self._keeper.require_known(name)
            await self._operations.adjustments.rotate(record, secret)
            self._rounds.forgive(name)
        served = {link.dependant for link in self._state.choices.all_links() if link.provider == name}
        try:
            await self._keeper.bring_in({dependant.slug: dependant for dependant in sorted(served)})
        except Problem as problem:  # the secret is another one all the same, and the next tick goes on
            log.warning("a dependant is not as wanted", extra={"app": name.slug, "problem": str(problem)})
            self.wake()

    def disposable(self, name: AppName) -> tuple[str, ...]:
        """Volumes of an app that its publisher would have go with it: `drop` of `uninstall`. Raises NotRunning."""
        volumes = self._generations.signed_now(name).volumes
        not_ours = self._state.kept.homes(name)
        return tuple(
            sorted(
                label for label, volume in volumes.items() if volume.on_uninstall == "remove" and label not in not_ours
            )
        )

    async def uninstall(
        self, name: AppName, *, purge: bool, needed: bool = False, drop: Collection[str] = frozenset()
    ) -> None:
        """Remove an app's units, containers, network, images and Podman's secrets (R-ST10).

        Volumes and the secrets' values are its data; they go only with `purge`, and of the volumes those in `drop`.
        Raises StillNeeded for an app that others can not do without, unless `needed` says that it may go all the same,
        UsageProblem for a volume that is not among `disposable`.
        """
        async with self._operation(name, "removing", settle=False):
            if (dependants := self._generations.needed_by(name)) and not needed:
                raise StillNeeded(
                    f"{', '.join(app.id for app in dependants)} can not do without {name.id}",
                    where=name.id,
                    remedy=f"uninstall {dependants[0].id} first, or: archy uninstall {name.id} --even-if-needed",
                )
            left = self._state.open_operation(name)
            if left is not None and left.kind != "uninstall":
                await self._operations.settle(left)
                left = None
            if left is None:
                if unknown := set(drop) - set(self.disposable(name)):
                    raise UsageProblem(f"{name.id} has no volume {min(unknown)[:40]!a} to go with it", where=name.id)
                volumes = tuple(self._generations.names(name).volume(label) for label in sorted(drop))
                left = self._state.begin_uninstall(name, purge=purge, drop=volumes)
            links = [link for link in self._state.choices.all_links() if link.dependant == name]
            await self._operations.remove(left)
            await self._keeper.bring_in({link.dependency: link.provider for link in links})
        self._standing.forget(name)

    async def status(self) -> tuple[AppStatus, ...]:
        """Every app. When the machine does not answer, what was last known, marked stale (R-ST11)."""
        return await self._standing.now()

    async def logs(self, name: AppName, *, lines: int) -> list[str]:
        """The newest lines that an app's containers wrote, oldest first. Raises NotRunning for an unknown app."""
        loaded = await self._generations.load(self._generations.record(name))
        names = [box.name for box in loaded.kept or loaded.app.containers]
        return await self._machine.systemd.journal(names, lines=lines)

    async def unclaimed(self) -> tuple[str, ...]:
        """Units and containers that carry this node's mark and match no app; nothing removes them by itself."""
        seen = await self._machine.look((), whole=False, strict=True)
        return unclaimed(self._known(), seen)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Finish what a crash left, then keep reality as wanted until cancelled."""
        await self._rounds.run(task_status=task_status)

    async def reconcile(self) -> None:
        """One look now, and everything that it starts, to its end."""
        async with trio.open_nursery() as nursery:
            await self.tick(nursery)

    async def tick(self, nursery: trio.Nursery) -> None:
        """One look for all apps, and a task in the nursery for each that is not as wanted.

        Raises Problem when the database or Podman's version can not be read.
        """
        await self._rounds.tick(nursery)

    def findings(self) -> tuple[Finding, ...]:
        """What is known without asking the machine: what is wrong with Podman's own state and could not be mended, what
        was mended (R-FM6), and secrets that are lost."""
        lost = {record.name.id: names for record in self._state.apps() if (names := self._generations.ailing(record))}
        return (*self._rounds.findings(), *lost_secrets(lost))

    async def checkup(self) -> tuple[Finding, ...]:
        """`findings`, and every unit and container of this node without an app (R-ST7)."""
        found = (*self.findings(), *await self._unknown_releases())
        try:
            return (*found, orphaned(await self.unclaimed()))
        except Problem as problem:
            return (*found, orphans_unknown(problem))

    async def _unknown_releases(self) -> tuple[Finding, ...]:
        found = []
        for record in self._state.apps():
            try:
                await self._keeper.require_known(record.name)
            except Problem as problem:
                found.append(Finding("releases", False, problem.what, problem.remedy))
        return tuple(found)

    @asynccontextmanager
    async def _operation(self, name: AppName, what: str, *, settle: bool = True) -> AsyncIterator[None]:
        """One operation of a user at a time; one that was cut off is finished first."""
        async with self._turns.operation(name, what), self._machine.podman.at_hand():
            if settle and (left := self._state.open_operation(name)) is not None:
                await self._operations.settle(left)
            yield
