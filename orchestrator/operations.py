"""Installing, updating, removing: each journalled before it acts, each finished or undone whole.

The order of durable writes: the journal entry (staged) comes before any change; `switching` before the first unit is
touched; `verifying` after all are started; the commit makes the new generation hold. A restart undoes what was staged
or switching, proves what was verifying, and goes on with what was being undone or removed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TypeAlias

import trio

from apps.names import AppName
from apps.problems import Problem, RolledBack
from orchestrator import guard
from orchestrator.adjustments import Adjustments
from orchestrator.adoption import remembered_homes, remembered_ports, remembered_settings, remembered_subnet
from orchestrator.apply import dry_run
from orchestrator.building import check_builds, remember_builds
from orchestrator.bundle import Bundle
from orchestrator.converge import Report, converge, provide, silent, wait_healthy
from orchestrator.faults import Unhealthy
from orchestrator.generations import Generations, Loaded
from orchestrator.health import ContainerStatus, window
from orchestrator.hooks import run_hooks
from orchestrator.images import verify_layers
from orchestrator.kept import Due, bring_back, discard, due, look_at, set_aside
from orchestrator.machine import Machine, Settings
from orchestrator.offer import Offer
from orchestrator.plan import Observed
from orchestrator.podman import Inventory
from orchestrator.secret_care import lost_for_good, restore_secrets
from orchestrator.settled import settle
from orchestrator.state import AppRecord, Generation, Operation, OpState, State
from orchestrator.status import Progress
from orchestrator.stranger import held_by
from orchestrator.supported import require_supported
from orchestrator.unit_folder import OwnedFile

log = logging.getLogger(__name__)

Proven: TypeAlias = tuple[Loaded, tuple[ContainerStatus, ...]]
"""A generation, and its containers as they were when all was well."""
NOTHING = Inventory((), {}, {}, frozenset())
UNDO_SECONDS = 120
"""What an undo may take when its caller was cancelled; the journal finishes the rest at the next start."""


class Operations:
    """What changes which generation holds. The caller sees to it that an app has one operation at a time."""

    def __init__(self, settings: Settings, state: State, machine: Machine, generations: Generations, arch: str) -> None:
        self._settings = settings
        self._state = state
        self._machine = machine
        self._generations = generations
        self._arch = arch
        self.adjustments = Adjustments(state, machine, generations, self._prove)

    async def inspect(self, bundle: Bundle) -> None:
        """The bundle is what was signed, as far as can be told without a look at the machine. Raises Problem."""
        bundle.checked()
        for layout in guard.check_images(bundle, self._arch):
            await trio.to_thread.run_sync(partial(verify_layers, layout, where=bundle.name.id))
        await trio.to_thread.run_sync(check_builds, bundle.manifest, bundle.root, self._arch)

    async def verify(
        self, bundle: Bundle, seen: Observed, *, here: bool = False, taking: Offer | None = None
    ) -> Loaded:
        """Everything that can be refused before anything is changed; `here` for an app that runs already, `taking` for
        one that runs in containers that somebody else made.

        The bundle was inspected; `seen` is a whole look. Raises Problem.
        """
        podman = await self._generations.podman()
        manifest = bundle.checked().manifest
        require_supported(manifest, podman=".".join(map(str, podman)), where=bundle.name.id)
        held = seen.inventory.secrets if seen.inventory is not None else None
        lost = await restore_secrets(self._machine, self._generations.names(bundle.name), manifest, held)
        if gone := tuple(name for name in lost if name in self._machine.secrets.known(bundle.name)):
            raise lost_for_good(bundle.name.id, gone)
        free = self._machine.host.free_bytes(self._settings.data_dir)
        guard.check_disk(manifest, self._settings.data_dir, free)
        inventory = seen.inventory or NOTHING
        if not here:
            self._generations.choose_subnet(bundle.name, manifest, inventory.subnets)
        own = frozenset(link.provider for link in inventory.links.values() if link.dependant == bundle.name.slug)
        loaded = self._generations.fresh(bundle, podman, linked_to=own if here else None, taking=taking)
        if here and await remember_builds(self._machine, loaded.app, seen.files):
            loaded = self._generations.fresh(bundle, podman, linked_to=own)
        self._generations.refuse_breaking(bundle.name, loaded.manifest)
        unknown = {secret.name: "0" * 32 for secret in manifest.generated_secrets}
        self._generations.derived(bundle.name, loaded, unknown)  # templates are tried before anything changes
        await dry_run(self._machine, {**loaded.app.files, **loaded.app.boot})
        return loaded

    def begin(self, bundle: Bundle, seen: Observed) -> Operation:
        """Ports and journal in one stretch without waiting: of two installations, one gets the port."""
        name = bundle.name
        ports = self._generations.choose_ports(name, bundle.manifest)
        wanted = tuple(guard.claims(name, settle(bundle.manifest, {}, ports)))
        guard.check_ports(wanted, self._generations.claims_of_others(name), self._generations.port_problem_of(name))
        self._state.choices.set_ports(name, ports)
        providers = self._generations.resolve(name, bundle.manifest)
        manifest = json.dumps(bundle.manifest.canonical(), ensure_ascii=False)
        return self._journal(Generation(name, 0, bundle.version, bundle.digest, bundle.root, manifest), providers, seen)

    def _journal(self, new: Generation, providers: Mapping[str, AppName], seen: Observed) -> Operation:
        volumes = seen.inventory.volumes if seen.inventory is not None else {}
        operation = self._state.begin_install(
            new.name,
            version=new.version,
            digest=new.digest,
            root=new.root,
            manifest=new.manifest,
            volumes=tuple(sorted(volume for volume, owner in volumes.items() if owner == new.name.slug)),
            secrets=tuple(sorted(self._machine.secrets.known(new.name))),
        )
        if providers:
            self._state.choices.set_links(new.name, operation.generation or 0, providers)
        return operation

    def remember(self, bundle: Bundle, files: Mapping[str, OwnedFile]) -> None:
        """Settings and chosen ports of an app that the database lost, as its units have them."""
        choices, names = self._state.choices, self._generations.names(bundle.name)
        if not choices.settings(bundle.name):
            choices.set_settings(bundle.name, remembered_settings(bundle.manifest, names, files))
        if not choices.ports(bundle.name):
            choices.set_ports(bundle.name, remembered_ports(bundle.manifest, names, files))
        if not self._state.kept.homes(bundle.name):
            self._state.kept.set_homes(bundle.name, remembered_homes(bundle.manifest, names, files))
        subnet = remembered_subnet(names, files)
        if subnet and subnet not in choices.subnets():
            choices.set_subnet(bundle.name, subnet)

    def adopt(self, bundle: Bundle, loaded: Loaded, *, running: bool) -> AppRecord:
        """Write down what is here already, in one transaction; the machine is not touched (R-ST7)."""
        name = bundle.name
        self._state.choices.set_ports(name, self._generations.choose_ports(name, bundle.manifest))
        return self._state.adopt(
            name,
            version=bundle.version,
            digest=bundle.digest,
            root=bundle.root,
            manifest=json.dumps(bundle.manifest.canonical(), ensure_ascii=False),
            desired="running" if running else "stopped",
            providers=loaded.providers,
        )

    async def carry_out(
        self, operation: Operation, report: Report, join: Callable[[], Awaitable[None]], first: Observed | None
    ) -> Proven:
        """From the journal entry to the commit: what holds now, and how it is.

        `join` lets others join the networks they share with the app; `first` is a whole look after which nothing was
        changed. Raises RolledBack after an update that failed, else Problem.
        """
        update = operation.kind == "update"
        try:
            generation = self._state.generation(operation.name, operation.generation or 0)
            loaded = await self._generations.load_generation(generation)
            for secret in loaded.manifest.generated_secrets:
                self._machine.secrets.ensure(operation.name, secret)
            want = await self._generations.wanted(operation.name, loaded, running=True)
            seen = await provide(self._machine, want, loaded.source, report, first)
            if seen is None and loaded.app.builds:
                loaded = await self._generations.load_generation(generation)
                want = await self._generations.wanted(operation.name, loaded, running=True)
            self._state.advance(operation, OpState.SWITCHING)
            await join()
            await self._set_aside(operation.name)
            alone = not loaded.providers  # nobody has joined a network in between
            seen = await converge(self._machine, want, loaded.source, report, first=seen if alone else None)
            self._state.advance(operation, OpState.VERIFYING)
            report(Progress(operation.name, "health"))
            found = await wait_healthy(self._machine, loaded, window(loaded.manifest, update=update), seen)
            if not update:
                await run_hooks(self._machine, loaded.source)
                self._state.choices.mark_hooks(operation.name)
        except Problem as problem:
            await self.undo(operation)
            if update:
                raise self._rolled_back(operation, problem) from problem
            raise
        except BaseException:
            # Cancelled: the same undo, bounded; the journal finishes what does not fit.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + UNDO_SECONDS):
                await self.undo(operation)
            raise
        self._state.commit(operation)
        if update:
            await self._collect(operation, loaded)
        return loaded, found

    async def _set_aside(self, name: AppName) -> None:
        """Containers that somebody else made give way to units, which get their ports and data."""
        record = self._state.app(name)
        if record is not None and record.generation is not None:
            before = await self._generations.load(record)
            if before.kept:
                await set_aside(self._machine, before)

    async def _collect(self, operation: Operation, loaded: Loaded) -> None:
        """Remove images of forgotten generations. The operation has succeeded already."""
        try:
            await self.tidy(operation.name)
            want = await self._generations.wanted(operation.name, loaded, running=True)
            await converge(self._machine, want, loaded.source)
        except Problem as problem:
            log.warning("what was replaced stays for now", extra={"app": operation.name.slug, "problem": str(problem)})

    def _rolled_back(self, operation: Operation, problem: Problem) -> RolledBack:
        record = self._generations.record(operation.name)
        version = self._state.generation(operation.name, record.generation or 0).version
        if self._state.kept.of(operation.name, record.generation or 0):
            again = "run again as before" if record.desired == "running" else "are stopped as before"
            return RolledBack(
                f"its units did not prove themselves, the adopted containers {again}: {problem.what}",
                where=problem.where or operation.name.id,
                remedy=problem.remedy,
            )
        return RolledBack(
            f"the update did not prove itself, version {version} is back: {problem.what}",
            where=problem.where or operation.name.id,
            remedy=problem.remedy,
        )

    async def undo(self, operation: Operation) -> None:
        """Back to the generation before; without one, nothing is left behind."""
        name = operation.name
        self._state.advance(operation, OpState.ROLLING_BACK)
        record = self._state.app(name)
        if record is None or record.generation is None:
            await converge(self._machine, await self._generations.absent(operation, purge=True), None)
            made = self._machine.secrets.known(name) - set(operation.secrets)
            self._machine.secrets.remove(name, frozenset(made))
        else:
            loaded = await self._generations.load(record)
            running = operation.was_desired == "running"
            if loaded.kept:
                await self._to_kept(operation, loaded, running=running)
                return
            want = await self._generations.wanted(name, loaded, running=running, without=operation.generation)
            await converge(self._machine, want, loaded.source)
        self._state.undo(operation)

    async def _to_kept(self, operation: Operation, loaded: Loaded, *, running: bool) -> None:
        """The units go, and what they took the place of runs again before the journal is closed: a look in between
        would find it down, and make units of it once more.

        When it does not start any more, the journal is closed all the same: it is down, and becomes units at the next
        look, or is uninstalled. Raises Unhealthy then.
        """
        await converge(self._machine, await self._generations.absent(operation, purge=True), None)
        if running:
            try:
                await bring_back(self._machine, loaded)
            except Problem as problem:
                self._state.undo(operation)
                raise Unhealthy(
                    f"neither its units nor the adopted containers start: {problem.what}",
                    where=operation.name.slug,
                    remedy="podman ps --all, podman logs",
                ) from problem
        self._state.undo(operation)

    async def keep(self, record: AppRecord, loaded: Loaded) -> None:
        """Kept containers are left alone while they are as their user wants them. Raises Problem."""
        match due(loaded.kept, await look_at(self._machine, loaded.kept), record.desired):
            case Due.STOP:
                await set_aside(self._machine, loaded)
            case Due.UNITS:
                log.warning("adopted containers do not run any more", extra={"app": record.name.slug})
                await self.convert(record)

    async def convert(self, record: AppRecord, report: Report = silent) -> Proven:
        """Make units of an app whose containers somebody else made: an update to the release that it has (ADR 12).

        Raises PortTaken with nothing changed, RolledBack when the containers run again as before, Problem.
        """
        name, loaded = record.name, await self._generations.load(record)
        there = await look_at(self._machine, loaded.kept)
        if len(there) < len(loaded.kept):
            # Without all of them there is nothing to return to; what is left of them stays down and where it is
            await set_aside(self._machine, loaded)
            self._state.kept.forget(name, loaded.kept)
            self._state.want(name, "running")
            return await self._prove(self._generations.record(name))
        problem = self._generations.port_problem_beside(held_by(there.values()))
        guard.check_ports(tuple(guard.claims(name, loaded.manifest)), self._generations.claims_of_others(name), problem)
        seen = await self._machine.look((), whole=True, strict=True)
        new = self._state.generation(name, record.generation or 0)
        operation = self._journal(new, loaded.providers, seen)
        return await self.carry_out(operation, report, _nobody, None)

    async def tidy(self, name: AppName) -> None:
        """Remove containers whose app has become units."""
        if left := self._state.kept.superseded(name):
            await discard(self._machine, left)
            self._state.kept.forget(name, left)

    async def remove(self, operation: Operation) -> None:
        """Uninstall: everything but the data, and with `purge` the data too, but for what this node did not make."""
        if kept := self._state.kept.every(operation.name):
            await self._set_aside(operation.name)
            await discard(self._machine, kept)
        want = await self._generations.absent(operation, purge=operation.purge)
        await converge(self._machine, want, None)
        if operation.purge:
            self._machine.secrets.remove(operation.name)
            self._state.choices.forget(operation.name)
            self._state.kept.forget_homes(operation.name)
        self._state.forget(operation)

    async def settle_settings(self, record: AppRecord) -> None:
        """Finish a change of settings that was cut off. Raises Problem."""
        await self.adjustments.settle_settings(record)

    async def _prove(self, record: AppRecord, *, healthy: bool = True) -> Proven:
        """An app as its record, settings and secrets say; it is waited for, unless it may do badly."""
        loaded, running = await self._generations.load(record), record.desired == "running"
        if loaded.kept:  # going back, it was brought back already; stopped, it reads what is new at its start
            return await self.convert(record) if running and healthy else (loaded, ())
        await restore_secrets(self._machine, loaded.source.names, loaded.manifest)
        want = await self._generations.wanted(record.name, loaded, running=running)
        await converge(self._machine, want, loaded.source)
        if running and healthy:
            return loaded, await wait_healthy(self._machine, loaded, window(loaded.manifest, update=True))
        return loaded, ()

    async def settle(self, operation: Operation) -> None:
        """Finish an operation that was cut off: prove it, go on removing, or undo it. Raises Problem."""
        log.info("settling", extra={"app": operation.name.slug, "state": operation.state.value})
        if operation.state is OpState.REMOVING:
            await self.remove(operation)
        elif operation.state is OpState.VERIFYING and await self._proven(operation):
            self._state.commit(operation)
        else:
            await self.undo(operation)

    async def _proven(self, operation: Operation) -> bool:
        generation = self._state.generation(operation.name, operation.generation or 0)
        loaded = await self._generations.load_generation(generation)
        fresh = operation.kind == "install" and loaded.manifest.hooks.post_install
        if fresh and not self._state.choices.hooks_ran(operation.name):
            return False  # how far they came is not known, and they run once: the installation begins anew (R-MF4)
        try:
            want = await self._generations.wanted(operation.name, loaded, running=True)
            await converge(self._machine, want, loaded.source, silent)
            await wait_healthy(self._machine, loaded, window(loaded.manifest, update=operation.kind == "update"))
        except Problem as problem:
            log.warning("not proven", extra={"app": operation.name.slug, "problem": str(problem)})
            return False
        return True


async def _nobody() -> None:
    """Who serves the app has been in the network that they share since it was adopted."""
