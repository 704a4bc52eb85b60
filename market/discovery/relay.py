"""One relay, kept: connect, converse, have events verified in worker threads, and come back after faults.

Guarantees that whatever this relay does ends at most its own connection: its faults are its state, never an exception
of the caller's nursery. Holds no rule of the protocol (see `session`) and none of acceptance (see `checks`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import trio

from market.discovery import frames
from market.discovery.connection import RelayConnection, RelayFault, open_relay
from market.discovery.events import Filter, SchnorrSigner
from market.discovery.index import Index
from market.discovery.information import fetch_information
from market.discovery.intake import Intake, one_problem
from market.discovery.questions import (
    author_questions,
    document_questions,
    follow_questions,
    live_questions,
    own_questions,
)
from market.discovery.reasons import Fate, Outcome, Reason
from market.discovery.session import (
    Action,
    Arrived,
    Authenticate,
    Caught,
    Counted,
    Drop,
    Gather,
    Lacks,
    Said,
    Send,
    Session,
)
from market.discovery.verifiers import Verifiers
from market.errors import Problem

IDLE_SECONDS: Final = 15.0
"""Without a message while a question is open; counted from the last progress."""

STABLE_SECONDS: Final = 60.0
FIRST_DELAY: Final = 1.0
LONGEST_DELAY: Final = 300.0
ASK_AGAIN_SECONDS: Final = 900.0
"""Asks everything again: a relay may lose live events, and people may follow others by now."""

RECONCILE_SECONDS: Final = 2.0
"""For an answer to NIP-77 from a relay that has not said whether it knows it; then it is paged."""

PAGE_SECONDS: Final = 120.0
"""For one page of at most 500 events. A relay that lets one drip every few seconds makes progress, but no headway."""

CATCH_UP_SECONDS: Final = 3600.0
"""For all questions of one connection. A relay with more goes on at the next one."""

MAX_AUTHORS: Final = 2000
"""Publishers' Nostr keys whose own lists (NIP-09, NIP-65) are asked for: ten questions."""

MAX_HELD: Final = 200_000
"""Events of one question that are reconciled (NIP-77); beyond that it is paged. 20 MiB while it lasts."""

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
    named_by_author: bool = False
    """It is not the operator's relay: a publisher says that it writes there (NIP-65)."""
    lagging: tuple[str, ...] = ()
    """Some of the apps of `lag`."""

    @property
    def score(self) -> int:
        """0 to 100: what share of its events was of use, less for every app of which it shows an older state.

        A relay that has shown nothing yet has 100: silence is neither a lie nor absence (R-DS8).
        """
        bad = sum(self.refused.values())
        good = self.accepted + self.known
        return round(100 * (good + 1) / (good + bad + 1) / (1 + self.lag / 4))

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
            "lagging": list(self.lagging),
            "score": self.score,
            "retry_in": self.delay,
            "named_by_author": self.named_by_author,
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
    verifiers: Verifiers
    accepted_some: Callable[[], None] = lambda: None
    now: Callable[[], float] = time.time
    signer: Callable[[], SchnorrSigner | None] = lambda: None
    """Who answers a relay that asks who reads (NIP-42); asked once for each connection."""
    authors: frozenset[str] = frozenset()
    """For a relay that publishers name: their Nostr keys, of which alone it is asked."""
    public_only: bool = False
    lost: Callable[[str, Sequence[str]], None] = lambda url, ids: None
    """Told, with the relay's URL, of events that it lacks and this node holds (NIP-77)."""
    ask_again: float = ASK_AGAIN_SECONDS
    """Seconds, while live, until everything is asked once more."""
    reconciles: bool | None = None
    """Whether the relay knows NIP-77; None while it has not been tried."""
    phase: Phase = Phase.STOPPED
    text: str = ""
    latency_ms: int | None = None
    fates: Counter[Fate] = field(default_factory=Counter)
    refused: Counter[Reason] = field(default_factory=Counter)
    delay: float = 0.0
    answered: trio.Event = field(default_factory=trio.Event)
    """Set once it was live, or could not be for the first time: nothing is gained by waiting for it any longer."""

    def state(self, lagging: Sequence[str] = ()) -> RelayState:
        return RelayState(
            url=self.url,
            phase=self.phase,
            text=self.text,
            latency_ms=self.latency_ms,
            accepted=self.fates[Fate.ACCEPTED],
            known=self.fates[Fate.KNOWN],
            aside=self.fates[Fate.ASIDE],
            refused=dict(self.refused),
            lag=len(lagging),
            lagging=tuple(lagging[:20]),
            named_by_author=bool(self.authors),
            delay=self.delay if self.phase is Phase.WAITING else 0.0,
        )

    async def run(self) -> None:
        """Stay connected until cancelled. Never raises because of the relay or of the index."""
        try:
            while True:
                began = trio.current_time()
                await self._attempt(live=True)
                self.answered.set()
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
            if self.reconciles is None:
                information = await fetch_information(self.url, public_only=self.public_only)
                self.reconciles = information.offers(77) if information else None
                began = trio.current_time()
            async with open_relay(self.url, public_only=self.public_only) as connection:
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


_NO_BOUND: Final = (float("inf"), float("inf"))


class _Conversation:
    """One connection's tasks: a reader, its intake, and while live one that asks again from time to time."""

    def __init__(self, link: RelayLink, connection: RelayConnection, *, live: bool) -> None:
        self._link = link
        self._connection = connection
        self._live = live
        people = () if link.authors else link.people()
        self._asked = frozenset(people)
        self._signer = link.signer()
        self._session = Session(
            self._questions(),
            live_questions(sorted(self._asked)) if live and not link.authors else (),
            reconcile=link.reconciles is not False,
            known=self._signer is not None,
        )
        self._rounds = 0
        self._intake = Intake(link.url, link.index, link.verifiers, link.count)
        self._complete = True
        self._silence = trio.CancelScope()

    def _questions(self) -> tuple[Filter, ...]:
        if self._link.authors:
            return own_questions(sorted(self._link.authors))
        return document_questions()

    async def run(self) -> bool:
        """Whether every question was answered. Raises Problem."""
        async with one_problem() as nursery:
            nursery.start_soon(self._intake.run)
            if self._live:
                nursery.start_soon(self._ask_again)
            await self._read()
            nursery.cancel_scope.cancel()
        return self._complete

    async def _read(self) -> None:
        if await self._perform(self._session.opened()):
            return
        question, since, began = -1, trio.current_time(), trio.current_time()
        while True:
            now = trio.current_time()
            if self._session.caught_up:
                question, began = -1, now
            elif self._session.question != question:
                question, since = self._session.question, now
            patience = self._patience(since + PAGE_SECONDS - now, began + CATCH_UP_SECONDS - now)
            with trio.move_on_after(patience) as self._silence:
                await self._connection.wait()
            if self._silence.cancelled_caught:
                if not self._session.reconciling:
                    raise RelayFault("did not answer in time", where=self._link.url)
                self._link.reconciles = False
                if await self._perform(self._session.not_reconciled()):
                    return
            while (message := self._connection.arrived()) is not None:
                match self._session.received(message):
                    case [Arrived(event, size)] if self._intake.put_now(event, size):
                        pass  # most messages are this, and cost no more than this
                    case actions:
                        if await self._perform(actions):
                            return

    def _patience(self, page: float, whole: float) -> float:
        """Seconds for the next message."""
        if self._session.caught_up:
            return float("inf")
        idle = RECONCILE_SECONDS if self._session.reconciling and not self._link.reconciles else IDLE_SECONDS
        return max(0.0, min(idle, page, whole))

    async def _perform(self, actions: Sequence[Action]) -> bool:
        """Whether the conversation is over."""
        for action in actions:
            match action:
                case Send():
                    await self._connection.send(action.text)
                case Arrived():
                    await self._intake.put(action.event, action.size)
                case Counted():
                    self._link.count([action.refusal.outcome])
                case Said():
                    self._link.text = f"{action.kind}: {action.text}"
                case Drop():
                    raise RelayFault(action.text, where=self._link.url)
                case Gather():
                    items = await trio.to_thread.run_sync(
                        self._link.index.held, action.filter, MAX_HELD, limiter=self._link.verifiers.threads
                    )
                    if await self._perform(self._session.gathered(items)):
                        return True
                case Authenticate():
                    await self._authenticate(action.challenge)
                case Lacks():
                    self._link.lost(self._link.url, action.ids)
                case Caught():
                    if await self._caught_up(action):
                        return True
        return False

    async def _authenticate(self, challenge: str) -> None:
        if self._signer is not None:
            text = frames.authenticate(self._signer, self._link.url, challenge, self._link.now())
            await self._connection.send(text)

    async def _caught_up(self, caught: Caught) -> bool:
        await self._intake.settled()
        self._complete = caught.gave_up == 0
        if self._session.reconciles:
            self._link.reconciles = True
        if self._rounds < FOLLOW_ROUNDS and not self._link.authors:
            self._rounds += 1
            wanted = self._link.people() if self._rounds == 1 else set(self._link.people()) - self._asked
            self._asked = self._asked.union(wanted)
            more = follow_questions(sorted(wanted))
            if self._rounds == 1:
                more = (*author_questions(self._link.index.authors(MAX_AUTHORS)), *more)
            if more:
                return await self._perform(self._session.ask(more))
        self._link.phase = Phase.LIVE
        self._link.answered.set()
        return not self._live

    async def _ask_again(self) -> None:
        while True:
            await trio.sleep(self._link.ask_again)
            people = () if self._link.authors else sorted(self._link.people())
            await self._perform(self._session.ask((*self._questions(), *follow_questions(people))))
            # The reader waits without an end, for nothing was open when it began to: from here on something is.
            self._silence.deadline = min(self._silence.deadline, trio.current_time() + self._patience(*_NO_BOUND))
