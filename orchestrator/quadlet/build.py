"""An image that is built on the node, as the unit that builds it.

Guarantees: the unit reads one folder and one Containerfile, both written by this node from verified bytes; it has no
network, pulls nothing, uses no layer that another build left, and ends in time. The image's tag names the digest of all
that goes in; the same inputs give the same image wherever their commands do. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from apps.builds import build_of, input_digest
from apps.manifest import Manifest
from apps.problems import Refused
from orchestrator.names import Names, service_of, slice_name
from orchestrator.quadlet.keys import SINCE, Version, line
from orchestrator.quadlet.text import Section, UnitFile

BUILD_SECONDS: Final = 900
"""Deadline of a build. What takes longer belongs into an image that its publisher builds once for everybody."""
BUILD_MEMORY: Final = 2 << 30
"""Bytes, page cache of what it writes included: enough to unpack and compile, not to starve a small node."""
BUILD_TASKS: Final = 512
"""Processes of a build, with those of Podman."""
UNBUILT: Final = f"sha256:{'0' * 64}"
"""Stands for the digest of an image that is still to be built; no image has it, so that nothing starts with it."""
FILES: Final = "Containerfile"
CONTEXT: Final = "context"

CAPABILITIES: Final = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID")
"""What setting up files and changing to another user takes; nothing else of what builders have by default."""

OPTIONS: Final = (
    "--no-cache",
    "--layers=false",
    "--timestamp=0",
    "--identity-label=false",
    "--http-proxy=false",
    "--no-hosts",
    "--no-hostname",
    "--format=oci",
    "--cap-drop=all",
    f"--cap-add={','.join(CAPABILITIES)}",
    "--security-opt=no-new-privileges",
)
"""For podman-build(1), where Quadlet has no key. Layers of others: any image in the store with the right history would
be taken for the result of a step, and whoever publishes an image writes its history."""


@dataclass(frozen=True, slots=True)
class Built:
    """What a build gave: the image's manifest digest and its id (the config's digest), both `sha256:...`."""

    digest: str
    id: str


@dataclass(frozen=True, slots=True)
class RenderedBuild:
    """How one container's image is built."""

    unit: str
    service: str
    name: str
    """The image's, without tag."""
    inputs: str
    """Digest of all that goes in, 64 hex digits."""
    seconds: int = BUILD_SECONDS

    @property
    def tag(self) -> str:
        """`name:tag`, with a tag of its own for all that goes in."""
        return f"{self.name}:{self.inputs[:16]}"


def rendered_build(manifest: Manifest, names: Names, label: str, arch: str) -> RenderedBuild | None:
    """How a container's image is built; None where it is not."""
    container = manifest.containers[label]
    if container.build is None:
        return None
    unit = f"{names.container(label)}.build"
    inputs = input_digest(manifest, build_of(container), arch)
    return RenderedBuild(unit, service_of(unit), names.image(label), inputs)


def build_unit(names: Names, label: str, build: RenderedBuild, folder: str, prefix: str, podman: Version) -> UnitFile:
    """The unit. `folder`: that of all builds, as a unit has it. Raises Refused for a Podman without such units."""
    since = min(SINCE["Build"].values())
    if podman < since:
        have, need = (".".join(map(str, version)) for version in (podman, since))
        raise Refused(
            f"Podman {have} has no units for builds, {need} is needed",
            where=f"{names.app.id}: {label}.build",
            remedy="upgrade Podman (Debian 13 has 5.4)",
        )
    place = f"{folder}/{names.slug}/{label}"
    lines = [
        ("ImageTag", build.tag),
        ("File", f"{place}/{FILES}"),
        ("SetWorkingDirectory", f"{place}/{CONTEXT}"),
        ("Network", "none"),
        ("Pull", "never"),
        ("ForceRM", "true"),
        ("Label", f"archy.prefix={prefix}"),
        ("Label", f"archy.app={names.slug}"),
        ("Label", f"archy.build={build.inputs}"),
        *(("PodmanArgs", option) for option in OPTIONS),
    ]
    service = (
        ("Slice", slice_name(prefix)),
        ("RemainAfterExit", "no"),
        ("TimeoutStartSec", str(build.seconds)),
        ("CPUWeight", "20"),
        ("MemoryMax", str(BUILD_MEMORY)),
        ("TasksMax", str(BUILD_TASKS)),
    )
    return UnitFile(
        build.unit,
        names.slug,
        (
            Section("Unit", (("Description", f"Build of app {names.slug}, container {label}"),)),
            Section("Build", tuple(line("Build", key, value, podman) for key, value in lines)),
            Section("Service", service),
        ),
    )
