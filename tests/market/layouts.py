"""OCI image layouts made from nothing, the same bytes each time, as `podman save --uncompressed` writes them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from market.oci import CONFIG_TYPE, LAYER_TYPE, LAYOUT_FILE, MANIFEST_TYPE


def layer(name: str, content: bytes) -> bytes:
    """A plain tar with one file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def config_of(layers: Sequence[bytes], *, arch: str = "amd64", volumes: Sequence[str] = ()) -> dict[str, Any]:
    return {
        "architecture": arch,
        "os": "linux",
        "config": {"Cmd": ["/bin/serve"], **({"Volumes": {path: {} for path in volumes}} if volumes else {})},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(raw)}" for raw in layers]},
    }


def write_layout(
    root: Path,
    layers: Sequence[bytes],
    *,
    config: Mapping[str, Any] | None = None,
    layer_type: str = LAYER_TYPE,
    **more: Any,
) -> Path:
    """A layout with one image. `config` replaces the right one; `more` goes to `config_of`."""
    raw_config = json.dumps(config or config_of(layers, **more)).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": descriptor(CONFIG_TYPE, raw_config),
        "layers": [descriptor(layer_type, raw) for raw in layers],
    }
    raw_manifest = json.dumps(manifest).encode()
    blobs = root / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for raw in (*layers, raw_config, raw_manifest):
        (blobs / sha256(raw)).write_bytes(raw)
    (root / "oci-layout").write_bytes(LAYOUT_FILE)
    entry = descriptor(MANIFEST_TYPE, raw_manifest)
    (root / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return root


def descriptor(kind: str, raw: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{sha256(raw)}", "size": len(raw)}


def sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
