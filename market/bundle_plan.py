"""Which blobs a bundle is made of, and whether an image is what its release says. Pure: parsed documents in.

Guarantees: a plan names one image per container, for one architecture; what `check_image` lets through fits together by
SHA-256 from the index down to the last layer. It refuses to know stores, sources and folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import ClassVar

from apps.images import ImageIndex, image_containers, platform_for
from apps.manifest import Manifest
from apps.manifest_parts import Platform
from market.errors import Refused
from market.model import BlobRef
from market.oci import BadImage, Descriptor, ImageConfig, ImageManifest, check_pair, check_sha256


class InconsistentRelease(Refused):
    """What the publisher signed does not fit together. No source is to blame; `judge(broken=...)` remembers it."""

    kind: ClassVar[str] = "inconsistent-release"


@dataclass(frozen=True, slots=True)
class BlobPlan:
    """What a manifest names directly: an image per container, for one architecture, and files by path."""

    images: Mapping[str, Platform]
    files: Mapping[str, BlobRef]

    def blobs(self) -> tuple[BlobRef, ...]:
        """Each once: the image indexes, then the files."""
        indexes = (image.index.blob for image in self.images.values())
        return tuple(dict.fromkeys((*indexes, *self.files.values())))


def plan_blobs(manifest: Manifest, arch: str) -> BlobPlan:
    """Pure. Raises Refused when a container has no image for `arch` ("amd64", "arm64"), naming what there is."""
    images = {name: platform_for(container, arch) for name, container in image_containers(manifest).items()}
    files = {path: entry.blob for path, entry in manifest.files.items()}
    for path in files:
        if clash := next((parent.as_posix() for parent in PurePosixPath(path).parents if str(parent) in files), None):
            raise InconsistentRelease(f"{clash} is both a file and a folder", where=f"files.{path}")
    return BlobPlan(images, files)


def check_image(index: ImageIndex, raw_manifest: bytes, raw_config: bytes, *, arch: str, where: str) -> None:
    """Pure. Raises Refused unless OCI manifest and config are the index's own, are for `arch`, and agree with it."""
    check_sha256(raw_manifest, index.manifest.sha256, where=f"{where}: OCI manifest")
    check_sha256(raw_config, index.config.sha256, where=f"{where}: image config")
    manifest = ImageManifest.parse(raw_manifest, where=f"{where}: OCI manifest")
    config = ImageConfig.parse(raw_config, where=f"{where}: image config")
    check_pair(manifest, config, where=where)
    listed = tuple(Descriptor(blob.sha256, blob.ref.size) for blob in index.layers)
    if manifest.layers != listed or manifest.config != Descriptor(index.config.sha256, index.config.ref.size):
        raise BadImage("the OCI manifest lists other blobs than the image index", where=where)
    if config.arch != arch:
        raise BadImage(f"the image for {arch} is one for {config.arch[:40]!r}", where=where)
