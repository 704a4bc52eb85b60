"""A pretended rootless Podman, and the prober and host that go with it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import trio

from apps.problems import Problem
from orchestrator.faults import CommandFailed, CommandTimedOut
from orchestrator.health import Check
from orchestrator.links import LinkNetwork
from orchestrator.podman import ContainerSeen, ImageDetail, ImageSeen, Inventory
from orchestrator.podman_care import Ailment, Signs
from orchestrator.quadlet.keys import Version
from orchestrator.stranger import Stranger
from tests.fakes.podman_machine import Box, Machine


class FakePodman:
    """`machine` is what it shares with the pretended systemd."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    @asynccontextmanager
    async def at_hand(self) -> AsyncIterator[None]:
        yield

    async def version(self) -> Version:
        self._machine.enter("podman", "version")
        return self._machine.podman_version

    async def containers(self, prefix: str) -> tuple[ContainerSeen, ...]:
        self._machine.enter("podman", "containers")
        if self._machine.silent:
            await trio.sleep_forever()
        return tuple(
            ContainerSeen(
                name, box.id, "running", box.image_id, box.labels, "", frozenset(box.networks) | {box.network} - {""}
            )
            for name, box in sorted(self._machine.containers.items())
            if box.labels.get("archy.prefix") == prefix
        )

    async def inventory(self, prefix: str) -> Inventory:
        self._machine.enter("podman", "inventory")
        machine = self._machine
        return Inventory(
            self._images(),
            dict(machine.networks),
            {name: app for name, (app, _) in machine.volumes.items()},
            frozenset(name for name in machine.secrets if name.startswith(f"{prefix}-")),
            dict(machine.links),
            frozenset(machine.subnets.values()),
        )

    async def images(self, prefix: str) -> tuple[ImageSeen, ...]:
        self._machine.enter("podman", "images")
        return tuple(image for image in self._images() if image.name.startswith(f"localhost/{prefix}/"))

    def _images(self) -> tuple[ImageSeen, ...]:
        images = sorted(self._machine.images.items())
        return tuple(ImageSeen(id_, digest, name, tag) for (name, tag), (digest, id_) in images)

    async def image(self, name: str) -> ImageDetail | None:
        self._machine.enter("podman", "image", name)
        at, _, tag = name.rpartition(":")
        if (found := self._machine.images.get((at, tag))) is None:
            return None
        labels, volumes = self._machine.builds.details.get(found[1], ({}, ()))
        return ImageDetail(found[1], found[0], labels, volumes)

    async def remove_remains(self, start: str) -> None:
        self._machine.enter("podman", "remove_remains", start)
        remains = self._machine.builds.remains
        self._machine.builds.remains = {id_: name for id_, name in remains.items() if not name.startswith(start)}

    async def import_image(self, layout: Path, name: str) -> None:
        self._machine.enter("podman", "import_image", name)
        index = json.loads((layout / "index.json").read_text())
        entry = next(
            item for item in index["manifests"] if item["annotations"]["org.opencontainers.image.ref.name"] == name
        )
        digest = entry["digest"]
        manifest = json.loads((layout / "blobs" / "sha256" / digest[7:]).read_text())
        at, _, tag = name.rpartition(":")
        self._machine.images[at, tag] = (digest, manifest["config"]["digest"])

    async def remove_image(self, name: str) -> None:
        self._machine.enter("podman", "remove_image", name)
        at, _, tag = name.rpartition(":")
        found = self._machine.images.get((at, tag))
        used = {box.image for box in self._machine.containers.values()} | set(self._machine.builds.remains.values())
        if found and not used & {name, f"{at}@{found[0]}"}:
            del self._machine.images[at, tag]

    async def create_secret(self, name: str, value: bytes, labels: Mapping[str, str]) -> None:
        self._machine.enter("podman", "create_secret", name)
        self._machine.secrets[name] = value

    async def secret(self, name: str) -> bytes | None:
        self._machine.enter("podman", "secret", name)
        return self._machine.secrets.get(name)

    async def remove_secrets(self, names: Sequence[str]) -> None:
        self._machine.enter("podman", "remove_secrets", " ".join(names))
        for name in names:
            self._machine.secrets.pop(name, None)

    async def hang_up(self, name: str) -> None:
        self._machine.enter("podman", "hang_up", name)
        self._box(name, "kill")

    async def copy_into(self, source: Path, container: str, path: str) -> None:
        self._machine.enter("podman", "copy_into", f"{source.name} {container}:{path}")
        self._box(container, "cp").copied.add(path)

    async def execute(self, container: str, argv: Sequence[str], *, seconds: float, slice_: str) -> None:
        self._machine.enter("podman", "execute", f"{container} {' '.join(argv)}")
        box = self._box(container, "exec")
        words = argv[1:] if argv[0].endswith("/busybox") else argv
        files = box.copied | {f"/run/secrets/{name.rpartition('-')[2]}" for name in box.secrets}
        if words[0] == "false" or (words[0] == "test" and words[-1] not in files):
            raise CommandFailed(("systemd-run", "podman"), 1, "")
        if words[0] == "sleep":
            raise CommandTimedOut(("systemd-run", "podman"), seconds)

    def _box(self, name: str, what: str) -> Box:
        box = self._machine.containers.get(name)
        if box is None:
            raise CommandFailed(("podman", what), 125, f"no container with name {name}")
        return box

    async def remove_containers(self, names: Sequence[str]) -> None:
        self._machine.enter("podman", "remove_containers", " ".join(names))
        for name in names:
            self._machine.containers.pop(name, None)

    async def create_link(self, network: LinkNetwork, prefix: str) -> None:
        self._machine.enter("podman", "create_link", network.name)
        self._machine.links.setdefault(network.name, network)

    async def connect(self, network: str, container: str, aliases: Sequence[str]) -> None:
        self._machine.enter("podman", "connect", f"{network} {container}")
        if network not in self._machine.links:
            raise CommandFailed(("podman", "network"), 125, f"unable to find network with name {network}")
        self._box(container, "network").networks.setdefault(network, frozenset(aliases))

    async def disconnect(self, network: str, container: str) -> None:
        self._machine.enter("podman", "disconnect", f"{network} {container}")
        if (box := self._machine.containers.get(container)) is not None:
            box.networks.pop(network, None)

    async def remove_network(self, name: str) -> None:
        self._machine.enter("podman", "remove_network", name)
        if any(name == box.network or name in box.networks for box in self._machine.containers.values()):
            raise CommandFailed(("podman", "network"), 2, f"{name} has associated containers with it")
        self._machine.links.pop(name, None)
        self._machine.networks.pop(name, None)
        self._machine.subnets.pop(name, None)

    async def remove_volume(self, name: str) -> None:
        self._machine.enter("podman", "remove_volume", name)
        self._machine.volumes.pop(name, None)

    async def strangers(self, names: Sequence[str]) -> tuple[Stranger, ...]:
        self._machine.enter("podman", "strangers", " ".join(names))
        own = [
            Stranger(name, box.id, "running", box.image_id, box.image, box.labels)
            for name, box in self._machine.containers.items()
        ]
        every = [*self._machine.strangers.values(), *own]
        return tuple(box for box in every if box.name in names or box.id in names)

    async def start(self, container: str, *, seconds: float, slice_: str) -> None:
        self._machine.enter("podman", "start_stranger", container)
        self._machine.start_stranger(container)

    async def stop(self, container: str, *, grace: int) -> None:
        self._machine.enter("podman", "stop_stranger", container)
        if (box := self._machine.strangers.get(container)) is not None and box.alive:
            self._machine.strangers[container] = replace(box, state="exited")

    async def set_restart(self, container: str, policy: str) -> None:
        self._machine.enter("podman", "set_restart", f"{container} {policy}")
        if (box := self._machine.strangers.get(container)) is not None:
            self._machine.strangers[container] = replace(box, restart=policy)

    async def discard(self, containers: Sequence[str]) -> None:
        self._machine.enter("podman", "discard", " ".join(containers))
        for container in containers:
            box = self._machine.strangers.get(container)
            if box is not None and box.alive:
                raise CommandFailed(("podman", "rm"), 2, f"cannot remove container {container} as it is running")
            self._machine.strangers.pop(container, None)

    async def addresses(self, names: Sequence[str]) -> Mapping[str, str]:
        return {name: "10.89.0.2" for name in names if name in self._machine.containers}


class FakeProber:
    """Every container answers, except those whose image is ill."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    async def ask(self, checks: Sequence[Check]) -> Mapping[str, str]:
        found = {}
        for check in checks:
            if (box := self._found(check.container)) is not None:
                found[check.container] = "HTTP status 500" if box.image_id in self._machine.ill else ""
        return found

    def _found(self, name: str) -> Box | Stranger | None:
        return self._machine.containers.get(name) or self._machine.strangers.get(name)


class FakeHost:
    """Ports are held as the machine says; the disk has `free` bytes."""

    def __init__(self, machine: Machine, free: int = 1 << 40) -> None:
        self._machine = machine
        self.free = free

    def port_problem(self, port: int, bind: str, protocol: str) -> str:
        if port in self._machine.held_ports:
            return self._machine.held_ports[port]
        held = any(str(port) in box.ports for box in self._machine.containers.values())
        held = held or str(port) in self._machine.ports_of_strangers()
        return "a container" if held else ""

    def free_bytes(self, path: Path) -> int:
        return self.free

    def is_folder(self, path: Path) -> bool:
        return str(path) in self._machine.places or path.is_dir()

    def routes(self) -> frozenset[str]:
        return frozenset()

    def inside_address(self) -> str:
        return "169.254.1.2"

    def lan_address(self) -> str:
        return ""


class FakeCare:
    """`signs` are what it sees; a cure takes effect unless it is among those that do not help."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.signs = Signs()
        self.cures: list[Ailment] = []
        self.helpless: set[Ailment] = set()
        self.looked_at: list[list[str]] = []
        """Whose links, at each look that asked for them."""

    async def look(self, *, answered: bool, living: Sequence[ContainerSeen] = ()) -> Signs:
        self.looked_at += [[container.name for container in living]] if living else []
        return self.signs

    async def mend(self, ailment: Ailment) -> None:
        self.cures.append(ailment)
        if ailment in self.helpless:
            raise Problem("it does not help")
        if ailment is Ailment.DATABASE:
            self._machine.lose_database()
        self.signs = Signs()
