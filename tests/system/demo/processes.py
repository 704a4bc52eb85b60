"""The demo's processes: started with a deadline, watched for the line that says they are ready, ended for certain."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final

READY_SECONDS: Final = 60.0
STOP_SECONDS: Final = 20.0


class CastFailed(Exception):
    """A member of the cast did not do its part; the message carries the end of what it printed."""


class Member:
    """One long-running process; its output goes to a log file, and `ready` waits for a line of it."""

    def __init__(self, name: str, argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._log = log
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
        assert self._process.stdout is not None
        threading.Thread(target=self._copy, args=(self._process.stdout,), daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_line(self, part: str, seconds: float = READY_SECONDS) -> str:
        """The first line that holds `part`. Raises CastFailed when the process ends or stays silent too long."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise CastFailed(f"{self.name} was not ready in {seconds:.0f} s\n{self.tail()}") from None
            if line is None:
                raise CastFailed(f"{self.name} ended with {self._process.wait()}\n{self.tail()}")
            if part in line:
                return line

    def tail(self, lines: int = 15) -> str:
        """The end of what it printed."""
        try:
            return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after a grace."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        self.kill()

    def _copy(self, stream: IO[str]) -> None:
        with self._log.open("w") as log:
            for line in stream:
                log.write(line)
                log.flush()
                self._lines.put(line.rstrip("\n"))
        self._lines.put(None)


def archy_argv(home: Path, *words: str) -> list[str]:
    """The command line of this very environment, on one home."""
    return [sys.executable, "-m", "market.cli", "--home", str(home), *words]
