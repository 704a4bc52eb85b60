"""The image index: the small blob that names every blob of one container image by SHA-256 and by BLAKE3.

Guarantees: an `ImageIndex` that parsed is canonical (JCS), bounded, and names no blob twice with two meanings. It
refuses to know where blobs come from, and whether their bytes match; whoever fetches or imports them checks. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import rfc8785

from apps.manifest import Manifest
from apps.manifest_parts import Container, Platform
from apps.names import BlobRef, Digest
from apps.problems import Refused

MAX_INDEX_BYTES: Final = 128 * 1024
"""An image with MAX_LAYERS layers needs about 35 KiB."""
MAX_LAYERS: Final = 127
"""What overlay storage drivers stack at most."""
MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024
"""The bound registries put on an OCI manifest or config (distribution-spec asks for at least this)."""

_HEX: Final = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class ImageBlob:
    """One blob of an OCI image: its SHA-256 (64 hex digits), as the image names it, and its BlobRef."""

    sha256: str
    ref: BlobRef

    def to_json(self) -> dict[str, Any]:
        return {"sha256": self.sha256, **self.ref.to_json()}


@dataclass(frozen=True, slots=True)
class ImageIndex:
    """The blobs of one image for one architecture: OCI manifest, config, and layers from the bottom up."""

    manifest: ImageBlob
    config: ImageBlob
    layers: tuple[ImageBlob, ...]

    @classmethod
    def parse(cls, raw: bytes, *, where: str = "image index") -> ImageIndex:
        """Raises Refused for bytes that are not exactly what `to_bytes` writes."""
        if len(raw) > MAX_INDEX_BYTES:
            raise _refused(f"more than {MAX_INDEX_BYTES} bytes", where)
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise _refused("not JSON", where) from error
        if not isinstance(body, dict) or set(body) != {"schema", "manifest", "config", "layers"}:
            raise _refused("keys other than schema, manifest, config and layers", where)
        if body["schema"] != 1 or isinstance(body["schema"], bool):
            raise _refused("a schema other than 1", where)
        layers = body["layers"]
        if not isinstance(layers, list) or not 1 <= len(layers) <= MAX_LAYERS:
            raise _refused(f"not 1 to {MAX_LAYERS} layers", where)
        index = cls(
            _blob(body["manifest"], f"{where}: manifest", MAX_MANIFEST_BYTES),
            _blob(body["config"], f"{where}: config", MAX_MANIFEST_BYTES),
            tuple(_blob(layer, f"{where}: layers[{i}]") for i, layer in enumerate(layers)),
        )
        if index.to_bytes() != raw:
            raise _refused("not in canonical form", where)
        meanings: dict[str, BlobRef] = {}
        for blob in index._all():
            if meanings.setdefault(blob.sha256, blob.ref) != blob.ref:
                raise _refused(f"two meanings for sha256:{blob.sha256}", where)
        return index

    def to_bytes(self) -> bytes:
        """Canonical JSON (RFC 8785)."""
        return rfc8785.dumps(
            {
                "schema": 1,
                "manifest": self.manifest.to_json(),
                "config": self.config.to_json(),
                "layers": [layer.to_json() for layer in self.layers],
            }
        )

    def blobs(self) -> tuple[tuple[str, BlobRef], ...]:
        """(SHA-256, BlobRef) of manifest, config and layers, each once."""
        return tuple({blob.sha256: (blob.sha256, blob.ref) for blob in self._all()}.values())

    def _all(self) -> Iterator[ImageBlob]:
        yield self.manifest
        yield self.config
        yield from self.layers


def platform_for(container: Container, arch: str) -> Platform:
    """The container's image for an architecture as OCI names it (amd64, arm64). Raises Refused."""
    platforms = container.image.platforms if container.image is not None else ()
    for platform in platforms:
        if platform.arch == arch:
            return platform
    offered = ", ".join(platform.arch for platform in platforms) or "none"
    raise Refused(
        f"no image for {arch}",
        where=container.image.ref if container.image is not None else "",
        remedy=f"the publisher packed it for: {offered}",
    )


def image_containers(manifest: Manifest) -> Mapping[str, Container]:
    """The containers, companions included, that run an image of the bundle, by name."""
    companions = {name: companion.as_container() for name, companion in manifest.companions.items()}
    boxes = companions | dict(manifest.containers)
    return {name: container for name, container in boxes.items() if container.image is not None}


def _refused(what: str, where: str) -> Refused:
    return Refused(what, where=where, remedy="the publisher has to pack the app again")


def _blob(value: Any, where: str, most: int | None = None) -> ImageBlob:
    if not isinstance(value, dict) or not {"sha256", "blake3", "size"} <= set(value) <= {
        "sha256",
        "blake3",
        "size",
        "pieces",
    }:
        raise _refused("not a blob of {sha256, blake3, size, pieces?}", where)
    size, sha256 = value["size"], value["sha256"]
    if not isinstance(size, int) or isinstance(size, bool) or (most is not None and size > most):
        raise _refused("not a size, or too large", where)
    hexes = [value[key] for key in ("sha256", "blake3", "pieces") if key in value]
    if any(not isinstance(h, str) or len(h) != 64 or not _HEX.issuperset(h) for h in hexes):
        raise _refused("a digest that is not 64 lower-case hex digits", where)
    return ImageBlob(
        sha256, BlobRef(Digest(value["blake3"]), size, Digest(value["pieces"]) if "pieces" in value else None)
    )
