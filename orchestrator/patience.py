"""When an app that fails is tried again: at once, then ever more seldom.

An app fails when it can not be made as wanted, and when systemd gives one of its services up although it had started.
Guarantees: pauses grow up to a ceiling and begin anew once the app has done well for as long as systemd counts starts;
what its user asks for is tried at once. It never asks what time it is. Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

BACKOFF: Final = (0, 10, 30, 60, 120, 300)
"""Seconds to wait after so many failures in a row of one app; it starts at 0 again when the app does well."""
STEADY: Final = 300.0
"""Seconds after which an app that is up does well: systemd gives up after five starts in as many."""


@dataclass(frozen=True, slots=True)
class _Record:
    failures: int = 0
    not_before: float = -math.inf
    tried: float = -math.inf
    came_up: bool = False
    """The last try brought it up; what it does since is not known yet."""


class Patience:
    """Failures of all apps, by slug. An empty one is false."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def __bool__(self) -> bool:
        return bool(self._records)

    def over(self, slug: str, now: float) -> bool:
        """May it be tried now?"""
        return now >= self._records.get(slug, _Record()).not_before

    def failed(self, slug: str, now: float) -> None:
        """It could not be made as wanted."""
        failures = self._records.get(slug, _Record()).failures + 1
        self._records[slug] = _Record(failures, now + BACKOFF[min(failures, len(BACKOFF) - 1)], now)

    def given_up(self, slug: str, now: float) -> None:
        """Systemd gave up one of its services. The first time it is tried at once; soon after that, it has failed."""
        record = self._records.get(slug)
        if record is None:
            self._records[slug] = _Record(tried=now)
        elif record.came_up and now < record.tried + STEADY:
            self.failed(slug, now)

    def came_up(self, slug: str, now: float) -> None:
        """A try worked."""
        if (record := self._records.get(slug)) is not None:
            self._records[slug] = replace(record, tried=now, came_up=True)

    def well(self, slug: str, now: float) -> None:
        """It is up; its failures are forgotten when it has been for long enough."""
        if (record := self._records.get(slug)) is not None and now >= record.tried + STEADY:
            self.forgive(slug)

    def forgive(self, slug: str) -> None:
        """What failed before does not count."""
        self._records.pop(slug, None)

    def forgive_all(self) -> None:
        """What failed had a reason that is gone."""
        self._records.clear()
