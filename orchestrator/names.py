"""The names of an app's units, services, volumes, networks, secrets and images on a node.

Every name carries the prefix (one per node, so that two nodes of one user never meet) and the app's slug. No two
things of different kinds share a service name; which app a thing belongs to is never read from its name. Pure.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property

from apps.names import AppName
from apps.problems import UsageProblem

_PREFIX = re.compile(r"[a-z][a-z0-9]{0,15}")


@dataclass(frozen=True)
class Names:
    """The names of one app. Planning asks for the same ones again and again, hence those that are kept."""

    prefix: str
    app: AppName
    turns: tuple[tuple[str, int], ...] = ()
    """How often secrets were rotated. Another value has another name at Podman, so that what uses it restarts."""

    def __post_init__(self) -> None:
        check_prefix(self.prefix)

    @cached_property
    def slug(self) -> str:
        return self.app.slug

    @cached_property
    def stem(self) -> str:
        return f"{self.prefix}-{self.slug}"

    @property
    def network(self) -> str:
        """Name of the network and stem of its unit."""
        return self.stem

    @property
    def network_service(self) -> str:
        return f"{self.stem}-network.service"

    def container(self, label: str) -> str:
        """Name of the container and stem of its unit."""
        return f"{self.stem}-{label}"

    def service(self, label: str) -> str:
        return f"{self.container(label)}.service"

    def build_service(self, label: str) -> str:
        """The service that builds a container's image."""
        return f"{self.container(label)}-build.service"

    def volume(self, label: str) -> str:
        """Name of the volume and stem of its unit."""
        return f"{self.stem}-{label}"

    def volume_service(self, label: str) -> str:
        return f"{self.volume(label)}-volume.service"

    def secret(self, label: str) -> str:
        turn = dict(self.turns).get(label, 0)
        return f"{self.stem}-{label}.{turn}" if turn else f"{self.stem}-{label}"

    def image(self, label: str) -> str:
        """The image's name without tag or digest."""
        return f"localhost/{self.prefix}/{self.slug}/{label}"


def folder_of(label: str, inside: str) -> str:
    """The folder, in the app's own of derived files, that appears as `inside` in a container."""
    return f"{label}/{hashlib.sha256(inside.encode()).hexdigest()[:12]}"


def first_turn(secret: str) -> str:
    """The name that a secret had at Podman before it was ever rotated; no label has a dot."""
    base, _, turn = secret.rpartition(".")
    return base if base and turn.isdigit() else secret


def slice_name(prefix: str) -> str:
    """The slice of all apps, outside the node service's own cgroup (R-FM3)."""
    return f"{prefix}-apps.slice"


def check_prefix(prefix: str) -> None:
    """Raises UsageProblem. Without hyphens, so that one node's `archy-*` never matches another's units."""
    if not _PREFIX.fullmatch(prefix):
        raise UsageProblem(
            f"not a prefix for unit names: {prefix[:40]!a}", remedy="write up to 16 lower-case letters and digits"
        )


def service_of(unit: str) -> str:
    """The service that Quadlet makes of a unit file (podman-systemd.unit(5)); empty for a drop-in."""
    if "/" in unit:
        return ""
    stem, _, kind = unit.rpartition(".")
    return f"{stem}.service" if kind == "container" else f"{stem}-{kind}.service"
