"""Who may do something to an app now: one at a time per app, and different apps at the same time (R-ST20)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import trio

from apps.names import AppName
from orchestrator.faults import Busy


class Turns:
    """A lock for each app, and what its users have under way."""

    def __init__(self) -> None:
        self._locks: dict[str, trio.Lock] = {}
        self._under_way: dict[str, str] = {}

    @property
    def under_way(self) -> Mapping[str, str]:
        """What a user's operation is doing to an app, by slug."""
        return self._under_way

    def lock(self, name: AppName) -> trio.Lock:
        """Held by whoever changes something of the app."""
        return self._locks.setdefault(name.slug, trio.Lock())

    @asynccontextmanager
    async def operation(self, name: AppName, what: str) -> AsyncIterator[None]:
        """A user's operation; a mending round is waited for. Raises Busy while another user's is under way."""
        if (other := self._under_way.get(name.slug)) is not None:
            raise Busy(f"{name.id} is {other}", where=str(name), remedy="wait for that to end")
        self._under_way[name.slug] = what
        try:
            async with self.lock(name):
                yield
        finally:
            del self._under_way[name.slug]
