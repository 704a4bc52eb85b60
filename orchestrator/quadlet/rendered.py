"""What rendering gives: an app's units as text, and of each container what the planner compares. Values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType

from orchestrator.links import LinkNetwork
from orchestrator.names import Names
from orchestrator.quadlet.build import Built, RenderedBuild


@dataclass(frozen=True, slots=True)
class RenderedContainer:
    """One container's unit and what the planner compares."""

    label: str
    name: str
    """Name of the container at Podman."""
    service: str
    unit: str
    """File name of its unit."""
    image: str
    """`name@sha256:...`"""
    config: str
    """`sha256:...` of the image's config, which is the image id that Podman reports."""
    spec: str
    """Digest of everything that makes a restart necessary when it changes."""
    grace: int
    start_timeout: int
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Networks shared with other apps, and its names there; they are no part of the specification."""
    companion: bool = False
    """It serves the app, and the app is well without it."""
    build: RenderedBuild | None = None
    """How its image is built here; `image` names UNBUILT and `config` is empty until that was done."""


@dataclass(frozen=True)
class RenderedApp:
    """All files of an app (name in the unit folder -> text) and the order in which its containers start.

    Every tick plans with the same ones again, hence what is kept.
    """

    names: Names
    files: Mapping[str, str]
    boot: Mapping[str, str]
    """The drop-ins that start the app at boot; a stopped app does without them (R-ST2)."""
    containers: tuple[RenderedContainer, ...]
    network: str
    network_spec: str
    volumes: tuple[str, ...]
    secrets: tuple[str, ...]
    """Names of generated secrets, as the manifest has them."""
    links: tuple[LinkNetwork, ...] = ()

    @cached_property
    def every(self) -> Mapping[str, str]:
        """The files of an app that is to run."""
        return {**self.files, **self.boot}

    @cached_property
    def podman_secrets(self) -> Mapping[str, str]:
        """Names of its secrets at Podman, by those in the manifest."""
        return {label: self.names.secret(label) for label in self.secrets}

    @cached_property
    def services(self) -> tuple[str, ...]:
        """Services of the containers, in start order."""
        return tuple(container.service for container in self.containers)

    @cached_property
    def builds(self) -> bool:
        """Is any image of it built here?"""
        return any(container.build is not None for container in self.containers)

    def with_built(self, built: Mapping[str, Built]) -> RenderedApp:
        """The same app with its images pinned that were built, by `name:tag`; others stay as they are."""
        files, containers = dict(self.files), []
        for box in self.containers:
            if box.build is not None and (done := built.get(box.build.tag)) is not None:
                image = f"{box.build.name}@{done.digest}"
                files[box.unit] = files[box.unit].replace(f"\nImage={box.image}\n", f"\nImage={image}\n", 1)
                containers.append(replace(box, image=image, config=done.id))
            else:
                containers.append(box)
        return replace(self, files=MappingProxyType(files), containers=tuple(containers))
