"""One program at a time: bounded in time and output, and gone with its whole process group when cancelled.

Refuses to know what the programs mean. `trio.run_process` leaves grandchildren alive on cancel and captures without
bound, hence this.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from orchestrator.faults import CommandFailed, CommandMissing, CommandNotStarted, CommandTimedOut, OutputTooLong

MAX_OUTPUT: Final = 16 * 1024 * 1024
"""`podman ps --format json` writes about 1 KiB a container; room for far more than a machine can run."""
MAX_STDERR: Final = 64 * 1024
"""What an error message may say; the rest is read and dropped, so that the program is never blocked."""
KILL_AFTER: Final = 2.0
"""Seconds between SIGTERM and SIGKILL: Podman uses them to release its locks."""
CHUNK: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Completed:
    """How a program ended and what it wrote."""

    argv: tuple[str, ...]
    code: int
    stdout: bytes
    stderr: str

    def checked(self) -> Completed:
        """Raises CommandFailed unless the exit code is 0."""
        if self.code != 0:
            raise CommandFailed(self.argv, self.code, self.stderr)
        return self


async def run(
    argv: Sequence[str],
    *,
    seconds: float,
    stdin: bytes = b"",
    environment: Mapping[str, str] | None = None,
    limit: int = MAX_OUTPUT,
) -> Completed:
    """Run a program to its end. Raises CommandMissing, CommandNotStarted, CommandTimedOut, OutputTooLong; never for an
    exit code."""
    try:
        process = await _open(argv, subprocess.PIPE, subprocess.PIPE, environment or {})
    except FileNotFoundError as error:
        raise CommandMissing(argv[0]) from error
    except OSError as error:
        raise CommandNotStarted(argv[0], error) from error
    out, err = bytearray(), bytearray()
    with trio.move_on_after(seconds) as scope:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_feed, process, stdin)
                nursery.start_soon(_drain, process.stdout, out, limit + 1)
                nursery.start_soon(_drain, process.stderr, err, MAX_STDERR)
                await process.wait()
        finally:
            await end_group(process)
    if scope.cancelled_caught:
        raise CommandTimedOut(tuple(argv), seconds)
    if len(out) > limit:
        raise OutputTooLong(f"{argv[0]} wrote more than {limit} bytes")
    return Completed(tuple(argv), process.returncode or 0, bytes(out), err.decode(errors="replace"))


async def spawn(argv: Sequence[str], stdin: int, environment: Mapping[str, str]) -> trio.Process:
    """Start a program whose output nobody reads; `end_group` ends it. `stdin` is a descriptor."""
    return await _open(argv, stdin, subprocess.DEVNULL, environment)


async def _open(argv: Sequence[str], stdin: int, out: int, environment: Mapping[str, str]) -> trio.Process:
    env = {**os.environ, "LC_ALL": "C.UTF-8", **environment}
    return await trio.lowlevel.open_process(
        list(argv), stdin=stdin, stdout=out, stderr=out, start_new_session=True, env=env, cwd="/"
    )


async def _feed(process: trio.Process, data: bytes) -> None:
    if process.stdin is not None:
        async with process.stdin:
            try:
                await process.stdin.send_all(data)
            except trio.BrokenResourceError:
                return  # it ended, or closed its input, without reading all; its exit code tells


async def _drain(stream: trio.abc.ReceiveStream | None, into: bytearray, keep: int) -> None:
    if stream is not None:
        async with stream:
            while chunk := await stream.receive_some(CHUNK):
                into += chunk[: max(0, keep - len(into))]


async def end_group(process: trio.Process) -> None:
    """End a program that still runs, with its process group; also what it left behind in it."""
    if process.returncode is not None:
        return
    with trio.CancelScope(shield=True):
        _signal_group(process.pid, signal.SIGTERM)
        with trio.move_on_after(KILL_AFTER):
            await process.wait()
        _signal_group(process.pid, signal.SIGKILL)
        await process.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return
