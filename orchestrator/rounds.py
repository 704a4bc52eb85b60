"""Round after round: one look for all apps, and whatever is not as wanted is mended.

Guarantees: an observation that fails changes nothing (R-ST18); one app that fails never delays another, and is tried
ever more seldom (R-ST4, R-ST17); a lost trigger or wake-up is harmless (R-ST15).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import trio

from apps.names import AppName
from apps.problems import Problem
from orchestrator.faults import Waiting
from orchestrator.generations import Generations, Loaded
from orchestrator.healing import Healing
from orchestrator.keeping import Keeper
from orchestrator.kept import Due, due, look_at
from orchestrator.machine import Machine
from orchestrator.operations import Operations
from orchestrator.patience import Patience
from orchestrator.plan import Observed, plan
from orchestrator.state import AppRecord, State
from orchestrator.status import Finding
from orchestrator.stranger import Stranger
from orchestrator.triggers import Trigger
from orchestrator.turns import Turns

log = logging.getLogger(__name__)

QUIET = 0.5
"""Seconds between a wake-up and the look: Podman tells one removal as several events."""
WHOLE_EVERY = 20
"""Every so many ticks images, networks, volumes and secrets are looked at too (10 minutes)."""


class Rounds:
    """Keeps reality as wanted; `seconds` between two looks that nobody asked for."""

    def __init__(
        self,
        state: State,
        machine: Machine,
        generations: Generations,
        operations: Operations,
        keeper: Keeper,
        turns: Turns,
        seconds: float,
    ) -> None:
        self._state = state
        self._machine = machine
        self._generations = generations
        self._operations = operations
        self._keeper = keeper
        self._turns = turns
        self._seconds = seconds
        self._wake = trio.Event()
        self._patience = Patience()
        self._ticks = 0
        self._healing = Healing(machine.care)
        self._looked_at: frozenset[str] = frozenset()
        """Containers whose links to the network were looked at."""

    def wake(self) -> None:
        """Look now instead of at the next tick. Losing a wake-up is harmless (R-ST15)."""
        self._wake.set()

    def forgive(self, name: AppName) -> None:
        """The app did well, or its user wants it tried at once: what failed before does not count."""
        self._patience.forgive(name.slug)

    def findings(self) -> tuple[Finding, ...]:
        """What is wrong with Podman's own state and could not be mended, and what was mended (R-FM6)."""
        return self._healing.findings()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Finish what a crash left, then keep reality as wanted until cancelled."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            for trigger in self._machine.triggers:
                nursery.start_soon(self._listen, trigger)
            while True:
                self._wake = trio.Event()
                try:
                    await self.tick(nursery)
                except Problem as problem:
                    log.warning("a tick failed", extra={"problem": str(problem)})
                with trio.move_on_after(self._seconds):
                    await self._wake.wait()
                    await trio.sleep(QUIET)  # one look for all that comes in a burst

    async def _listen(self, trigger: Trigger) -> None:
        """The tick does without; a trigger that ends is tried again as seldom as that."""
        while True:
            try:
                await trigger.listen(self.wake)
            except Problem as problem:
                log.warning("a trigger is lost", extra={"problem": str(problem)})
            await trio.sleep(self._seconds)

    async def tick(self, nursery: trio.Nursery) -> None:
        """One look for all apps, and a task in the nursery for each that is not as wanted.

        Raises Problem when the database or Podman's version can not be read.
        """
        whole = self._ticks % WHOLE_EVERY == 0
        self._ticks += 1
        pending = {operation.name for operation in self._state.open_operations()}
        for name in pending:
            self._mend(nursery, name)
        loaded = await self._loaded([record for record in self._state.apps() if record.name not in pending], nursery)
        services = [service for _, item in loaded for service in item.app.services]
        # What a brief look leaves out (a unit that waits for a reload) is left by a step that failed, or by a crash,
        # and a process begins with a whole look.
        seen = await self._machine.look(services, whole=whole, brief=not whole and not self._patience)
        await self._heal(seen, deep=whole)
        kept = await self._look_at_kept([item for _, item in loaded])
        unfinished = self._state.kept.any_superseded() | self._state.choices.on_trial()
        for record, item in loaded:
            if record.name.slug in unfinished:
                self._mend(nursery, record.name)
                continue
            if item.kept:
                if kept is None:
                    continue  # unknown
                if due(item.kept, kept, record.desired) is not Due.NOTHING:
                    self._mend(nursery, record.name)
                else:
                    self.forgive(record.name)
                continue
            try:
                as_wanted = await self._as_wanted(record, item, seen, whole=whole)
            except Problem:  # told and counted where it is mended; it is this app's alone (R-ST4)
                as_wanted = False
            if not as_wanted:
                given_up = record.desired == "running" and "failed" in _states(item, seen)
                self._mend(nursery, record.name, given_up=given_up)
            elif record.desired != "running" or _states(item, seen) == {"active"}:
                self._patience.well(record.name.slug, trio.current_time())

    async def _loaded(self, records: Sequence[AppRecord], nursery: trio.Nursery) -> list[tuple[AppRecord, Loaded]]:
        """Those that this node can render; the others are mended, where what is wrong is told and counted (R-ST4)."""
        found = []
        if records:
            await self._generations.podman()  # without it there is nothing to render for, whatever the app
        for record in records:
            try:
                found.append((record, await self._generations.load(record)))
            except Problem:
                self._mend(nursery, record.name)
        return found

    async def _as_wanted(self, record: AppRecord, loaded: Loaded, seen: Observed, *, whole: bool) -> bool:
        if self._generations.ailing(record):
            return False
        if whole and not self._turns.lock(record.name).locked():
            self._machine.secrets.settle(record.name)  # what a crash in a rotation left
        want = await self._generations.wanted(record.name, loaded, running=record.desired == "running")
        return not plan(want, seen)

    async def _look_at_kept(self, loaded: Sequence[Loaded]) -> Mapping[str, Stranger] | None:
        """Containers that somebody else made, by id: one question for all apps. None when Podman does not answer."""
        try:
            return await look_at(self._machine, [box for item in loaded for box in item.kept])
        except Problem as problem:
            log.warning("a look at adopted containers failed", extra={"problem": str(problem)})
            return None

    async def _heal(self, seen: Observed, *, deep: bool) -> None:
        answered = seen.containers is not None
        running = [container for container in seen.containers or () if container.state == "running"]
        if answered and not running:
            return
        # Whoever was started since the last look from within may be in another namespace than those before it
        begun = frozenset(container.id for container in running) - self._looked_at
        living = running if deep or begun else []
        cured = await self._healing.round(answered=answered, living=living, stop_apps=self._keeper.stop_running)
        if living:
            self._looked_at = frozenset(container.id for container in running)
        if cured:
            self._patience.forgive_all()
            self.wake()

    def _mend(self, nursery: trio.Nursery, name: AppName, *, given_up: bool = False) -> None:
        now = trio.current_time()
        if name.slug in self._turns.under_way:
            return
        if given_up:
            self._patience.given_up(name.slug, now)
        if self._patience.over(name.slug, now):
            nursery.start_soon(self._mend_one, name)

    async def _mend_one(self, name: AppName) -> None:
        lock = self._turns.lock(name)
        if lock.locked():
            return
        async with lock, self._machine.podman.at_hand():
            try:
                if (left := self._state.open_operation(name)) is not None:
                    await self._operations.settle(left)
                record = self._state.app(name)
                if record is not None and name.slug in self._state.choices.on_trial():
                    await self._operations.settle_settings(record)
                    record = self._state.app(name)
                if record is not None and record.generation is not None:
                    await self._operations.tidy(name)
                    loaded = await self._generations.load(record)
                    if loaded.kept:
                        if record.desired == "running":
                            await self._keeper.check_providers(name, loaded.providers)
                        await self._operations.keep(record, loaded)
                        return
                    await self._keeper.make_so(record, loaded, running=record.desired == "running")
                    self._patience.came_up(name.slug, trio.current_time())
            except Waiting as problem:
                log.info("an app waits", extra={"app": name.slug, "problem": str(problem)})
            except Problem as problem:
                self._patience.failed(name.slug, trio.current_time())
                log.warning("an app is not as wanted", extra={"app": name.slug, "problem": str(problem)})


def _states(loaded: Loaded, seen: Observed) -> set[str]:
    """The states of an app's services, companions apart; none while systemd is unknown."""
    services = seen.services or {}
    names = [box.service for box in loaded.app.containers if not box.companion]
    return {services[name].active for name in names if name in services}
