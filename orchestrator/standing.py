"""How the apps stand: what is seen now or, while the machine does not answer, what was seen last (R-ST11)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import trio

from apps.names import AppName
from apps.problems import Problem
from orchestrator.converge import statuses
from orchestrator.generations import Generations, Loaded
from orchestrator.health import Check, ContainerStatus, app_state, checks
from orchestrator.kept import as_published, kept_checks, kept_statuses, look_at
from orchestrator.machine import Machine
from orchestrator.state import AppRecord, State
from orchestrator.status import AppStatus, urls
from orchestrator.stranger import Stranger

PATIENCE: Final = 5.0
"""Seconds to wait for a new list while an old one is known; an answer takes a tenth of one."""
ADOPTED: Final = {"running": "archy restart makes it a service", "stopped": "archy start makes it a service"}


def _checks(item: Loaded, kept: Mapping[str, Stranger]) -> tuple[Check, ...]:
    return kept_checks(item, kept) if item.kept else checks(item.manifest, item.app.names)


class Standing:
    """Looks, and remembers the last look. `operating`: what its caller is doing to an app, by slug."""

    def __init__(self, state: State, machine: Machine, generations: Generations, operating: Mapping[str, str]) -> None:
        self._state = state
        self._machine = machine
        self._generations = generations
        self._operating = operating
        self._last: dict[str, AppStatus] = {}

    async def now(self) -> tuple[AppStatus, ...]:
        """Every app. When the machine does not answer, what was last known, marked stale; soon, where all are known."""
        records = self._state.apps()
        known = all(record.name.slug in self._last for record in records)
        return await self._look_at(records, PATIENCE if known else math.inf)

    def told(self, name: AppName, loaded: Loaded, found: tuple[ContainerStatus, ...]) -> AppStatus:
        """One app that somebody has just looked at."""
        [record] = [record for record in self._state.apps() if record.name == name]
        return self._keep(record, loaded, found)

    async def of(self, name: AppName) -> AppStatus:
        """One app that is known. No other is asked for its health: a slow one must not delay the answer."""
        [status] = await self._look_at([record for record in self._state.apps() if record.name == name])
        return status

    async def _look_at(self, records: Sequence[AppRecord], patience: float = math.inf) -> tuple[AppStatus, ...]:
        if not records:
            return ()
        loaded: dict[AppName, Loaded] = {}
        found: dict[AppName, AppStatus] = {}
        for record in records:
            try:
                loaded[record.name] = await self._generations.load(record)
            except Problem as problem:  # of this app alone
                found[record.name] = self._stale(record, str(problem))
        services = [service for item in loaded.values() for service in item.app.services]
        try:
            with trio.move_on_after(patience) as waiting:
                seen = await self._machine.look(services, whole=False, strict=True)
                kept = await look_at(self._machine, [box for item in loaded.values() for box in item.kept])
        except Problem as problem:
            return tuple(self._stale(record, str(problem)) for record in records)
        if waiting.cancelled_caught:
            return tuple(
                self._stale(record, f"no answer from this machine within {patience:g} s") for record in records
            )
        asked = [check for item in loaded.values() for check in _checks(item, kept)]
        answers = await self._machine.prober.ask(asked)
        there = [record for record in records if self._state.app(record.name) is not None]  # not removed meanwhile
        for record in there:
            if (known := loaded.get(record.name)) is not None:
                boxes = kept_statuses(known, kept, answers) if known.kept else statuses(known, seen, answers)
                found[record.name] = self._keep(record, as_published(known, kept) if known.kept else known, boxes)
        return tuple(found[record.name] for record in there)

    def forget(self, name: AppName) -> None:
        """The app is gone."""
        self._last.pop(name.slug, None)

    def _keep(self, record: AppRecord, loaded: Loaded, found: tuple[ContainerStatus, ...]) -> AppStatus:
        _, digest = self._release(record)
        status = self._last[record.name.slug] = AppStatus(
            record.name,
            loaded.manifest.version,
            digest,
            record.desired,
            self._operating.get(record.name.slug) or app_state(record.desired, found),  # R-ST5
            found,
            urls(loaded.manifest, self._machine.host.lan_address()),
            () if loaded.kept else loaded.app.services,
            ADOPTED[record.desired] if loaded.kept else "",
            tuple(box.name for box in loaded.kept or loaded.app.containers),
            bool(loaded.kept),
        )
        return status

    def _stale(self, record: AppRecord, why: str) -> AppStatus:
        known = self._last.get(record.name.slug)
        if known is not None:
            return replace(known, detail=f"stale: {why}")
        version, digest = self._release(record)
        return AppStatus(record.name, version, digest, record.desired, "unknown", (), (), (), f"stale: {why}")

    def _release(self, record: AppRecord) -> tuple[str, str]:
        if record.generation is None:
            return "", ""
        try:
            generation = self._state.generation(record.name, record.generation)
        except Problem:  # damaged, or removed meanwhile
            return "", ""
        return generation.version, generation.digest
