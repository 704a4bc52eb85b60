"""OCI images as bytes: what a manifest and a config say, and the two small files of an image layout.

Guarantees that what parses is one image of plain (uncompressed) tar layers for Linux whose config describes exactly
those layers, within bounds. Podman checks layers and config but not the manifest of a layout, so this project does.
Refuses to know files, sources and BLAKE3. Pure. (OCI image-spec v1.1: manifest.md, config.md, image-layout.md)
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from apps.images import MAX_LAYERS, MAX_MANIFEST_BYTES
from market.errors import Refused

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar"
LAYOUT_FILE: Final = b'{"imageLayoutVersion":"1.0.0"}'

MAX_INDEX_BYTES: Final = 64 * 1024
"""index.json of a layout with one image has some 300 bytes; annotations may add to it."""

REMEDY: Final = "podman save --uncompressed --format oci-dir -o DIR IMAGE"

_SHA256 = re.compile(r"sha256:([0-9a-f]{64})")
_VERSIONS = re.compile(r"1\.[0-9]{1,3}\.[0-9]{1,3}")


class BadImage(Refused):
    """Bytes that are not the one kind of image this project handles."""

    kind: ClassVar[str] = "bad-image"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One blob as an image names it: 64 hex digits of SHA-256, and its size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class ImageManifest:
    """The config and the layers of an image, from the bottom up."""

    config: Descriptor
    layers: tuple[Descriptor, ...]

    @classmethod
    def parse(cls, raw: bytes, *, where: str) -> ImageManifest:
        """Raises BadImage."""
        body = _object(raw, MAX_MANIFEST_BYTES, where)
        if body.get("schemaVersion") != 2 or body.get("mediaType", MANIFEST_TYPE) != MANIFEST_TYPE:
            raise BadImage("not an OCI image manifest", where=where, remedy=REMEDY)
        layers = body.get("layers")
        if not isinstance(layers, list) or not 1 <= len(layers) <= MAX_LAYERS:
            raise BadImage(f"not 1 to {MAX_LAYERS} layers", where=where)
        return cls(
            _descriptor(body.get("config"), CONFIG_TYPE, f"{where}: config"),
            tuple(_descriptor(layer, LAYER_TYPE, f"{where}: layers[{i}]") for i, layer in enumerate(layers)),
        )


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What an image says about itself: its architecture, and the paths it declares as volumes."""

    arch: str
    layers: tuple[str, ...]
    """SHA-256 of each uncompressed layer, from the bottom up (`rootfs.diff_ids`)."""
    volumes: tuple[str, ...]

    @classmethod
    def parse(cls, raw: bytes, *, where: str) -> ImageConfig:
        """Raises BadImage."""
        body = _object(raw, MAX_MANIFEST_BYTES, where)
        rootfs, inner = body.get("rootfs"), body.get("config") or {}
        diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
        volumes = inner.get("Volumes") or {} if isinstance(inner, dict) else None
        if not isinstance(diff_ids, list) or len(diff_ids) > MAX_LAYERS or not isinstance(volumes, dict):
            raise BadImage("not an OCI image config", where=where, remedy=REMEDY)
        if body.get("os") != "linux" or not isinstance(body.get("architecture"), str):
            raise BadImage(f"an image for {body.get('os')!r}, not for linux"[:200], where=where)
        layers = tuple(_hex_of(diff_id, where) for diff_id in diff_ids)
        return cls(body["architecture"], layers, tuple(sorted(volumes)))


def check_pair(manifest: ImageManifest, config: ImageConfig, *, where: str) -> None:
    """A plain tar layer's diff_id is its digest, so manifest and config must name the same layers. Raises BadImage."""
    if tuple(layer.sha256 for layer in manifest.layers) != config.layers:
        raise BadImage("the config does not describe the manifest's layers", where=where, remedy=REMEDY)


def parse_layout_index(raw: bytes, *, where: str) -> Descriptor:
    """The one image of a layout's index.json. Raises BadImage when there is none, or more than one."""
    body = _object(raw, MAX_INDEX_BYTES, where)
    entries = body.get("manifests")
    if body.get("schemaVersion") != 2 or not isinstance(entries, list):
        raise BadImage("not the index of an OCI image layout", where=where, remedy=REMEDY)
    if len(entries) != 1:
        raise BadImage(f"{len(entries)} images in one layout", where=where, remedy="one layout per image: " + REMEDY)
    return _descriptor(entries[0], MANIFEST_TYPE, f"{where}: manifests[0]")


def layout_index(manifest: Descriptor, *, name: str) -> bytes:
    """index.json of a layout with one image; `name` is what it is pulled by (`oci:DIR:NAME`)."""
    entry = {
        "mediaType": MANIFEST_TYPE,
        "digest": f"sha256:{manifest.sha256}",
        "size": manifest.size,
        "annotations": {"org.opencontainers.image.ref.name": name},
    }
    body = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]}
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def check_layout_version(raw: bytes, *, where: str) -> None:
    """Raises BadImage unless this is an `oci-layout` file of version 1."""
    version = _object(raw, MAX_INDEX_BYTES, where).get("imageLayoutVersion")
    if not isinstance(version, str) or not _VERSIONS.fullmatch(version):
        raise BadImage("not an OCI image layout of version 1", where=where, remedy=REMEDY)


def check_sha256(raw: bytes, sha256: str, *, where: str) -> None:
    """Raises BadImage unless the bytes hash to those 64 hex digits."""
    if (found := hashlib.sha256(raw).hexdigest()) != sha256:
        raise BadImage(f"its SHA-256 is {found}, not {sha256}", where=where)


def _object(raw: bytes, most: int, where: str) -> Mapping[str, Any]:
    if len(raw) > most:
        raise BadImage(f"more than {most} bytes", where=where)
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadImage("not JSON", where=where, remedy=REMEDY) from error
    if not isinstance(body, dict):
        raise BadImage("not a JSON object", where=where, remedy=REMEDY)
    return body


def _descriptor(value: object, kind: str, where: str) -> Descriptor:
    if not isinstance(value, dict):
        raise BadImage("not a descriptor", where=where, remedy=REMEDY)
    if value.get("mediaType") != kind:
        found = str(value.get("mediaType"))[:120]
        raise BadImage(f"{found!r} where {kind!r} belongs", where=where, remedy=REMEDY)
    size = value.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise BadImage("a size that is no size", where=where, remedy=REMEDY)
    return Descriptor(_hex_of(value.get("digest"), where), size)


def _hex_of(digest: object, where: str) -> str:
    match = _SHA256.fullmatch(digest) if isinstance(digest, str) else None
    if match is None:
        raise BadImage("not a sha256 digest", where=where, remedy=REMEDY)
    return match[1]
