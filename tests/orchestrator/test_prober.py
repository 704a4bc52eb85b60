"""Health checks against real sockets, and the program that runs in the network namespace."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import trio

import orchestrator.probe_inside
from orchestrator.health import Check
from orchestrator.host import ThisHost
from orchestrator.prober import NetworkProber
from orchestrator.process import run


async def no_addresses(names: Sequence[str]) -> Mapping[str, str]:
    return {}


async def serve(answer: bytes, *, task_status: trio.TaskStatus[int]) -> None:
    async def handle(stream: trio.SocketStream) -> None:
        await stream.receive_some(1000)
        with suppress(trio.BrokenResourceError):  # who asked has seen enough
            await stream.send_all(answer)
        await stream.aclose()

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    task_status.started(listeners[0].socket.getsockname()[1])
    await trio.serve_listeners(handle, listeners)


ANSWERS = [
    (b"HTTP/1.1 200 OK\r\n\r\nhello", ""),
    (b"HTTP/1.0 302 Found\r\n\r\n", ""),
    (b"HTTP/1.1 503 Busy\r\n\r\n", "HTTP status 503"),
    (b"SSH-2.0-OpenSSH\r\n", "the answer is not HTTP"),
    (b"x" * 100_000, "the answer is not HTTP"),
    (b"", "the connection was closed without an answer"),
]


@pytest.mark.parametrize(("answer", "says"), ANSWERS)
async def test_http_answers_are_judged(nursery: trio.Nursery, answer: bytes, says: str) -> None:
    port = await nursery.start(serve, answer)
    check = Check("web", "http", port, "127.0.0.1", "/", 5)
    assert await NetworkProber(no_addresses).ask([check]) == {"web": says}


@pytest.mark.parametrize(("answer", "says"), ANSWERS)
async def test_the_program_inside_the_namespace_judges_alike(nursery: trio.Nursery, answer: bytes, says: str) -> None:
    port = await nursery.start(serve, answer)
    asked = [
        {"id": "web", "kind": "http", "address": "127.0.0.1", "port": port, "path": "/", "seconds": 5},
        {"id": "raw", "kind": "tcp", "address": "127.0.0.1", "port": port, "path": "/", "seconds": 5},
    ]
    program = Path(orchestrator.probe_inside.__file__)
    argv = [sys.executable, "-I", str(program)]
    done = await run(argv, seconds=20, stdin=json.dumps(asked).encode())
    assert json.loads(done.checked().stdout) == {"web": says, "raw": ""}


async def test_a_port_where_nobody_listens_and_one_that_never_answers_are_told(nursery: trio.Nursery) -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    closed = socket.create_server(("127.0.0.1", 0))
    gone = closed.getsockname()[1]
    closed.close()
    checks = [
        Check("silent", "http", silent.getsockname()[1], "127.0.0.1", "/", 1),
        Check("gone", "tcp", gone, "127.0.0.1", "/", 1),
    ]
    with silent:
        found = await NetworkProber(no_addresses).ask(checks)
    assert found["silent"] == "no answer within 1 s"
    assert found["gone"].startswith(f"no connection to port {gone}")


async def test_what_could_not_be_asked_is_unknown_and_not_ill() -> None:  # R-ST13
    assert await NetworkProber(no_addresses).ask([Check("web", "tcp", 80)]) == {}


def test_a_held_port_is_told_with_its_holder() -> None:  # R-ST9
    host = ThisHost()
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        assert f"process {os.getpid()} (" in host.port_problem(port, "lan", "tcp")
        assert "process" in host.port_problem(port, "loopback", "tcp")
        assert host.port_problem(port, "loopback", "udp") == ""
    assert host.port_problem(port, "loopback", "tcp") == ""
