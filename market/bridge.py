"""One asyncio loop in one worker thread, opened and closed by trio: aiohttp and asyncio-only bindings live there.

Guarantees: jobs cross the border in both directions, with their exceptions and cancellation, and nothing outlives
`open_bridge`'s block. A caller that is cancelled waits until the other side's task has ended, so that what it used may
be closed. The asyncio loop never blocks on trio (no trio.from_thread: it would stop every connection), and chunks
never cross. It refuses to know what the jobs do.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial as bind
from pathlib import Path
from typing import Final, Generic, TypeVar, TypeVarTuple

import outcome
import trio
from aiohttp import web

from market.errors import EnvironmentLacks, Problem

SHUTDOWN_SECONDS: Final = 5.0
"""How long a server's open connections may take to end before they are cut."""
SWITCH_SECONDS: Final = 0.0005
"""Two busy loops share the GIL: with the default of 5 ms each hand-over between them waits that long."""
BACKLOG: Final = 128

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


class BridgeClosed(Problem):
    """The other side is shutting down, or gone."""

    kind = "bridge-closed"


@dataclass(slots=True)
class _Call(Generic[_T]):
    """A job that trio sent across. `task` and `cancelled` belong to the loop's thread."""

    task: asyncio.Task[_T] | None = None
    cancelled: bool = False
    result: outcome.Outcome[_T] | None = None


class Bridge:
    """The two directions across. Made by `open_bridge`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, nursery: trio.Nursery) -> None:
        self._loop = loop
        self._nursery = nursery
        self._token = trio.lowlevel.current_trio_token()
        self._closing = False

    async def run(self, job: Callable[[*_Ts], Awaitable[_T]], *args: *_Ts) -> _T:
        """From trio: run `job(*args)` on the asyncio loop and return what it returns.

        Its exception is raised here. Cancelling this call cancels the asyncio task and waits for its end. Raises
        BridgeClosed when the asyncio side is going down.
        """
        if self._closing:
            raise BridgeClosed("the asyncio side is closed")
        done = trio.Event()
        call = _Call[_T]()

        def start() -> None:
            call.task = self._loop.create_task(_awaited(job, *args))
            call.task.add_done_callback(finish)

        def finish(task: asyncio.Task[_T]) -> None:
            if task.cancelled():
                call.result = outcome.Error(BridgeClosed("the asyncio task was cancelled"))
            else:
                call.result = outcome.capture(task.result)
            self._to_trio(done.set)

        def cancel() -> None:
            if call.task is not None:
                call.task.cancel()

        self._to_loop(start)
        try:
            await done.wait()
        except trio.Cancelled:
            self._to_loop(cancel)
            with trio.CancelScope(shield=True):
                await done.wait()
            if isinstance(call.result, outcome.Error) and not isinstance(call.result.error, BridgeClosed):
                raise call.result.error from None  # it failed by itself, and that must not be lost
            raise
        assert call.result is not None
        return call.result.unwrap()

    async def in_trio(self, job: Callable[[*_Ts], Awaitable[_T]], *args: *_Ts) -> _T:
        """From a coroutine on the loop: run `job(*args)` in the bridge's nursery and return what it returns.

        Its exception is raised here. Cancelling this coroutine cancels the trio side and waits for its end. Raises
        BridgeClosed when the trio side is going down.
        """
        future: asyncio.Future[outcome.Outcome[_T]] = self._loop.create_future()
        scope = trio.CancelScope()

        def deliver(result: outcome.Outcome[_T]) -> None:
            if not future.done():
                future.set_result(result)

        async def call() -> None:
            result: outcome.Outcome[_T] = outcome.Error(BridgeClosed("the trio side is going down"))
            try:
                with scope:
                    captured = await outcome.acapture(bind(_awaited, job, *args))
                    if isinstance(captured, outcome.Error) and not isinstance(captured.error, Exception):
                        captured.unwrap()  # Cancelled and KeyboardInterrupt stay on the side they belong to
                    result = captured
            finally:
                self._to_loop(bind(deliver, result))

        def start() -> None:
            self._nursery.start_soon(call)

        self._to_trio(start)
        try:
            result = await asyncio.shield(future)
        except asyncio.CancelledError:
            self._to_trio(scope.cancel)
            while not future.done():
                with suppress(asyncio.CancelledError):  # the first one is raised below
                    await asyncio.wait([future])
            raise
        return result.unwrap()

    def _to_trio(self, call: Callable[[], object]) -> None:
        with suppress(trio.RunFinishedError):  # nobody is left to tell
            self._token.run_sync_soon(call)

    def _to_loop(self, call: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # a closed loop: every task of it has ended and said so
            self._loop.call_soon_threadsafe(call)


async def _awaited(job: Callable[[*_Ts], Awaitable[_T]], *args: *_Ts) -> _T:
    return await job(*args)


@asynccontextmanager
async def open_bridge() -> AsyncIterator[Bridge]:
    """Start the loop's thread; on leaving, cancel every asyncio task, wait for them and for the thread."""
    switch = sys.getswitchinterval()
    sys.setswitchinterval(min(switch, SWITCH_SECONDS))
    try:
        async with trio.open_nursery() as nursery:
            thread = _LoopThread(trio.lowlevel.current_trio_token())
            nursery.start_soon(_hold_thread, thread)
            with trio.CancelScope(shield=True):
                await thread.started.wait()
            assert thread.loop is not None
            bridge = Bridge(thread.loop, nursery)
            try:
                yield bridge
            finally:
                bridge._closing = True
                thread.stop()
                with trio.CancelScope(shield=True):
                    await thread.ended.wait()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # The nursery's own tasks deliver their faults to callers: a single one is the block's, as if it stood alone.
        if len(group.exceptions) > 1:
            raise
        raise group.exceptions[0] from None
    finally:
        sys.setswitchinterval(switch)


async def _hold_thread(thread: _LoopThread) -> None:
    with trio.CancelScope(shield=True):  # it ends when it is told to, never by being abandoned
        await trio.to_thread.run_sync(thread.main, limiter=trio.CapacityLimiter(1))


class _LoopThread:
    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._token = token
        self._stop: asyncio.Event | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.started = trio.Event()
        self.ended = trio.Event()

    def main(self) -> None:
        try:
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(self._until_stopped())
        finally:
            self._token.run_sync_soon(self.ended.set)

    async def _until_stopped(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._token.run_sync_soon(self.started.set)
        await self._stop.wait()

    def stop(self) -> None:
        assert self.loop is not None
        assert self._stop is not None
        self.loop.call_soon_threadsafe(self._stop.set)


@dataclass(frozen=True, slots=True)
class ServedAt:
    """Where an application listens."""

    tcp: tuple[str, int] | None
    unix: Path | None

    @property
    def url(self) -> str:
        """The base URL of the TCP side. Raises Problem without one."""
        if self.tcp is None:
            raise Problem("this server listens on no TCP port")
        host, port = self.tcp
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@asynccontextmanager
async def serve(
    bridge: Bridge, app: web.Application, *, tcp: tuple[str, int] | None = None, unix: Path | None = None
) -> AsyncIterator[ServedAt]:
    """Serve `app` on TCP (port 0 picks one) and/or a Unix socket (0600) until the block is left.

    Handlers are cancelled when their client goes away. Raises EnvironmentLacks when the port or the path is taken.
    """
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
    sockets = _open_sockets(tcp, unix)
    try:
        await bridge.run(_start, runner, list(sockets.values()))
        address = sockets["tcp"].getsockname()[:2] if "tcp" in sockets else None
        yield ServedAt(address, unix)
    finally:
        with trio.CancelScope(shield=True):
            await bridge.run(runner.cleanup)
        _close_sockets(sockets, unix)


def _close_sockets(sockets: dict[str, socket.socket], unix: Path | None) -> None:
    for sock in sockets.values():
        sock.close()
    if unix is not None:
        unix.unlink(missing_ok=True)


async def _start(runner: web.AppRunner, sockets: list[socket.socket]) -> None:
    await runner.setup()
    for sock in sockets:
        await web.SockSite(runner, sock).start()


def _open_sockets(tcp: tuple[str, int] | None, unix: Path | None) -> dict[str, socket.socket]:
    sockets: dict[str, socket.socket] = {}
    try:
        if tcp is not None:
            sockets["tcp"] = _tcp_socket(*tcp)
        if unix is not None:
            sockets["unix"] = _unix_socket(unix)
    except BaseException:
        for sock in sockets.values():
            sock.close()
        raise
    return sockets


def _tcp_socket(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as bad:
        raise EnvironmentLacks(f"can not listen: {bad.strerror or bad}", where=f"{host}:{port}") from bad
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as taken:
        sock.close()
        raise EnvironmentLacks(
            f"can not listen: {taken.strerror}",
            where=f"{host}:{port}",
            remedy="stop what listens there, or choose another port",
        ) from taken
    return sock


def _unix_socket(path: Path) -> socket.socket:
    if path.is_socket():
        _remove_dead(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # unix(7): bind gives the new node the socket's own mode, so nobody else can connect in between.
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(str(path))
        sock.listen(BACKLOG)
    except OSError as bad:
        sock.close()
        raise EnvironmentLacks(
            f"can not listen: {bad.strerror or bad}",
            where=str(path),
            remedy="choose a shorter path in a writable folder",
        ) from bad
    return sock


def _remove_dead(path: Path) -> None:
    """Remove a socket that a killed process left; one that answers belongs to somebody. Raises EnvironmentLacks."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError as unsure:
            raise EnvironmentLacks(f"a socket that can not be probed: {unsure}", where=str(path)) from unsure
    raise EnvironmentLacks("another process listens there", where=str(path), remedy="stop the other node")
