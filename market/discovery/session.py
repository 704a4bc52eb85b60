"""One relay's conversation (NIP-01) as a state machine without I/O: messages and the time in, actions out.

Guarantees that every question is paged to its end or given up with a reason, that an event is passed on only if it
answers the question it came for, and that a relay which breaks its budget is dropped. Refuses to know sockets,
signatures and the clock; what it passes on is still unverified.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
from msgspec.structs import replace

from market.discovery import frames
from market.discovery.checks import check_frame
from market.discovery.events import (
    Event,
    Filter,
)
from market.discovery.negentropy import BadMessage, Reconciler
from market.discovery.reasons import Reason, Refusal

PAGE: Final = 500
"""Events asked for at once: what relays give at most for one REQ."""

SMALLEST_CAP: Final = 20
"""A page with fewer events was cut short by no relay's own limit, so the question is answered."""

MAX_PAGES: Final = 20_000
"""Ten million events for one question; the hour that a relay has for all of them ends before."""

SECOND: Final = 5000
"""Events asked for when one second holds more than a page and the relay does not reconcile (NIP-77). What a relay hides
beyond that, other relays have."""

MAX_WASTED: Final = 64 * 1024 * 1024
"""Bytes of messages, by connection, that were of no use. A question's answer is none of them."""

IDS_PER_QUESTION: Final = 250
"""Ids in one filter: 17 KiB."""

MAX_INVALID: Final = 64
"""Messages that are none, by connection. An honest relay sends not one."""

MAX_UNWANTED: Final = 256
"""Events nobody asked for, by connection. A few arrive honestly after a CLOSE; a flood does not."""

MAX_EXTRA_EVENTS: Final = 2 * PAGE
"""Events for one page before its EOSE: twice what was asked for. A relay may ignore `limit` a little, not for ever."""

_LIVE: Final = "live"


@dataclass(frozen=True, slots=True)
class Send:
    text: str


class Arrived(msgspec.Struct, frozen=True, gc=False):
    """An event that answers a question; not verified."""

    event: Event
    size: int
    """Bytes of its message."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Something was refused."""

    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Said:
    """The relay has said something a person should see: a notice, a refusal, that it wants authentication."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Caught:
    """Every question was answered to its end; from here on events arrive as they are published.

    EOSE means that this relay is done for now, and nothing more. `gave_up` counts questions the relay closed."""

    gave_up: int


@dataclass(frozen=True, slots=True)
class Drop:
    """The budget is broken: close this connection."""

    text: str


@dataclass(frozen=True, slots=True)
class Gather:
    """NIP-77: look up what is held of these events, and call `gathered`."""

    filter: Filter


@dataclass(frozen=True, slots=True)
class Authenticate:
    """NIP-42: answer this challenge; the questions that were closed for it are asked again."""

    challenge: str


@dataclass(frozen=True, slots=True)
class Lacks:
    """NIP-77: ids of events that the relay does not have and this node does."""

    ids: tuple[str, ...]


_OF_USE: Final = (Arrived, Send, Caught, Gather, Lacks)
"""A message that led to one of these was no waste."""

Action = Send | Arrived | Counted | Said | Caught | Drop | Gather | Authenticate | Lacks


@dataclass(slots=True)
class _Page:
    """One REQ of a question. `ties` are ids that the page before ended with: they come again, and are not news."""

    filter: Filter
    number: int = 0
    ties: frozenset[str] = frozenset()
    received: int = 0
    fresh: int = 0
    oldest: int | None = None
    at_oldest: set[str] = field(default_factory=set)
    second: bool = False
    """The page is one second, asked for whole because it holds more than a page."""
    again: bool = False
    """It was closed for want of authentication, and is asked a second time."""

    def take(self, event: Event) -> bool:
        """Whether it is news."""
        self.received += 1
        if self.oldest is None or event.created_at < self.oldest:
            self.oldest = event.created_at
            self.at_oldest.clear()
        if event.created_at == self.oldest:
            self.at_oldest.add(event.id)
        if event.id in self.ties:
            return False
        self.fresh += 1
        return True

    @property
    def limit(self) -> int:
        return SECOND if self.second else PAGE

    def following(self) -> _Page | None:
        """The page after this one, or None at the end."""
        if self.filter.ids or self.number + 1 >= MAX_PAGES:
            return None
        if self.second and self.filter.until is not None:
            return self._before(self.filter.until)
        if self.oldest is None or self.received < SMALLEST_CAP:
            return None
        if self.fresh:
            # Begins at the second this one ended with, so that no tie is lost.
            return _Page(replace(self.filter, until=self.oldest), self.number + 1, frozenset(self.at_oldest))
        # Nothing but ties: this one second holds more events than the relay gives at once.
        whole = replace(self.filter, since=self.oldest, until=self.oldest)
        return _Page(whole, self.number + 1, frozenset(self.at_oldest), second=True)

    def _before(self, second: int) -> _Page | None:
        return _Page(replace(self.filter, since=None, until=second - 1), self.number + 1) if second else None


class Session:
    """Create one for each connection; call `opened` once, then `received` for each message."""

    def __init__(
        self, questions: Sequence[Filter], live: Sequence[Filter], *, reconcile: bool = False, known: bool = False
    ) -> None:
        """`reconcile`: try NIP-77 before paging; `known`: this side can say who it is (NIP-42)."""
        self._waiting = deque(_Page(one) for one in questions)
        self._reconcile = reconcile
        self._known = known
        self._challenge = ""
        self._side: Reconciler | None = None
        self._wasted = 0
        self._answered = False
        self._live_again = False
        self._live = tuple(live)
        self._page: _Page | None = None
        self._serial = 0
        self._name = ""
        self._invalid = 0
        self._unwanted = 0
        self._gave_up = 0
        self._caught = False

    @property
    def caught_up(self) -> bool:
        return self._caught

    @property
    def reconciling(self) -> bool:
        """An answer to a NIP-77 message is awaited; a relay that does not know it may say nothing at all."""
        return self._side is not None

    @property
    def reconciles(self) -> bool:
        """The relay has answered in NIP-77."""
        return self._answered

    @property
    def question(self) -> int:
        """Which question is open; it rises with every page."""
        return self._serial

    def opened(self) -> list[Action]:
        """Ask for what is new first, so that nothing falls between the stored events and the live ones."""
        actions: list[Action] = []
        if self._live:
            actions.append(self._request_live())
        return [*actions, *self._next()]

    def ask(self, questions: Sequence[Filter]) -> list[Action]:
        """More questions, after those that are open; `Caught` comes again at their end."""
        self._waiting.extend(_Page(one) for one in questions)
        if not self._waiting or self._page is not None:
            return []
        self._caught = False
        return self._next()

    def gathered(self, items: Sequence[tuple[int, bytes]] | None) -> list[Action]:
        """The events held for the open question as (time, id); None when they are too many to reconcile."""
        if self._page is None:
            return []
        if items is None:
            return [self._request(self._page)]
        self._side = Reconciler.of(items)
        self._count_question()
        return [Send(frames.reconcile(self._name, self._page.filter, self._side.initiate()))]

    def not_reconciled(self) -> list[Action]:
        """The relay does not reconcile: page instead, from now on."""
        self._reconcile, self._side = False, None
        return [] if self._page is None else [self._request(self._page)]

    def received(self, message: str | bytes) -> list[Action]:
        """What to do about one message."""
        actions = self._quickly(message)
        if actions:
            return actions
        if actions is None:
            actions = self._received(message)
        for action in actions:
            if isinstance(action, _OF_USE):
                return actions
        self._wasted += len(message)
        return [*actions, Drop("too much that is of no use")] if self._wasted > MAX_WASTED else actions

    def _quickly(self, message: str | bytes) -> list[Action] | None:
        """For a well-formed event that was asked for; None for everything else, which is looked at with more care."""
        found = frames.quick_event(message)
        if found is None:
            return None
        subscription, event = found
        page = self._page
        if page is not None and subscription == self._name:
            return self._of_page(page, event, len(message)) if page.filter.matches(event) else None
        if subscription == _LIVE and any(one.matches(event) for one in self._live):
            return [Arrived(event, len(message))]
        return None

    def _received(self, message: str | bytes) -> list[Action]:
        frame = frames.parse_frame(message)
        match frame:
            case None:
                return self._bad()
            case frames.EventFrame():
                return self._event(frame)
            case frames.EndOfStored():
                return self._page_ended() if self._is_current(frame.subscription) else []
            case frames.ClosedFrame():
                return self._closed(frame)
            case frames.NoticeFrame():
                if self._side and not self._answered:
                    return self.not_reconciled()  # it does not know NIP-77, which is no news for a person
                said = Said("notice", frame.text)
                return [said, *self.not_reconciled()] if self._side else [said]
            case frames.AuthFrame():
                self._challenge = frame.challenge
                return [Said("auth", "wants authentication (NIP-42)")]
            case frames.ReconcileFrame():
                return self._reconciled(frame) if self._is_current(frame.subscription) else []
            case _:
                return []

    def _reconciled(self, frame: frames.ReconcileFrame) -> list[Action]:
        side = self._side
        if side is None:
            return []
        try:
            answer = None if frame.error else side.reconcile(frame.message)
        except BadMessage as error:
            return [Said("sync", str(error)), *self.not_reconciled()]
        if frame.error:
            return [Said("sync", frame.error), *self.not_reconciled()]
        self._answered = True
        if answer is not None:
            return [Send(frames.reconcile_on(self._name, answer))]
        self._side = None
        need = [id_.hex() for id_ in side.need]
        chunks = [tuple(need[at : at + IDS_PER_QUESTION]) for at in range(0, len(need), IDS_PER_QUESTION)]
        self._waiting.extendleft(_Page(Filter(ids=ids)) for ids in reversed(chunks))
        lacks = [Lacks(tuple(id_.hex() for id_ in side.have))] if side.have else []
        return [Send(frames.reconcile_end(self._name)), *lacks, *self._next()]

    def _bad(self) -> list[Action]:
        self._invalid += 1
        counted = Counted(Refusal(Reason.MALFORMED, "not a message"))
        return [counted, Drop("too many malformed messages")] if self._invalid > MAX_INVALID else [counted]

    def _event(self, frame: frames.EventFrame) -> list[Action]:
        wanted = self._wanted(frame.subscription)
        if not wanted:
            return self._unasked(Refusal(Reason.UNMATCHED, f"subscription {frame.subscription[:20]!r}"))
        event: Event | Refusal = Refusal(Reason.UNMATCHED)
        for one in wanted:
            event = check_frame(frame.raw, one)
            if isinstance(event, Event):
                return self._matched(frame.subscription, event, len(frame.raw))
        return self._unasked(event) if isinstance(event, Refusal) else []

    def _unasked(self, refusal: Refusal) -> list[Action]:
        self._unwanted += 1
        counted = Counted(refusal)
        return [counted, Drop("too many events that nobody asked for")] if self._unwanted > MAX_UNWANTED else [counted]

    def _matched(self, subscription: str, event: Event, size: int) -> list[Action]:
        page = self._page
        if page is None or not self._is_current(subscription):
            return [Arrived(event, size)]
        return self._of_page(page, event, size)

    def _of_page(self, page: _Page, event: Event, size: int) -> list[Action]:
        news = page.take(event)
        if page.received > 2 * page.limit:
            return [Drop("more events than were asked for")]
        return [Arrived(event, size)] if news else []

    def _page_ended(self) -> list[Action]:
        closing = Send(frames.close(self._name))
        following = self._page.following() if self._page else None
        if following is None:
            return [closing, *self._next()]
        self._page = following
        return [closing, self._request(following)]

    def _closed(self, frame: frames.ClosedFrame) -> list[Action]:
        said = Said("closed", frame.text)
        wall = frame.text.startswith("auth-required:") and self._known and bool(self._challenge)
        if frame.subscription == _LIVE:
            if wall and not self._live_again:
                self._live_again = True
                return [said, Authenticate(self._challenge), self._request_live()]
            return [said]
        if not self._is_current(frame.subscription) or self._page is None:
            return []
        if wall and not self._page.again:
            self._page.again = True
            return [said, Authenticate(self._challenge), self._request(self._page)]
        if self._side is not None:
            return [said, *self.not_reconciled()]
        self._gave_up += 1
        return [said, *self._next()]

    def _next(self) -> list[Action]:
        self._page = self._waiting.popleft() if self._waiting else None
        if self._page is None:
            self._caught = True
            return [Caught(self._gave_up)]
        if self._reconcile and not self._page.filter.ids:
            return [Gather(self._page.filter)]
        return [self._request(self._page)]

    def _request_live(self) -> Send:
        return Send(frames.request(_LIVE, tuple(replace(one, limit=1) for one in self._live)))

    def _request(self, page: _Page) -> Send:
        self._count_question()
        return Send(frames.request(self._name, (replace(page.filter, limit=page.limit),)))

    def _count_question(self) -> None:
        self._serial += 1
        self._name = f"q{self._serial}"

    def _is_current(self, subscription: str) -> bool:
        return self._page is not None and subscription == self._name

    def _wanted(self, subscription: str) -> tuple[Filter, ...]:
        if subscription == _LIVE:
            return self._live
        return (self._page.filter,) if self._page and self._is_current(subscription) else ()
