"""A bundle as a folder: how it comes to be there whole, and how to see cheaply that it still is.

    bundles/<release digest>/manifest.json          canonical, what the orchestrator reads
                             images/<container>/    an OCI layout; its blobs are links into the store, read-only
                             files/<path>           templates, assets and build contexts
                             bundle.json            the marker: release, architecture, size of every file
    bundles/.<release digest>.new, .old             left by a kill; removed by the next build

Guarantees the order link -> fsync of every file and folder -> rename -> fsync of the parent, so that a folder without a
leading dot is whole. Methods block on the disk. Refuses to know where blobs come from; the caller has checked them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from market.model import BlobRef, Digest
from market.swarm import Store
from market.swarm.disk import told

MARKER: Final = "bundle.json"

MAX_MARKER: Final = 1024 * 1024
"""Bytes read of a marker: the largest bundles have some 4,000 files, each with 200 bytes in it."""


@dataclass(frozen=True, slots=True)
class BundlePart:
    """One blob of the bundle, by the name under which it appears there. `sha256` is "" for what no image names."""

    path: str
    ref: BlobRef
    sha256: str = ""


def is_whole(bundles: Path, digest: Digest, arch: str) -> bool:
    """By marker and sizes. Whoever runs an image checks its bytes once more."""
    root = bundles / digest.hex
    try:
        with (root / MARKER).open("rb") as file:
            body = json.loads(file.read(MAX_MARKER))
        if (body["schema"], body["release"], body["arch"]) != (1, digest.hex, arch):
            return False
        return all(_has_size(root / path, size) for path, size in body["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # damaged or absent is the same: it is built again


def build(
    bundles: Path, digest: Digest, arch: str, store: Store, parts: Sequence[BundlePart], texts: Mapping[str, bytes]
) -> Path:
    """Make `bundles/<digest>` of blobs and small texts (by path), in the place of a damaged one if need be.

    Raises StoreFull, StoreUnusable, NotStored.
    """
    final, hidden, old = (bundles / name for name in (digest.hex, f".{digest.hex}.new", f".{digest.hex}.old"))
    with told(bundles):
        for leftover in (hidden, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        for part in parts:
            (hidden / part.path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            store.link(part.ref.blake3, hidden / part.path)
        for path, raw in texts.items():
            (hidden / path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(hidden / path, raw)
        sizes = {part.path: part.ref.size for part in parts} | {path: len(raw) for path, raw in texts.items()}
        _write(hidden / MARKER, _marker(digest, arch, sizes))
        _sync_folders(hidden)
        if final.exists():
            final.rename(old)
        hidden.rename(final)
        _sync(bundles)
        if old.exists():
            shutil.rmtree(old)
    return final


def _marker(digest: Digest, arch: str, sizes: Mapping[str, int]) -> bytes:
    body = {"schema": 1, "release": digest.hex, "arch": arch, "files": dict(sorted(sizes.items()))}
    return json.dumps(body, indent=1).encode()


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size == size


def _write(path: Path, raw: bytes) -> None:
    with path.open("xb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())


def _sync_folders(root: Path) -> None:
    """Innermost first, so that no durable name points to one that is not."""
    for folder, _, _ in os.walk(root, topdown=False):
        _sync(Path(folder))


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_bundle(bundles: Path, digest: str) -> None:
    """Remove a bundle: one rename makes it absent, then its links go. Absent is fine; raises StoreUnusable."""
    root, leaving = bundles / digest, bundles / f".{digest}.old"
    with told(bundles):
        if root.is_dir():
            shutil.rmtree(leaving, ignore_errors=True)
            os.replace(root, leaving)
        shutil.rmtree(leaving, ignore_errors=True)
