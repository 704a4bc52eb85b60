"""Changing settings and secrets of an app that holds already: its generation stays, its units read other values.

The order of durable writes: the new value is stored beside the old one before anything is restarted; once the app is
healthy with it, the old one is forgotten; else the old one holds again. A restart in between finishes a change of
settings by the same proof, and keeps the newest value of a secret. How the app is made as its values say, and proven,
others know.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol

from apps.names import AppName
from apps.problems import Problem, RolledBack, UsageProblem
from orchestrator.apply import take
from orchestrator.generations import Generations
from orchestrator.machine import Machine
from orchestrator.settled import checked_values, settle
from orchestrator.state import AppRecord, State
from orchestrator.steps import WriteSecrets

log = logging.getLogger(__name__)


class Prove(Protocol):
    """Makes an app as its record, settings and secrets say; waits until it is healthy, unless it may do badly.

    Raises Problem.
    """

    async def __call__(self, record: AppRecord, *, healthy: bool = True) -> object: ...


class Adjustments:
    """The caller sees to it that an app has one operation at a time."""

    def __init__(self, state: State, machine: Machine, generations: Generations, prove: Prove) -> None:
        self._state = state
        self._machine = machine
        self._generations = generations
        self._prove = prove

    async def configure(self, record: AppRecord, values: Mapping[str, str | None]) -> None:
        """Change settings (None: the default again) and restart what they reach, until the app is healthy again.

        Raises UsageProblem for what is no setting or not of its type; RolledBack with the old values in force.
        """
        name, choices = record.name, self._state.choices
        before = choices.settings(name)
        manifest = self._generations.signed(self._state.generation(name, record.generation or 0))
        checked_values(manifest, values)
        merged = {**before, **values}
        chosen = {key: value for key, value in merged.items() if value is not None}
        self._generations.refuse_breaking(name, settle(manifest, chosen, {}))
        choices.try_settings(name, chosen)
        try:
            await self._prove(record)
        except Problem as problem:
            choices.take_back(name)
            await self._go_back(record)
            raise _taken_back(name, "new settings, the old ones are back", problem) from problem
        choices.keep_settings(name)

    async def settle_settings(self, record: AppRecord) -> None:
        """Finish a change of settings that was cut off: they hold if the app does well with them. Raises Problem."""
        name, choices = record.name, self._state.choices
        try:
            await self._prove(record)
        except Problem as problem:
            log.warning("settings are taken back", extra={"app": name.slug, "problem": str(problem)})
            choices.take_back(name)
            await self._go_back(record)
            return
        choices.keep_settings(name)

    async def rotate(self, record: AppRecord, label: str) -> None:
        """Make a secret anew, tell what reads it, and forget the old value once the app is healthy with the new one.

        Raises UsageProblem for what is no secret; RolledBack with the old value in force.
        """
        name, secrets = record.name, self._machine.secrets
        manifest = self._generations.signed_now(name)
        found = next((secret for secret in manifest.generated_secrets if secret.name == label), None)
        if found is None:
            listed = ", ".join(secret.name for secret in manifest.generated_secrets) or "none"
            raise UsageProblem(
                f"{name.id} has no secret {label[:40]!a}", where=name.id, remedy=f"its secrets: {listed}"
            )
        secrets.rotate(name, found)
        try:
            loaded = await self._generations.load(record)
            if record.desired == "running":
                # Podman may hold another value under that name, of a turn that this node does not know any more
                await take(self._machine, WriteSecrets((label,)), loaded.source, loaded.source.names)
            await self._prove(record)
        except Problem as problem:
            secrets.turn_back(name, label)
            await self._go_back(record)
            raise _taken_back(name, f"new {label}, the old one is back", problem) from problem
        if record.desired != "running":
            self._machine.derived.remove(name)  # they hold the old value, and are made again before the next start
        secrets.settle(name)

    async def _go_back(self, record: AppRecord) -> None:
        """What held before holds again, whether the app does well with it or not; the ticks go on from there."""
        try:
            await self._prove(record, healthy=False)
        except Problem as problem:
            log.warning("not as before", extra={"app": record.name.slug, "problem": str(problem)})


def _taken_back(name: AppName, change: str, problem: Problem) -> RolledBack:
    """What its operator is told of a change that the app did not bear."""
    return RolledBack(
        f"{name.id} did not do well with the {change}: {problem.what}",
        where=problem.where or name.id,
        remedy=problem.remedy,
    )
