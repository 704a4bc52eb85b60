"""Asks apps whether they are well, over http and tcp, with a deadline for each answer.

A published port is asked on the loopback address. Everything else is asked from inside the user's rootless network
namespace by one short-lived process for all checks of a round.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import trio

from apps.problems import Problem
from orchestrator.health import Check
from orchestrator.probe_inside import MAX_HEAD, judge_head, request
from orchestrator.process import run

MARGIN: Final = 10.0
"""Seconds for the process itself, above the checks' own deadlines."""


class Prober(Protocol):
    """Answers checks."""

    async def ask(self, checks: Sequence[Check]) -> Mapping[str, str]:
        """Container name -> "" for a good answer, else what went wrong. One that could not be asked is absent."""
        ...


class NetworkProber:
    """The real one. `addresses` tells the containers' addresses inside the namespace."""

    def __init__(self, addresses: Callable[[Sequence[str]], Awaitable[Mapping[str, str]]]) -> None:
        self._addresses = addresses

    async def ask(self, checks: Sequence[Check]) -> Mapping[str, str]:
        found: dict[str, str] = {}
        async with trio.open_nursery() as nursery:
            for check in checks:
                if check.address:
                    nursery.start_soon(self._outside, check, found)
            if inside := [check for check in checks if not check.address]:
                nursery.start_soon(self._inside, inside, found)
        return found

    async def _outside(self, check: Check, found: dict[str, str]) -> None:
        found[check.container] = f"no answer within {check.seconds} s"
        with trio.move_on_after(check.seconds):
            try:
                found[check.container] = await _ask(check)
            except (OSError, trio.BrokenResourceError) as error:
                found[check.container] = f"no connection to port {check.port}: {error}"

    async def _inside(self, checks: Sequence[Check], found: dict[str, str]) -> None:
        try:
            addresses = await self._addresses([check.container for check in checks])
            asked = [
                {
                    "id": check.container,
                    "kind": check.kind,
                    "address": addresses[check.container],
                    "port": check.port,
                    "path": check.path,
                    "seconds": check.seconds,
                }
                for check in checks
                if check.container in addresses
            ]
            if not asked:
                return
            program = str(Path(__file__).with_name("probe_inside.py"))
            argv = ("podman", "unshare", "--rootless-netns", sys.executable, "-I", program)
            seconds = max(check.seconds for check in checks) + MARGIN
            done = (await run(argv, seconds=seconds, stdin=json.dumps(asked).encode())).checked()
            found.update({str(key): str(value) for key, value in json.loads(done.stdout).items()})
        except (Problem, ValueError):
            return  # not asked is not an answer: a loaded machine does not make apps unhealthy (R-ST13)


async def _ask(check: Check) -> str:
    stream = await trio.open_tcp_stream(check.address, check.port)
    async with stream:
        if check.kind == "tcp":
            return ""
        await stream.send_all(request(check.address, check.port, check.path))
        head = b""
        while b"\n" not in head and len(head) < MAX_HEAD and (part := await stream.receive_some(256)):
            head += part
    return judge_head(head)
