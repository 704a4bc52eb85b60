"""What is looked at before anything is changed: ports, disk, image. A refusal here leaves the node as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from apps.images import image_containers, platform_for
from apps.manifest import Manifest
from apps.names import AppName
from apps.problems import EnvironmentLacks
from orchestrator.bundle import Bundle
from orchestrator.faults import PortTaken
from orchestrator.images import Layout, check_layout, refuse_unmapped_volumes


@dataclass(frozen=True, slots=True)
class Claim:
    """A host port that an app's manifest asks for."""

    app: AppName
    path: str
    port: int
    protocol: str
    bind: str


def claims(app: AppName, manifest: Manifest) -> Iterator[Claim]:
    """The host ports of an app."""
    for label, container in manifest.containers.items():
        for index, port in enumerate(container.ports):
            if isinstance(port.host, int):
                path = f"containers.{label}.ports[{index}].host"
                yield Claim(app, path, port.host, port.protocol, port.bind)


def check_ports(
    wanted: tuple[Claim, ...], others: tuple[Claim, ...], port_problem: Callable[[int, str, str], str]
) -> None:
    """Raises PortTaken, naming both sides (R-ST9). `port_problem` asks the machine."""
    owners = {(claim.port, claim.protocol): claim for claim in others}
    for claim in wanted:
        where = f"{claim.app.id}: {claim.path}"
        if (owner := owners.get((claim.port, claim.protocol))) is not None:
            raise PortTaken(
                f"host port {claim.port} of {claim.app.id} is already {owner.app.id}'s ({owner.path})",
                where=where,
                remedy=f"uninstall {owner.app.id}, or ask the publisher for another port",
            )
        if problem := port_problem(claim.port, claim.bind, claim.protocol):
            raise PortTaken(
                f"host port {claim.port} of {claim.app.id} is held by {problem}",
                where=where,
                remedy=f"stop what listens on port {claim.port}, then install again",
            )


def check_images(bundle: Bundle, arch: str) -> tuple[Layout, ...]:
    """Every image is the signed one, and keeps its data in named volumes. Raises Refused."""
    found = []
    for label, container in image_containers(bundle.manifest).items():
        where = f"{bundle.name.id}: containers.{label}.image"
        layout = check_layout(bundle.layout(label), platform_for(container, arch), where=where)
        refuse_unmapped_volumes(layout, container, where=where)
        found.append(layout)
    return tuple(found)


def check_disk(manifest: Manifest, folder: Path, free: int) -> None:
    """Raises EnvironmentLacks when the disk has not the room that the manifest asks for."""
    need = (manifest.disk.install or 0) + (manifest.disk.min_free or 0)
    if free < need:
        raise EnvironmentLacks(
            f"{manifest.id} needs {need >> 20} MiB free, and there are {free >> 20} MiB",
            where=str(folder),
            remedy="free space: podman image prune, or move the home to a larger disk",
        )
