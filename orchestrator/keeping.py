"""One app kept as its user wants it: what must hold first, what is mended on the way, who is waited for.

Guarantees: an app starts after what it depends on is well (R-ST14); an older release is never started over a newer one
that the database has forgotten; what one app needs of another is asked under that one's own lock. Who calls it holds
the lock of the app that it names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import trio

from apps.names import AppName
from apps.problems import Refused
from orchestrator.adoption import of_unknown_release, pinned_images
from orchestrator.apply import take
from orchestrator.building import remember_builds
from orchestrator.converge import converge, statuses, wait_healthy
from orchestrator.faults import Waiting
from orchestrator.generations import Generations, Loaded
from orchestrator.health import checks, ready, window
from orchestrator.kept import set_aside
from orchestrator.machine import Machine
from orchestrator.plan_units import stop_seconds
from orchestrator.secret_care import lost_for_good, restore_secrets
from orchestrator.state import AppRecord, State
from orchestrator.steps import StopUnits


class Keeper:
    """`lock_of` gives the lock of an app."""

    def __init__(
        self, state: State, machine: Machine, generations: Generations, lock_of: Callable[[AppName], trio.Lock]
    ) -> None:
        self._state = state
        self._machine = machine
        self._generations = generations
        self._lock_of = lock_of

    async def require_known(self, name: AppName) -> None:
        """Raises Refused when another release runs than the database knows of: it was restored from an older copy.

        What runs may have changed its data already; the older release is not started over it.
        """
        pinned = pinned_images(name.slug, self._machine.folder.read())
        known, configs = await self._generations.images(name)
        if pinned <= known:
            return
        seen = await self._machine.look((), whole=False)
        if other := of_unknown_release(name.slug, configs, seen):
            raise Refused(
                f"{other} runs from a release that this node's database does not know; it goes on untouched",
                where=str(name),
                remedy=f"archy update {name.id}, which takes it as it runs",
            )

    async def make_so(self, record: AppRecord, loaded: Loaded, *, running: bool) -> None:
        """Mend secrets, then converge. Raises Problem; Waiting while what it depends on is not well."""
        if loaded.kept:
            # They run as somebody else made them; what they are to become, and when, is not decided here (ADR 12)
            if not running:
                await set_aside(self._machine, loaded)
            return
        if loaded.app.builds and await remember_builds(self._machine, loaded.app, self._machine.folder.read()):
            loaded = await self._generations.load(record)
        await self.require_known(record.name)
        lost: tuple[str, ...] = ()
        if self._generations.ailing(record):
            lost = await restore_secrets(self._machine, loaded.source.names, loaded.manifest)
            loaded = await self._generations.load(record)  # what was taken back may be of another turn
        want = await self._generations.wanted(record.name, loaded, running=running)

        async def before_start() -> None:
            await self.check_providers(record.name, loaded.providers)

        await converge(self._machine, want, loaded.source, before_start=before_start)
        if lost:
            raise lost_for_good(record.name.id, lost)

    async def wait_for(self, providers: Mapping[str, AppName]) -> None:
        """Wait until the apps that serve a dependency are well, each within its own window. Raises Unhealthy."""
        for provider in dict.fromkeys(providers.values()):
            loaded = await self._generations.load(self._generations.record(provider))
            if loaded.kept:
                raise _serves_nobody(provider)
            if self._generations.record(provider).desired == "running":
                await wait_healthy(self._machine, loaded, window(loaded.manifest, update=False))

    async def bring_in(self, others: Mapping[str, AppName]) -> None:
        """Let other apps follow a change of one: join or leave the network that they share, read what it exports.

        Only what serves an app may be brought in under that app's lock: locks are taken from dependant to provider.
        """
        for other in dict.fromkeys(others.values()):
            async with self._lock_of(other):
                record = self._state.app(other)
                if record is None or record.generation is None:
                    continue
                loaded = await self._generations.load(record)
                await self.make_so(record, loaded, running=record.desired == "running")

    async def stop_running(self) -> None:
        """Stop every app that nothing else is being done to; their users' word stays, so that the tick starts them."""
        for record in self._state.apps():
            lock = self._lock_of(record.name)
            if record.generation is not None and record.desired == "running" and not lock.locked():
                async with lock:
                    loaded = await self._generations.load(record)
                    if loaded.kept:
                        continue  # how they were started is not known here; the repair of Podman stops what it must
                    app = loaded.app
                    step = StopUnits(tuple(reversed(app.services)), stop_seconds(app))
                    await take(self._machine, step, None, app.names)

    async def check_providers(self, name: AppName, providers: Mapping[str, AppName]) -> None:
        """Raises Waiting while an app that serves a dependency is not well (R-ST14)."""
        for provider in dict.fromkeys(providers.values()):
            record = self._state.app(provider)
            if record is None or record.generation is None:
                raise Waiting(f"{name.id} waits for {provider.id}, which is not installed", where=name.id)
            loaded = await self._generations.load(record)
            if loaded.kept:
                raise Waiting(f"{name.id} waits for {provider.id}: {_serves_nobody(provider).what}", where=name.id)
            stem = loaded.app.names.stem
            seen = await self._machine.look(loaded.app.services, whole=False, strict=True, stem=stem)
            answers = await self._machine.prober.ask(checks(loaded.manifest, loaded.app.names))
            if not ready(statuses(loaded, seen, answers)):
                raise Waiting(f"{name.id} waits for {provider.id}", where=name.id)


def _serves_nobody(app: AppName) -> Refused:
    return Refused(
        f"{app.id} runs as it was adopted, in no network of other apps",
        where=str(app),
        remedy=f"archy restart {app.id} makes it a service",
    )
