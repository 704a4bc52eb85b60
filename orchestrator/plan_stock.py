"""What Podman keeps for an app beside its containers (images, secrets, networks, volumes): the steps that mend it.

Guarantees: no step removes a secret's value; a volume is removed only by `removal` with `purge` (invariant 4). Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from orchestrator.names import Names, first_turn
from orchestrator.plan_units import stop_seconds, up, vanished
from orchestrator.podman import ContainerSeen, Inventory
from orchestrator.quadlet.build import UNBUILT
from orchestrator.quadlet.render import STOP_MARGIN
from orchestrator.quadlet.rendered import RenderedApp, RenderedContainer
from orchestrator.steps import (
    CreateLink,
    ImportImage,
    RemoveImages,
    RemoveLink,
    RemoveNetwork,
    RemoveSecrets,
    RemoveVolume,
    Step,
    StopUnits,
    WriteSecrets,
)
from orchestrator.systemd import UnitState


def provide(app: RenderedApp, inventory: Inventory) -> Iterator[Step]:
    """Secrets and images that are not there yet."""
    held = inventory.secrets
    if lost := tuple(label for label, name in app.podman_secrets.items() if name not in held):
        yield WriteSecrets(lost)
    there = {image.pinned for image in inventory.images}
    for container in app.containers:
        if container.build is None and container.image not in there:
            yield ImportImage(container.label, container.image)


def lacking(app: RenderedApp, inventory: Inventory | None) -> list[RenderedContainer]:
    """Containers whose image is to be built: it never was, or Podman has lost it."""
    if not app.builds:
        return []
    there = None if inventory is None else {image.pinned for image in inventory.images}
    return [
        box
        for box in app.containers
        if box.build is not None and (box.image.endswith(UNBUILT) or (there is not None and box.image not in there))
    ]


def network_differs(app: RenderedApp, inventory: Inventory) -> bool:
    """Gone behind its service's back, or made by another version: the service does not make it again by itself."""
    return inventory.networks.get(app.network) != app.network_spec


def new_network(app: RenderedApp, services: Mapping[str, UnitState], inventory: Inventory) -> Iterator[Step]:
    users = tuple(reversed([c.service for c in app.containers if up(services, c.service)]))
    service = (app.names.network_service,) if up(services, app.names.network_service) else ()
    if users or service:
        yield StopUnits(users + service, stop_seconds(app))
    if app.network in inventory.networks:
        yield RemoveNetwork(app.network)


def lost_volumes(
    app: RenderedApp,
    services: Mapping[str, UnitState],
    boxes: Mapping[str, ContainerSeen],
    inventory: Inventory,
) -> Iterator[Step]:
    """A volume that Podman does not know would be made by `podman run`, without its owner and its labels."""
    lost = tuple(f"{name}-volume.service" for name in app.volumes if name not in inventory.volumes)
    if not lost:
        return
    users = tuple(reversed([c.service for c in app.containers if up(services, c.service)]))
    if users and not any(vanished(c, services, boxes) for c in app.containers):
        return  # they run on it
    active = tuple(service for service in lost if up(services, service))
    if active:
        yield StopUnits(users + active, stop_seconds(app) if users else STOP_MARGIN)


def collect(app: RenderedApp, keep: frozenset[str], inventory: Inventory) -> Iterator[Step]:
    """Secrets that were rotated away, and images of generations that are no longer kept."""
    current = app.podman_secrets.values()
    if others := inventory.secrets.difference(current):
        bases = {first_turn(name) for name in current}
        if old := sorted(name for name in others if first_turn(name) in bases):
            yield RemoveSecrets(tuple(old))
    wanted = {container.image for container in app.containers}
    loose = [i for i in inventory.images if i.tag and i.pinned not in wanted and i.pinned not in keep]
    if loose:
        start = app.names.image("")
        if images := sorted(f"{image.name}:{image.tag}" for image in loose if image.name.startswith(start)):
            yield RemoveImages(tuple(images))


def links(
    app: RenderedApp, inventory: Inventory, containers: tuple[ContainerSeen, ...]
) -> Iterator[CreateLink | RemoveLink]:
    """Shared networks that are wanted and not there, or there for nothing."""
    if not app.links and not inventory.links:
        return
    wanted = {network.name: network for network in app.links}
    for name, seen in sorted(inventory.links.items()):
        if app.names.slug in (seen.provider, seen.dependant) and wanted.get(name) != seen:
            yield RemoveLink(name, in_network(name, containers))
    for name, network in wanted.items():
        if inventory.links.get(name) != network:
            yield CreateLink(network)


def in_network(name: str, containers: tuple[ContainerSeen, ...]) -> tuple[str, ...]:
    """Containers that are in a network."""
    return tuple(sorted(box.name for box in containers if name in box.networks))


def removal(names: Names, secrets_of: Iterable[str], inventory: Inventory, volumes: Iterable[str]) -> Iterator[Step]:
    """All that Podman keeps for an app; of its volumes these alone."""
    if names.network in inventory.networks:
        yield RemoveNetwork(names.network)
    bases = {first_turn(name) for name in secrets_of}
    if secrets := tuple(sorted(name for name in inventory.secrets if first_turn(name) in bases)):
        yield RemoveSecrets(secrets)
    start = names.image("")
    if images := sorted(f"{i.name}:{i.tag}" for i in inventory.images if i.name.startswith(start) and i.tag):
        yield RemoveImages(tuple(images))
    for volume in sorted(volumes):
        yield RemoveVolume(volume)
