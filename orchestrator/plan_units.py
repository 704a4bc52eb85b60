"""What counts as running, for systemd and for Podman. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.podman import ContainerSeen
from orchestrator.quadlet.render import STOP_MARGIN
from orchestrator.quadlet.rendered import RenderedApp, RenderedContainer
from orchestrator.systemd import UnitState

UP = ("active", "activating", "reloading")
"""States in which systemd runs a service, starts it, or will start it again."""

ALIVE = ("initialized", "running", "paused", "stopping", "restarting", "removing")
"""States in which Podman has a container whose process lives, begins (systemd hears of it a moment before Podman
writes it down) or is about to end in order. One whose process Podman lost track of is `created` again, or `exited`."""


def up(services: Mapping[str, UnitState], name: str) -> bool:
    """Does systemd run it, or is about to?"""
    state = services.get(name)
    return state is not None and state.active in UP


def vanished(
    container: RenderedContainer, services: Mapping[str, UnitState], boxes: Mapping[str, ContainerSeen]
) -> bool:
    """Systemd runs it and Podman does not know it, or knows it as ended: Podman lost its state (R-FM6)."""
    unit = services.get(container.service)
    if unit is None or unit.active != "active":
        return False
    seen = boxes.get(container.name)
    return seen is None or seen.state not in ALIVE


def stop_seconds(app: RenderedApp) -> int:
    """Systemd stops what needs one another in turn, each with its own grace; the deadline is the sum."""
    return sum(container.grace + STOP_MARGIN for container in app.containers)
