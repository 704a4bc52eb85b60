"""Podman's service at hand: fewer starts of the program, the same answers, and nothing depends on it."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest
import trio

from orchestrator import podman_service
from orchestrator.faults import CommandMissing
from orchestrator.podman import RootlessPodman

PODMAN = '''#!{python}
"""A podman that writes down how it was called."""
import json, os, socket, sys, threading, time

with open("{log}", "a") as log:
    log.write(" ".join(sys.argv[1:3]) + "\\n")
mode = open("{mode}").read()

def told(by):
    return {{
        "containers": [{{"Names": [by], "Id": "1", "State": "running"}}],
        "networks": [{{"name": by, "labels": {{"archy.prefix": "archy", "archy.spec": "x"}}}}],
        "volumes": [{{"Name": by, "Labels": {{"archy.app": "x"}}}}],
        "secrets": [{{"Spec": {{"Name": "archy-" + by}}}}],
    }}

if sys.argv[1:3] != ["system", "service"]:
    kinds = {{"ps": "containers", "network": "networks", "volume": "volumes"}}
    listed = json.dumps(told("program").get(kinds.get(sys.argv[1]), []))
    print({{"version": "5.4.2", "secret": "archy-program"}}.get(sys.argv[1], listed))
    sys.exit()
with open("{pid}", "w") as note:
    note.write(str(os.getpid()))
assert "NOTIFY_SOCKET" not in os.environ
assert os.environ["LISTEN_FDS"] == "1" and os.environ["LISTEN_PID"] == str(os.getpid())
if mode == "ends":
    sys.exit(1)

def serve(connection):
    asked = b""
    while True:
        while b"\\r\\n\\r\\n" not in asked:
            part = connection.recv(4096)
            if not part:
                time.sleep(1000)
            asked += part
        head, _, asked = asked.partition(b"\\r\\n\\r\\n")
        path = head.split()[1].decode()
        if mode == "silent":
            time.sleep(1000)
        kind = path.removeprefix("/v5.0.0/libpod/").split("/")[0]
        status, body = "200 OK", json.dumps(told("service").get(kind, []))
        if mode == "refuses" or (mode == "knows no secrets" and kind == "secrets"):
            status, body = "500 Internal Server Error", "{{}}"
        if mode == "babbles":
            body = "no JSON"
        if mode == "floods":
            body = "x" * 5000
        if mode == "is no server":
            connection.sendall(b"hello")
            os._exit(0)
        head = f"HTTP/1.1 {{status}}\\r\\nLibpod-API-Version: 5.9.1\\r\\nContent-Length: {{len(body)}}"
        connection.sendall(f"{{head}}\\r\\n\\r\\n{{body}}".encode())

listening = socket.socket(fileno=3)
while True:
    threading.Thread(target=serve, args=listening.accept()[:1], daemon=True).start()
'''


class Calls:
    """How the pretended program was called, and what it is to do."""

    def __init__(self, folder: Path) -> None:
        self._log, self._mode, self._pid = folder / "log", folder / "mode", folder / "pid"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.be("well")
        program = folder / "bin" / "podman"
        program.parent.mkdir()
        text = PODMAN.format(python=sys.executable, log=self._log, mode=self._mode, pid=self._pid)
        program.write_text(text)
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        self.path = program.parent

    def be(self, mode: str) -> None:
        self._mode.write_text(mode)

    @property
    def made(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []

    def service_lives(self) -> bool:
        try:
            os.kill(int(self._pid.read_text()), 0)
        except ProcessLookupError:
            return False
        return True

    async def service_ends(self) -> None:
        with trio.fail_after(10):
            while self.service_lives():  # noqa: ASYNC110 - another process's end
                await trio.sleep(0.01)


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    made = Calls(tmp_path)
    monkeypatch.setenv("PATH", f"{made.path}:/usr/bin:/bin")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/nobody")
    monkeypatch.setattr("tempfile.tempdir", str(made.temporary))
    return made


async def names(podman: RootlessPodman) -> list[str]:
    return [seen.name for seen in await podman.containers("archy")]


async def test_inside_one_program_answers_all_and_outside_each_question_starts_one(calls: Calls) -> None:
    podman = RootlessPodman()
    async with podman.at_hand():
        assert await names(podman) == ["service"]
        assert await names(podman) == ["service"]
        assert await podman.version() == (5, 9, 1)
        assert calls.service_lives()
    assert calls.made == ["system service"]
    await calls.service_ends()
    assert await names(podman) == ["program"]
    assert calls.made == ["system service", "ps --all"]


async def test_all_who_want_it_at_the_same_time_share_it_and_the_last_one_ends_it(calls: Calls) -> None:
    podman = RootlessPodman()
    async with podman.at_hand():
        async with podman.at_hand():
            assert await names(podman) == ["service"]
        assert await names(podman) == ["service"]
        assert calls.service_lives()
    await calls.service_ends()
    assert calls.made == ["system service"]


async def test_questions_at_once_each_get_their_own_answer(calls: Calls) -> None:
    podman, found = RootlessPodman(), []

    async def one() -> None:
        found.append(await names(podman))

    async with podman.at_hand(), trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(one)
    assert found == [["service"]] * 20


async def test_nobody_else_finds_the_socket_of_the_service(calls: Calls) -> None:  # R-MF13
    podman = RootlessPodman()
    async with podman.at_hand():
        assert await names(podman) == ["service"]
        assert list(calls.temporary.iterdir()) == []


@pytest.mark.parametrize("mode", ["ends", "silent", "refuses", "babbles", "floods", "is no server"])
async def test_a_service_that_does_not_serve_is_passed_over(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:  # R-ST13
    monkeypatch.setattr(podman_service, "SOON", 0.5)
    monkeypatch.setattr(podman_service, "MAX_OUTPUT", 4000)
    calls.be(mode)
    podman = RootlessPodman()
    async with podman.at_hand():
        assert await names(podman) == ["program"]
        assert await names(podman) == ["program"]
    await calls.service_ends()


async def test_one_question_it_can_not_answer_is_asked_elsewhere_and_the_others_are_not(calls: Calls) -> None:
    calls.be("knows no secrets")
    podman = RootlessPodman()
    async with podman.at_hand():
        found = await podman.inventory("archy")
    assert found.networks == found.volumes == {"service": "x"}
    assert found.secrets == frozenset(["archy-program"])
    assert calls.made == ["system service", "secret ls"]


async def test_no_program_at_all_is_told_as_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    podman = RootlessPodman()
    async with podman.at_hand():
        with pytest.raises(CommandMissing):
            await podman.version()


async def test_an_old_service_is_no_longer_asked(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:  # R-FM6
    monkeypatch.setattr(podman_service, "SERVES", 0.0)
    podman = RootlessPodman()
    async with podman.at_hand():
        assert await names(podman) == ["program"]


async def test_a_cancel_in_the_middle_of_a_question_leaves_no_process(calls: Calls) -> None:
    calls.be("silent")
    podman = RootlessPodman()
    with trio.move_on_after(0.5) as scope:
        async with podman.at_hand():
            await names(podman)
    assert scope.cancelled_caught
    await calls.service_ends()


def test_nothing_outlives_the_run_in_which_it_was_at_hand(calls: Calls) -> None:
    async def ask() -> None:
        podman = RootlessPodman()
        async with podman.at_hand():
            assert await names(podman) == ["service"]

    trio.run(ask)
    assert not calls.service_lives()
