"""The node as a service: relay sessions, reconciling, blob serving and the control socket, until it is told to stop.

A part that fails is logged and started again after a pause; it never takes another with it. Apps are not the service's
children: whatever happens here, they go on.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Final

import trio
from aiohttp import web

from apps.log_lines import LineFormatter
from market.api.control import control_app
from market.bridge import serve
from market.errors import Problem, ungrouped
from market.node.config import split_address
from market.node.home import Home
from market.node.node import Node, open_node
from market.node.providers import keep_announcing, neighbours
from market.node.publishers import keep_publishing
from market.node.vouching import keep_attesting
from market.swarm import blob_routes

RESTART_SECONDS: Final = (1.0, 2.0, 5.0, 15.0, 30.0)
"""Pauses before a failed part is started again; the last one repeats."""

STABLE_SECONDS: Final = 60.0
"""A part that ran this long has recovered, and its next failure waits the shortest pause again."""

logger = logging.getLogger("archy.node")

Say = Callable[[str], None]


def serve_until_stopped(home: Home, say: Say) -> None:
    """Run the node until SIGINT or SIGTERM. Raises Problem when it can not start."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    trio.run(_serve, home, say)


async def _serve(home: Home, say: Say) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with open_node(home) as node, running(node) as where:
            for line in where:
                say(line)
            say("archy is up")
            _tell_systemd("READY=1")
            async with trio.open_nursery() as nursery:
                if (seconds := watchdog_seconds(os.environ, os.getpid())) is not None:
                    nursery.start_soon(_ping, node, seconds / 3)
                async for _ in signals:
                    break
                nursery.cancel_scope.cancel()
            say("archy is stopping; apps go on")
            _tell_systemd("STOPPING=1")


@asynccontextmanager
async def running(node: Node) -> AsyncIterator[tuple[str, ...]]:
    """Everything a running node does, while the block lasts; yields where it listens, a line each.

    This is the door for a host program that already runs trio: `async with open_node(home) as node, running(node)`.
    """
    async with AsyncExitStack() as stack:
        where = [f"control socket {node.home.socket}"]
        listening: tuple[str, int] | None = None
        await stack.enter_async_context(serve(node.bridge, control_app(node), tcp=None, unix=node.home.socket))
        if node.config.listen:
            host, port = split_address(node.config.listen)
            app = web.Application()
            app.add_routes(blob_routes(node.store, node.shares, node.upload_limits))
            served = await stack.enter_async_context(serve(node.bridge, app, tcp=(host, port), unix=None))
            where.append(f"blobs at {served.url}")
            listening = served.tcp
        if node.config.lan:
            node.neighbours = await stack.enter_async_context(neighbours(node.bridge, listening))
        nursery = await stack.enter_async_context(trio.open_nursery())
        node.live = True
        nursery.start_soon(_kept_up, "discovery", node.discovery.run)
        nursery.start_soon(_kept_up, "apps", node.orchestrator.run)
        nursery.start_soon(_kept_up, "publishing", partial(keep_publishing, node))
        nursery.start_soon(_kept_up, "trust", node.circles.run)
        nursery.start_soon(_kept_up, "own attestations", partial(keep_attesting, node))
        nursery.start_soon(_kept_up, "announcements", partial(keep_announcing, node))
        try:
            yield tuple(where)
        finally:
            node.live = False
            nursery.cancel_scope.cancel()


async def _kept_up(name: str, run: Callable[[], Awaitable[None]]) -> None:
    failures = 0
    while True:
        began = trio.current_time()
        try:
            with ungrouped():
                await run()
        except Problem as problem:
            logger.error("%s: %s", name, problem)
        except Exception:
            logger.exception("%s failed unexpectedly", name)
        failures = 0 if trio.current_time() - began > STABLE_SECONDS else failures + 1
        await trio.sleep(RESTART_SECONDS[min(failures, len(RESTART_SECONDS) - 1)])


def watchdog_seconds(environment: Mapping[str, str], pid: int) -> float | None:
    """How often systemd must hear from this process, None where it does not watch (sd_watchdog_enabled(3))."""
    if environment.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    micros = environment.get("WATCHDOG_USEC", "")
    return int(micros) / 1e6 if micros.isdigit() and int(micros) > 0 else None


async def _ping(node: Node, seconds: float) -> None:
    """Tell systemd that both loops turn; where one hangs nothing is said, and systemd ends and restarts the node."""
    while True:
        with trio.move_on_after(seconds):
            await node.bridge.run(_turns)
            _tell_systemd("WATCHDOG=1")
        await trio.sleep(seconds)


async def _turns() -> None:
    """The other loop ran this."""


def _tell_systemd(state: str) -> None:
    """sd_notify(3): one datagram to the socket systemd names; nothing where there is none."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
        notify.connect("\0" + address[1:] if address.startswith("@") else address)
        notify.sendall(state.encode())
