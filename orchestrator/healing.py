"""Keeps Podman's own state whole: asks for signs, mends what they prove, remembers what could not be mended (R-FM6).

Guarantees: each ailment is mended at growing pauses, so that a cure that does not help is not repeated over and over;
what stands is told until it is gone. It refuses to know how anything is mended.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from apps.problems import Problem
from orchestrator.podman_answers import ContainerSeen
from orchestrator.podman_care import REMEDIES, Ailment, Care, diagnose
from orchestrator.status import Finding

log = logging.getLogger(__name__)

PAUSES: Final = (0, 60, 300, 1800)
"""Seconds before the next cure of the same ailment, by how many there were since it was last gone."""


@dataclass(frozen=True, slots=True)
class _Standing:
    cures: int = 0
    not_before: float = -math.inf
    failure: str = ""


class Healing:
    """What stands, and what was done about it, since this process began."""

    def __init__(self, care: Care) -> None:
        self._care = care
        self._standing: dict[Ailment, _Standing] = {}
        self._mended: dict[Ailment, int] = {}

    async def round(
        self, *, answered: bool, living: Sequence[ContainerSeen], stop_apps: Callable[[], Awaitable[None]]
    ) -> bool:
        """Look and mend once; True when a cure was made, and apps have to be looked at again. `living` as in Care."""
        signs = await self._care.look(answered=answered, living=living)
        found = diagnose(signs)
        for gone in set(self._standing) - set(found):
            if self._standing.pop(gone).cures:
                self._mended[gone] = self._mended.get(gone, 0) + 1
        cured = False
        for ailment in found:
            standing = self._standing.setdefault(ailment, _Standing(failure=signs.refusal))
            if ailment is not Ailment.SILENT and trio.current_time() >= standing.not_before:
                cured |= await self._mend(ailment, standing, stop_apps)
        return cured

    async def _mend(self, ailment: Ailment, standing: _Standing, stop_apps: Callable[[], Awaitable[None]]) -> bool:
        cures = standing.cures + 1
        failure = ""
        try:
            if ailment is Ailment.NAMESPACE:
                await stop_apps()  # what runs in the lost namespace can not be moved to a new one
            await self._care.mend(ailment)
            log.warning("mended", extra={"ailment": ailment.name})
        except Problem as problem:
            failure = problem.what
            log.error("can not be mended", extra={"ailment": ailment.name, "problem": str(problem)})
        pause = PAUSES[min(cures, len(PAUSES) - 1)]
        self._standing[ailment] = _Standing(cures, trio.current_time() + pause, failure)
        return not failure

    def findings(self) -> tuple[Finding, ...]:
        """What stands, with what to do about it, and what was mended."""
        bad = [
            Finding("podman state", False, f"{a.value}{_tries(s)}{f': {s.failure}' if s.failure else ''}", REMEDIES[a])
            for a, s in self._standing.items()
        ]
        good = [
            Finding("podman state", True, f"mended {times} times: {ailment.value}")
            for ailment, times in self._mended.items()
        ]
        return (*bad, *good)


def _tries(standing: _Standing) -> str:
    return f" (tried to mend it {standing.cures} times)" if standing.cures else ""
