"""What makes the orchestrator look before its next tick: Podman's events, and changes in the unit folder.

Each may be late, doubled or lost: a trigger says only "look", never what happened (R-ST15). Nothing here is trusted,
and each ends by itself when what it listens to does; whoever runs it starts it again.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import trio

from apps.problems import Problem
from orchestrator.faults import CommandMissing, CommandNotStarted

EVENTS: Final = ("died", "remove")
"""What takes something away; health checks and starts would wake for nothing."""
MAX_LINE: Final = 64 * 1024
"""An event is a few hundred bytes; more than this without a line's end is not one."""

_CHANGES: Final = 0x8 | 0x40 | 0x80 | 0x100 | 0x200  # CLOSE_WRITE, MOVED_FROM, MOVED_TO, CREATE, DELETE
_SELF_GONE: Final = 0x400 | 0x800  # DELETE_SELF, MOVE_SELF
"""Masks as inotify(7) has them."""
_READ: Final = 64 * 1024

Wake = Callable[[], None]


class Trigger(Protocol):
    """Something that can tell that a look is worth it."""

    async def listen(self, wake: Wake) -> None:
        """Call `wake` whenever something may have changed, until there is nothing to listen to. Raises Problem."""
        ...


class PodmanEvents:
    """`podman events` as long as it runs; only things whose name begins with the node's prefix count."""

    def __init__(self, prefix: str) -> None:
        self._prefix = f"{prefix}-"

    async def listen(self, wake: Wake) -> None:
        filters = [word for event in EVENTS for word in ("--filter", f"event={event}")]
        argv = ["podman", "events", "--stream", "--format", "json", *filters]
        try:
            process = await trio.lowlevel.open_process(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        except FileNotFoundError as error:
            raise CommandMissing("podman") from error
        except OSError as error:
            raise CommandNotStarted("podman", error) from error
        assert process.stdout is not None
        try:
            await self._read(process.stdout, wake)
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()

    async def _read(self, stream: trio.abc.ReceiveStream, wake: Wake) -> None:
        rest = b""
        async for chunk in stream:
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > MAX_LINE:
                raise Problem("podman events wrote a line without an end")
            if any(self._is_ours(line) for line in lines):
                wake()

    def _is_ours(self, line: bytes) -> bool:
        try:
            event = json.loads(line)
        except ValueError:
            return False
        return isinstance(event, dict) and str(event.get("Name", "")).startswith(self._prefix)


class FolderWatch:
    """The kernel's word that a file came, went or changed in a folder (inotify(7))."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def listen(self, wake: Wake) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Problem(f"can not be made: {error.strerror}", where=str(self._folder)) from error
        descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if descriptor < 0:
            raise Problem(f"can not be watched: {os.strerror(ctypes.get_errno())}", where=str(self._folder))
        try:
            if libc.inotify_add_watch(descriptor, os.fsencode(self._folder), _CHANGES | _SELF_GONE) < 0:
                raise Problem(f"can not be watched: {os.strerror(ctypes.get_errno())}", where=str(self._folder))
            wake()  # what changed before the watch began
            while self._folder.is_dir():
                await trio.lowlevel.wait_readable(descriptor)
                os.read(descriptor, _READ)
                wake()
        finally:
            os.close(descriptor)
