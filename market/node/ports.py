"""What the node asks of an orchestrator, so that a host node can bring its own instead of the bundled one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import trio

from apps.manifest import Manifest
from apps.names import AppName
from market.node.home import Home
from orchestrator import AppStatus, Bundle, Finding, Offer, Orphan, Progress, SettingStatus


class OrchestratorPort(Protocol):
    """Keeps installed apps true to what was asked. `orchestrator.Orchestrator` is the bundled implementation."""

    async def run(self, *, task_status: trio.TaskStatus[None] = ...) -> None:
        """Reconcile until cancelled."""

    def wake(self) -> None:
        """Look again now; losing this call is harmless."""

    async def install(self, bundle: Bundle, *, report: Callable[[Progress], None]) -> AppStatus:
        """Make the bundle what runs. Raises RolledBack when an update did not prove itself."""

    async def start(self, name: AppName) -> AppStatus:
        """Start what its user stopped."""

    async def stop(self, name: AppName) -> AppStatus:
        """Stop it until its user starts it again."""

    async def restart(self, name: AppName) -> AppStatus:
        """Stop and start a running app. Raises NotRunning for one that its user stopped."""

    def settings(self, name: AppName) -> tuple[SettingStatus, ...]:
        """What may be changed of an app. Raises NotRunning when it is not installed."""

    async def configure(self, name: AppName, values: Mapping[str, str | None]) -> tuple[SettingStatus, ...]:
        """Change settings; None gives the default again. Raises UsageProblem, RolledBack."""

    def secrets(self, name: AppName) -> Mapping[str, str]:
        """The secrets that were made for an app, for its operator."""

    async def rotate(self, name: AppName, secret: str) -> None:
        """Make a secret anew and tell what reads it. Raises UsageProblem, RolledBack."""

    async def orphans(self) -> tuple[Orphan, ...]:
        """Apps that are on the machine and in no state of this node."""

    async def adopt(self, bundle: Bundle) -> AppStatus:
        """Know one of them again without touching it. Raises Refused when the bundle is of another release."""

    async def offer(self, name: AppName, manifest: Manifest) -> Offer:
        """What taking over the containers that a manifest names would mean. Raises NotAdoptable."""

    async def present(self, manifest: Manifest) -> tuple[str, ...]:
        """Containers that a manifest names and that are no app's."""

    async def take_over(self, bundle: Bundle, agreed: Collection[str]) -> AppStatus:
        """Let these containers, by id, be the app as they run. Raises Refused with nothing changed."""

    def adopted_data(self, name: AppName) -> tuple[str, ...]:
        """Folders and volumes with an app's data that are never removed, since they were there before it."""

    def disposable(self, name: AppName) -> tuple[str, ...]:
        """Volumes of an installed app that its publisher would have go with it."""

    async def uninstall(
        self, name: AppName, *, purge: bool, needed: bool = False, drop: Collection[str] = frozenset()
    ) -> None:
        """Remove units, networks, secrets and containers; keep the data unless `purge`, but for volumes in `drop`.

        Raises Refused for an app that others can not do without, unless `needed`.
        """

    async def status(self) -> tuple[AppStatus, ...]:
        """Every installed app, as it is now."""

    def installed(self) -> tuple[tuple[AppName, str, str], ...]:
        """(name, version, release digest) of what is installed, from durable state."""

    async def reconcile(self) -> None:
        """Look once and mend what is not as wanted, to its end."""

    def findings(self) -> tuple[Finding, ...]:
        """What is known to be wrong without asking the machine: what could not be mended, secrets that are lost."""

    async def checkup(self) -> tuple[Finding, ...]:
        """`findings`, and what is on the machine without an app."""

    async def logs(self, name: AppName, *, lines: int) -> list[str]:
        """The last lines of the app's journal."""


OpenOrchestrator = Callable[[Home, str], AbstractAsyncContextManager[OrchestratorPort]]
"""Takes the home and the unit prefix."""

Preflight = Callable[[], Awaitable[tuple[Finding, ...]]]
"""What the machine has and lacks."""
