"""What Podman says, as values: of the program and of its service, whose lists differ in little. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from apps.problems import Problem
from orchestrator.links import LinkNetwork


@dataclass(frozen=True, slots=True)
class ContainerSeen:
    """A container as `podman ps` lists it. `health` is empty without a check inside the container."""

    name: str
    id: str
    state: str
    image_id: str
    labels: Mapping[str, str]
    health: str = ""
    networks: frozenset[str] = frozenset()
    pid: int = 0
    """Its first process, as this machine counts; 0 where none runs."""


@dataclass(frozen=True, slots=True)
class ImageSeen:
    """An image in the store: its id is the config's digest (`sha256:...`), `digest` the OCI manifest's."""

    id: str
    digest: str
    name: str
    """`localhost/archy/<slug>/<container>` without tag."""
    tag: str = ""

    @property
    def pinned(self) -> str:
        """As a unit names it."""
        return f"{self.name}@{self.digest}"


@dataclass(frozen=True, slots=True)
class ImageDetail:
    """One image: id and digest as in `ImageSeen`, and what its config declares."""

    id: str
    digest: str
    labels: Mapping[str, str]
    volumes: tuple[str, ...]
    environment: frozenset[str] = frozenset()
    """`NAME=value`, as every container of it begins."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """What Podman has of this node's, beside containers.

    `networks`: name -> specification (label archy.spec); `volumes`: name -> slug of the app (label archy.app).
    """

    images: tuple[ImageSeen, ...]
    networks: Mapping[str, str]
    volumes: Mapping[str, str]
    secrets: frozenset[str]
    links: Mapping[str, LinkNetwork] = field(default_factory=dict)
    """Networks that two apps share, by name."""
    subnets: frozenset[str] = frozenset()
    """Of every network of Podman, whosever it is."""


def listed(raw: bytes, what: str) -> list[Any]:
    """What a program wrote as JSON. Raises Problem."""
    try:
        body = json.loads(raw or b"[]")
    except ValueError as error:
        raise Problem(f"podman {what} wrote something that is not JSON") from error
    return body if isinstance(body, list) else []


def address(item: Mapping[str, Any]) -> tuple[str, str] | None:
    """(container, its last address) of an inspected container."""
    networks = (item.get("NetworkSettings", {}).get("Networks") or {}).values()
    found = [str(network["IPAddress"]) for network in networks if network.get("IPAddress")]
    return (str(item["Name"]), found[-1]) if found else None


def container(item: Mapping[str, Any]) -> ContainerSeen:
    """One entry of a list of containers."""
    status = str(item.get("Status", ""))  # "Up 3 seconds (healthy)" from the program, "healthy" from the service
    words = ("unhealthy", "healthy", "starting")
    health = next((word for word in words if word == status or f"({word})" in status), "")
    return ContainerSeen(
        str((item.get("Names") or [""])[0]),
        str(item.get("Id", "")),
        str(item.get("State", "")),
        f"sha256:{item.get('ImageID', '')}",
        dict(item.get("Labels") or {}),
        health,
        frozenset(map(str, item.get("Networks") or ())),
        int(item.get("Pid") or 0),
    )


def link(item: Mapping[str, Any]) -> LinkNetwork | None:
    """A network that two apps share; None for any other."""
    labels = item.get("labels") or {}
    if "archy.link" not in labels:
        return None
    marks = (str(labels.get(f"archy.{key}", "")) for key in ("provider", "dependant", "spec"))
    return LinkNetwork(str(item["name"]), *marks)


def images(item: Mapping[str, Any], start: str) -> list[ImageSeen]:
    """The names of one image that begin with `start`."""
    names = [name for name in item.get("Names") or [] if name.startswith(start)]
    names += [name.split("@")[0] for name in item.get("RepoDigests") or [] if name.startswith(start)]
    seen = {tuple(name.rpartition(":")[::2]) if ":" in name else (name, "") for name in names}
    tagged = {name for name, tag in seen if tag}
    return [
        ImageSeen(f"sha256:{item.get('Id', '')}", str(item.get("Digest", "")), name, tag)
        for name, tag in sorted(seen)
        if tag or name not in tagged
    ]
