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
from orchestrator.names import Names, service_of
from orchestrator.plan_stock import (
    collect,
    in_network,
    lacking,
    links,
    lost_volumes,
    network_differs,
    new_network,
    provide,
    removal,
)
from orchestrator.plan_units import stop_seconds, up, vanished
from orchestrator.podman import ContainerSeen, Inventory
from orchestrator.quadlet.render import STOP_MARGIN
from orchestrator.quadlet.rendered import RenderedApp, RenderedContainer
from orchestrator.shares import Shares
from orchestrator.steps import (
    BuildImage,
    ClearBuilds,
    Connect,
    DaemonReload,
    Reload,
    RemoveBuilds,
    RemoveContainers,
    RemoveDerived,
    RemoveLink,
    ResetFailed,
    Restart,
    Start,
    Step,
    StopUnits,
    WriteDerived,
    WriteUnits,
)
from orchestrator.systemd import UnitState
from orchestrator.unit_folder import OwnedFile

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
    `purge` its volumes go too, except those in `spare`; those in `drop` go anyway.
    """

    names: Names
    services: tuple[str, ...]
    secrets: tuple[str, ...]
    seconds: int
    purge: bool = False
    spare: frozenset[str] = frozenset()
    drop: frozenset[str] = frozenset()


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


@dataclass(slots=True)
class _Share:
    """What a plan for one app reads of a look: a tick plans for all of them, from one look."""

    owned: Mapping[str, str]
    """Its unit files: name -> text."""
    services: Mapping[str, UnitState]
    containers: tuple[ContainerSeen, ...]
    boxes: Mapping[str, ContainerSeen]
    """The same by name."""
    inventory: Inventory | None
    derived: DerivedSeen | None
    builds: frozenset[str] | None
    """Begun and not cleared; None without a folder for them."""


def _share(names: Names, named: Iterable[str], seen: Observed) -> _Share | None:
    """None while systemd or Podman is unknown."""
    shares, slug = seen.shares, names.slug
    inventory = shares.inventory(names)
    containers = shares.containers(slug, named, inventory.links if inventory else ())
    if seen.services is None or containers is None:
        return None
    boxes = {box.name: box for box in containers}
    owned, begun = shares.texts(slug), seen.builds.get(slug)
    return _Share(owned, seen.services, containers, boxes, inventory, seen.derived.get(slug), begun)


def plan(want: Wanted | Absent, seen: Observed) -> tuple[Step, ...]:
    """The steps for one app, in the order in which they are to be taken."""
    if isinstance(want, Absent):
        share = _share(want.names, (), seen)
        return () if share is None else tuple(_remove(want, share))
    share = _share(want.app.names, [box.name for box in want.app.containers], seen)
    return () if share is None else tuple(_converge(want, share))


def unclaimed(known: frozenset[str], seen: Observed) -> tuple[str, ...]:
    """Unit files and containers of this node that belong to no known app: reported, never removed (R-ST7)."""
    found = {f"unit {name}" for name, file in seen.files.items() if file.owner not in known}
    for container in seen.containers or ():
        if container.labels.get("archy.app", "") not in known:
            found.add(f"container {container.name}")
    return tuple(sorted(found))


def _known(services: Mapping[str, UnitState], name: str) -> bool:
    state = services.get(name)
    return state is not None and (state.load, state.active) != ("not-found", "inactive")


def _converge(want: Wanted, seen: _Share) -> Iterator[Step]:
    app, services, owned = want.app, seen.services, seen.owned
    stock = seen.inventory if want.running else None
    files = app.every if want.running else app.files
    changed: dict[str, str] = {}
    removed: tuple[str, ...] = ()
    if owned != files:
        changed = {name: text for name, text in files.items() if owned.get(name) != text}
        removed = tuple(sorted(owned.keys() - files.keys()))
    if stock is not None:
        yield from provide(app, stock)
    if missing := lacking(app, seen.inventory) if want.running else []:
        # What units pin is known once these are built: another look plans on from there
        yield from _build(app, missing, owned)
        return
    if seen.builds:
        yield ClearBuilds(tuple(sorted(seen.builds)))
    if stock is not None:
        yield from links(app, stock, seen.containers)
    leaving = tuple(s for s in map(service_of, removed) if s and up(services, s))
    if not want.running:
        leaving += tuple(reversed([c.service for c in app.containers if up(services, c.service)]))
    if leaving:
        yield StopUnits(leaving, stop_seconds(app))
    stale = False
    if stock is not None and network_differs(app, stock):
        stale = True
        yield from new_network(app, services, stock)
    elif stock is not None:
        for step in lost_volumes(app, services, seen.boxes, stock):
            stale = stale or (isinstance(step, StopUnits) and bool(set(step.services) & set(app.services)))
            yield step
    behind: Mapping[str, tuple[str, str]] = {}
    if want.running and (want.derived or seen.derived is not None):
        differing = _differing(want, seen)
        behind = _behind(want, seen, differing)
        yield from _derive(want, seen, differing, behind)
    if changed or removed:
        yield WriteUnits(MappingProxyType(changed), removed)
    if changed or removed or _unloaded(app, services):
        yield DaemonReload()
    if want.running:
        yield from _run(app, services, seen.boxes, behind, stopped=stale)
    else:
        yield from _forget(app.services, services)
    if seen.inventory is not None:
        yield from collect(app, want.keep, seen.inventory)


def _forget(names: Iterable[str], services: Mapping[str, UnitState]) -> Iterator[Step]:
    if failed := tuple(name for name in names if name in services and services[name].active == "failed"):
        yield ResetFailed(failed)


def _build(app: RenderedApp, lacking: list[RenderedContainer], owned: Mapping[str, str]) -> Iterator[Step]:
    builds = {box.label: box.build for box in lacking if box.build is not None}
    units = {build.unit: app.files[build.unit] for build in builds.values()}
    if changed := {name: text for name, text in units.items() if owned.get(name) != text}:
        yield WriteUnits(MappingProxyType(changed), ())
        yield DaemonReload()
    for label, build in builds.items():
        yield BuildImage(label, build)


def _unloaded(app: RenderedApp, services: Mapping[str, UnitState]) -> bool:
    """A crash between writing and reloading leaves files that systemd has not read."""
    for container in app.containers:
        state = services.get(container.service)
        if state is None or state.load == "not-found" or state.needs_reload:
            return True
    return False


def _differing(want: Wanted, seen: _Share) -> tuple[DerivedFile, ...]:
    there = seen.derived.files if seen.derived is not None else {}
    return tuple(file for file in want.derived if there.get(file.path) != file.mark)


def _behind(want: Wanted, seen: _Share, differing: tuple[DerivedFile, ...]) -> dict[str, tuple[str, str]]:
    """Running containers that have not seen their newest derived files: (id, restart or reload) by label."""
    names = want.app.names
    running = {name: box.id for name, box in seen.boxes.items()}
    found: dict[str, tuple[str, str]] = {}
    for label, (waiting, action) in seen.derived.pending.items() if seen.derived is not None else ():
        if running.get(names.container(label)) == waiting:
            found[label] = (waiting, action)
    for file in differing:
        id_ = running.get(names.container(file.container))
        if id_ is not None and file.on_change != "none" and found.get(file.container, ("", ""))[1] != "restart":
            found[file.container] = (id_, file.on_change)
    return found


def _derive(
    want: Wanted, seen: _Share, differing: tuple[DerivedFile, ...], behind: Mapping[str, tuple[str, str]]
) -> Iterator[Step]:
    there = seen.derived.files if seen.derived is not None else {}
    removed = tuple(sorted(set(there) - {file.path for file in want.derived}))
    if differing or removed:
        yield WriteDerived(differing, removed, MappingProxyType(dict(behind)))


def _run(
    app: RenderedApp,
    services: Mapping[str, UnitState],
    boxes: Mapping[str, ContainerSeen],
    behind: Mapping[str, tuple[str, str]],
    *,
    stopped: bool,
) -> Iterator[Step]:
    for container in app.containers:
        if stopped or not up(services, container.service):
            known = _known(services, container.service)
            yield Start(container.service, container.start_timeout + NETWORK_WAIT, known)
            continue
        running = boxes.get(container.name)
        action = behind[container.label][1] if container.label in behind else ""
        differs = running is not None and not _same(container, running)
        if action == "restart" or differs or vanished(container, services, boxes):
            seconds = container.start_timeout + container.grace + STOP_MARGIN + NETWORK_WAIT
            yield Restart(container.service, seconds)  # R-ST19
            continue
        if action == "reload":
            yield Reload(container.label, container.name)
        if running is not None and (container.joined or running.networks):
            yield from _join(container, running, app.names.prefix)


def _join(container: RenderedContainer, running: ContainerSeen, prefix: str) -> Iterator[Connect | RemoveLink]:
    for network, aliases in sorted(container.joined.items()):
        if network not in running.networks:
            yield Connect(network, container.name, aliases)
    start = link_prefix(prefix)
    for network in sorted(running.networks.difference(container.joined)):
        if network.startswith(start):
            yield RemoveLink(network, (container.name,), kept=True)


def _same(container: RenderedContainer, running: ContainerSeen) -> bool:
    # The image id is the digest of the config, so that what runs is what was signed (R-MF11).
    return running.labels.get("archy.spec") == container.spec and running.image_id == container.config


def _remove(want: Absent, seen: _Share) -> Iterator[Step]:
    slug, services = want.names.slug, seen.services
    owned = tuple(sorted(seen.owned))
    known = dict.fromkeys((*want.services, *filter(None, map(service_of, owned)), want.names.network_service))
    running = tuple(service for service in known if up(services, service))
    if running:
        yield StopUnits(running, want.seconds)
    if owned:
        yield WriteUnits(MappingProxyType({}), owned)
    if owned or any(services[service].load == "loaded" for service in known if service in services):
        yield DaemonReload()
    yield from _forget(known, services)
    if left := tuple(sorted(c.name for c in seen.containers if c.labels.get("archy.app") == slug)):
        yield RemoveContainers(left)
    if seen.derived is not None:
        yield RemoveDerived()
    if seen.builds is not None:
        yield RemoveBuilds(tuple(sorted(seen.builds)))
    if seen.inventory is not None:
        owned_volumes = {volume for volume, owner in seen.inventory.volumes.items() if owner == slug}
        volumes = owned_volumes & want.drop | (owned_volumes - want.spare if want.purge else set())
        yield from removal(want.names, want.secrets, seen.inventory, volumes)
        for name, link in sorted(seen.inventory.links.items()):
            if slug in (link.provider, link.dependant):
                yield RemoveLink(name, in_network(name, seen.containers))
