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
from websockets.uri import parse_uri

from apps.names import AppName
from market.discovery import event_rows, reading
from market.discovery.events import SchnorrSigner
from market.discovery.index import Index
from market.discovery.publishing import PublishResult, publish
from market.discovery.relay import RelayLink, RelayState
from market.discovery.verifiers import Verifiers
from market.errors import Problem

logger = logging.getLogger(__name__)

QUORUM: Final = 2
"""Independent relays that should have answered. The newest valid document of any relay wins, so this is no vote: it
only says how many would have to withhold a document together for nobody to see it."""

MAX_AUTHOR_RELAYS: Final = 8
"""Relays named by publishers that are asked besides the operator's own."""

MAX_PUBLISHERS: Final = 200
"""Publishers of interest whose write relays are looked up."""

MAX_LOST: Final = 5000
"""Ids, by relay, of events that it lost; the newest are kept."""

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

    @property
    def independent(self) -> int:
        """Relays of different hosts that answered: one operator's two relays are one witness."""
        return len({parse_uri(url).host for url in self.answered})

    def to_json(self) -> dict[str, Any]:
        """For a door."""
        return {
            "answered": list(self.answered),
            "independent": self.independent,
            "quorum": self.independent >= QUORUM,
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
        publishers: Callable[[], Sequence[str]] = tuple,
        signer: Callable[[], SchnorrSigner | None] = lambda: None,
        allow_private: bool = False,
    ) -> None:
        """`publishers` gives DIDs whose own write relays are asked too (NIP-65); `allow_private` lets those be at
        private addresses. `signer` gives who answers the operator's relays when they ask who reads (NIP-42); relays
        that publishers name are told nothing."""
        self.index = index
        self.on_change: Callable[[], None] = lambda: None
        self._now = now
        self._people = people
        self._publishers = publishers
        self._signer = signer
        self._allow_private = allow_private
        self._relays: tuple[str, ...] = ()
        self._lost: dict[str, dict[str, None]] = {}
        self._verifiers = Verifiers()
        self._links: dict[str, RelayLink] = {}
        self._scopes: dict[str, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None
        self.set_relays(relays)

    def set_relays(self, relays: Sequence[str]) -> None:
        """From now on these. While running, links are made and ended at once."""
        self._relays = tuple(relays)
        authors = self._author_relays()
        for url in set(self._links) - set(relays) - set(authors):
            self._end(url)
        for url in relays:
            if url in self._links and self._links[url].authors:
                self._end(url)
            self._keep_link(url, frozenset())
        for url, keys in authors.items():
            if url in self._links and not self._links[url].authors:
                self._end(url)  # it was the operator's, who trusted it with more than strangers' relays are
            self._keep_link(url, keys)

    def look_at_authors(self) -> None:
        """Whom to ask besides the operator's relays: where publishers of interest say that they write."""
        self.set_relays(self._relays)

    def _author_relays(self) -> dict[str, frozenset[str]]:
        publishers = tuple(self._publishers())[:MAX_PUBLISHERS]
        if not publishers:
            return {}
        with self.index.reading() as db:
            found = reading.write_relays(db, publishers)
        chosen = sorted(set(found) - set(self._relays), key=lambda url: (-len(found[url]), url))
        return {url: found[url] for url in chosen[:MAX_AUTHOR_RELAYS]}

    def _keep_link(self, url: str, authors: frozenset[str]) -> None:
        if url in self._links:
            self._links[url].authors = authors
            return
        self._links[url] = RelayLink(
            url,
            self.index,
            self._interest,
            self._verifiers,
            self._accepted,
            now=self._now,
            signer=lambda: None if authors else self._signer(),
            authors=authors,
            public_only=bool(authors) and not self._allow_private,
            lost=self._note_lost,
        )
        self._start(url)

    def _end(self, url: str) -> None:
        del self._links[url]
        if url in self._scopes:
            self._scopes.pop(url).cancel()

    def _note_lost(self, url: str, ids: Sequence[str]) -> None:
        lost = self._lost.setdefault(url, {})
        lost.update(dict.fromkeys(ids))
        while len(lost) > MAX_LOST:
            del lost[next(iter(lost))]

    async def rebroadcast(self, apps: Sequence[AppName], *, timeout: float) -> tuple[PublishResult, ...]:
        """Give back what the operator's relays lost of these apps and of their publishers' histories.

        A relay that reconciles (NIP-77) has said which; one that does not is offered what others showed and it has
        not. Relays that have an event say so, and nothing changes.
        """
        wanted = {event["id"]: event for app in apps for event in self.index.events_of(app)}
        results: list[PublishResult] = []
        for url in self._relays:
            lost = self._lost.pop(url, {}) if self._links[url].reconciles else wanted
            with self.index.reading() as db:
                shown = event_rows.shown_by(db, url, list(wanted))
            reconciled = self._links[url].reconciles
            missing = [event for id_, event in wanted.items() if id_ in lost and (reconciled or id_ not in shown)]
            if missing:
                results += await publish(missing, [url], timeout=timeout, signer=self._signer())
        return tuple(results)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a session with every relay until cancelled; `started` once all links are under way."""
        async with self._verifiers.working(), trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for url in self._links:
                    self._start(url)
                task_status.started()
                await self._revisit_forever()
            finally:
                self._nursery = None
                self._scopes.clear()

    async def begun(self, timeout: float) -> None:
        """While running: wait until every relay has once shown what it has, or could not, for at most so many seconds.

        Returns at once from then on.
        """
        with trio.move_on_after(timeout):
            for link in tuple(self._links.values()):
                await link.answered.wait()

    async def sync(self, timeout: float) -> SyncReport:
        """Ask every relay everything once, for at most `timeout` seconds in all."""
        began = trio.current_time()
        self.look_at_authors()
        links = list(self._links.values())
        before = sum(link.state().accepted for link in links)
        answered: dict[str, bool] = {}

        async def one(link: RelayLink) -> None:
            answered[link.url] = await link.sync()

        with trio.move_on_after(timeout):
            await self._revisit()
            async with self._verifiers.working(), trio.open_nursery() as nursery:
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
        return tuple(link.state(lags.get(url, ())) for url, link in self._links.items())

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
            self.look_at_authors()

    async def _revisit(self) -> None:
        try:
            await trio.to_thread.run_sync(self.index.revisit, limiter=self._verifiers.threads)
        except Problem as problem:  # a full disk passes, and the relays still have what was not stored
            logger.warning("the index could not be written: %s", problem)
