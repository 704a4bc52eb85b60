"""Small real bundles: an OCI layout with one tar layer for each container, and a manifest that pins it."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

from blake3 import blake3

from apps.names import AppName
from orchestrator.bundle import Bundle


def app_name(id_: str = "hello", publisher: str = "did:key:zAlice") -> AppName:
    return AppName(publisher, id_)


def container(port: int = 18080, **more: Any) -> dict[str, Any]:
    """A container that serves HTTP and keeps a volume and a secret."""
    body: dict[str, Any] = {
        "ports": [{"name": "web", "container": 8080, "host": port}],
        "mounts": [{"volume": "data", "path": "/data"}],
        "secrets": [{"name": "password", "file": "/run/secrets/password"}],
        "health": {"http": {"port": "web"}, "interval": 1, "timeout": 1, "retries": 2, "start_period": 5},
        "stop_grace_secs": 2,
    }
    return body | more


def make_bundle(
    folder: Path,
    version: str = "1.0.0",
    *,
    name: AppName | None = None,
    containers: dict[str, dict[str, Any]] | None = None,
    layer: bytes | None = None,
    config: dict[str, Any] | None = None,
    **more: Any,
) -> Bundle:
    """Write a bundle folder and load it. Each version has an image of its own."""
    name = name or app_name()
    containers = containers if containers is not None else {"web": container()}
    root = folder / f"{name.slug}-{version}"
    root.mkdir(parents=True, exist_ok=True)
    packed: dict[str, Any] = {}
    for label, body in containers.items():
        if "build" in body:
            packed[label] = body
            continue
        image = write_layout(root / "images" / label, f"{label} {version}".encode(), layer=layer, config=config)
        packed[label] = {"image": image} | body
    manifest: dict[str, Any] = {
        "schema": 1,
        "id": name.id,
        "version": version,
        "title": name.id.title(),
        "containers": packed,
        "volumes": {"data": {}},
        "generated_secrets": [{"name": "password"}],
    }
    (root / "manifest.json").write_text(json.dumps(manifest | more))
    return Bundle.load(root, name, version, hashlib.sha256(version.encode()).hexdigest())


def write_layout(
    folder: Path, content: bytes, *, layer: bytes | None = None, config: dict[str, Any] | None = None
) -> dict[str, Any]:
    """An OCI layout folder; what the manifest's `image` says of it."""
    layer = layer if layer is not None else tar_of({"content": content})
    settings = config or {"architecture": "amd64", "os": "linux", "config": {}}
    settings["rootfs"] = {"type": "layers", "diff_ids": [sha256(layer)]}
    raw_config = json.dumps(settings).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _descriptor("application/vnd.oci.image.config.v1+json", raw_config),
            "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
        }
    ).encode()
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    for blob in (layer, raw_config, manifest):
        (blobs / sha256(blob)[7:]).write_bytes(blob)
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": []}))
    index = {"blake3": "0" * 64, "size": 100}
    platform = {"arch": "amd64", "manifest": sha256(manifest), "config": sha256(raw_config), "index": index}
    return {"ref": "localhost/test:1", "platforms": [platform]}


def files_entry(files: dict[str, str]) -> dict[str, Any]:
    """What a packed manifest says of the app's files."""
    named = {
        path: {"blake3": blake3(text.encode()).hexdigest(), "size": len(text.encode())} for path, text in files.items()
    }
    return {"files": named} if named else {}


def write_files(bundle: Bundle, files: dict[str, str]) -> None:
    """Put the app's files into its bundle, in the place of what an earlier bundle of that version left there."""
    shutil.rmtree(bundle.root / "files", ignore_errors=True)
    for path, text in files.items():
        target = bundle.root / "files" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


def tar_of(files: dict[str, bytes], *, executable: bool = False) -> bytes:
    """A plain tar, the same bytes for the same files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755 if executable else 0o644
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def sha256(raw: bytes) -> str:
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def _descriptor(kind: str, raw: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": sha256(raw), "size": len(raw)}
