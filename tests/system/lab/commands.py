"""Running programs inside a node: the way in, the login's environment, and processes that outlast one call.

Every program gets a control group of its own (`/lab/ID` in the node), so it can be killed with all that it started, and
nothing that it starts is mistaken for part of an app. Nothing here knows how a node was made.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import secrets
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from apps.problems import Problem
from tests.system.lab.host import host_environment

__all__ = ["CommandFailed", "CommandTimedOut", "Entrance", "NodeProcess", "User"]

User = Literal["op", "root"]

_FORK = ("/bin/sh", "-c", '"$@"; exit "$?"', "sh")
"""A process is in a pid namespace only from its next fork on. nsenter's own fork would stop together with its child
when a shutdown stops everything before it kills, leave the child unreaped, and so the shutdown would never end."""

_SHOWN = 4000
"""Characters of a failed command's output that its error carries: the end of a traceback fits."""
_POLL_SECONDS = 0.02
_DEATH_SECONDS = 10.0

_PATH = "/usr/local/bin:/usr/bin:/bin"
_LOGIN: Mapping[User, Mapping[str, str]] = {
    "op": {
        "HOME": "/home/op",
        "PATH": _PATH,
        "XDG_RUNTIME_DIR": "/run/user/1000",
        "DBUS_SESSION_BUS_ADDRESS": "unix:path=/run/user/1000/bus",
    },
    "root": {"HOME": "/root", "PATH": f"/usr/local/sbin:{_PATH}:/usr/sbin:/sbin"},
}


class CommandFailed(Problem):
    """A program in a node left with another code than 0."""

    kind = "command-failed"

    def __init__(self, argv: Sequence[str], returncode: int, stdout: str, stderr: str, *, where: str) -> None:
        shown = " ".join(argv)[:_SHOWN]
        super().__init__(f"{shown}\nleft with {returncode}\n{stdout[-_SHOWN:]}{stderr[-_SHOWN:]}".rstrip(), where=where)
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr


class CommandTimedOut(Problem):
    """A program in a node did not get done, or did not say what was waited for, by its deadline."""

    kind = "command-timed-out"


@dataclass(frozen=True, slots=True)
class Entrance:
    """The way into one boot of a node: its name for messages, and its first process as this host sees it."""

    name: str
    first: int

    def command(
        self, argv: Sequence[str], *, user: User, env: Mapping[str, str], cwd: str | None, group: str
    ) -> list[str]:
        """The command line, for this host, that runs `argv` inside as after a login."""
        login = _LOGIN[user]
        variables = {"USER": user, "LOGNAME": user, "SHELL": "/bin/bash", "LANG": "C.UTF-8", **login, **env}
        return [
            *("nsenter", "--target", str(self.first), "--mount", "--uts", "--ipc", "--net", "--pid", "--no-fork", "--"),
            *_FORK,
            *("/usr/local/libexec/lab-enter", group, user),
            *("/usr/bin/env", "-i", f"--chdir={cwd or login['HOME']}"),
            *(f"{key}={value}" for key, value in variables.items()),
            *argv,
        ]

    def start(
        self,
        argv: Sequence[str],
        *,
        user: User = "op",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: int | IO[bytes] | None = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = subprocess.PIPE,
        stderr: int | IO[bytes] | None = subprocess.PIPE,
        log: Path | None = None,
        terminal: bool = False,
    ) -> NodeProcess:
        """Start a program inside. Ctrl-C at this terminal does not reach it, unless it is to have the terminal."""
        group = secrets.token_hex(6)
        process = subprocess.Popen(
            self.command(argv, user=user, env=env or {}, cwd=cwd, group=group),
            env=host_environment(),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            umask=0o022,
            start_new_session=not terminal,
        )
        return NodeProcess(self, tuple(argv), process, group, log)

    def group_folder(self, group: str) -> Path:
        """A program's control group, as a path of this host."""
        return Path(f"/proc/{self.first}/root/sys/fs/cgroup/lab/{group}")


class NodeProcess:
    """A program that runs in a node. `popen` is the host's end of it."""

    def __init__(
        self, entrance: Entrance, argv: tuple[str, ...], popen: subprocess.Popen[bytes], group: str, log: Path | None
    ) -> None:
        self._entrance = entrance
        self._group = group
        self._log = log
        self._text: IO[str] | None = None
        self.argv = argv
        self.popen = popen

    @property
    def stdin(self) -> IO[bytes] | None:
        """Its standard input, where it was started with a pipe for it."""
        return self.popen.stdin

    @property
    def stdout(self) -> IO[str] | None:
        """What it says, as text, where it was started with a pipe for it."""
        if self._text is None and self.popen.stdout is not None:
            self._text = io.TextIOWrapper(self.popen.stdout, encoding="utf-8", errors="replace")
        return self._text

    @property
    def returncode(self) -> int | None:
        """None while it runs; 128 and the number of the signal if one ended it, as shells tell it."""
        return self.popen.poll()

    def output(self) -> str:
        """All that it has said so far, where its output goes to the run's log (`Node.popen`); else empty."""
        return self._log.read_text(encoding="utf-8", errors="replace") if self._log is not None else ""

    def wait(self, timeout: float) -> int:
        """The exit code. Raises CommandTimedOut; the program goes on."""
        try:
            returncode = self.popen.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise self._late(f"still runs after {timeout:g} s") from error
        self._tidy()
        return returncode

    def wait_output(self, pattern: str, timeout: float) -> re.Match[str]:
        """Wait until its output matches this expression. Raises CommandTimedOut, or CommandFailed if it ends first."""
        deadline = time.monotonic() + timeout
        while True:
            ended = self.returncode is not None
            said = self.output()
            found = re.search(pattern, said, re.MULTILINE)
            if found is not None:
                return found
            if ended:
                raise CommandFailed(self.argv, self.popen.returncode, said, "", where=self._entrance.name)
            if time.monotonic() > deadline:
                raise self._late(f"did not say {pattern!r} in {timeout:g} s")
            time.sleep(_POLL_SECONDS)

    def send_signal(self, number: signal.Signals) -> None:
        """Signal the program itself, not what it started. Nothing happens if it has ended."""
        inner = self._inner()
        if inner is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(inner, number)

    def terminate(self, timeout: float = _DEATH_SECONDS) -> int:
        """SIGTERM, then after the deadline SIGKILL to all of it; the exit code."""
        self.send_signal(signal.SIGTERM)
        try:
            return self.wait(timeout)
        except CommandTimedOut:
            return self.kill()

    def kill(self) -> int:
        """SIGKILL to the program and to all that it started in its group; the exit code."""
        with contextlib.suppress(OSError):  # it has ended, or has not got as far as its group
            (self._entrance.group_folder(self._group) / "cgroup.kill").write_text("1")
        self.send_signal(signal.SIGKILL)
        return self.wait(_DEATH_SECONDS)

    def communicate(self, data: bytes | None, timeout: float) -> tuple[bytes, bytes]:
        """What it said on its pipes until its end. Raises CommandTimedOut, and then the program is killed."""
        try:
            stdout, stderr = self.popen.communicate(data, timeout)
        except subprocess.TimeoutExpired as error:
            self.kill()
            stdout, stderr = self.popen.communicate()
            said = _text((stdout or b"") + (stderr or b""))[-_SHOWN:]
            raise self._late(f"not done in {timeout:g} s, killed\n{said}") from error
        except BaseException:
            self.kill()
            raise
        self._tidy()
        return stdout or b"", stderr or b""

    def _inner(self) -> int | None:
        """The process that this host started forks once to enter the pid namespace, then only waits for the program."""
        outer = self.popen.pid
        deadline = time.monotonic() + _DEATH_SECONDS
        while self.popen.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError):
                children = Path(f"/proc/{outer}/task/{outer}/children").read_text(encoding="ascii").split()
                if children:
                    return int(children[0])
            time.sleep(_POLL_SECONDS)
        return None

    def _tidy(self) -> None:
        with contextlib.suppress(OSError):  # what it left running in the background keeps the group
            self._entrance.group_folder(self._group).rmdir()

    def _late(self, what: str) -> CommandTimedOut:
        return CommandTimedOut(f"{' '.join(self.argv)[:_SHOWN]}: {what}", where=self._entrance.name)


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")
