"""The units an install would write, for an author to read before anything is packed or installed. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from apps.manifest import Manifest, parse_manifest_json
from apps.names import AppName
from orchestrator.names import Names
from orchestrator.quadlet.keys import parse_version
from orchestrator.quadlet.render import Target, render
from orchestrator.supported import require_supported

UNPACKED: Final = "0" * 64
"""Stands where an image's digests will be once the app is packed."""


def render_units(
    name: AppName, manifest: Manifest, *, arch: str, podman: str = "5.4.0", prefix: str = "archy"
) -> Mapping[str, str]:
    """File name in the unit folder -> text, drop-ins included. Images that are not packed yet show zeros as digests.

    Raises ManifestProblem for what this node can not carry out, Refused when there is no image for `arch`.
    """
    require_supported(manifest, where=manifest.id)
    rendered = render(_with_digests(manifest, arch), Names(prefix, name), Target(prefix, parse_version(podman), arch))
    return {**rendered.files, **rendered.boot}


def _with_digests(manifest: Manifest, arch: str) -> Manifest:
    body = manifest.canonical()
    for container in body["containers"].values():
        image = container.get("image")
        if image is not None and not image.get("platforms"):
            digest = f"sha256:{UNPACKED}"
            index = {"blake3": UNPACKED, "size": 0}
            image["platforms"] = [{"arch": arch, "manifest": digest, "config": digest, "index": index}]
    return parse_manifest_json(body, where=manifest.id)
