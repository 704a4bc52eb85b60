"""The units that an install would write, for people who write manifests. Pure."""

from __future__ import annotations

from apps.manifest import Manifest
from apps.manifest_parts import BlobEntry, Container, Image, Platform
from apps.names import AppName
from orchestrator.names import Names
from orchestrator.quadlet.keys import parse_version
from orchestrator.quadlet.render import Target, render
from orchestrator.settled import choose_ports, settle
from orchestrator.supported import require_supported

_NO_DIGEST = f"sha256:{'0' * 64}"


def render_units(name: AppName, manifest: Manifest, *, arch: str, podman: str, prefix: str = "archy") -> dict[str, str]:
    """File name in the unit folder -> text, boot drop-ins included. Images that are not packed show zeros.

    Raises ManifestProblem for what a node can not carry out, Refused when the app is packed for other architectures
    only, ValueError when `podman` is no version.
    """
    version = parse_version(podman)
    require_supported(manifest, where=manifest.id)
    # `auto` shows the first port that a node would try
    manifest = settle(manifest, {}, choose_ports(manifest, {}, frozenset(), lambda *_: ""))
    containers = {label: _with_platform(container, arch) for label, container in manifest.containers.items()}
    app = render(
        manifest.model_copy(update={"containers": containers}), Names(prefix, name), Target(prefix, version, arch)
    )
    return dict(sorted({**app.files, **app.boot}.items()))


def _with_platform(container: Container, arch: str) -> Container:
    if container.image is None or container.image.platforms:
        return container
    index = BlobEntry(blake3="0" * 64, size=0)
    platform = Platform(arch=arch, manifest=_NO_DIGEST, config=_NO_DIGEST, index=index)
    return container.model_copy(update={"image": Image(ref=container.image.ref, platforms=(platform,))})
