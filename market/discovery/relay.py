"""One relay, kept: connect, converse, have events verified in worker threads, and come back after faults.

Guarantees that whatever this relay does ends at most its own connection: its faults are its state, never an exception
of the caller's nursery. Holds no rule of the protocol (see `session`) and none of acceptance (see `checks`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import trio

from market.discovery.connection import RelayConnection, RelayFault, open_relay
from market.discovery.events import Event
from market.discovery.index import Index
from market.discovery.ingest import Candidate
from market.discovery.reasons import Fate, Outcome, Reason
from market.discovery.session import (
    Action,
    Arrived,
    Caught,
    Counted,
    Drop,
    Said,
    Send,
    Session,
    document_questions,
    follow_questions,
    live_questions,
)
from market.errors import Problem

BATCH: Final = 256
"""Events verified in one visit to a thread: enough that the hop costs nothing, few enough to cancel within 50 ms."""

QUEUED_EVENTS: Final = 2 * BATCH
"""Events read ahead of the verifier: 32 MiB at worst for one relay; then its connection is not read any further."""

MAX_FORGERIES: Final = 1000
"""Forged ids and signatures by connection. An honest relay verifies and has none; each costs us 50 us."""

IDLE_SECONDS: Final = 15.0
"""Without a message while a question is open; counted from the last progress."""

STABLE_SECONDS: Final = 60.0
FIRST_DELAY: Final = 1.0
LONGEST_DELAY: Final = 300.0
ASK_AGAIN_SECONDS: Final = 900.0
"""Asks everything again: a relay may lose live events, and people may follow others by now."""

FOLLOW_ROUNDS: Final = 2
"""Whom the anchors follow, and whom those follow; trust looks no further than its own walk needs."""


class Phase(StrEnum):
    """What a link is doing."""

    WAITING = "waiting"
    CONNECTING = "connecting"
    CATCHING_UP = "catching-up"
    LIVE = "live"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class RelayState:
    """A snapshot for people. Counts are since the link was made; `delay` is seconds until the next try."""

    url: str
    phase: Phase
    text: str
    latency_ms: int | None
    accepted: int
    known: int
    aside: int
    refused: Mapping[Reason, int]
    lag: int
    """Apps of which this relay has shown an older head than the newest one known."""
    delay: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """For a door."""
        return {
            "url": self.url,
            "state": self.phase.value,
            "text": self.text,
            "latency_ms": self.latency_ms,
            "accepted": self.accepted,
            "known": self.known,
            "aside": self.aside,
            "refused": {reason.value: count for reason, count in sorted(self.refused.items())},
            "lag": self.lag,
            "retry_in": self.delay,
        }


def next_delay(before: float, *, stable: bool) -> float:
    """Seconds to wait before connecting again: doubling to five minutes; only a stable session starts anew."""
    return FIRST_DELAY if stable or before == 0 else min(before * 2, LONGEST_DELAY)


@dataclass(slots=True)
class RelayLink:
    """The conversation with one relay. `people` gives the hex keys whose follow lists are wanted."""

    url: str
    index: Index
    people: Callable[[], Sequence[str]]
    verifiers: trio.CapacityLimiter
    accepted_some: Callable[[], None] = lambda: None
    phase: Phase = Phase.STOPPED
    text: str = ""
    latency_ms: int | None = None
    fates: Counter[Fate] = field(default_factory=Counter)
    refused: Counter[Reason] = field(default_factory=Counter)
    delay: float = 0.0

    def state(self, lag: int = 0) -> RelayState:
        return RelayState(
            url=self.url,
            phase=self.phase,
            text=self.text,
            latency_ms=self.latency_ms,
            accepted=self.fates[Fate.ACCEPTED],
            known=self.fates[Fate.KNOWN],
            aside=self.fates[Fate.ASIDE],
            refused=dict(self.refused),
            lag=lag,
            delay=self.delay if self.phase is Phase.WAITING else 0.0,
        )

    async def run(self) -> None:
        """Stay connected until cancelled. Never raises because of the relay or of the index."""
        try:
            while True:
                began = trio.current_time()
                await self._attempt(live=True)
                stable = self.phase is Phase.LIVE and trio.current_time() - began >= STABLE_SECONDS
                self.delay = next_delay(self.delay, stable=stable)
                self.phase = Phase.WAITING
                await trio.sleep(self.delay)
        finally:
            self.phase = Phase.STOPPED

    async def sync(self) -> bool:
        """Ask everything once; whether every question was answered. The caller sets the deadline."""
        try:
            return await self._attempt(live=False)
        finally:
            self.phase = Phase.STOPPED

    async def _attempt(self, *, live: bool) -> bool:
        self.phase, self.text = Phase.CONNECTING, ""
        began = trio.current_time()
        try:
            async with open_relay(self.url) as connection:
                self.latency_ms = round((trio.current_time() - began) * 1000)
                self.phase = Phase.CATCHING_UP
                return await _Conversation(self, connection, live=live).run()
        except Problem as problem:  # the relay's fault, or a full disk: both are this link's state
            self.text = problem.what
            return False

    def count(self, outcomes: Sequence[Outcome]) -> None:
        """Count what became of a batch."""
        for outcome in outcomes:
            self.fates[outcome.fate] += 1
            if outcome.fate is Fate.REFUSED and outcome.reason is not None:
                self.refused[outcome.reason] += 1
        if any(outcome.fate is Fate.ACCEPTED for outcome in outcomes):
            self.accepted_some()


class _Conversation:
    """One connection's tasks: a reader, a verifier, and while live one that asks again from time to time."""

    def __init__(self, link: RelayLink, connection: RelayConnection, *, live: bool) -> None:
        self._link = link
        self._connection = connection
        self._live = live
        self._asked = frozenset(link.people())
        self._session = Session(document_questions(), live_questions(sorted(self._asked)) if live else ())
        self._rounds = 0
        self._forgeries = 0
        self._queue, self._queued = trio.open_memory_channel[Event](QUEUED_EVENTS)
        self._unverified = 0
        self._verified = trio.Condition()
        self._complete = True
        self._fault: Problem | None = None

    async def run(self) -> bool:
        """Whether every question was answered. Raises Problem."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._guarded, self._verify, nursery.cancel_scope)
            nursery.start_soon(self._guarded, self._read, nursery.cancel_scope)
            if self._live:
                nursery.start_soon(self._guarded, self._ask_again, nursery.cancel_scope)
        if self._fault is not None:
            raise self._fault
        return self._complete

    async def _guarded(self, task: Callable[[], Any], scope: trio.CancelScope) -> None:
        """The first task that ends, ends all; its problem is raised once, outside of the nursery."""
        try:
            await task()
        except Problem as problem:
            self._fault = self._fault or problem
        scope.cancel()

    async def _read(self) -> None:
        if await self._perform(self._session.opened()):
            return
        while True:
            with trio.move_on_after(float("inf") if self._session.caught_up else IDLE_SECONDS) as idle:
                message = await self._connection.receive()
            if idle.cancelled_caught:
                raise RelayFault(f"said nothing for {IDLE_SECONDS:.0f} s with a question open", where=self._link.url)
            if await self._perform(self._session.received(message)):
                return

    async def _perform(self, actions: Sequence[Action]) -> bool:
        """Whether the conversation is over."""
        for action in actions:
            match action:
                case Send():
                    await self._connection.send(action.text)
                case Arrived():
                    self._unverified += 1
                    await self._queue.send(action.event)
                case Counted():
                    self._link.count([action.refusal.outcome])
                case Said():
                    self._link.text = f"{action.kind}: {action.text}"
                case Drop():
                    raise RelayFault(action.text, where=self._link.url)
                case Caught():
                    if await self._caught_up(action):
                        return True
        return False

    async def _caught_up(self, caught: Caught) -> bool:
        await self._wait_verified()
        self._complete = caught.gave_up == 0
        if self._rounds < FOLLOW_ROUNDS:
            self._rounds += 1
            wanted = self._link.people() if self._rounds == 1 else set(self._link.people()) - self._asked
            self._asked = self._asked.union(wanted)
            if wanted:
                return await self._perform(self._session.ask(follow_questions(sorted(wanted))))
        self._link.phase = Phase.LIVE
        return not self._live

    async def _verify(self) -> None:
        async for event in self._queued:
            batch = [Candidate(event, self._link.url)]
            while len(batch) < BATCH:
                try:
                    batch.append(Candidate(self._queued.receive_nowait(), self._link.url))
                except trio.WouldBlock:
                    break
            outcomes = await trio.to_thread.run_sync(self._link.index.ingest, batch, limiter=self._link.verifiers)
            self._link.count(outcomes)
            self._forgeries += sum(one.reason in (Reason.FORGED_ID, Reason.BAD_SIGNATURE) for one in outcomes)
            if self._forgeries > MAX_FORGERIES:
                raise RelayFault("serves forged events", where=self._link.url)
            self._unverified -= len(batch)
            async with self._verified:
                self._verified.notify_all()

    async def _wait_verified(self) -> None:
        async with self._verified:
            while self._unverified:
                await self._verified.wait()

    async def _ask_again(self) -> None:
        while True:
            await trio.sleep(ASK_AGAIN_SECONDS)
            people = sorted(self._link.people())
            for action in self._session.ask((*document_questions(), *follow_questions(people))):
                if isinstance(action, Send):
                    await self._connection.send(action.text)
