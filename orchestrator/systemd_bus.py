"""The user's systemd over D-Bus: it answers in a millisecond what a program takes ten to ask.

Guarantees: `NoBus` says that systemd was not reached or did not answer well, and the caller lets `systemctl` do it: of
all that is asked here, asking again does no harm. What systemd is told to do goes on when nobody waits for it any more.
Interface: org.freedesktop.systemd1(5), on the user's own bus.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import quote

import trio
from jeepney import DBusAddress, DBusErrorResponse, HeaderFields, MatchRule, new_method_call
from jeepney.bus_messages import message_bus
from jeepney.io.common import RouterClosed
from jeepney.io.trio import DBusConnection, open_dbus_connection
from jeepney.low_level import Message
from jeepney.wrappers import unwrap_msg

SOON: Final = 5.0
"""Seconds for a greeting, and for a question: each takes a thousandth of one. Then the program asks, with its own
deadline."""
_MANAGER: Final = DBusAddress(
    "/org/freedesktop/systemd1", bus_name="org.freedesktop.systemd1", interface="org.freedesktop.systemd1.Manager"
)
_REMOVED: Final = MatchRule(type="signal", path=_MANAGER.object_path, interface=_MANAGER.interface, member="JobRemoved")


class NoBus(Exception):
    """Systemd was not reached this way, or refused; the text says why."""


async def units(pattern: str) -> list[tuple[str, str, str, str]]:
    """(name, load, active, sub) of every unit in memory whose name matches. Raises NoBus."""
    with trio.move_on_after(SOON):
        async with _manager() as manager:
            (listed,) = await manager.call("ListUnitsByPatterns", "asas", ([], [pattern]))
            return [(unit[0], unit[2], unit[3], unit[4]) for unit in listed]
    raise NoBus(f"no answer within {SOON:g} s")


async def reload() -> None:
    """Run the generators and read all units again, however long it takes. Raises NoBus."""
    async with _manager() as manager:
        await manager.call("Reload")


async def jobs(method: str, services: Sequence[str]) -> Mapping[str, str]:
    """Call StartUnit or RestartUnit for each, and wait, however long it takes: `done`, or how else its job ended.

    Raises NoBus.
    """
    async with _manager() as manager:
        await manager.call("Subscribe")
        await manager.say(message_bus.AddMatch(_REMOVED))
        begun = {}
        for service in services:
            (job,) = await manager.call(method, "ss", (service, "replace"))
            begun[job] = service
        ended: dict[str, str] = {}
        while len(ended) < len(begun):
            _, job, _, result = await manager.removed()
            if job in begun:
                ended[begun[job]] = str(result)
        return ended


class _Manager:
    """One connection on which one task asks; signals that come between are kept."""

    def __init__(self, connection: DBusConnection) -> None:
        self._connection = connection
        self._signals: list[Message] = []

    async def call(self, method: str, signature: str | None = None, body: tuple[Any, ...] = ()) -> tuple[Any, ...]:
        return await self.say(new_method_call(_MANAGER, method, signature, body))

    async def say(self, message: Message) -> tuple[Any, ...]:
        serial = next(self._connection.outgoing_serial)
        await self._connection.send(message, serial=serial)
        while True:
            got = await self._connection.receive()
            if got.header.fields.get(HeaderFields.reply_serial) == serial:
                answer: tuple[Any, ...] = unwrap_msg(got)
                return answer
            self._signals.append(got)

    async def removed(self) -> tuple[Any, ...]:
        """The next JobRemoved: number, path, unit, result."""
        while True:
            got = self._signals.pop(0) if self._signals else await self._connection.receive()
            if _REMOVED.matches(got):
                body: tuple[Any, ...] = got.body
                return body


@asynccontextmanager
async def _manager() -> AsyncIterator[_Manager]:
    folder = os.environ.get("XDG_RUNTIME_DIR")
    if not folder:
        raise NoBus("XDG_RUNTIME_DIR is not set")
    connection, fault = None, f"no greeting within {SOON:g} s"
    try:
        with trio.move_on_after(SOON):  # one that hangs up in the middle of it is waited for without end
            connection = await open_dbus_connection(f"unix:path={quote(folder)}/bus")
    except* (OSError, ValueError, RouterClosed, trio.BrokenResourceError, trio.EndOfChannel) as faults:
        fault = repr(faults.exceptions[0])
    if connection is None:
        raise NoBus(fault)
    try:
        yield _Manager(connection)
    except (DBusErrorResponse, trio.BrokenResourceError, trio.EndOfChannel) as error:
        raise NoBus(f"{type(error).__name__} {error}") from error
    finally:
        await connection.aclose()
