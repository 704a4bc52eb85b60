"""The operator's circle, kept current: recomputed off the event loop, debounced, and always read as one whole snapshot.

Guarantees that whoever asks gets one consistent `Circle`, that the operator's own change is in the next answer, and
that a flood of events costs one recompute per pause. Refuses to know what a circle is for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import trio

from market.errors import Problem
from market.trust import Circle

logger = logging.getLogger("archy.node")

PAUSE_SECONDS: Final = 1.0
"""After a change: catching up with a relay brings hundreds in a second, and they are one recompute."""

LONGEST_PAUSE: Final = 10.0
"""While changes go on: what relays say is in the answer this much later at most, plus the time to recompute."""

MAX_AGE: Final = 300.0
"""Seconds: votes expire by the clock alone, and expiries are days away."""


class CircleKeeper:
    """`build` makes a circle of what is known now; it is called in a worker thread, one call at a time.

    `now` gives seconds of any steady clock.
    """

    def __init__(self, build: Callable[[], Circle], now: Callable[[], float]) -> None:
        self._build = build
        self._now = now
        self._circle: Circle | None = None
        self._built_at = 0.0
        self._changes = 1
        self._built_of = 0
        self._urgent = 1
        self._turn = trio.Lock()
        self._wake = trio.Event()
        self._kept = False

    def changed(self) -> None:
        """Something that strangers said was accepted: to be looked at after a pause."""
        self._changes += 1
        self._wake.set()

    def changed_here(self) -> None:
        """The operator changed something: the next answer has to know."""
        self._changes += 1
        self._urgent = self._changes
        self._wake.set()

    async def fresh(self) -> Circle:
        """The newest snapshot; waits for a recompute if there is none, it is old, or the operator changed something.

        While nobody keeps it current (`run`), every change is waited for. Raises Problem (a damaged file).
        """
        aged = not 0 <= self._now() - self._built_at <= MAX_AGE
        behind = self._built_of < self._changes if not self._kept else self._built_of < self._urgent
        if self._circle is None or aged or behind:
            await self._rebuild(self._changes, instead_of=self._circle)
        assert self._circle is not None
        return self._circle

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Recompute after changes until cancelled; a problem is logged, and the last snapshot goes on being read."""
        self._kept = True
        task_status.started()
        try:
            while True:
                await self._wake.wait()
                await self._wait_pause()
                try:
                    await self._rebuild(self._changes, instead_of=self._circle)
                except Problem as problem:
                    logger.warning("the circle could not be recomputed: %s", problem)
        finally:
            self._kept = False

    async def _wait_pause(self) -> None:
        """Until nothing changed for a while, or changes have gone on for too long."""
        with trio.move_on_after(LONGEST_PAUSE):
            while self._wake.is_set():
                self._wake = trio.Event()
                await trio.sleep(PAUSE_SECONDS)

    async def _rebuild(self, wanted: int, *, instead_of: Circle | None) -> None:
        async with self._turn:
            if self._built_of >= wanted and self._circle is not instead_of:
                return  # somebody else's recompute began after the change
            changes, began = self._changes, self._now()
            circle = await trio.to_thread.run_sync(self._build)
            # One assignment: readers have the old snapshot or the new one, never a part of each.
            self._circle, self._built_of, self._built_at = circle, changes, began
