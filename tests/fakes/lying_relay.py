"""A relay that does what a test tells it to: honest answers, and every lie that a hostile one may tell.

It speaks real WebSocket on a real port. A lie is a function of the connection, the subscription and its filters.
"""

from __future__ import annotations

import http
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import trio
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.trio.server import ServerConnection, serve

CHALLENGE = "who are you?"

EventJson = dict[str, Any]
Filters = list[dict[str, Any]]
Answer = Callable[[ServerConnection, str, Filters], Awaitable[None]]


@asynccontextmanager
async def lying_relay(answer: Answer, *, information: dict[str, Any] | None = None) -> AsyncIterator[str]:
    """The URL of a relay on a free port which answers every REQ with `answer`; `information` is its NIP-11 document."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        await nursery.start(
            partial(
                serve,
                partial(_handle, answer),
                listeners=listeners,
                compression=None,
                close_timeout=0.1,
                process_request=partial(_inform, information),
            )
        )
        try:
            yield f"ws://127.0.0.1:{port}"
        finally:
            nursery.cancel_scope.cancel()


def _inform(information: dict[str, Any] | None, socket: ServerConnection, request: Request) -> Response | None:
    if information is None or request.headers.get("Accept") != "application/nostr+json":
        return None
    return socket.respond(http.HTTPStatus.OK, json.dumps(information))


PRESENTED: WeakKeyDictionary[ServerConnection, EventJson] = WeakKeyDictionary()
"""What each connection presented of itself (NIP-42)."""


async def _handle(answer: Answer, socket: ServerConnection) -> None:
    try:
        async for message in socket:
            kind, *rest = json.loads(message)
            if kind == "REQ":
                await answer(socket, rest[0], rest[1:])
            elif kind == "AUTH":
                PRESENTED[socket] = rest[0]
                await _say(socket, "OK", rest[0]["id"], True, "")
            elif kind == "EVENT":
                known = socket in PRESENTED
                if not known:
                    await _say(socket, "AUTH", CHALLENGE)
                await _say(socket, "OK", rest[0]["id"], known, "" if known else "auth-required: members write")
            elif kind.startswith("NEG-"):
                await _say(socket, "NOTICE", f"unknown command {kind}")
    except (ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError):
        return


def matching(events: Sequence[EventJson], filters: Filters, cap: int = 500) -> list[EventJson]:
    """NIP-01's stored events: newest first, at most `cap` for each filter."""
    found: dict[int, EventJson] = {}
    for one in filters:
        hits = [place for place, event in enumerate(events) if _matches(event, one)]
        hits.sort(key=lambda place: (-events[place]["created_at"], events[place]["id"]))
        found.update({place: events[place] for place in hits[: min(cap, one.get("limit", cap))]})
    return list(found.values())


def _matches(event: EventJson, wanted: dict[str, Any]) -> bool:
    for name, values in wanted.items():
        if name == "kinds" and event["kind"] not in values:
            return False
        if name == "authors" and event["pubkey"] not in values:
            return False
        if name == "until" and event["created_at"] > values:
            return False
        if name == "since" and event["created_at"] < values:
            return False
        if name == "ids" and event["id"] not in values:
            return False
        if name[0] == "#" and not any(tag[0] == name[1:] and tag[1] in values for tag in event["tags"]):
            return False
    return True


async def _say(socket: ServerConnection, *parts: Any) -> None:
    await socket.send(json.dumps(parts))


def honest(events: Sequence[EventJson], cap: int = 500) -> Answer:
    """What an honest relay with these events says."""

    async def answer(socket: ServerConnection, subscription: str, filters: Filters) -> None:
        for event in matching(events, filters, cap):
            await _say(socket, "EVENT", subscription, event)
        await _say(socket, "EOSE", subscription)

    return answer


def changed(events: Sequence[EventJson], **changes: Any) -> Answer:
    """The genuine events with members changed: a forged id, a bad signature, other content."""
    lies = [{**event, **changes} for event in events]

    async def answer(socket: ServerConnection, subscription: str, filters: Filters) -> None:
        for event, lie in zip(events, lies, strict=True):
            if matching([event], filters):
                await _say(socket, "EVENT", subscription, lie)
        await _say(socket, "EOSE", subscription)

    return answer


def unasked(events: Sequence[EventJson]) -> Answer:
    """Everything it has, whatever was asked, a thousand times."""

    async def answer(socket: ServerConnection, subscription: str, filters: Filters) -> None:
        for _ in range(1000):
            for event in events:
                await _say(socket, "EVENT", subscription, {**event, "kind": 1})
        await _say(socket, "EOSE", subscription)

    return answer


async def garbage(socket: ServerConnection, subscription: str, filters: Filters) -> None:
    """Frames that are no messages, for ever."""
    frames = ["", "{}", "[]", "[1,2]", '["EVENT"]', '["EVENT",5,{}]', "[" * 5000, "\ufffe", '["EOSE"', '["OK",1]']
    while True:
        for frame in frames:
            await socket.send(frame)
        await socket.send(b"\x00\xff\xfe")


async def oversized(socket: ServerConnection, subscription: str, filters: Filters) -> None:
    """One message of ten megabytes."""
    await _say(socket, "EVENT", subscription, {"content": "x" * 10_000_000})


async def silent(socket: ServerConnection, subscription: str, filters: Filters) -> None:
    """No answer and no EOSE."""


def falling_silent(events: Sequence[EventJson], after: int) -> Answer:
    """Honest to so many questions, and to none that come later."""
    asked = 0

    async def answer(socket: ServerConnection, subscription: str, filters: Filters) -> None:
        nonlocal asked
        asked += 1
        if asked <= after:
            await honest(events)(socket, subscription, filters)

    return answer


async def closing(socket: ServerConnection, subscription: str, filters: Filters) -> None:
    """Every question is closed."""
    await _say(socket, "CLOSED", subscription, "restricted: \x1b[31mnot for you")


async def demanding(socket: ServerConnection, subscription: str, filters: Filters) -> None:
    """NIP-42: who are you?"""
    await _say(socket, "AUTH", "challenge")
    await _say(socket, "CLOSED", subscription, "auth-required: only members")


async def cut_off(socket: ServerConnection, subscription: str, filters: Filters) -> None:
    """Half a WebSocket frame, then nothing."""
    await socket.stream.send_all(b"\x81\x7e\x10\x00half")
    await trio.aclose_forcefully(socket.stream)


def endless(make: Callable[[int], EventJson]) -> Answer:
    """New events that match the question as far as it can tell, without end and without EOSE."""

    async def answer(socket: ServerConnection, subscription: str, filters: Filters) -> None:
        number = 0
        while True:
            tags = [["t", value] for value in filters[0].get("#t", [])]
            await _say(socket, "EVENT", subscription, {**make(number), "tags": tags})
            number += 1

    return answer


def late(answer: Answer, seconds: float) -> Answer:
    """The same answers, each after so many seconds of trio's clock."""

    async def wait_and_answer(socket: ServerConnection, subscription: str, filters: Filters) -> None:
        await trio.sleep(seconds)
        await answer(socket, subscription, filters)

    return wait_and_answer


def walled(events: Sequence[EventJson]) -> Answer:
    """Honest to those who say who they are (NIP-42), closed to everybody else."""

    async def answer(socket: ServerConnection, subscription: str, filters: Filters) -> None:
        if socket in PRESENTED:
            await honest(events)(socket, subscription, filters)
            return
        await _say(socket, "AUTH", CHALLENGE)
        await _say(socket, "CLOSED", subscription, "auth-required: members read")

    return answer


def dripping(event: EventJson, seconds: float) -> Answer:
    """A matching event every few seconds, for ever, and never an EOSE."""

    async def answer(socket: ServerConnection, subscription: str, filters: Filters) -> None:
        while True:
            await trio.sleep(seconds)
            tags = [["t", value] for value in filters[0].get("#t", [])]
            await _say(socket, "EVENT", subscription, {**event, "tags": tags})

    return answer
