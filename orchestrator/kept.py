"""Containers that somebody else made, in the place of an app's units: looked at, stopped, started again, removed.

Guarantees: they are named by id, so that another container under the same name is never touched; one that was set aside
does not come up by itself, and one that is brought back has the restart policy that it had, also where setting it aside
was cut off; no volume is removed with them. When each of this is to be done, others know (ADR 12).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from enum import Enum
from types import MappingProxyType
from typing import Final

from orchestrator.generations import Loaded
from orchestrator.health import Check, ContainerStatus
from orchestrator.homes import KeptContainer
from orchestrator.machine import Machine
from orchestrator.names import slice_name
from orchestrator.stranger import Stranger

log = logging.getLogger(__name__)

START: Final = 120.0
"""Seconds that Podman may take to start one again, on a busy machine; it waits for nothing of the app's."""
GRACE: Final = 10
"""Seconds for one of which no manifest is known any more; Podman's own default."""
STOPPING: Final = "stopping"
"""Podman's word for one that was told to end. It keeps it for as long as the container lives, whoever told it so."""


class Due(Enum):
    """What has to happen to an app's kept containers."""

    NOTHING = "nothing"
    STOP = "stop"
    """Its user stopped it, and they run."""
    UNITS = "units"
    """They do not run and should: there is nothing left to be spared."""


def due(kept: Iterable[KeptContainer], there: Mapping[str, Stranger], desired: str) -> Due:
    """Of what is seen and of the user's word alone."""
    alive = [box.id in there and there[box.id].alive for box in kept]
    if desired == "stopped":
        return Due.STOP if any(alive) else Due.NOTHING
    return Due.NOTHING if all(alive) else Due.UNITS


async def look_at(machine: Machine, kept: Iterable[KeptContainer]) -> dict[str, Stranger]:
    """Those that are there, by id. Raises Problem when Podman does not answer."""
    ids = [box.id for box in kept]
    return {box.id: box for box in await machine.podman.strangers(ids)} if ids else {}


async def set_aside(machine: Machine, loaded: Loaded) -> None:
    """Stop them, last first. Nothing but this node starts them again: not Podman's own service at boot either."""
    there = await look_at(machine, loaded.kept)
    for box in reversed(_in_order(loaded)):
        if (seen := there.get(box.id)) is None:
            continue
        if seen.alive:
            await machine.podman.stop(box.id, grace=_grace(loaded, box))
        if seen.restart != "no":
            await machine.podman.set_restart(box.id, "no")


async def bring_back(machine: Machine, loaded: Loaded) -> None:
    """Let them run again as they did. Those that are gone stay gone."""
    there = await look_at(machine, loaded.kept)
    for box in _in_order(loaded):
        if (seen := there.get(box.id)) is None:
            log.warning("an adopted container is gone", extra={"container": box.name})
            continue
        if seen.restart != box.restart:
            await machine.podman.set_restart(box.id, box.restart)
        if seen.state == STOPPING:
            # Whoever stopped it was cut off: it has its SIGTERM, goes down in its own time, and stays down
            await machine.podman.stop(box.id, grace=_grace(loaded, box))
        if not seen.alive or seen.state == STOPPING:
            await machine.podman.start(box.id, seconds=START, slice_=slice_name(machine.prefix))


async def discard(machine: Machine, kept: Iterable[KeptContainer]) -> None:
    """Stop and remove them; their volumes and folders stay."""
    there = await look_at(machine, kept)
    for box in there.values():
        if box.alive:
            await machine.podman.stop(box.id, grace=GRACE)
    await machine.podman.discard(sorted(there))


def _grace(loaded: Loaded, box: KeptContainer) -> int:
    container = loaded.manifest.containers.get(box.label)
    return container.stop_grace_secs if container else GRACE


def _in_order(loaded: Loaded) -> list[KeptContainer]:
    """As the manifest starts them."""
    kept = {box.label: box for box in loaded.kept}
    return [kept[box.label] for box in loaded.app.containers if box.label in kept]


def kept_checks(loaded: Loaded, there: Mapping[str, Stranger]) -> tuple[Check, ...]:
    """The manifest's checks of what they publish; what they do not, nobody reaches from outside."""
    found = []
    for box in loaded.kept:
        health, seen = loaded.manifest.containers[box.label].health, there.get(box.id)
        asked = health and (health.http or health.tcp)
        if health is None or not asked or seen is None:
            continue
        inside = {spec.name: spec.container for spec in loaded.manifest.containers[box.label].ports}
        port = asked.port if isinstance(asked.port, int) else inside.get(asked.port, 0)
        hosts = [p.host for p in seen.ports if p.container == port and p.protocol == "tcp" and _on_loopback(p.address)]
        if hosts:
            path = health.http.path if health.http else "/"
            found.append(Check(box.id, "http" if health.http else "tcp", hosts[0], "127.0.0.1", path, health.timeout))
    return tuple(found)


def as_published(loaded: Loaded, there: Mapping[str, Stranger]) -> Loaded:
    """With the host ports that they have, which their units may change: where they are opened now."""
    manifest, containers = loaded.manifest, dict(loaded.manifest.containers)
    for box in loaded.kept:
        seen, container = there.get(box.id), containers[box.label]
        hosts = {(port.container, port.protocol): port for port in seen.ports} if seen else {}
        ports = []
        for spec in container.ports:
            port = hosts.get((spec.container, spec.protocol))
            bind = "lan" if port is not None and port.everywhere else "loopback"
            ports.append(spec.model_copy(update={"host": port.host if port is not None else None, "bind": bind}))
        containers[box.label] = container.model_copy(update={"ports": tuple(ports)})
    return replace(loaded, manifest=manifest.model_copy(update={"containers": MappingProxyType(containers)}))


def _on_loopback(address: str) -> bool:
    return address in ("", "0.0.0.0", "127.0.0.1")


_STATES: Final = {"running": "running", "paused": "running", "restarting": "restarting", "stopping": "stopping"}


def kept_statuses(
    loaded: Loaded, there: Mapping[str, Stranger], answers: Mapping[str, str]
) -> tuple[ContainerStatus, ...]:
    """How they are. One that nobody can ask counts as without a check."""
    found = []
    for box in _in_order(loaded):
        seen, answer = there.get(box.id), answers.get(box.id)
        state = _STATES.get(seen.state, "stopped") if seen else "missing"
        health = "none" if answer is None else "unhealthy" if answer else "healthy"
        found.append(ContainerStatus(box.label, "", state, health, 0, answer or f"adopted: {box.name}"))
    return tuple(found)
