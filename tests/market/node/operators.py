"""Operators for tests: a home with a relay and settings, on a pretended machine that outlives each opened node."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from market.node.home import Home
from market.node.node import Node, open_node
from market.node.operations import perform
from market.node.ports import OrchestratorPort
from orchestrator import Finding
from tests.market.square import Publisher
from tests.orchestrator.nodes import Node as Pretended

GOOD_MACHINE = (Finding("podman", True, "5.4.2"), Finding("quadlet", True, "here"), Finding("user systemd", True, "up"))


class Operator:
    """A home with a relay and settings, on a pretended machine that outlives each opening of the node."""

    def __init__(self, folder: Path, relay: str) -> None:
        self.home = Home(folder / "home")
        self.home.create()
        self.machine = Pretended(folder / "machine")
        self.findings: tuple[Finding, ...] = GOOD_MACHINE
        self.told: list[Mapping[str, Any]] = []
        self.do(("relays.add", {"url": relay}), ("config", {"assignments": ["allow_private_origins=true"]}))

    def do(self, *calls: tuple[str, dict[str, Any]]) -> dict[str, Any]:
        """Open the node, perform the operations, close it; the last one's result."""
        return trio.run(self._do, calls)

    async def _do(self, calls: tuple[tuple[str, dict[str, Any]], ...]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        async with self.node() as node:
            for name, params in calls:
                result = dict(await perform(node, name, params, self.told.append))
        return result

    def node(self, *, later: float = 0.0) -> AbstractAsyncContextManager[Node]:
        """The opened node, by a clock that is so many seconds ahead."""
        return open_node(self.home, open_apps=self._apps, preflight=self._preflight, now=lambda: time.time() + later)

    @asynccontextmanager
    async def _apps(self, home: Home, prefix: str) -> AsyncIterator[OrchestratorPort]:
        yield self.machine.restart()

    async def _preflight(self) -> tuple[Finding, ...]:
        return self.findings

    def trust(self, publisher: Publisher) -> None:
        self.do(("anchors.add", {"who": publisher.did, "label": "the publisher"}))

    def install(self, app: str = "hello", **more: Any) -> dict[str, Any]:
        return self.do(("install", {"app": app, "consent": "yes", **more}))

    def nothing_installed(self) -> bool:
        return not self.machine.units() and self.do(("ps", {}))["apps"] == []
