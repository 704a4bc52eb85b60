"""Who verifies: worker threads for a few events, processes of our own for a flood of them.

Python's part of verifying holds the interpreter's lock, so that threads can not use a second core for it; a process
can. Guarantees that a batch is always answered: a process that dies, or answers anything but what was asked, is ended
and its batch verified here. Processes are started only for full batches, and ended when they have been idle.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar

import msgspec
import trio

from market.discovery.examination import Answer, Candidate, examine, read_answers, write_questions
from market.discovery.index import Index

T = TypeVar("T")

BATCH: Final = 512
"""Events verified in one visit to a thread or process: enough that the way costs nothing, few enough to be over within
100 ms."""

FLOOD: Final = 64
"""Events that arrive at once, some four milliseconds of CPU, when the way to a process is worth while."""

THREADS: Final = 2
"""For all relays together."""

PROCESSES: Final = 2
"""What two verify is more than one core can read and store; on two cores the second of them still gains a third. Some
30 MB each, while there is a flood."""

IDLE_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 30.0
"""For a batch that takes 50 ms: a process that is slower is stuck."""
MAX_ANSWER: Final = 4 * 1024 * 1024
"""Bytes: a verdict has some 100, a refusal's text 400."""


class _Unusable(Exception):
    """The process is gone, stuck, or answers nonsense. Never leaves this module."""


@dataclass(slots=True, eq=False)
class _Worker:
    """One verifier process; used by one batch at a time."""

    process: trio.Process
    idle_since: float = 0.0

    async def ask(self, questions: bytes) -> bytes:
        """Raises _Unusable."""
        assert self.process.stdin is not None
        try:
            with trio.fail_after(ANSWER_SECONDS):
                await self.process.stdin.send_all(len(questions).to_bytes(4, "big") + questions)
                size = int.from_bytes(await self._read(4), "big")
                if size > MAX_ANSWER:
                    raise _Unusable
                return await self._read(size)
        except (OSError, trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise _Unusable from error

    async def _read(self, size: int) -> bytes:
        assert self.process.stdout is not None
        data = bytearray()
        while len(data) < size:
            some = await self.process.stdout.receive_some(size - len(data))
            if not some:
                raise _Unusable
            data += some
        return bytes(data)

    async def end(self) -> None:
        """It holds nothing that is worth a goodbye."""
        with trio.CancelScope(shield=True):
            self.process.kill()
            await self.process.wait()
            for stream in (self.process.stdin, self.process.stdout):
                if stream is not None:
                    await stream.aclose()


@dataclass(slots=True)
class Verifiers:
    """At most `processes` of them, and only inside of `working`; with none everything is verified in threads."""

    processes: int = PROCESSES
    threads: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(THREADS))
    _idle: list[_Worker] = field(default_factory=list)
    _count: int = 0
    """Processes that were started and not ended."""
    _ready: int = 0
    """Those of them that have answered once, idle or not."""
    _waiting: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)
    _nursery: trio.Nursery | None = None

    async def examine(self, index: Index, batch: Sequence[Candidate]) -> tuple[list[bool], list[Answer]]:
        """Which events are new to the index, and the verdict on each, in order."""
        worker = await self._free_process() if len(batch) >= FLOOD else None
        if worker is None:
            return await self._in_thread(_examine_here, index, batch)
        try:
            new, questions = await self._in_thread(_ask_about, index, batch)
            answers = read_answers(await worker.ask(questions), len(batch))
        except (_Unusable, msgspec.MsgspecError, ValueError):
            await self._lose(worker)
            return await self._in_thread(_examine_here, index, batch)
        except BaseException:  # it may be in the middle of a batch, and is of no use any more
            await self._lose(worker)
            raise
        await self._keep(worker)
        return new, answers

    async def _free_process(self) -> _Worker | None:
        """One that is idle, waiting for it if need be. While none is ready yet, batches do not wait for one."""
        if not self._idle and self._nursery is not None and self._count < self.processes:
            self._count += 1
            self._nursery.start_soon(self._start)
        while not self._idle and self._ready:
            await self._waiting.park()
        return self._idle.pop() if self._idle else None

    async def _start(self) -> None:
        worker: _Worker | None = None
        is_ready = False
        try:
            worker = _Worker(await _open_process())
            await worker.ask(write_questions((), ()))  # it is ready when it has answered
            is_ready = True
        except (OSError, _Unusable):
            pass  # no memory, or no more processes: threads do it
        finally:  # also when the context ends in the middle of it
            if not is_ready:
                self._count -= 1
                if worker is not None:
                    await worker.end()
        if is_ready and worker is not None:
            self._ready += 1
            await self._keep(worker)

    async def _keep(self, worker: _Worker) -> None:
        if self._nursery is None:  # nobody would end it
            await self._lose(worker)
        else:
            worker.idle_since = trio.current_time()
            self._idle.append(worker)
            self._waiting.unpark()

    async def _lose(self, worker: _Worker) -> None:
        self._count -= 1
        self._ready -= 1
        self._waiting.unpark_all()
        await worker.end()

    async def _in_thread(
        self, work: Callable[[Index, Sequence[Candidate]], T], index: Index, batch: Sequence[Candidate]
    ) -> T:
        return await trio.to_thread.run_sync(work, index, batch, limiter=self.threads)

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """While the context lasts processes may be started, and none outlives it. Of overlapping ones one counts."""
        if self._nursery is not None:
            yield
            return
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._retire_idle)
            try:
                yield
            finally:
                self._nursery = None
                nursery.cancel_scope.cancel()
                while self._idle:
                    await self._lose(self._idle.pop())

    async def _retire_idle(self) -> None:
        """Until cancelled."""
        while True:
            await trio.sleep(IDLE_SECONDS)
            old = [one for one in self._idle if trio.current_time() - one.idle_since >= IDLE_SECONDS]
            self._idle = [one for one in self._idle if one not in old]
            for worker in old:
                await self._lose(worker)


def _examine_here(index: Index, batch: Sequence[Candidate]) -> tuple[list[bool], list[Answer]]:
    new = index.unstored(batch)
    return new, [examine(one.event, is_new=fresh) for one, fresh in zip(batch, new, strict=True)]


def _ask_about(index: Index, batch: Sequence[Candidate]) -> tuple[list[bool], bytes]:
    new = index.unstored(batch)
    return new, write_questions([one.event for one in batch], new)


async def _open_process() -> trio.Process:
    """Raises OSError. What it may have to say on standard error is said again by the thread that does its batch."""
    argv = [sys.executable, "-m", "market.discovery.verifier"]
    return await trio.lowlevel.open_process(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
