"""The steps a plan is made of: values that say what is to be done, each harmless when it is taken twice.

They hold what is needed to take them and nothing of why; `plan` orders them, `apply` takes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from orchestrator.derived import DerivedFile
from orchestrator.links import LinkNetwork
from orchestrator.quadlet.build import RenderedBuild


@dataclass(frozen=True, slots=True)
class WriteSecrets:
    """Give Podman the app's secrets that it lacks, by their names in the manifest."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ImportImage:
    """Import a container's image from the bundle."""

    container: str
    image: str


@dataclass(frozen=True, slots=True)
class BuildImage:
    """Build a container's image from the bundle, by its unit, which is in place."""

    container: str
    build: RenderedBuild


@dataclass(frozen=True, slots=True)
class ClearBuilds:
    """Remove what builds of these containers left that were begun and are not wanted any more."""

    containers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RemoveBuilds:
    """Forget all builds of the app; `containers` are those whose builds were begun."""

    containers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WriteDerived:
    """Replace derived files and remove others; `pending` first: (container id, restart or reload) by container."""

    files: tuple[DerivedFile, ...]
    removed: tuple[str, ...]
    pending: Mapping[str, tuple[str, str]]


@dataclass(frozen=True, slots=True)
class RemoveDerived:
    """Remove all derived files of the app."""


@dataclass(frozen=True, slots=True)
class Reload:
    """Tell a running container that its derived files changed: SIGHUP."""

    container: str
    name: str
    """At Podman."""


@dataclass(frozen=True, slots=True)
class CreateLink:
    """Create the network that two apps share."""

    network: LinkNetwork


@dataclass(frozen=True, slots=True)
class Connect:
    """Let a running container join a shared network under these names."""

    network: str
    container: str
    aliases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RemoveLink:
    """Take containers, whosever they are, out of a shared network; then, unless it is `kept`, remove it."""

    network: str
    containers: tuple[str, ...]
    kept: bool = False


@dataclass(frozen=True, slots=True)
class WriteUnits:
    """Put files in place after the generator's dry run, and remove others."""

    files: Mapping[str, str]
    removed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DaemonReload:
    """Let systemd see the units."""


@dataclass(frozen=True, slots=True)
class StopUnits:
    """Stop services, in this order; `seconds` is the deadline for each."""

    services: tuple[str, ...]
    seconds: int


@dataclass(frozen=True, slots=True)
class Start:
    """Start one service; `seconds` is the deadline."""

    service: str
    seconds: int
    known: bool = True
    """Systemd has had it in hand, and counts its failures and starts."""


@dataclass(frozen=True, slots=True)
class Restart:
    """Stop and start one service, whose specification changed."""

    service: str
    seconds: int


@dataclass(frozen=True, slots=True)
class ResetFailed:
    """Forget how services ended: one that is to be down or gone is not a failure that anyone has to look at."""

    services: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RemoveContainers:
    """Remove what a stopped unit left."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RemoveNetwork:
    name: str


@dataclass(frozen=True, slots=True)
class RemoveSecrets:
    """Take secrets back from Podman; their values stay with the data."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RemoveImages:
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RemoveVolume:
    name: str


Step: TypeAlias = (
    WriteSecrets
    | ImportImage
    | BuildImage
    | ClearBuilds
    | RemoveBuilds
    | WriteDerived
    | RemoveDerived
    | Reload
    | CreateLink
    | Connect
    | RemoveLink
    | WriteUnits
    | DaemonReload
    | StopUnits
    | Start
    | Restart
    | ResetFailed
    | RemoveContainers
    | RemoveNetwork
    | RemoveSecrets
    | RemoveImages
    | RemoveVolume
)
