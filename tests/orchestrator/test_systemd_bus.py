"""A bus that is no good is passed over: `systemctl` does the same. What a real one does is in the contract suite."""

from __future__ import annotations

import socket
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trio

from orchestrator import systemd_bus
from orchestrator.systemd import UserSystemd

SYSTEMCTL = """#!{python}
import sys
with open("{log}", "a") as log:
    log.write(sys.argv[2] + "\\n")
if sys.argv[2] == "list-units":
    print('[{{"unit": "archy-x.service", "load": "loaded", "active": "active", "sub": "running"}}]')
"""
Talk = Callable[[trio.SocketStream], Awaitable[None]]


async def silent(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def hangs_up(stream: trio.SocketStream) -> None:
    await stream.receive_some()


async def rejects(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.send_all(b"REJECTED ANONYMOUS\r\n")
    await trio.sleep_forever()


async def hangs_up_after_a_word(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.send_all(b"OK 1234deadbeef\r\n")
    await stream.receive_some()
    await stream.receive_some()


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What a pretended `systemctl` was asked; this user's runtime folder has no bus yet."""
    monkeypatch.setattr(systemd_bus, "SOON", 0.1)
    log, program = tmp_path / "log", tmp_path / "bin" / "systemctl"
    program.parent.mkdir()
    program.write_text(SYSTEMCTL.format(python=sys.executable, log=log))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return lambda: log.read_text().split() if log.exists() else []


@pytest.fixture
async def bus(tmp_path: Path, asked: object) -> AsyncIterator[Callable[[Talk], None]]:
    """Let something listen where the user's bus is."""
    async with trio.open_nursery() as nursery:

        def listen(talk: Talk) -> None:
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(str(tmp_path / "bus"))
            listening.listen(5)
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
            nursery.start_soon(trio.serve_listeners, talk, [listener])

        yield listen
        nursery.cancel_scope.cancel()


async def do_all(systemd: UserSystemd) -> None:
    assert list(await systemd.show("archy", (), brief=True)) == ["archy-x.service"]
    await systemd.daemon_reload()
    await systemd.start(("archy-x.service",), seconds=60)
    await systemd.restart(("archy-x.service",), seconds=60)


@pytest.mark.parametrize("talk", [silent, hangs_up, rejects, hangs_up_after_a_word])
async def test_a_bus_that_does_not_serve_is_passed_over(
    bus: Callable[[Talk], None], asked: Callable[[], list[str]], talk: Talk
) -> None:  # R-ST13
    bus(talk)
    await do_all(UserSystemd())
    assert asked() == ["list-units", "daemon-reload", "start", "restart"]


@pytest.mark.parametrize("runtime", ["", "/nonexistent"])
async def test_without_a_bus_the_program_is_asked(
    asked: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:  # R-ST13
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    await do_all(UserSystemd())
    assert asked() == ["list-units", "daemon-reload", "start", "restart"]
