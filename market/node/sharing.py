"""Which blobs this node offers to peers: those of installed apps, unless sharing is off, and whatever is pinned.

R-SW7: only blobs that a signed manifest or the operator named are ever served. Reads the installed bundles' manifests
and the image indexes in the store; writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from apps.images import MAX_INDEX_BYTES, ImageIndex, image_containers, platform_for
from apps.manifest import Manifest
from apps.names import BlobRef, Digest
from market.errors import Problem
from market.swarm import Store


def blobs_of(manifest: Manifest, store: Store, arch: str) -> Iterator[Digest]:
    """Every blob of one app for one architecture, piece lists included; images whose index is not here are left out."""
    for ref in refs_of(manifest, store, arch):
        yield ref.blake3
        if ref.pieces is not None:
            yield ref.pieces


def refs_of(manifest: Manifest, store: Store, arch: str) -> Iterator[BlobRef]:
    """The same as references, as they were signed."""
    for entry in manifest.files.values():
        yield entry.blob
    for container in image_containers(manifest).values():
        index_ref = platform_for(container, arch).index.blob
        yield index_ref
        try:
            index = ImageIndex.parse(store.read_bytes(index_ref.blake3, MAX_INDEX_BYTES))
        except Problem:
            continue
        yield from (ref for _, ref in index.blobs())
