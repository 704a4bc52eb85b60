"""The events of one connection on their way into the index: read ahead, verified side by side, stored in order.

Guarantees that a connection which brings more than can be verified is held back, and that the budgets for what is
forged and for what is of no use end it. Refuses to know messages, subscriptions and sockets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import trio

from market.discovery.connection import RelayFault
from market.discovery.events import Event
from market.discovery.examination import Answer, Candidate
from market.discovery.index import Index
from market.discovery.reasons import Fate, Outcome, Reason
from market.discovery.verifiers import BATCH, Verifiers
from market.errors import Problem

QUEUED_EVENTS: Final = BATCH
QUEUED_BYTES: Final = 4 * 1024 * 1024
"""Read ahead of the verifiers, for one relay; beyond either bound its connection is not read any further."""

BATCH_BYTES: Final = QUEUED_BYTES // 2
"""A batch ends here, if not at BATCH events: eleven batches under way hold 22 MiB at worst, and 6 MiB of manifests."""

TOGETHER: Final = 4
"""Batches stored in one transaction, if that many are waiting: a page of the index is then written once for all of
them. Half a second at most, in which nobody else writes and everybody reads."""

WAITING_BATCHES: Final = 5
"""Batches that are verified while others are stored, so that neither waits for the other."""

MAX_FORGERIES: Final = 1000
"""Forged ids and signatures by connection. An honest relay verifies and has none; each costs us 50 us."""

MAX_USELESS: Final = 5000
"""Genuine events, by connection, that were refused all the same, if they outnumber the useful ones by ten."""


@asynccontextmanager
async def one_problem() -> AsyncIterator[trio.Nursery]:
    """A nursery whose tasks' first Problem is raised as it is, and not in a group."""
    problems: list[Problem] = []
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except* Problem as group:
        problems += _leaves(group)
    if problems:
        raise problems[0]


def _leaves(group: BaseExceptionGroup[Problem]) -> list[Problem]:
    return [
        leaf for one in group.exceptions for leaf in (_leaves(one) if isinstance(one, BaseExceptionGroup) else [one])
    ]


@dataclass(slots=True)
class _Batch:
    events: list[Candidate]
    is_examined: trio.Event = field(default_factory=trio.Event)
    new: list[bool] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)


class Intake:
    """Used by one connection. `count` is told the outcomes of every batch that was stored."""

    def __init__(
        self, url: str, index: Index, verifiers: Verifiers, count: Callable[[Sequence[Outcome]], None]
    ) -> None:
        self._url = url
        self._index = index
        self._verifiers = verifiers
        self._count = count
        self._queue: deque[tuple[Event, int]] = deque()
        self._queued_bytes = 0
        self._arrived, self._room, self._settled = trio.Event(), trio.Event(), trio.Event()
        self._under_way = 0
        self._forgeries = 0
        self._useful = 0
        self._useless = 0

    async def put(self, event: Event, size: int) -> None:
        """`size` in bytes. Waits only while the queue is full: a checkpoint for every event would cost more than
        verifying it."""
        while not self.put_now(event, size):
            self._room = trio.Event()
            await self._room.wait()

    def put_now(self, event: Event, size: int) -> bool:
        """The same without waiting; False when the queue is full."""
        if len(self._queue) >= QUEUED_EVENTS or self._queued_bytes >= QUEUED_BYTES:
            return False
        self._under_way += 1
        self._queue.append((event, size))
        self._queued_bytes += size
        self._arrived.set()
        return True

    async def settled(self) -> None:
        """Wait until every event was decided about."""
        while self._under_way:
            self._settled = trio.Event()
            await self._settled.wait()

    async def run(self) -> None:
        """Until cancelled. Raises Problem: RelayFault for the relay's budgets, the index's own for a full disk."""
        send, receive = trio.open_memory_channel[_Batch](WAITING_BATCHES)
        async with one_problem() as nursery:
            nursery.start_soon(self._store, receive)
            while True:
                await self._arrived.wait()
                self._arrived = trio.Event()
                while self._queue:
                    batch = _Batch(self._take())
                    self._room.set()
                    nursery.start_soon(self._examine, batch)
                    await send.send(batch)

    def _take(self) -> list[Candidate]:
        """The next batch off the queue, which is not empty."""
        taken: list[Candidate] = []
        weight = 0
        while self._queue and len(taken) < BATCH and weight < BATCH_BYTES:
            event, size = self._queue.popleft()
            taken.append(Candidate(event, self._url))
            weight += size
        self._queued_bytes -= weight
        return taken

    async def _examine(self, batch: _Batch) -> None:
        batch.new, batch.answers = await self._verifiers.examine(self._index, batch.events)
        batch.is_examined.set()

    async def _store(self, batches: trio.MemoryReceiveChannel[_Batch]) -> None:
        async for batch in batches:
            await batch.is_examined.wait()
            group = [batch]
            with suppress(trio.WouldBlock):
                while len(group) < TOGETHER:
                    group.append(batches.receive_nowait())
                    await group[-1].is_examined.wait()
            outcomes = await trio.to_thread.run_sync(self._commit, group, limiter=self._verifiers.threads)
            self._count(outcomes)
            self._weigh(outcomes)
            self._under_way -= len(outcomes)
            self._settled.set()

    def _commit(self, group: Sequence[_Batch]) -> list[Outcome]:
        return self._index.commit(
            [event for batch in group for event in batch.events],
            [is_new for batch in group for is_new in batch.new],
            [answer for batch in group for answer in batch.answers],
        )

    def _weigh(self, outcomes: Sequence[Outcome]) -> None:
        """Budgets for what is wrong with signatures, and for what is genuine and of no use. Raises RelayFault."""
        self._forgeries += sum(one.reason in (Reason.FORGED_ID, Reason.BAD_SIGNATURE) for one in outcomes)
        self._useless += sum(one.fate is Fate.REFUSED for one in outcomes)
        self._useful += sum(one.fate in (Fate.ACCEPTED, Fate.KNOWN) for one in outcomes)
        if self._forgeries > MAX_FORGERIES:
            raise RelayFault("serves forged events", where=self._url)
        if self._useless > MAX_USELESS + 10 * self._useful:
            raise RelayFault("serves hardly anything of use", where=self._url)
