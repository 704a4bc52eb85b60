"""OCI image layouts: what a bundle holds is what was signed, before Podman sees any of it (R-MF11).

Guarantees: `check_layout` returns only for a layout whose manifest bytes and config bytes have the signed SHA-256,
and `stage` gives Podman a layout whose index names that one image and nothing else. Podman itself does not compare
an OCI layout's manifest with its digest (tried on 5.4). It reads files and refuses to know Podman.
Format: opencontainers image-spec, image-layout.md and manifest.md.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from apps.images import MAX_LAYERS, MAX_MANIFEST_BYTES
from apps.manifest_parts import Container, Platform
from apps.problems import Refused

CHUNK: Final = 1024 * 1024
_MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
_CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
_LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True, slots=True)
class Layout:
    """A checked layout folder. Digests are `sha256:...`; `volumes` are the paths the image declares with VOLUME."""

    folder: Path
    manifest: str
    manifest_size: int
    config: str
    layers: tuple[str, ...]
    volumes: tuple[str, ...]


def check_layout(folder: Path, platform: Platform, *, where: str) -> Layout:
    """Compare a layout with what was signed. Layers that are absent may already be in Podman's store.

    Raises Refused, naming what differs.
    """
    _json(_read(folder / "oci-layout", 4096, where), where)
    raw = _blob(folder, platform.manifest, where, "manifest")
    manifest = _object(_json(raw, where), where)
    config = _object(manifest.get("config"), where).get("digest")
    if config != platform.config:
        raise Refused(
            f"the image's config is {str(config)[:80]}, and {platform.config} was signed",
            where=where,
            remedy="do not install it; tell the publisher, or fetch it again",
        )
    settings = _object(_json(_blob(folder, platform.config, where, "config"), where), where)
    layers = manifest.get("layers")
    if not isinstance(layers, list) or not 1 <= len(layers) <= MAX_LAYERS:
        raise Refused(f"not 1 to {MAX_LAYERS} layers", where=where, remedy="fetch the app again")
    digests = tuple(_layer(folder, _object(layer, where), where) for layer in layers)
    declared = _object(settings.get("config") or {}, where).get("Volumes") or {}
    return Layout(
        folder, platform.manifest, len(raw), platform.config, digests, tuple(sorted(_object(declared, where)))
    )


def refuse_unmapped_volumes(layout: Layout, container: Container, *, where: str) -> None:
    """Quadlet's stop deletes anonymous volumes with the container: every VOLUME needs a named one (R-MF10)."""
    mounted = {mount.path.rstrip("/") for mount in container.mounts}
    missing = [path for path in layout.volumes if path.rstrip("/") not in mounted]
    if missing:
        raise Refused(
            f"the image declares VOLUME {', '.join(missing)[:200]}, and no volume is mounted there: "
            "its data would be lost at every stop",
            where=where,
            remedy="the manifest has to mount a volume at each of these paths",
        )


def refuse_triggers(layout: Layout, *, where: str) -> None:
    """A base's ONBUILD instructions would run in a build that nobody read them for (R-MF12). Raises Refused."""
    config = _object(_json(_blob(layout.folder, layout.config, where, "config"), where), where)
    if any(_object(config.get(key) or {}, where).get("OnBuild") for key in ("config", "container_config")):
        raise Refused("the base has ONBUILD instructions", where=where, remedy="the publisher has to remove them")


def write_empty(folder: Path, arch: str, labels: Mapping[str, str]) -> Layout:
    """A layout of an image with nothing in it but labels, without index.json. Images of the same content are one image
    with several names at Podman; labels keep them apart."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    def write(kind: str, body: dict[str, Any]) -> dict[str, Any]:
        raw = json.dumps(body).encode()
        digest = hashlib.sha256(raw).hexdigest()
        (blobs / digest).write_bytes(raw)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(raw)}

    rootfs: dict[str, Any] = {"type": "layers", "diff_ids": []}
    config = write(
        _CONFIG_TYPE, {"architecture": arch, "os": "linux", "config": {"Labels": dict(labels)}, "rootfs": rootfs}
    )
    body = {"schemaVersion": 2, "mediaType": _MANIFEST_TYPE, "config": config, "layers": []}
    manifest = write(_MANIFEST_TYPE, body)
    return Layout(folder, manifest["digest"], manifest["size"], config["digest"], (), ())


def image_name(name: str, manifest: str) -> str:
    """`<name>:<tag>` with a tag of its own for every image, so that generations do not take each other's."""
    return f"{name}:{manifest.removeprefix('sha256:')[:16]}"


def stage(layout: Layout, into: Path) -> Path:
    """A layout folder for `podman pull oci:FOLDER:NAME`: the bundle's blobs by hard link or symlink, our own index.

    The bundle's own index.json is not passed on: it is not signed.
    """
    blobs = into / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for digest in dict.fromkeys((layout.manifest, layout.config, *layout.layers)):
        source = blob_path(layout.folder, digest)
        if source.exists():
            (blobs / source.name).symlink_to(source.resolve())
    (into / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return into


def write_index(staged: Path, layout: Layout, name: str) -> None:
    """The index.json that names the staged image."""
    entry = {
        "mediaType": _MANIFEST_TYPE,
        "digest": layout.manifest,
        "size": layout.manifest_size,
        "annotations": {"org.opencontainers.image.ref.name": name},
    }
    (staged / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))


def blob_path(folder: Path, digest: str) -> Path:
    """Where a layout keeps a blob."""
    return folder / "blobs" / "sha256" / digest.removeprefix("sha256:")


def _layer(folder: Path, layer: Mapping[str, Any], where: str) -> str:
    digest, kind, size = layer.get("digest"), layer.get("mediaType"), layer.get("size")
    if kind != _LAYER_TYPE:
        raise Refused(
            f"a layer of type {str(kind)[:80]}", where=where, remedy="the publisher has to pack it as a plain tar"
        )
    text = str(digest)
    if not text.startswith("sha256:") or len(text) != 71 or not set(text[7:]) <= set("0123456789abcdef"):
        raise Refused("a layer without a SHA-256 digest", where=where, remedy="fetch the app again")
    path = blob_path(folder, text)
    if path.exists() and path.stat().st_size != size:
        raise Refused(f"layer {text[:19]} is not {size} bytes long", where=where, remedy="fetch the app again")
    return text


def verify_layers(layout: Layout, *, where: str) -> int:
    """Hash the layers that are there; the number of bytes read. Slow: run it in a thread. Raises Refused."""
    total = 0
    for digest in dict.fromkeys(layout.layers):
        path = blob_path(layout.folder, digest)
        if not path.exists():
            continue
        hasher = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                hasher.update(chunk)
                total += len(chunk)
        if f"sha256:{hasher.hexdigest()}" != digest:
            raise Refused(f"layer {digest[:19]} has other bytes", where=where, remedy="fetch the app again")
    return total


def _blob(folder: Path, digest: str, where: str, what: str) -> bytes:
    raw = _read(blob_path(folder, digest), MAX_MANIFEST_BYTES, where)
    found = f"sha256:{hashlib.sha256(raw).hexdigest()}"
    if found != digest:
        raise Refused(
            f"the image's {what} is {found}, and {digest} was signed",
            where=where,
            remedy="do not install it; tell the publisher, or fetch it again",
        )
    return raw


def _read(path: Path, most: int, where: str) -> bytes:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > most:
                raise Refused(f"{path.name} has more than {most} bytes", where=where, remedy="fetch the app again")
            return file.read(most)
    except OSError as error:
        raise Refused(
            f"{path.name} can not be read: {error.strerror}", where=where, remedy="fetch the app again"
        ) from error


def _json(raw: bytes, where: str) -> object:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Refused("part of the image is not JSON", where=where, remedy="fetch the app again") from error


def _object(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise Refused("part of the image has the wrong shape", where=where, remedy="fetch the app again")
    return value
