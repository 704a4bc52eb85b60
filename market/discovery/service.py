"""Discovery as one thing: the operator's relays, a link to each, and the index they fill.

Guarantees that links do not know of each other, and that silence of a relay is never taken for absence: a sync says of
each relay whether it answered. Refuses to know trust and installation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import trio

from market.discovery.index import Index
from market.discovery.relay import RelayLink, RelayState
from market.errors import Problem

logger = logging.getLogger(__name__)

VERIFIERS: Final = 2
"""Threads that verify, for all relays together: libsecp256k1 releases the GIL, Python's part does not."""

REVISIT_SECONDS: Final = 60.0
MAX_PEOPLE: Final = 5000
"""Follow lists asked for: 25 questions of 200 keys. Trust's weight two steps from the anchors is small beyond that."""


@dataclass(frozen=True, slots=True)
class SyncReport:
    """One pass over all relays. `answered` are the relays that answered every question."""

    answered: tuple[str, ...]
    unanswered: tuple[str, ...]
    accepted: int
    relays: tuple[RelayState, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """For a door."""
        return {
            "answered": list(self.answered),
            "unanswered": list(self.unanswered),
            "accepted": self.accepted,
            "relays": [state.to_json() for state in self.relays],
            "seconds": round(self.seconds, 3),
        }


class Discovery:
    """Keeps the index in step with the relays.

    `people` gives the hex Nostr keys of the operator's anchors, whose follow lists are read. `on_change` may be set to
    a function that is called, on the trio thread, after something was accepted.
    """

    def __init__(
        self,
        index: Index,
        relays: Sequence[str],
        now: Callable[[], float],
        *,
        people: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self.index = index
        self.on_change: Callable[[], None] = lambda: None
        self._now = now
        self._people = people
        self._verifiers = trio.CapacityLimiter(VERIFIERS)
        self._links: dict[str, RelayLink] = {}
        self._scopes: dict[str, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None
        self.set_relays(relays)

    def set_relays(self, relays: Sequence[str]) -> None:
        """From now on these. While running, links are made and ended at once."""
        for url in set(self._links) - set(relays):
            del self._links[url]
            if url in self._scopes:
                self._scopes.pop(url).cancel()
        for url in relays:
            if url not in self._links:
                self._links[url] = RelayLink(url, self.index, self._interest, self._verifiers, self._accepted)
                self._start(url)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a session with every relay until cancelled; `started` once all links are under way."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for url in self._links:
                    self._start(url)
                task_status.started()
                await self._revisit_forever()
            finally:
                self._nursery = None
                self._scopes.clear()

    async def sync(self, timeout: float) -> SyncReport:
        """Ask every relay everything once, for at most `timeout` seconds in all."""
        began = trio.current_time()
        links = list(self._links.values())
        before = sum(link.state().accepted for link in links)
        answered: dict[str, bool] = {}

        async def one(link: RelayLink) -> None:
            answered[link.url] = await link.sync()

        with trio.move_on_after(timeout):
            await self._revisit()
            async with trio.open_nursery() as nursery:
                for link in links:
                    nursery.start_soon(one, link)
        return SyncReport(
            answered=tuple(link.url for link in links if answered.get(link.url)),
            unanswered=tuple(link.url for link in links if not answered.get(link.url)),
            accepted=sum(link.state().accepted for link in links) - before,
            relays=self.relay_states(),
            seconds=trio.current_time() - began,
        )

    def relay_states(self) -> tuple[RelayState, ...]:
        """A snapshot of every link, in the operator's order."""
        lags = self.index.lags()
        return tuple(link.state(lags.get(url, 0)) for url, link in self._links.items())

    def _start(self, url: str) -> None:
        if self._nursery is not None:
            self._scopes[url] = trio.CancelScope()
            self._nursery.start_soon(self._keep, self._links[url], self._scopes[url])

    async def _keep(self, link: RelayLink, scope: trio.CancelScope) -> None:
        with scope:
            await link.run()

    def _interest(self) -> Sequence[str]:
        return self.index.people_of_interest(self._people(), MAX_PEOPLE)

    def _accepted(self) -> None:
        self.on_change()

    async def _revisit_forever(self) -> None:
        while True:
            await trio.sleep(REVISIT_SECONDS)
            await self._revisit()

    async def _revisit(self) -> None:
        try:
            await trio.to_thread.run_sync(self.index.revisit, limiter=self._verifiers)
        except Problem as problem:  # a full disk passes, and the relays still have what was not stored
            logger.warning("the index could not be written: %s", problem)
