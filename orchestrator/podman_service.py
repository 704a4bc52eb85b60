"""Podman's own service at hand for a while: each start of the program costs fifty times what the answer does.

Guarantees: only questions are asked of it, so that nothing it starts lives in our cgroup; nobody else can reach it,
since its socket has no name by the time it listens; it is told to end when the last who wanted it is done, for which
nobody waits, or, when this process was killed, ends soon after by itself. What it does not answer at once, its caller
asks the program itself.
Interface: podman-system-service(1), systemd's socket activation (sd_listen_fds(3)), Podman's REST API.
"""

from __future__ import annotations

import http.client
import logging
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from orchestrator.process import MAX_OUTPUT, end_group, spawn

log = logging.getLogger(__name__)

SOON: Final = 5.0
"""Seconds for an answer, of which the first takes a tenth of one; then the program is asked, with its own deadline."""
LINES: Final = 2
"""Questions that it answers at the same time."""
SERVES: Final = 20.0
"""Seconds after its start in which it is asked: it would go on reading a state that was mended under its feet."""
IDLE: Final = 10
"""Seconds without a question after which it ends by itself."""
API: Final = "/v5.0.0/libpod"
"""The oldest Podman that is supported; newer ones understand it."""
LAZY: Final = "400"
"""Percent of garbage that its Go collects at: a tenth less time to its first answer, and it is gone soon."""

_SCRIPT: Final = (
    "exec 3<&0 </dev/null; unset NOTIFY_SOCKET; export LISTEN_FDS=1 LISTEN_PID=$$; "
    f"exec podman system service --time={IDLE}"
)
"""The descriptor is to be number 3, and LISTEN_PID the program's own; the shell does both and gives way. What starts
this process is to be told when the node is ready, and nothing of Podman's service."""


class PodmanService:
    """One process for all who want it at the same time."""

    def __init__(self) -> None:
        self._users = 0
        self._process: trio.Process | None = None
        self._lines: list[http.client.HTTPConnection] = []
        self._idle: list[http.client.HTTPConnection] = []
        """Those of `_lines` on which nobody waits for an answer."""
        self._until = 0.0
        self._turn = trio.Semaphore(LINES)

    @asynccontextmanager
    async def at_hand(self) -> AsyncIterator[None]:
        """It runs inside, unless it does not start."""
        self._users += 1
        try:
            if self._users == 1:
                await self._begin()
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._end()

    async def ask(self, path: str) -> bytes | None:
        """The body of an answer; None when it is not at hand, or has no good answer."""
        answer = await self._answer(path)
        return None if answer is None else answer[1]

    async def version(self) -> str | None:
        """Podman's version."""
        answer = await self._answer("/_ping")
        return None if answer is None else answer[0].get("Libpod-API-Version")

    async def _answer(self, path: str) -> tuple[http.client.HTTPMessage, bytes] | None:
        async with self._turn:
            if not self._idle or trio.current_time() >= self._until:
                return None
            line = self._idle.pop()
            with trio.move_on_after(SOON):
                try:
                    answer = await trio.to_thread.run_sync(_get, line, path, abandon_on_cancel=True)
                    self._put_back(line)
                    return answer
                except _NoAnswer as problem:
                    log.info("podman is asked by its program", extra={"problem": str(problem)})
                    if problem.about_this:
                        self._put_back(line)
                        return None
            self._hang_up()
            return None

    def _put_back(self, line: http.client.HTTPConnection) -> None:
        if line in self._lines:  # else they were hung up meanwhile
            self._idle.append(line)

    async def _begin(self) -> None:
        try:
            listening, connected = _joined()
        except OSError as error:
            log.info("podman is asked by its program", extra={"problem": str(error)})
            return
        self._lines = [_line(connection) for connection in connected]
        self._idle = list(self._lines)
        with listening:
            try:
                self._process = await spawn(("/bin/sh", "-c", _SCRIPT), listening.fileno(), {"GOGC": LAZY})
            except OSError as error:
                log.info("podman is asked by its program", extra={"problem": str(error)})
                self._hang_up()
                return
        self._until = trio.current_time() + SERVES

    def _end(self) -> None:
        self._hang_up()
        process, self._process = self._process, None
        if process is not None:
            # `end_group` is shielded: what ends the run in which this is waits for it
            trio.lowlevel.spawn_system_task(end_group, process)

    def _hang_up(self) -> None:
        lines, self._lines, self._idle = self._lines, [], []
        for line in lines:
            if line.sock is not None:
                line.sock.close()  # not line.close(), which waits for an answer that is being read


def _line(connected: socket.socket) -> http.client.HTTPConnection:
    line = http.client.HTTPConnection("podman", timeout=SOON)
    line.sock = connected
    line.auto_open = 0
    return line


class _NoAnswer(Exception):
    """`about_this`: it answers, and this question not well."""

    def __init__(self, what: str, *, about_this: bool = False) -> None:
        super().__init__(what)
        self.about_this = about_this


def _get(connection: http.client.HTTPConnection, path: str) -> tuple[http.client.HTTPMessage, bytes]:
    try:
        connection.request("GET", API + path)
        answer = connection.getresponse()
        body = answer.read(MAX_OUTPUT + 1)
    except (OSError, http.client.HTTPException) as error:
        raise _NoAnswer(f"{path}: {error}") from error
    if len(body) > MAX_OUTPUT:
        raise _NoAnswer(f"{path}: more than {MAX_OUTPUT} bytes")
    if answer.status != http.client.OK:
        raise _NoAnswer(f"{path}: status {answer.status}", about_this=True)
    return answer.headers, body


def _joined() -> tuple[socket.socket, tuple[socket.socket, ...]]:
    """A listening socket and some that are connected to it; its name is gone again, so that there are no others."""
    folder = Path(tempfile.mkdtemp(prefix="archy-"))  # for its owner alone
    path = folder / "s"
    listening, *connected = (socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(1 + LINES))
    try:
        listening.bind(str(path))
        listening.listen(LINES)
        for each in connected:
            each.connect(str(path))
            each.settimeout(SOON)
    except BaseException:
        for each in (listening, *connected):
            each.close()
        raise
    finally:
        path.unlink(missing_ok=True)
        folder.rmdir()
    return listening, tuple(connected)
