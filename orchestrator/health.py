"""Which check tells a container's health, and what its answer means. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from apps.manifest import Manifest
from apps.manifest_parts import Container
from orchestrator.names import Names
from orchestrator.podman import ContainerSeen
from orchestrator.quadlet.render import health_window
from orchestrator.systemd import UnitState

MIN_WINDOW = 30
"""Seconds an app without any check may take until its services are up."""


@dataclass(frozen=True, slots=True)
class Check:
    """An http or tcp check. `address` is 127.0.0.1 for a published port, else empty: inside the app's network."""

    container: str
    """Name at Podman."""
    kind: str
    port: int
    address: str = ""
    path: str = "/"
    seconds: int = 5


@dataclass(frozen=True, slots=True)
class ContainerStatus:
    """A container for people. `health`: healthy, unhealthy, starting, none (no check), unknown.

    `detail`: what its check said, or how it ended.
    """

    name: str
    service: str
    state: str
    health: str
    restarts: int = 0
    detail: str = ""
    companion: bool = False
    """It serves the app, whose state does not depend on it."""
    since: int | None = None
    """Unix seconds at which it came into this state; None where that is not known."""

    def to_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "service": self.service,
            "state": self.state,
            "health": self.health,
            "restarts": self.restarts,
            "detail": self.detail,
            "companion": self.companion,
            "since": self.since,
        }


def checks(manifest: Manifest, names: Names) -> tuple[Check, ...]:
    """The checks that our own prober makes."""
    found = []
    for label, container in manifest.containers.items():
        health = container.health
        asked = health and (health.http or health.tcp)
        if health is None or not asked:
            continue
        port, published = _resolve(container, asked.port)
        found.append(
            Check(
                names.container(label),
                "http" if health.http else "tcp",
                published or port,
                "127.0.0.1" if published else "",
                health.http.path if health.http else "/",
                health.timeout,
            )
        )
    return tuple(found)


def _resolve(container: Container, port: int | str) -> tuple[int, int | None]:
    """(port inside, host port where it is published)."""
    for spec in container.ports:
        if port in (spec.name, spec.container) and spec.protocol == "tcp":
            return spec.container, spec.host if isinstance(spec.host, int) else None
    return (port, None) if isinstance(port, int) else (0, None)


def window(manifest: Manifest, *, update: bool) -> int:
    """Seconds an installation or update may take to become healthy, from its start."""
    if update and manifest.updates.health_window_secs is not None:
        return manifest.updates.health_window_secs
    checked = [health_window(container.health) for container in manifest.containers.values() if container.health]
    return max(checked, default=MIN_WINDOW)


_STATES: Mapping[tuple[str, str], str] = {
    ("activating", "auto-restart"): "restarting",
    ("activating", "auto-restart-queued"): "restarting",
}
_ACTIVE: Mapping[str, str] = {
    "active": "running",
    "reloading": "running",
    "activating": "starting",
    "deactivating": "stopping",
    "failed": "failed",
    "inactive": "stopped",
}


def container_state(unit: UnitState | None) -> str:
    """running, starting, restarting, stopping, stopped, failed, missing."""
    if unit is None or unit.load == "not-found":
        return "missing"
    return _STATES.get((unit.active, unit.sub)) or _ACTIVE.get(unit.active, "unknown")


def judge(
    manifest: Manifest,
    names: Names,
    services: Mapping[str, UnitState],
    containers: Mapping[str, ContainerSeen],
    answers: Mapping[str, str],
) -> tuple[ContainerStatus, ...]:
    """The status of every container. `answers`: container name -> "" for a good answer, else what went wrong."""
    found = []
    for label, container in manifest.containers.items():
        name, service = names.container(label), names.service(label)
        unit = services.get(service)
        state = container_state(unit)
        health, detail = _health(container, containers.get(name), state, answers.get(name))
        restarts, since, ended = (unit.restarts, unit.since, unit.ended) if unit else (0, None, "")
        detail = detail if state == "running" else ended
        aside = label in manifest.companions
        found.append(ContainerStatus(label, service, state, health, restarts, detail, aside, since))
    return tuple(found)


def _health(container: Container, seen: ContainerSeen | None, state: str, answer: str | None) -> tuple[str, str]:
    if container.health is None:
        return "none", ""
    if state != "running":
        return "unknown", ""
    if container.health.cmd:
        return (seen.health or "starting") if seen else "unknown", ""
    if answer is None:
        return "unknown", ""
    return ("unhealthy", answer) if answer else ("healthy", "")


def ready(statuses: tuple[ContainerStatus, ...]) -> bool:
    """Everything but companions runs, and everything that has a check passed it."""
    return all(s.state == "running" and s.health in ("healthy", "none") for s in statuses if not s.companion)


def app_state(desired: str, statuses: tuple[ContainerStatus, ...]) -> str:
    """One word for the app. A user's stop reads `stopped` whatever else still answers (R-ST3)."""
    statuses = tuple(status for status in statuses if not status.companion)
    states = {status.state for status in statuses}
    if desired == "stopped":
        return "stopping" if states & {"running", "stopping", "starting", "restarting"} else "stopped"
    if ready(statuses):
        return "running"
    for word in ("failed", "restarting", "stopping"):
        if word in states:
            return word
    if states == {"running"}:
        return "unhealthy" if any(status.health == "unhealthy" for status in statuses) else "starting"
    return "starting"
