"""One pretended machine under both fakes: what systemd and Podman would do with the unit folder.

It reads the real unit files, and fails as the real ones fail: an unknown image, a missing secret, a network that is
gone while its service is up, a taken port. `crash_at` ends the pretended process at the n-th call from outside.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator.faults import CommandFailed, CommandTimedOut
from orchestrator.links import LinkNetwork
from orchestrator.quadlet.keys import Version
from orchestrator.quadlet.text import UnitFile, parse
from orchestrator.stranger import Stranger
from tests.fakes.podman_builds import Store, begins_with, build


class Crash(BaseException):
    """The process that uses the machine is gone."""


@dataclass
class Service:
    active: str = "inactive"
    sub: str = "dead"
    restarts: int = 0
    ended: str = ""
    since: int = field(default_factory=lambda: int(time.time()))


@dataclass
class Box:
    """A container."""

    image: str
    image_id: str
    labels: dict[str, str]
    ports: tuple[str, ...]
    id: str = ""
    """Another one for each start."""
    read: dict[str, bytes] = field(default_factory=dict)
    """Files from the host as they were when it started."""
    networks: dict[str, frozenset[str]] = field(default_factory=dict)
    """Networks shared with other apps, and the names there."""
    network: str = ""
    """The app's own."""
    copied: set[str] = field(default_factory=set)
    """Paths of files that were copied in."""
    starts: int = 1
    secrets: dict[str, bytes] = field(default_factory=dict)
    """Values as they were when it started, by their names at Podman."""
    places: dict[str, str] = field(default_factory=dict)
    """Path inside -> place that this node did not make."""
    environment: tuple[str, ...] = ()


@dataclass
class Machine:
    """Everything that survives a crash of the orchestrator."""

    unit_dir: Path
    podman_version: Version = (5, 4, 2)
    loaded: dict[str, tuple[UnitFile, str]] = field(default_factory=dict)
    """Service -> unit, and the text that systemd read."""
    services: dict[str, Service] = field(default_factory=dict)
    containers: dict[str, Box] = field(default_factory=dict)
    images: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    """(name, tag) -> (manifest digest, config digest)."""
    networks: dict[str, str] = field(default_factory=dict)
    subnets: dict[str, str] = field(default_factory=dict)
    """Of networks that name one."""
    links: dict[str, LinkNetwork] = field(default_factory=dict)
    volumes: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Name -> (app, content)."""
    forgotten: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Volumes on the disk that Podman does not know."""
    secrets: dict[str, bytes] = field(default_factory=dict)
    builds: Store = field(default_factory=Store)
    crash_in_build: bool = False
    """The process that uses the machine ends while the next build is under way; the build does not."""
    stops_badly: bool = False
    """Containers end when they are told to, and what is to be cleaned up after them fails."""
    ill: set[str] = field(default_factory=set)
    """Config digests of images that start and are never healthy."""
    crashing: set[str] = field(default_factory=set)
    """Config digests of images that end at once."""
    broken: set[str] = field(default_factory=set)
    """`systemd` or `podman`: does not answer."""
    silent: bool = False
    """Podman is asked which containers there are, and never ends."""
    held_ports: dict[int, str] = field(default_factory=dict)
    strangers: dict[str, Stranger] = field(default_factory=dict)
    """Containers that somebody else made, by id."""
    unstartable: bool = False
    """They do not start again."""
    places: dict[str, str] = field(default_factory=dict)
    """Folders of the host and volumes that are not this node's: content."""
    calls: list[tuple[str, str]] = field(default_factory=list)
    crash_at: int | None = None
    on_crash: Callable[[], None] = lambda: None
    crashed: bool = False
    started: int = 0

    def enter(self, side: str, what: str, detail: str = "") -> None:
        """Every call from outside passes here."""
        if self.crashed:
            raise Crash
        if self.crash_at is not None:
            self.crash_at -= 1
            if self.crash_at < 0:
                self.crash()
        if side in self.broken:
            raise CommandTimedOut((side, what), 20)
        self.calls.append((what, detail))

    def crash(self) -> None:
        self.crashed, self.crash_at = True, None
        self.on_crash()
        raise Crash

    def revive(self) -> None:
        """A new process begins; the machine is as it was left."""
        self.crashed, self.crash_at, self.on_crash = False, None, lambda: None

    def reboot(self) -> None:
        """Everything stops; units with an [Install] section start."""
        self.services.clear()
        self.containers.clear()
        self.reload()
        for id_, box in self.strangers.items():  # podman-restart.service
            up = box.restart in ("always", "unless-stopped")
            self.strangers[id_] = replace(box, state="running" if up else "exited")
        for service, (unit, _) in sorted(self.loaded.items()):
            if unit.name.endswith(".container") and (self.unit_dir / f"{unit.name}.d" / "10-boot.conf").exists():
                try:
                    self.start(service)
                except CommandFailed:
                    self.services[service] = Service("activating", "auto-restart", 1)

    def lose_database(self) -> None:
        """Podman forgets containers and volumes; processes, services and what the volumes hold stay."""
        self.broken.discard("podman")
        self.containers.clear()
        self.forgotten |= self.volumes
        self.volumes.clear()

    def reload(self) -> None:
        self.loaded = {}
        for path in sorted(self.unit_dir.glob("*.*")) if self.unit_dir.is_dir() else ():
            if path.is_file() and path.suffix in (".build", ".container", ".network", ".volume"):
                stem = path.stem if path.suffix == ".container" else f"{path.stem}-{path.suffix[1:]}"
                text = path.read_text()
                self.loaded[f"{stem}.service"] = (parse(path.name, text), text)

    def stale(self, service: str) -> bool:
        unit, text = self.loaded[service]
        path = self.unit_dir / unit.name
        return not path.exists() or path.read_text() != text

    def start(self, service: str) -> None:
        if service not in self.loaded:
            raise CommandFailed(("systemctl", "start"), 5, f"Unit {service} not found.")
        state = self.services.setdefault(service, Service())
        if state.active == "active":
            return
        unit, _ = self.loaded[service]
        kind = unit.name.rpartition(".")[2]
        getattr(self, f"_start_{kind}")(service, unit)
        if kind == "build":
            del self.services[service]
        elif self.services[service].active == "inactive":
            self.services[service] = Service("active", "running" if kind == "container" else "exited")

    def _start_network(self, service: str, unit: UnitFile) -> None:
        labels = _labels(unit, "Network")
        name = unit.values("Network", "NetworkName")[0]
        for subnet in unit.values("Network", "Subnet"):
            if subnet in [other for at, other in self.subnets.items() if at != name]:
                self._fail(service, f"subnet {subnet} is already used on the host or by another config")
            self.subnets.setdefault(name, subnet)
        self.networks.setdefault(name, labels["archy.spec"])

    def _start_volume(self, _: str, unit: UnitFile) -> None:
        labels = _labels(unit, "Volume")
        name = unit.values("Volume", "VolumeName")[0]
        content = self.forgotten.pop(name, ("", "empty"))[1]
        self.volumes.setdefault(name, (labels["archy.app"], content))

    def _start_build(self, service: str, unit: UnitFile) -> None:
        if self.crash_in_build:
            self.crash_in_build = False
            self.services[service] = Service("activating", "start")
            self.crash()
        known = {f"{name}:{tag}": id_ for (name, tag), (_, id_) in self.images.items()}
        known |= {f"{name}@{digest}": id_ for (name, _), (digest, id_) in self.images.items()}
        if "sleep" in Path(unit.values("Build", "File")[0]).read_text():
            self.services[service] = Service("activating", "start")
            raise CommandTimedOut(("systemctl", "start"), 5)
        try:
            built = build(unit, service, known, self.builds)
        except CommandFailed:
            self.services[service] = Service("failed", "failed")
            raise
        name, _, tag = built.name.rpartition(":")
        self.images[name, tag] = (built.digest, built.id)

    def _kill_build(self, unit: UnitFile) -> None:
        """A build that is killed leaves the container that it worked in."""
        self.builds.remains[self._new_id()] = begins_with(unit)

    def _start_container(self, service: str, unit: UnitFile) -> None:
        joined, own = {}, ""
        for value in unit.values("Container", "Network"):
            source, _, options = value.partition(":")
            if source.endswith(".network"):
                own = source.removesuffix(".network")
                self.start(f"{own}-network.service")
            elif source not in self.links:
                self._fail(service, f"unable to find network with name {source}")
            else:
                joined[source] = frozenset(o.removeprefix("alias=") for o in options.split(",") if o)
            if source.endswith(".network") and source.removesuffix(".network") not in self.networks:
                self._fail(service, "network not found")
        mounts = unit.values("Container", "Volume")
        for mount in mounts:
            if ".volume:" in mount:
                self.start(f"{mount.split('.volume:')[0]}-volume.service")
            elif mount.split(":")[0] in self.places:
                continue
            elif not Path(mount.split(":")[0]).is_dir():
                self._fail(service, f"statfs {mount.split(':')[0]}: no such file or directory")
        wanted = unit.values("Container", "Image")[0]
        name, _, digest = wanted.partition("@")
        found = [image for (at, _), image in self.images.items() if at == name and image[0] == digest]
        if not found:
            self._fail(service, "image not known")
        for secret in unit.values("Container", "Secret"):
            if secret.split(",")[0] not in self.secrets:
                self._fail(service, "no such secret")
        ports = tuple(
            published.rpartition(":")[0].rpartition(":")[2] for published in unit.values("Container", "PublishPort")
        )
        taken = {port for box in self.containers.values() for port in box.ports} | self.ports_of_strangers()
        if taken & set(ports) or {int(port) for port in ports} & set(self.held_ports):
            self._fail(service, "address already in use")
        config = found[0][1]
        if config in self.crashing:
            self.services[service] = Service("failed", "failed", 5, "exit code 1")
            return
        for volume in [mount.split(".volume:")[0] for mount in mounts if ".volume:" in mount]:
            if volume not in self.volumes:  # made by `podman run`: nobody's label
                self.volumes[volume] = ("", self.forgotten.pop(volume, ("", "empty"))[1])
            app, content = self.volumes[volume]
            self.volumes[volume] = (app, f"data of {app}" if content == "empty" else content)
        name = unit.values("Container", "ContainerName")[0]
        given = [secret.split(",")[0] for secret in unit.values("Container", "Secret")]
        self.containers[name] = Box(
            wanted,
            config,
            _labels(unit, "Container"),
            ports,
            self._new_id(),
            _host_files(mounts),
            joined,
            own,
            secrets={secret: self.secrets[secret] for secret in given},
            places={m.split(":")[1]: m.split(":")[0] for m in mounts if m.split(":")[0] in self.places},
            environment=unit.values("Container", "Environment"),
        )
        for place in self.containers[name].places.values():
            self.places[place] += "+"  # it was written to

    def ports_of_strangers(self) -> set[str]:
        return {str(port.host) for box in self.strangers.values() if box.alive for port in box.ports}

    def meet(self, name: str, image_id: str, **more: Any) -> str:
        """Somebody starts a container by hand; its id."""
        box = Stranger(name, self._new_id(), more.pop("state", "running"), image_id, f"docker.io/{name}:1", **more)
        self.strangers[box.id] = box
        for mount in box.mounts:
            self.places.setdefault(mount.source, f"data of {name}")
        return box.id

    def start_stranger(self, id_: str) -> None:
        box = self.strangers.get(id_)
        if box is None:
            raise CommandFailed(("systemd-run", "podman"), 125, f"no such container {id_}")
        if self.unstartable:
            raise CommandFailed(("systemd-run", "podman"), 126, "unable to find network")
        if not box.alive:
            held = {port for other in self.containers.values() for port in other.ports} | self.ports_of_strangers()
            if held & {str(port.host) for port in box.ports}:
                raise CommandFailed(("systemd-run", "podman"), 126, "address already in use")
            self.strangers[id_] = replace(box, state="running")

    def _new_id(self) -> str:
        self.started += 1
        return f"{self.started:064x}"

    def _fail(self, service: str, why: str) -> None:
        self.services[service] = Service("activating", "auto-restart", 1)
        raise CommandFailed(("systemctl", "start"), 1, why)

    def stop(self, service: str) -> None:
        if service.endswith("-build.service") and self.services.get(service, Service()).active == "failed":
            return  # it stays one until that is forgotten, also without its unit
        if service in self.loaded:
            unit, _ = self.loaded[service]
            for name in unit.values("Container", "ContainerName"):
                self.containers.pop(name, None)
            if unit.name.endswith(".build") and self.services.get(service, Service()).active == "activating":
                self._kill_build(unit)
                self.services[service] = Service("failed", "failed")
                return
        was = self.services.pop(service, None)
        if was is not None and self.stops_badly and service in self.loaded:
            self.services[service] = Service("failed", "failed")


def _host_files(mounts: tuple[str, ...]) -> dict[str, bytes]:
    """Path inside -> content, of the folders that are mounted from the host."""
    found: dict[str, bytes] = {}
    mounted = [mount.split(":") for mount in mounts if mount.startswith("/")]
    for source, inside, *_ in (mount for mount in mounted if Path(mount[0]).is_dir()):
        found |= {f"{inside}/{path.name}": path.read_bytes() for path in Path(source).iterdir() if path.is_file()}
    return found


def _labels(unit: UnitFile, section: str) -> dict[str, str]:
    found = {}
    for value in unit.values(section, "Label"):
        key, _, text = value.partition("=")
        found[key] = text
    return found
