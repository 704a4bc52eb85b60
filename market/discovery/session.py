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

from msgspec.structs import replace

from market.discovery import frames
from market.discovery.checks import check_frame
from market.discovery.documents import TYPES
from market.discovery.events import (
    DISTRUST_SETS,
    DOCUMENT_KIND,
    FOLLOW_KIND,
    MUTE_KIND,
    SET_KIND,
    TRUST_SETS,
    Event,
    Filter,
)
from market.discovery.reasons import Reason, Refusal

PAGE: Final = 500
"""Events asked for at once: what relays give at most for one REQ."""

SMALLEST_CAP: Final = 20
"""A page with fewer events was cut short by no relay's own limit, so the question is answered."""

MAX_PAGES: Final = 2000
"""A million events for one question; a relay that has more goes on at the next connection."""

MAX_INVALID: Final = 64
"""Messages that are none, by connection. An honest relay sends not one."""

MAX_UNWANTED: Final = 256
"""Events nobody asked for, by connection. A few arrive honestly after a CLOSE; a flood does not."""

MAX_EXTRA_EVENTS: Final = 2 * PAGE
"""Events for one page before its EOSE. A relay may ignore `limit` a little, not without end."""

AUTHORS_PER_QUESTION: Final = 200
"""Keys in one filter: 13 KiB, below the message size that relays take."""

_LIVE: Final = "live"


@dataclass(frozen=True, slots=True)
class Send:
    text: str


@dataclass(frozen=True, slots=True)
class Arrived:
    """An event that answers a question; not verified."""

    event: Event


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


Action = Send | Arrived | Counted | Said | Caught | Drop


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

    def following(self) -> _Page | None:
        """The page after this one, or None at the end."""
        if self.received < SMALLEST_CAP or self.oldest is None or self.number + 1 >= MAX_PAGES:
            return None
        if self.fresh:
            # Begins at the second this one ended with, so that no tie is lost.
            return _Page(replace(self.filter, until=self.oldest), self.number + 1, frozenset(self.at_oldest))
        if self.oldest == 0:
            return None
        # A second with more events than the relay gives at once: what it hides there, other relays have.
        return _Page(replace(self.filter, until=self.oldest - 1), self.number + 1)


class Session:
    """Create one for each connection; call `opened` once, then `received` for each message."""

    def __init__(self, questions: Sequence[Filter], live: Sequence[Filter]) -> None:
        self._waiting = deque(_Page(one) for one in questions)
        self._live = tuple(live)
        self._page: _Page | None = None
        self._serial = 0
        self._invalid = 0
        self._unwanted = 0
        self._gave_up = 0
        self._caught = False

    @property
    def caught_up(self) -> bool:
        return self._caught

    def opened(self) -> list[Action]:
        """Ask for what is new first, so that nothing falls between the stored events and the live ones."""
        actions: list[Action] = []
        if self._live:
            actions.append(Send(frames.request(_LIVE, tuple(replace(one, limit=1) for one in self._live))))
        return [*actions, *self._next()]

    def ask(self, questions: Sequence[Filter]) -> list[Action]:
        """More questions, after those that are open; `Caught` comes again at their end."""
        self._waiting.extend(_Page(one) for one in questions)
        if not self._waiting or self._page is not None:
            return []
        self._caught = False
        return self._next()

    def received(self, message: str | bytes) -> list[Action]:
        """What to do about one message."""
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
                return [Said("notice", frame.text)]
            case frames.AuthFrame():
                return [Said("auth", "wants authentication (NIP-42)")]
            case _:
                return []

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
                return self._matched(frame.subscription, event)
        return self._unasked(event) if isinstance(event, Refusal) else []

    def _unasked(self, refusal: Refusal) -> list[Action]:
        self._unwanted += 1
        counted = Counted(refusal)
        return [counted, Drop("too many events that nobody asked for")] if self._unwanted > MAX_UNWANTED else [counted]

    def _matched(self, subscription: str, event: Event) -> list[Action]:
        page = self._page
        if page is None or not self._is_current(subscription):
            return [Arrived(event)]
        news = page.take(event)
        if page.received > MAX_EXTRA_EVENTS:
            return [Drop("more events than were asked for")]
        return [Arrived(event)] if news else []

    def _page_ended(self) -> list[Action]:
        closing = Send(frames.close(self._name()))
        following = self._page.following() if self._page else None
        if following is None:
            return [closing, *self._next()]
        self._page = following
        return [closing, self._request(following)]

    def _closed(self, frame: frames.ClosedFrame) -> list[Action]:
        said = Said("closed", frame.text)
        if frame.subscription == _LIVE:
            return [said]
        if not self._is_current(frame.subscription):
            return []
        self._gave_up += 1
        return [said, *self._next()]

    def _next(self) -> list[Action]:
        self._page = self._waiting.popleft() if self._waiting else None
        if self._page is None:
            self._caught = True
            return [Caught(self._gave_up)]
        return [self._request(self._page)]

    def _request(self, page: _Page) -> Send:
        self._serial += 1
        return Send(frames.request(self._name(), (replace(page.filter, limit=PAGE),)))

    def _name(self) -> str:
        return f"q{self._serial}"

    def _is_current(self, subscription: str) -> bool:
        return self._page is not None and subscription == self._name()

    def _wanted(self, subscription: str) -> tuple[Filter, ...]:
        if subscription == _LIVE:
            return self._live
        return (self._page.filter,) if self._page and self._is_current(subscription) else ()


def document_questions() -> tuple[Filter, ...]:
    """One question for each type of document, in the order in which they depend on each other."""
    return tuple(Filter(kinds=(DOCUMENT_KIND,), tags={"t": (f"archy1-{type_}",)}) for type_ in TYPES)


def live_questions(people: Sequence[str]) -> tuple[Filter, ...]:
    """What to be told of as it is published: every document, and the follow lists of these hex keys."""
    documents = Filter(kinds=(DOCUMENT_KIND,), tags={"t": tuple(f"archy1-{type_}" for type_ in TYPES)})
    return (documents, *follow_questions(people))


def follow_questions(people: Sequence[str]) -> tuple[Filter, ...]:
    """The lists of people of these hex keys (NIP-02, NIP-51): whom they follow, trust, mute and distrust."""
    authors = [
        tuple(people[start : start + AUTHORS_PER_QUESTION]) for start in range(0, len(people), AUTHORS_PER_QUESTION)
    ]
    sets = {"d": (*TRUST_SETS, *DISTRUST_SETS)}
    return (
        *(Filter(kinds=(FOLLOW_KIND, MUTE_KIND), authors=some) for some in authors),
        *(Filter(kinds=(SET_KIND,), authors=some, tags=sets) for some in authors),
    )
