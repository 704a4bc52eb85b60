"""What is wanted, what is seen, and the steps from one to the other.

Guarantees: a pure function of its arguments; planning again after the steps worked gives nothing; an unknown
observation gives nothing at all (R-ST18); no step removes a secret's value, and a volume is removed only
by an `Absent` with `purge` (invariant 4). It never asks why it was called.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from orchestrator.derived import DerivedFile, DerivedSeen
from orchestrator.links import link_prefix
from orchestrator.names import Names, first_turn, service_of
from orchestrator.podman import ContainerSeen, Inventory
from orchestrator.quadlet.build import UNBUILT
from orchestrator.quadlet.render import STOP_MARGIN, RenderedApp, RenderedContainer
from orchestrator.shares import Shares
from orchestrator.steps import (
    BuildImage,
    ClearBuilds,
    Connect,
    CreateLink,
    DaemonReload,
    ImportImage,
    Reload,
    RemoveBuilds,
    RemoveContainers,
    RemoveDerived,
    RemoveImages,
    RemoveLink,
    RemoveNetwork,
    RemoveSecrets,
    RemoveVolume,
    ResetFailed,
    Restart,
    Start,
    Step,
    StopUnits,
    WriteDerived,
    WriteSecrets,
    WriteUnits,
)
from orchestrator.systemd import UnitState
from orchestrator.unit_folder import OwnedFile

UP = ("active", "activating", "reloading")
"""States in which systemd runs a service, starts it, or will start it again."""

ALIVE = ("initialized", "running", "paused", "stopping", "restarting", "removing")
"""States in which Podman has a container whose process lives, begins (systemd hears of it a moment before Podman
writes it down) or is about to end in order. One whose process Podman lost track of is `created` again, or `exited`."""

NETWORK_WAIT = 100
"""Seconds that Podman's own podman-user-wait-network-online.service may hold a first start back (it gives up at 90)."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The app is to be there: running, or stopped by its user. Images (`name@digest`) in `keep` are not collected."""

    app: RenderedApp
    running: bool
    keep: frozenset[str] = frozenset()
    derived: tuple[DerivedFile, ...] = ()


@dataclass(frozen=True, slots=True)
class Absent:
    """The app is to be gone, with all its images and these secrets (as Podman names them), however often rotated.

    `services` are those of its containers, in the order to stop them; `seconds` is the deadline for that. With
    `purge` its volumes go too, except those in `spare`.
    """

    names: Names
    services: tuple[str, ...]
    secrets: tuple[str, ...]
    seconds: int
    purge: bool = False
    spare: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Observed:
    """One look at reality. None is Unknown. `inventory` is None on a quick look, and then taken to be in order."""

    files: Mapping[str, OwnedFile]
    services: Mapping[str, UnitState] | None
    containers: tuple[ContainerSeen, ...] | None
    inventory: Inventory | None
    derived: Mapping[str, DerivedSeen] = field(default_factory=dict)
    """By the app's slug."""
    builds: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Containers whose builds were begun and not cleared, by the app's slug."""

    @cached_property
    def shares(self) -> Shares:
        """What each app has of it."""
        return Shares(self.files, self.containers, self.inventory)

    def of(self, want: Wanted | Absent) -> Observed:
        """The share of it that a plan for one app reads: a tick plans for all of them, from one look."""
        names = want.app.names if isinstance(want, Wanted) else want.names
        named = [box.name for box in want.app.containers] if isinstance(want, Wanted) else []
        inventory = self.shares.inventory(names)
        containers = self.shares.containers(names.slug, named, inventory.links if inventory else ())
        return Observed(self.shares.files(names.slug), self.services, containers, inventory, self.derived, self.builds)


def plan(want: Wanted | Absent, seen: Observed) -> tuple[Step, ...]:
    """The steps for one app, in the order in which they are to be taken."""
    seen = seen.of(want)
    if seen.services is None or seen.containers is None:
        return ()
    if isinstance(want, Absent):
        return tuple(_remove(want, seen, seen.services, seen.containers))
    return tuple(_converge(want, seen, seen.services, seen.containers))


def unclaimed(known: frozenset[str], seen: Observed) -> tuple[str, ...]:
    """Unit files and containers of this node that belong to no known app: reported, never removed (R-ST7)."""
    found = {f"unit {name}" for name, file in seen.files.items() if file.owner not in known}
    for container in seen.containers or ():
        if container.labels.get("archy.app", "") not in known:
            found.add(f"container {container.name}")
    return tuple(sorted(found))


def _owned(slug: str, seen: Observed) -> dict[str, str]:
    return {name: file.text for name, file in seen.files.items() if file.owner == slug}


def _up(services: Mapping[str, UnitState], name: str) -> bool:
    state = services.get(name)
    return state is not None and state.active in UP


def _known(services: Mapping[str, UnitState], name: str) -> bool:
    state = services.get(name)
    return state is not None and (state.load, state.active) != ("not-found", "inactive")


def _converge(
    want: Wanted, seen: Observed, services: Mapping[str, UnitState], containers: tuple[ContainerSeen, ...]
) -> Iterator[Step]:
    app = want.app
    files = {**app.files, **(app.boot if want.running else {})}
    owned = _owned(app.names.slug, seen)
    changed = {name: text for name, text in files.items() if owned.get(name) != text}
    removed = tuple(sorted(set(owned) - set(files)))
    if want.running and seen.inventory is not None:
        yield from _provide(app, seen.inventory)
    if lacking := _lacking(app, seen.inventory) if want.running else []:
        # What units pin is known once these are built: another look plans on from there
        yield from _build(app, lacking, owned)
        return
    if begun := tuple(sorted(seen.builds.get(app.names.slug, ()))):
        yield ClearBuilds(begun)
    if want.running and seen.inventory is not None:
        yield from _links(app, seen.inventory, containers)
    leaving = tuple(s for s in map(service_of, removed) if s and _up(services, s))
    if not want.running:
        leaving += tuple(reversed([c.service for c in app.containers if _up(services, c.service)]))
    if leaving:
        yield StopUnits(leaving, stop_seconds(app))
    stale = want.running and seen.inventory is not None and _network_differs(app, seen.inventory)
    if stale and seen.inventory is not None:
        yield from _new_network(app, services, seen.inventory)
    elif want.running and seen.inventory is not None:
        lost = tuple(_lost_volumes(app, services, containers, seen.inventory))
        stale = any(isinstance(step, StopUnits) and set(step.services) & set(app.services) for step in lost)
        yield from lost
    behind = _behind(want, seen, containers) if want.running else {}
    if want.running:
        yield from _derive(want, seen, behind)
    if changed or removed:
        yield WriteUnits(MappingProxyType(changed), removed)
    if changed or removed or _unloaded(app, services):
        yield DaemonReload()
    if not want.running:
        yield from _forget(app.services, services)
    if want.running:
        yield from _run(app, services, containers, behind, stopped=stale)
    if seen.inventory is not None:
        yield from _collect(want, seen.inventory)


def _forget(names: Iterable[str], services: Mapping[str, UnitState]) -> Iterator[Step]:
    if failed := tuple(name for name in names if name in services and services[name].active == "failed"):
        yield ResetFailed(failed)


def stop_seconds(app: RenderedApp) -> int:
    """Systemd stops what needs one another in turn, each with its own grace; the deadline is the sum."""
    return sum(container.grace + STOP_MARGIN for container in app.containers)


def _provide(app: RenderedApp, inventory: Inventory) -> Iterator[Step]:
    lacking = tuple(name for name in app.secrets if app.names.secret(name) not in inventory.secrets)
    if lacking:
        yield WriteSecrets(lacking)
    there = {f"{image.name}@{image.digest}" for image in inventory.images}
    for container in app.containers:
        if container.build is None and container.image not in there:
            yield ImportImage(container.label, container.image)


def _lacking(app: RenderedApp, inventory: Inventory | None) -> list[RenderedContainer]:
    """Containers whose image is to be built: it never was, or Podman has lost it."""
    there = None if inventory is None else {f"{image.name}@{image.digest}" for image in inventory.images}
    return [
        box
        for box in app.containers
        if box.build is not None and (box.image.endswith(UNBUILT) or (there is not None and box.image not in there))
    ]


def _build(app: RenderedApp, lacking: list[RenderedContainer], owned: Mapping[str, str]) -> Iterator[Step]:
    builds = {box.label: box.build for box in lacking if box.build is not None}
    units = {build.unit: app.files[build.unit] for build in builds.values()}
    if changed := {name: text for name, text in units.items() if owned.get(name) != text}:
        yield WriteUnits(MappingProxyType(changed), ())
        yield DaemonReload()
    for label, build in builds.items():
        yield BuildImage(label, build)


def _network_differs(app: RenderedApp, inventory: Inventory) -> bool:
    """Gone behind its service's back, or made by another version: the service does not make it again by itself."""
    return inventory.networks.get(app.network) != app.network_spec


def _new_network(app: RenderedApp, services: Mapping[str, UnitState], inventory: Inventory) -> Iterator[Step]:
    users = tuple(reversed([c.service for c in app.containers if _up(services, c.service)]))
    service = (app.names.network_service,) if _up(services, app.names.network_service) else ()
    if users or service:
        yield StopUnits(users + service, stop_seconds(app))
    if app.network in inventory.networks:
        yield RemoveNetwork(app.network)


def _lost_volumes(
    app: RenderedApp,
    services: Mapping[str, UnitState],
    containers: tuple[ContainerSeen, ...],
    inventory: Inventory,
) -> Iterator[Step]:
    """A volume that Podman does not know would be made by `podman run`, without its owner and its labels."""
    lost = tuple(f"{name}-volume.service" for name in app.volumes if name not in inventory.volumes)
    if not lost:
        return
    users = tuple(reversed([c.service for c in app.containers if _up(services, c.service)]))
    if users and not any(_vanished(c, services, containers) for c in app.containers):
        return  # they run on it
    active = tuple(service for service in lost if _up(services, service))
    if active:
        yield StopUnits(users + active, stop_seconds(app) if users else STOP_MARGIN)


def _vanished(
    container: RenderedContainer, services: Mapping[str, UnitState], containers: tuple[ContainerSeen, ...]
) -> bool:
    """Systemd runs it and Podman does not know it, or knows it as ended: Podman lost its state (R-FM6)."""
    unit = services.get(container.service)
    if unit is None or unit.active != "active":
        return False
    return not any(seen.name == container.name and seen.state in ALIVE for seen in containers)


def _collect(want: Wanted, inventory: Inventory) -> Iterator[Step]:
    """Secrets that were rotated away, and images of generations that are no longer kept."""
    current = {want.app.names.secret(label) for label in want.app.secrets}
    if others := inventory.secrets - current:
        bases = {first_turn(name) for name in current}
        if old := sorted(name for name in others if first_turn(name) in bases):
            yield RemoveSecrets(tuple(old))
    start = want.app.names.image("")
    kept = want.keep | {container.image for container in want.app.containers}
    images = [i for i in inventory.images if i.name.startswith(start) and i.tag and f"{i.name}@{i.digest}" not in kept]
    if images:
        yield RemoveImages(tuple(sorted(f"{image.name}:{image.tag}" for image in images)))


def _unloaded(app: RenderedApp, services: Mapping[str, UnitState]) -> bool:
    """A crash between writing and reloading leaves files that systemd has not read."""
    for container in app.containers:
        state = services.get(container.service)
        if state is None or state.load == "not-found" or state.needs_reload:
            return True
    return False


def _differing(want: Wanted, seen: Observed) -> tuple[DerivedFile, ...]:
    there = seen.derived.get(want.app.names.slug, DerivedSeen()).files
    return tuple(file for file in want.derived if there.get(file.path) != file.mark)


def _behind(want: Wanted, seen: Observed, containers: tuple[ContainerSeen, ...]) -> dict[str, tuple[str, str]]:
    """Running containers that have not seen their newest derived files: (id, restart or reload) by label."""
    running = {box.name: box.id for box in containers}
    found: dict[str, tuple[str, str]] = {}
    for label, (waiting, action) in seen.derived.get(want.app.names.slug, DerivedSeen()).pending.items():
        if running.get(want.app.names.container(label)) == waiting:
            found[label] = (waiting, action)
    for file in _differing(want, seen):
        id_ = running.get(want.app.names.container(file.container))
        if id_ is not None and file.on_change != "none" and found.get(file.container, ("", ""))[1] != "restart":
            found[file.container] = (id_, file.on_change)
    return found


def _derive(want: Wanted, seen: Observed, behind: Mapping[str, tuple[str, str]]) -> Iterator[Step]:
    there = seen.derived.get(want.app.names.slug, DerivedSeen()).files
    files = _differing(want, seen)
    removed = tuple(sorted(set(there) - {file.path for file in want.derived}))
    if files or removed:
        yield WriteDerived(files, removed, MappingProxyType(dict(behind)))


def _run(
    app: RenderedApp,
    services: Mapping[str, UnitState],
    containers: tuple[ContainerSeen, ...],
    behind: Mapping[str, tuple[str, str]],
    *,
    stopped: bool,
) -> Iterator[Step]:
    by_name = {seen.name: seen for seen in containers}
    for container in app.containers:
        if stopped or not _up(services, container.service):
            known = _known(services, container.service)
            yield Start(container.service, container.start_timeout + NETWORK_WAIT, known)
            continue
        running, action = by_name.get(container.name), behind.get(container.label, ("", ""))[1]
        differs = running is not None and not _same(container, running)
        if action == "restart" or differs or _vanished(container, services, containers):
            seconds = container.start_timeout + container.grace + STOP_MARGIN + NETWORK_WAIT
            yield Restart(container.service, seconds)  # R-ST19
            continue
        if action == "reload":
            yield Reload(container.label, container.name)
        if running is not None:
            yield from _join(container, running, app.names.prefix)


def _links(
    app: RenderedApp, inventory: Inventory, containers: tuple[ContainerSeen, ...]
) -> Iterator[CreateLink | RemoveLink]:
    """Shared networks that are wanted and not there, or there for nothing."""
    wanted = {network.name: network for network in app.links}
    for name, seen in sorted(inventory.links.items()):
        if app.names.slug in (seen.provider, seen.dependant) and wanted.get(name) != seen:
            yield RemoveLink(name, _in_network(name, containers))
    for name, network in wanted.items():
        if inventory.links.get(name) != network:
            yield CreateLink(network)


def _in_network(name: str, containers: tuple[ContainerSeen, ...]) -> tuple[str, ...]:
    return tuple(sorted(box.name for box in containers if name in box.networks))


def _join(container: RenderedContainer, running: ContainerSeen, prefix: str) -> Iterator[Connect | RemoveLink]:
    for network, aliases in sorted(container.joined.items()):
        if network not in running.networks:
            yield Connect(network, container.name, aliases)
    for network in sorted(running.networks - set(container.joined)):
        if network.startswith(link_prefix(prefix)):
            yield RemoveLink(network, (container.name,), kept=True)


def _same(container: RenderedContainer, running: ContainerSeen) -> bool:
    # The image id is the digest of the config, so that what runs is what was signed (R-MF11).
    return running.labels.get("archy.spec") == container.spec and running.image_id == container.config


def _remove(
    want: Absent, seen: Observed, services: Mapping[str, UnitState], containers: tuple[ContainerSeen, ...]
) -> Iterator[Step]:
    slug = want.names.slug
    owned = tuple(sorted(_owned(slug, seen)))
    known = dict.fromkeys((*want.services, *filter(None, map(service_of, owned)), want.names.network_service))
    up = tuple(service for service in known if _up(services, service))
    if up:
        yield StopUnits(up, want.seconds)
    if owned:
        yield WriteUnits(MappingProxyType({}), owned)
    if owned or any(services[service].load == "loaded" for service in known if service in services):
        yield DaemonReload()
    yield from _forget(known, services)
    if left := tuple(sorted(c.name for c in containers if c.labels.get("archy.app") == slug)):
        yield RemoveContainers(left)
    if slug in seen.derived:
        yield RemoveDerived()
    if slug in seen.builds:
        yield RemoveBuilds(tuple(sorted(seen.builds[slug])))
    if seen.inventory is not None:
        yield from _remove_inventory(want, seen.inventory)
        for name, link in sorted(seen.inventory.links.items()):
            if slug in (link.provider, link.dependant):
                yield RemoveLink(name, _in_network(name, containers))


def _remove_inventory(want: Absent, inventory: Inventory) -> Iterator[Step]:
    names = want.names
    if names.network in inventory.networks:
        yield RemoveNetwork(names.network)
    bases = {first_turn(name) for name in want.secrets}
    if secrets := tuple(sorted(name for name in inventory.secrets if first_turn(name) in bases)):
        yield RemoveSecrets(secrets)
    start = names.image("")
    if images := sorted(f"{i.name}:{i.tag}" for i in inventory.images if i.name.startswith(start) and i.tag):
        yield RemoveImages(tuple(images))
    for volume, owner in sorted(inventory.volumes.items()):
        if want.purge and owner == names.slug and volume not in want.spare:
            yield RemoveVolume(volume)
