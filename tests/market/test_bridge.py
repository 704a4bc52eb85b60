"""The border between trio and asyncio: values, exceptions and cancellation, both ways, and what is left afterwards."""

from __future__ import annotations

import asyncio
import socket
import stat
import sys
import threading
from pathlib import Path

import pytest
import trio
import trio.testing
from aiohttp import web

from market.bridge import BridgeClosed, open_bridge, serve
from market.errors import EnvironmentLacks


class _FaultOfTheJob(Exception):
    pass


async def _raise(text: str) -> None:
    raise _FaultOfTheJob(text)


async def test_a_job_runs_on_an_asyncio_loop_in_another_thread_and_returns_its_value() -> None:
    async def job(number: int) -> tuple[int, str, bool]:
        await asyncio.sleep(0)
        return (
            number + 1,
            threading.current_thread().name,
            isinstance(asyncio.get_running_loop(), asyncio.AbstractEventLoop),
        )

    async with open_bridge() as bridge:
        value, thread, on_loop = await bridge.run(job, 41)
    assert value == 42
    assert thread != threading.current_thread().name
    assert on_loop


async def test_an_exception_of_the_job_is_raised_on_the_trio_side() -> None:
    async with open_bridge() as bridge:
        with pytest.raises(_FaultOfTheJob, match="mine"):
            await bridge.run(_raise, "mine")


async def test_cancelling_the_trio_side_waits_until_the_asyncio_task_has_ended() -> None:
    steps: list[str] = []
    begun = trio.Event()

    async with open_bridge() as bridge:

        async def job() -> None:
            try:
                await bridge.in_trio(_set, begun)
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.01)
                steps.append("asyncio task ended")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(bridge.run, job)
            await begun.wait()
            nursery.cancel_scope.cancel()
        steps.append("trio went on")
    assert steps == ["asyncio task ended", "trio went on"]


async def _set(event: trio.Event) -> None:
    event.set()


async def test_a_fault_while_being_cancelled_is_not_lost() -> None:
    begun = trio.Event()

    async with open_bridge() as bridge:

        async def job() -> None:
            try:
                await bridge.in_trio(_set, begun)
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise _FaultOfTheJob("while closing") from None

        async def run() -> None:
            with pytest.raises(_FaultOfTheJob, match="while closing"):
                await bridge.run(job)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await begun.wait()
            nursery.cancel_scope.cancel()


async def test_a_coroutine_calls_into_trio_and_gets_value_and_exception_back() -> None:
    async def in_trio(number: int) -> int:
        await trio.lowlevel.checkpoint()
        return number * 2

    async with open_bridge() as bridge:

        async def job() -> int:
            with pytest.raises(_FaultOfTheJob, match="from trio"):
                await bridge.in_trio(_raise, "from trio")
            return await bridge.in_trio(in_trio, 21)

        assert await bridge.run(job) == 42


async def test_cancelling_the_asyncio_side_cancels_the_trio_job_and_waits_for_it() -> None:
    steps: list[str] = []

    async with open_bridge() as bridge:

        async def in_trio() -> None:
            steps.append("begun")
            try:
                await trio.sleep_forever()
            finally:
                steps.append("trio job ended")

        async def job() -> None:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(bridge.in_trio(in_trio), 0.01)
            steps.append("asyncio went on")

        await bridge.run(job)
    assert steps == ["begun", "trio job ended", "asyncio went on"]


async def test_leaving_ends_every_asyncio_task_the_thread_and_restores_the_switch_interval() -> None:
    threads = threading.active_count()
    interval = sys.getswitchinterval()
    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("task")

    async def start() -> asyncio.Task[None]:
        task = asyncio.create_task(forever())
        await asyncio.sleep(0)
        return task

    async with open_bridge() as bridge:
        await bridge.run(start)
    assert ended == ["task"]
    assert sys.getswitchinterval() == interval
    assert threading.active_count() <= threads + 1  # trio keeps one idle worker thread for a while
    with pytest.raises(BridgeClosed):
        await bridge.run(forever)


async def test_a_waiting_caller_is_told_when_the_asyncio_side_goes_down() -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    async with trio.open_nursery() as nursery, open_bridge() as bridge:

        async def caller() -> None:
            with pytest.raises(BridgeClosed):
                await bridge.run(forever)

        nursery.start_soon(caller)
        await trio.testing.wait_all_tasks_blocked()


async def test_a_cancelled_surrounding_scope_still_closes_cleanly() -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        async with open_bridge():
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def _get(address: tuple[str, int] | str) -> bytes:
    stream: trio.SocketStream
    stream = (
        await trio.open_tcp_stream(*address) if isinstance(address, tuple) else await trio.open_unix_socket(address)
    )
    async with stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return b"".join([chunk async for chunk in stream])


def _hello() -> web.Application:
    async def hello(request: web.Request) -> web.Response:
        return web.Response(text="hello from aiohttp")

    app = web.Application()
    app.router.add_get("/", hello)
    return app


async def test_an_application_is_served_on_tcp_and_on_a_private_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "archy.sock"
    async with open_bridge() as bridge:
        async with serve(bridge, _hello(), tcp=("127.0.0.1", 0), unix=path) as at:
            assert at.tcp is not None
            assert at.url == f"http://127.0.0.1:{at.tcp[1]}"
            assert b"hello from aiohttp" in await _get(at.tcp)
            assert b"hello from aiohttp" in await _get(str(path))
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert not path.exists()
        with pytest.raises(OSError, match="failed"):
            await _get(at.tcp)


async def test_a_taken_port_is_told_with_a_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        async with open_bridge() as bridge:
            with pytest.raises(EnvironmentLacks, match="another port"):
                async with serve(bridge, _hello(), tcp=taken.getsockname()):
                    pass


async def test_a_dead_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "archy.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    async with open_bridge() as bridge, serve(bridge, _hello(), unix=path):
        with pytest.raises(EnvironmentLacks, match="another process listens"):
            async with serve(bridge, _hello(), unix=path):
                pass
        assert b"hello" in await _get(str(path))


async def test_a_handler_is_cancelled_when_its_client_leaves() -> None:
    entered, left = trio.Event(), trio.Event()

    async with open_bridge() as bridge:

        async def slow(request: web.Request) -> web.Response:
            try:
                await bridge.in_trio(_set, entered)
                await asyncio.Event().wait()
            finally:
                await asyncio.shield(asyncio.ensure_future(bridge.in_trio(_set, left)))
            raise AssertionError

        app = web.Application()
        app.router.add_get("/", slow)
        async with serve(bridge, app, tcp=("127.0.0.1", 0)) as at:
            assert at.tcp is not None
            async with await trio.open_tcp_stream(*at.tcp) as stream:
                await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                await entered.wait()
            with trio.fail_after(5):
                await left.wait()
