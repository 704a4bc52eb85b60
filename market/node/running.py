"""Operations under way: each has an id, a bounded tail of progress, and an outcome that any door can wait for.

Guarantees: whoever follows an operation sees its last progress and its outcome, however late or often they ask; a
follower that leaves cancels nothing. It refuses to know what an operation does.
"""

from __future__ import annotations

import logging
import secrets
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from market.errors import Problem, UsageProblem

MAX_PROGRESS: Final = 256
"""Progress kept per operation: a late follower needs the last state, not the whole film."""

MAX_FINISHED: Final = 64
"""Ended operations remembered, so that a client that reconnects still learns how it ended."""

logger = logging.getLogger("archy.node")

Report = Callable[[Mapping[str, Any]], None]
"""Takes one progress value: `{phase, text, done?, total?}`; done and total are bytes."""


@dataclass(frozen=True, slots=True)
class Followed:
    """What happened since `after`: progress, where to go on, and the outcome once there is one."""

    events: tuple[Mapping[str, Any], ...]
    next: int
    done: bool
    result: Mapping[str, Any] | None
    problem: Problem | None


@dataclass(slots=True)
class _Operation:
    id: str
    name: str
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    events: deque[Mapping[str, Any]] = field(default_factory=lambda: deque(maxlen=MAX_PROGRESS))
    seen: int = 0
    changed: trio.Event = field(default_factory=trio.Event)
    done: bool = False
    result: Mapping[str, Any] | None = None
    problem: Problem | None = None

    def report(self, event: Mapping[str, Any]) -> None:
        self.events.append(event)
        self.seen += 1
        self._wake()

    def end(self, result: Mapping[str, Any] | None, problem: Problem | None) -> None:
        self.result, self.problem, self.done = result, problem, True
        self._wake()

    def _wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class Operations:
    """The operations of one node, run in the nursery that the node hands in."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._known: OrderedDict[str, _Operation] = OrderedDict()

    def start(self, name: str, work: Callable[[Report], Awaitable[Mapping[str, Any]]]) -> str:
        """Begin `work` and return the operation's id at once (R-ST5)."""
        operation = _Operation(id=f"op-{secrets.token_hex(4)}", name=name)
        self._known[operation.id] = operation
        self._forget_old()
        self._nursery.start_soon(self._run, operation, work, name=f"{name} {operation.id}")
        return operation.id

    async def wait_progress(self, id_: str, after: int, timeout: float) -> Followed:
        """Return as soon as there is progress past `after` or an outcome, or when `timeout` seconds have passed."""
        operation = self._get(id_)
        with trio.move_on_after(timeout):
            while operation.seen <= after and not operation.done:
                await operation.changed.wait()
        fresh = min(max(0, operation.seen - after), len(operation.events))
        events = tuple(operation.events)[len(operation.events) - fresh :]
        return Followed(events, operation.seen, operation.done, operation.result, operation.problem)

    def cancel(self, id_: str) -> None:
        """Ask an operation to stop; its outcome then says that it was cancelled."""
        self._get(id_).scope.cancel()

    def listed(self) -> tuple[tuple[str, str, bool], ...]:
        """(id, name, ended) of every operation still remembered, oldest first."""
        return tuple((o.id, o.name, o.done) for o in self._known.values())

    async def _run(self, operation: _Operation, work: Callable[[Report], Awaitable[Mapping[str, Any]]]) -> None:
        result: Mapping[str, Any] | None = None
        problem: Problem | None = None
        try:
            with operation.scope:
                try:
                    result = await work(operation.report)
                except Problem as raised:
                    problem = raised
                except Exception as fault:
                    logger.exception("operation %s (%s) failed unexpectedly", operation.id, operation.name)
                    problem = Problem(
                        f"internal fault: {type(fault).__name__}: {fault}",
                        where=operation.name,
                        remedy="the node's log has the details; please report it",
                    )
            if operation.scope.cancelled_caught:
                problem = Problem("the operation was cancelled", where=operation.id)
        finally:
            if result is None and problem is None:
                problem = Problem("the node stopped before the operation ended", where=operation.id)
            operation.end(result, problem)

    def _get(self, id_: str) -> _Operation:
        try:
            return self._known[id_]
        except KeyError:
            raise UsageProblem(f"no operation {id_[:40]!r}", remedy="`archy op ls` lists them") from None

    def _forget_old(self) -> None:
        ended = [o.id for o in self._known.values() if o.done]
        for id_ in ended[: max(0, len(ended) - MAX_FINISHED)]:
            del self._known[id_]
