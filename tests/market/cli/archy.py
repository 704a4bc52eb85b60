"""`archy` as its user runs it: a process, its exit code, what it prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 60


@dataclass(frozen=True)
class Answer:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Archy:
    """One home. The machine it sees has no Podman: only this environment's programs are on its PATH."""

    home: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if key not in ("ARCHY_HOME", "XDG_RUNTIME_DIR")}
        return {**kept, "PATH": str(Path(sys.executable).parent), "NO_COLOR": "1"}

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "market.cli", "--home", str(self.home), *words]

    def __call__(self, *words: str, stdin: str | None = None) -> Answer:
        done = subprocess.run(
            self.argv(*words),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=self.environment,
            check=False,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def at_a_terminal(self, *words: str, types: str = "", columns: int = 80) -> tuple[int, str]:
        """Exit code and all that the terminal showed, where a person types that."""
        ours, theirs = os.openpty()
        termios.tcsetwinsize(theirs, (24, columns))
        with subprocess.Popen(
            self.argv(*words), stdin=theirs, stdout=theirs, stderr=theirs, env=self.environment, start_new_session=True
        ) as process:
            os.close(theirs)
            os.write(ours, types.encode())
            shown = b"".join(iter(lambda: _read(ours), b""))
            os.close(ours)
            return process.wait(SECONDS), shown.decode()

    @contextmanager
    def up(self) -> Iterator[subprocess.Popen[str]]:
        """A running node; it is ended at the end of the block."""
        with subprocess.Popen(
            self.argv("up"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment
        ) as node:
            try:
                assert node.stdout is not None
                for line in node.stdout:
                    if line.strip() == "archy is up":
                        break
                else:
                    raise AssertionError(node.communicate()[1])
                yield node
            finally:
                node.kill()
                node.communicate()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux: EIO, once nobody has its other end open
        return b""
