"""A folder with a manifest, and its images, become what a publisher signs: a packed manifest and blobs.

Guarantees: every byte the app brings is named by content (R-MF12); images are verified as layouts of plain tar layers
and declare no volume that nothing maps (R-MF10); the same input gives the same bytes; `manifest.json` is replaced last,
so whatever it names is already there whole. It signs nothing and reads nothing outside the folder and the layouts.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from blake3 import blake3

from apps.builds import build_of, built_containers, own_images, read_build
from apps.containerfile import Containerfile
from apps.containerfile_text import MAX_BYTES
from apps.images import MAX_MANIFEST_BYTES, ImageBlob, ImageIndex, image_containers
from apps.manifest import Manifest, parse_manifest_json, parse_manifest_yaml
from apps.manifest_parts import BlobEntry, Container
from market.errors import EnvironmentLacks, Refused, UsageProblem
from market.identity.canonical import MAX_DOCUMENT_SIZE, canonical_bytes
from market.model import BlobRef, Digest
from market.oci import (
    MAX_INDEX_BYTES,
    REMEDY,
    BadImage,
    Descriptor,
    ImageConfig,
    ImageManifest,
    check_layout_version,
    check_pair,
    check_sha256,
    parse_layout_index,
)
from market.swarm import hash_file

MANIFEST_NAME: Final = "manifest.yml"

MAX_SOURCE_BYTES: Final = 1024 * 1024
"""manifest.yml: forty times what may be signed of it; the rest are comments."""

RESERVED: Final = 2 * 1024
"""Bytes of a release document beside the manifest: proof, names, digests and a few origins take under 1.5 KiB."""

MAX_PACKED: Final = MAX_DOCUMENT_SIZE - RESERVED

MAX_FILES: Final = 200
"""Templates, assets and build contexts of one app: each entry takes at least 110 of the 22 KiB that can be signed."""


class TooLarge(Refused):
    """The packed manifest does not fit into a release document."""

    kind: ClassVar[str] = "manifest-too-large"


class BadFile(Refused):
    """A file that the manifest names can not be packed."""

    kind: ClassVar[str] = "bad-file"


@dataclass(frozen=True, slots=True)
class PackedApp:
    """What `pack_app` wrote: the packed manifest, its file, and every blob, piece lists and indexes included."""

    manifest: Manifest
    path: Path
    blobs: Mapping[Digest, int]
    """Size in bytes by digest."""

    @property
    def total_size(self) -> int:
        return sum(self.blobs.values())


def pack_app(folder: Path, images: Mapping[str, Path | Sequence[Path]], out: Path) -> PackedApp:
    """Pack `folder` (with its manifest.yml) and the OCI layouts of its containers, one per architecture, into `out`.

    Writes out/blobs/<blake3> and out/manifest.json. Raises ManifestProblem and Refused (manifest, images, files),
    UsageProblem (images that fit no container), EnvironmentLacks (an `out` that can not be written).
    """
    source = parse_manifest_yaml(_read_source(folder), where=str(folder / MANIFEST_NAME))
    layouts = _by_container(source, images)
    with _writable(out):
        (out / "blobs").mkdir(parents=True, exist_ok=True)
        writer = _Writer(out / "blobs")
        body = source.canonical()
        boxes = image_containers(source)
        for name, paths in layouts.items():
            kind = "containers" if name in source.containers else "companions"
            body[kind][name]["image"]["platforms"] = _pack_image(name, boxes[name], paths, writer)
        if files := _pack_files(folder, source, writer):
            body["files"] = files
        packed = parse_manifest_json(body, where=str(folder / MANIFEST_NAME))
        packed.require_packed(where=str(folder / MANIFEST_NAME))
        for name, found in check_builds(folder, packed).items():
            _check_bases(packed, name, found, where=str(folder / MANIFEST_NAME))
        raw = canonical_bytes(packed.canonical())
        if len(raw) > MAX_PACKED:
            raise TooLarge(
                f"the packed manifest has {len(raw)} bytes, and {MAX_PACKED} fit into a release",
                where=str(folder / MANIFEST_NAME),
                remedy="name fewer files (put them into the image), or shorten texts and environments",
            )
        writer.sync()
        _replace(out / "manifest.json", raw)
    return PackedApp(packed, out / "manifest.json", writer.written)


def _read_source(folder: Path) -> bytes:
    path = folder / MANIFEST_NAME
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_SOURCE_BYTES + 1)
    except OSError as error:
        raise UsageProblem(
            f"can not be read: {error.strerror}", where=str(path), remedy="name the folder that holds manifest.yml"
        ) from error
    if len(raw) > MAX_SOURCE_BYTES:
        raise Refused(f"more than {MAX_SOURCE_BYTES} bytes", where=str(path))
    return raw


# --- images


def _by_container(manifest: Manifest, images: Mapping[str, Path | Sequence[Path]]) -> dict[str, tuple[Path, ...]]:
    """The layouts of every container that has an image; none left over, none missing."""
    wanted = set(image_containers(manifest))
    if extra := sorted(set(images) - wanted):
        raise UsageProblem(f"no container with an image is called {', '.join(extra)}", where=MANIFEST_NAME)
    if missing := sorted(wanted - set(images)):
        raise UsageProblem(f"no OCI layout was given for {', '.join(missing)}", where=MANIFEST_NAME, remedy=REMEDY)
    return {name: (given,) if isinstance(given, Path) else tuple(given) for name, given in sorted(images.items())}


def _pack_image(name: str, container: Container, layouts: Sequence[Path], writer: _Writer) -> list[dict[str, Any]]:
    platforms: dict[str, dict[str, Any]] = {}
    for layout in layouts:
        arch, index = _read_layout(layout, container, writer)
        if arch in platforms:
            raise UsageProblem(f"two images of {name} for {arch}", where=str(layout))
        ref = writer.add_bytes(index.to_bytes())
        platforms[arch] = {
            "arch": arch,
            "manifest": f"sha256:{index.manifest.sha256}",
            "config": f"sha256:{index.config.sha256}",
            "index": ref.to_json(),
        }
    if not platforms:
        raise UsageProblem(f"no OCI layout was given for {name}", remedy=REMEDY)
    return [platforms[arch] for arch in sorted(platforms)]


def _read_layout(layout: Path, container: Container, writer: _Writer) -> tuple[str, ImageIndex]:
    where = str(layout)
    check_layout_version(_read(layout / "oci-layout", MAX_INDEX_BYTES), where=where)
    entry = parse_layout_index(_read(layout / "index.json", MAX_INDEX_BYTES), where=f"{where}/index.json")
    manifest = ImageManifest.parse(_small(layout, entry), where=f"{where}: manifest")
    config = ImageConfig.parse(_small(layout, manifest.config), where=f"{where}: config")
    check_pair(manifest, config, where=where)
    mapped = {mount.path for mount in container.mounts}
    if loose := [path for path in config.volumes if (path.rstrip("/") or "/") not in mapped]:
        # R-MF10: Quadlet's stop is `podman rm -v`, which deletes anonymous volumes with all that is in them.
        raise BadImage(
            f"the image declares VOLUME {', '.join(loose)}, which no mount maps: data there dies at every stop"[:400],
            where=where,
            remedy="mount a volume of the app at exactly that path",
        )
    blobs = {d.sha256: ImageBlob(d.sha256, _add(layout, d, writer)) for d in (entry, manifest.config, *manifest.layers)}
    return config.arch, ImageIndex(
        blobs[entry.sha256], blobs[manifest.config.sha256], tuple(blobs[layer.sha256] for layer in manifest.layers)
    )


def _small(layout: Path, descriptor: Descriptor) -> bytes:
    path = _blob_path(layout, descriptor)
    raw = _read(path, MAX_MANIFEST_BYTES)
    check_sha256(raw, descriptor.sha256, where=str(path))
    return raw


def _add(layout: Path, descriptor: Descriptor, writer: _Writer) -> BlobRef:
    """A blob of the layout, linked: nobody edits such a file in place, its name is its content."""
    path = _blob_path(layout, descriptor)
    found = _sha256_of(path)
    if found != descriptor.sha256:
        raise BadImage(f"its SHA-256 is {found}", where=str(path), remedy="save the image again: " + REMEDY)
    ref = writer.add_file(path)
    if ref.size != descriptor.size:
        raise BadImage(f"it has {ref.size} bytes, its image says {descriptor.size}", where=str(path), remedy=REMEDY)
    return ref


def _blob_path(layout: Path, descriptor: Descriptor) -> Path:
    return layout / "blobs" / "sha256" / descriptor.sha256


def _read(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(most + 1)
    except OSError as error:
        raise BadImage(f"can not be read: {error.strerror}", where=str(path), remedy=REMEDY) from error
    if len(raw) > most:
        raise BadImage(f"more than {most} bytes", where=str(path))
    return raw


def _sha256_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadImage(f"can not be read: {error.strerror}", where=str(path), remedy=REMEDY) from error


# --- files


def _pack_files(folder: Path, manifest: Manifest, writer: _Writer) -> dict[str, dict[str, object]]:
    """Every template, hook asset and build context, and whatever `files` lists, by content."""
    named = set(manifest.files)
    named |= {derived.template for derived in manifest.derived_files}
    named |= {hook.copy_from_host.src for hook in manifest.hooks.post_install if hook.copy_from_host is not None}
    for container in built_containers(manifest).values():
        named.update(_context(folder, build_of(container).context))
    if len(named) > MAX_FILES:
        raise BadFile(f"{len(named)} files, more than {MAX_FILES}", where=str(folder), remedy="put them into an image")
    return {path: writer.add_copy(_inside(folder, path)).to_json() for path in sorted(named)}


def check_builds(folder: Path, manifest: Manifest) -> dict[str, Containerfile]:
    """What a node will say of each build, by container. Raises ContainerfileRefused, BadFile."""

    def read(path: str) -> bytes:
        file = _inside(folder, path)
        if not file.is_file():
            raise BadFile("no such file", where=str(file), remedy=f"a build context has a {Path(path).name}")
        with file.open("rb") as opened:
            return opened.read(MAX_BYTES + 1)

    found = {}
    for name, container in built_containers(manifest).items():
        context = build_of(container).context
        inside = [path.removeprefix(f"{context}/") for path in _context(folder, context)]
        found[name] = read_build(manifest, name, read, context=inside, where=str(folder / MANIFEST_NAME))
    return found


def with_contexts(folder: Path, manifest: Manifest) -> Manifest:
    """The manifest with the files of its build contexts as packing would name them. Raises BadFile."""
    named = {path for box in built_containers(manifest).values() for path in _context(folder, build_of(box).context)}
    found = {path: BlobEntry(**hash_file(_inside(folder, path))[0].to_json()) for path in sorted(named)}
    return manifest.model_copy(update={"files": {**manifest.files, **found}})


def _check_bases(manifest: Manifest, name: str, found: Containerfile, *, where: str) -> None:
    """A node looks for bases among the app's images for its own architecture; here any of them will do."""
    arches = {p.arch for box in image_containers(manifest).values() if box.image for p in box.image.platforms}
    known = {digest for arch in arches for digest in own_images(manifest, arch)}
    if missing := [base for base in found.bases if base not in known]:
        raise BadFile(
            f"{name} is built from {missing[0]}, which is no image of this app",
            where=where,
            remedy=f"begin with scratch, or with one of: {', '.join(sorted(known)) or 'none, it has no image'}",
        )


def _context(folder: Path, context: str) -> Iterator[str]:
    """The files of a build context, by path in the app's folder."""
    root = _inside(folder, context)
    if not root.is_dir():
        raise BadFile("not a folder", where=str(root), remedy="a build context is a folder of the app")
    for path in sorted(root.rglob("*")):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise BadFile("neither a file nor a folder", where=str(path), remedy="replace links by what they point to")
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def _inside(folder: Path, relative: str) -> Path:
    """The path below the folder, with no link on the way: a link could lead out, and would not be signed."""
    path = folder
    for part in relative.split("/"):
        path = path / part
        if part in ("", ".", "..") or path.is_symlink():
            raise BadFile("a link, or a path that leaves the app's folder", where=str(path), remedy="copy the file in")
    return path


class _Writer:
    """Adds blobs to a folder, each whole or not at all, and remembers what it added."""

    def __init__(self, blobs: Path) -> None:
        self._blobs = blobs
        self.written: dict[Digest, int] = {}

    def add_bytes(self, raw: bytes) -> BlobRef:
        """A small blob. Raises BlobRef's Refused above 1 MiB, which would need a piece list."""
        ref = BlobRef(Digest.from_bytes(blake3(raw).digest()), len(raw))
        self._place(ref.blake3, ref.size, lambda temporary: temporary.write_bytes(raw))
        return ref

    def add_file(self, path: Path) -> BlobRef:
        """A file and its piece list. It is linked where that is possible: name only files that nobody changes."""
        ref, pieces = hash_file(path)
        self._place(ref.blake3, ref.size, lambda temporary: _link_or_copy(path, temporary))
        if pieces is not None:
            # A piece list is named as it is, whatever its length: it needs no list of its own.
            digest = Digest.from_bytes(blake3(pieces).digest())
            self._place(digest, len(pieces), lambda temporary: temporary.write_bytes(pieces))
        return ref

    def add_copy(self, path: Path) -> BlobRef:
        """A file of the app: its author goes on editing it, and a link would change with it."""
        if not path.is_file():
            raise BadFile("no such file", where=str(path), remedy="create it, or name another in the manifest")
        copy = self._blobs / f".copy.{os.getpid()}"
        try:
            shutil.copyfile(path, copy)
            return self.add_file(copy)
        finally:
            copy.unlink(missing_ok=True)

    def _place(self, digest: Digest, size: int, make: Callable[[Path], object]) -> None:
        self.written[digest] = size
        place = self._blobs / digest.hex
        if place.is_file() and hash_file(place)[0].blake3 == digest:
            return
        temporary = self._blobs / f".{digest.hex}.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        try:
            make(temporary)
            _sync(temporary)
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)

    def sync(self) -> None:
        """The names are durable before a manifest names them."""
        _sync(self._blobs)


def _link_or_copy(source: Path, target: Path) -> None:
    with suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)


@contextmanager
def _writable(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EnvironmentLacks(
            f"can not be used: {error.strerror}", where=str(error.filename or out), remedy=f"look at `df {out}`"
        ) from error


def _replace(path: Path, raw: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(raw)
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
