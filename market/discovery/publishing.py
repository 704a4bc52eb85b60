"""Handing events to relays, each on its own, until every one was answered or time is up.

Guarantees that publishing again is harmless, that a relay which fails is tried again within the deadline, and that the
result says of every relay what it took and what it refused and why. Whether that is enough is the caller's decision.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from market.discovery import frames
from market.discovery.connection import BadAddress, RelayConnection, RelayFault, open_relay
from market.discovery.events import SchnorrSigner
from market.discovery.relay import next_delay

OUTSTANDING: Final = 16
"""Events offered before the first is answered: more than a release has, less than relays' rate limits."""

_AGAIN: Final = ("rate-limited:", "error:")
"""NIP-01: prefixes of an OK that say that the event may be taken later."""

_FINE: Final = ("duplicate:", "replaced:")
"""The relay has the event, or a newer one at its address."""


@dataclass(frozen=True, slots=True)
class PublishResult:
    """What one relay did. `failed` maps event ids to the relay's words; `error` is a fault of the relay as a whole."""

    relay: str
    accepted: tuple[str, ...]
    failed: Mapping[str, str]
    error: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """For a door."""
        first = next(iter(self.failed.values()), "")
        return {
            "url": self.relay,
            "accepted": len(self.accepted),
            "failed": dict(self.failed),
            "error": self.error or first,
            "seconds": round(self.seconds, 3),
        }


@dataclass(slots=True)
class _Offering:
    """Which events are still to be taken. No I/O."""

    events: Mapping[str, Mapping[str, Any]]
    accepted: dict[str, None] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    later: dict[str, str] = field(default_factory=dict)
    retried: set[str] = field(default_factory=set)

    def missing(self) -> list[str]:
        return [one for one in self.events if one not in self.accepted and one not in self.failed]

    def may_retry(self, frame: frames.OkFrame) -> bool:
        """Whether the relay only wants to know who writes; asked once for each event."""
        if frame.accepted or not frame.text.startswith("auth-required:") or frame.event_id in self.retried:
            return False
        self.retried.add(frame.event_id)
        return True

    def answered(self, frame: frames.OkFrame) -> None:
        if frame.event_id not in self.events:
            return
        if frame.accepted or frame.text.startswith(_FINE):
            self.accepted[frame.event_id] = None
            self.later.pop(frame.event_id, None)
        elif frame.text.startswith(_AGAIN):
            self.later[frame.event_id] = frame.text
        else:
            self.failed[frame.event_id] = frame.text or "refused without a reason"


async def publish(
    events: Sequence[Mapping[str, Any]],
    relays: Sequence[str],
    *,
    timeout: float,
    enough: int | None = None,
    signer: SchnorrSigner | None = None,
) -> tuple[PublishResult, ...]:
    """Offer the signed events to every relay at once, in their order, for at most `timeout` seconds.

    Once `enough` relays took everything, those that can not be reached are waited for no longer than LEEWAY. `signer`
    answers relays that want to know who writes (NIP-42); without one they are said to refuse. Returns one result for
    each relay, in the order given. Never raises because of a relay.
    """
    by_id = {str(event["id"]): event for event in events}
    urls = tuple(dict.fromkeys(relays))
    patience = _Patience(trio.current_time() + timeout, len(urls) if enough is None else enough)
    results: dict[str, PublishResult] = {}

    async def one(url: str) -> None:
        results[url] = await _publish_to(url, by_id, patience, signer)

    async with trio.open_nursery() as nursery:
        for url in urls:
            nursery.start_soon(one, url)
    return tuple(results[url] for url in urls)


LEEWAY: Final = 3.0
"""Seconds for one or two more tries at a relay that is not needed any more."""


@dataclass(slots=True)
class _Patience:
    """How long relays are waited for, all together."""

    deadline: float
    missing: int
    """Relays that still have to take everything."""
    unconnected: dict[str, trio.CancelScope] = field(default_factory=dict)

    def connecting(self, url: str, scope: trio.CancelScope) -> None:
        self.unconnected[url] = scope
        self._shorten()

    def connected(self, url: str) -> None:
        self.unconnected.pop(url).deadline = self.deadline

    def took_all(self) -> None:
        self.missing -= 1
        self._shorten()

    def _shorten(self) -> None:
        if self.missing <= 0:
            for scope in self.unconnected.values():
                scope.deadline = min(scope.deadline, trio.current_time() + LEEWAY)


async def _publish_to(
    url: str, events: Mapping[str, Mapping[str, Any]], patience: _Patience, signer: SchnorrSigner | None
) -> PublishResult:
    began = trio.current_time()
    offering, error, delay = _Offering(events), "", 0.0
    with trio.CancelScope(deadline=patience.deadline) as scope:
        patience.connecting(url, scope)
        while offering.missing():
            try:
                async with open_relay(url) as connection:
                    error = ""
                    patience.connected(url)
                    await _offer(connection, offering, signer)
            except BadAddress as fault:
                error = fault.what
                break
            except RelayFault as fault:
                error = fault.what
            if offering.missing():
                patience.connecting(url, scope)
                delay = next_delay(delay, stable=False)
                await trio.sleep(delay)
    patience.unconnected.pop(url, None)
    if not offering.missing() and not offering.failed:
        patience.took_all()
    if scope.cancelled_caught and not error:
        error = f"{len(offering.missing())} events were not answered within {trio.current_time() - began:.0f} s"
    return PublishResult(
        relay=url,
        accepted=tuple(offering.accepted),
        failed={**dict.fromkeys(offering.missing(), error), **offering.later, **offering.failed},
        error=error,
        seconds=trio.current_time() - began,
    )


async def _offer(connection: RelayConnection, offering: _Offering, signer: SchnorrSigner | None) -> None:
    """One connection's worth: offer what is missing, and read until each was answered."""
    waiting = deque(offering.missing())
    outstanding: set[str] = set()
    challenge, presented = "", False
    while waiting or outstanding:
        while waiting and len(outstanding) < OUTSTANDING:
            event_id = waiting.popleft()
            outstanding.add(event_id)
            await connection.send(frames.offer(dict(offering.events[event_id])))
        frame = frames.parse_frame(await connection.receive())
        if isinstance(frame, frames.AuthFrame):
            challenge, presented = frame.challenge, False
        if not isinstance(frame, frames.OkFrame) or frame.event_id not in outstanding:
            continue
        outstanding.discard(frame.event_id)
        if signer and challenge and offering.may_retry(frame):
            if not presented:
                presented = True
                await connection.send(frames.authenticate(signer, connection.url, challenge, time.time()))
            waiting.append(frame.event_id)
        else:
            offering.answered(frame)
