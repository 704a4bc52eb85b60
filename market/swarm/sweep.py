"""One sweep over many small blobs with one source: the trio shell around its lanes and what they hand over.

Guarantees: lanes ask, other threads store; more lanes than a near source needs start only when one finds it far; on
cancellation everything that verified is stored before the caller goes on. It refuses to know other sources.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

import trio

from market.errors import Problem
from market.model import BlobRef
from market.swarm.bodies import Abort
from market.swarm.lanes import LANES, NEAR_LANES, Lanes
from market.swarm.race import abortable
from market.swarm.report import PROGRESS_SECONDS, SourceReport
from market.swarm.sources import Source
from market.swarm.store import Store
from market.swarm.storing import WRITERS, Storing
from market.swarm.transport import Deadlines, HttpTransport, Route

OnStored = Callable[[Sequence[BlobRef]], None]


class Sweep:
    """Make one, `run` it, look at what came of it."""

    def __init__(
        self,
        store: Store,
        transport: HttpTransport,
        source: Source,
        route: Route,
        deadlines: Deadlines,
        todo: Iterable[BlobRef],
    ) -> None:
        self._more = trio.Event()
        token = trio.lowlevel.current_trio_token()
        self._storing = Storing(store)
        self._lanes = Lanes(
            self._storing, transport, source, route, deadlines, deque(todo), lambda: token.run_sync_soon(self._more.set)
        )

    async def run(self, threads: trio.CapacityLimiter, told: OnStored) -> None:
        """Ask for each of them. `told` is called on trio's thread, at most 10 times a second, with what is here."""
        async with trio.open_nursery() as telling:
            telling.start_soon(self._tell, told)
            async with trio.open_nursery() as keeping:
                for _ in range(WRITERS):
                    keeping.start_soon(self._keep, threads)
                try:
                    async with trio.open_nursery() as nursery:
                        for number in range(min(LANES, len(self._lanes.todo))):
                            nursery.start_soon(self._lane, number, threads)
                finally:
                    self._storing.close()
            telling.cancel_scope.cancel()
        self._tell_new(told)

    @property
    def broken(self) -> Problem | None:
        """Why this machine could not keep what came."""
        return self._storing.broken

    def remaining(self) -> list[BlobRef]:
        """What was not brought."""
        return self._lanes.remaining()

    def report(self) -> SourceReport:
        return self._lanes.report()

    async def _lane(self, number: int, threads: trio.CapacityLimiter) -> None:
        if number >= NEAR_LANES:
            await self._more.wait()
        if self._lanes.todo:
            abort = Abort()
            await abortable(lambda: self._lanes.run_one(abort), abort, threads)
        self._more.set()  # the others need not wait any longer: there is nothing left, or this one has failed

    async def _keep(self, threads: trio.CapacityLimiter) -> None:
        with trio.CancelScope(shield=True):  # it ends when everything that was handed over is stored
            await trio.to_thread.run_sync(self._storing.store_all, limiter=threads)

    async def _tell(self, told: OnStored) -> None:
        while True:
            self._tell_new(told)
            await trio.sleep(PROGRESS_SECONDS)

    def _tell_new(self, told: OnStored) -> None:
        if new := self._storing.take_stored():
            told(new)
