"""What a build on the node is made of: the files of its context, its bases, and the digest that stands for all of it.

Guarantees: everything comes from the signed manifest, so that the same manifest gives the same digest everywhere, and
any other byte in a context, any other base, architecture or way to build gives another one. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import rfc8785

from apps.containerfile import NAME, Containerfile, parse
from apps.manifest import Manifest
from apps.manifest_parts import BlobEntry, Build, Container
from apps.problems import Refused

RECIPE: Final = 1
"""How a node builds, as a number: raise it when the options given to Podman change what comes out."""


def built_containers(manifest: Manifest) -> Mapping[str, Container]:
    """The containers, companions included, whose image is built on the node, by name."""
    companions = {name: companion.as_container() for name, companion in manifest.companions.items()}
    return {name: box for name, box in (companions | dict(manifest.containers)).items() if box.build is not None}


def build_of(container: Container) -> Build:
    """Raises ValueError for a container that is not built."""
    if container.build is None:
        raise ValueError("a container without a build")
    return container.build


def context_files(manifest: Manifest, build: Build) -> dict[str, BlobEntry]:
    """The files of a context, relative to it."""
    start = f"{build.context}/"
    return {path.removeprefix(start): entry for path, entry in manifest.files.items() if path.startswith(start)}


def input_digest(manifest: Manifest, build: Build, arch: str) -> str:
    """64 hex digits for all that goes into the image: the Containerfile and every other file of the context, the
    bases, the architecture, and how a node builds."""
    files = {path: [entry.blake3, entry.size] for path, entry in context_files(manifest, build).items()}
    body: dict[str, Any] = {"recipe": RECIPE, "arch": arch, "bases": sorted(set(build.bases)), "files": files}
    return hashlib.sha256(rfc8785.dumps(body)).hexdigest()


def own_images(manifest: Manifest, arch: str) -> dict[str, str]:
    """The app's own images for an architecture: container by manifest digest. They are what a build may begin with."""
    boxes = dict(manifest.containers) | {n: c.as_container() for n, c in manifest.companions.items()}
    return {
        platform.manifest: name
        for name, box in boxes.items()
        for platform in (box.image.platforms if box.image is not None else ())
        if platform.arch == arch
    }


def read_build(
    manifest: Manifest,
    name: str,
    read: Callable[[str], bytes],
    *,
    context: Collection[str] | None = None,
    where: str = "",
) -> Containerfile:
    """The Containerfile of a container, judged. `read` gives a file of the app by its path in the manifest; `context`
    are the files of its context where the manifest does not name them yet.

    Raises ContainerfileRefused, and what `read` raises.
    """
    container = built_containers(manifest)[name]
    build = build_of(container)
    kind = "containers" if name in manifest.containers and name not in manifest.companions else "companions"
    return parse(
        read(f"{build.context}/{NAME}"),
        context=context_files(manifest, build) if context is None else context,
        bases=build.bases,
        mounts=[mount.path for mount in container.mounts],
        where=f"{where or manifest.id}: {kind}.{name}.build",
    )


def check_bases(manifest: Manifest, name: str, found: Containerfile, arch: str, *, where: str = "") -> None:
    """Raises Refused unless every base is an image of the same app for the architecture: what the publisher signed,
    what the node checked before Podman had it, and what it can give Podman again."""
    own = own_images(manifest, arch)
    if missing := [base for base in found.bases if base not in own]:
        offered = ", ".join(f"{digest} ({box})" for digest, box in own.items()) or "none"
        raise Refused(
            f"the base {missing[0]} is no image of this app for {arch}",
            where=f"{where or manifest.id}: {name}.build",
            remedy=f"begin with scratch, or with one of the app's own images: {offered}",
        )
