"""Building an image on the node: what is checked before anything changes, and the one step that does it.

Guarantees: Podman sees a Containerfile that this node wrote and files whose bytes were compared with what was signed
(R-MF12); an image counts as built only when it carries the digest of exactly these inputs and keeps its data in mapped
volumes (R-MF10); whatever a build leaves behind, killed or not, is cleared. One build at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from apps.builds import build_of, built_containers, check_bases, context_files, own_images, read_build
from apps.containerfile import Containerfile
from apps.containerfile_text import MAX_BYTES
from apps.images import platform_for
from apps.manifest import Manifest
from apps.manifest_parts import Container
from apps.problems import Problem, Refused
from orchestrator.build_folder import check_file
from orchestrator.derived import read_file
from orchestrator.faults import BuildFailed, CommandFailed, CommandTimedOut
from orchestrator.images import check_layout, refuse_triggers, refuse_unmapped_volumes, write_empty, write_index
from orchestrator.machine import Machine
from orchestrator.names import Names
from orchestrator.podman import ImageDetail
from orchestrator.quadlet.build import UNBUILT, Built, RenderedBuild
from orchestrator.quadlet.rendered import RenderedApp
from orchestrator.quadlet.text import parse
from orchestrator.systemd import UnitState
from orchestrator.unit_folder import OwnedFile

log = logging.getLogger(__name__)

BEGINNING: Final = ("activating", "active", "reloading")
"""States in which systemd is at a build already: a process that was killed left it to systemd."""
TOLD: Final = 40
"""Lines of what a build said that are searched for the reason of its failure."""
QUEUED: Final = 100
"""Seconds that Podman's own podman-user-wait-network-online.service may hold a first start back (it gives up at 90)."""
STOP_SECONDS: Final = 100
"""Systemd kills a build that does not end after 90."""
SCRATCH: Final = "scratch"
"""Tag of the empty image that stands for `FROM scratch`. What a killed build leaves in Podman's store is known by the
name of the image that it began with, and scratch has no name of ours."""


def check_builds(manifest: Manifest, root: Path, arch: str) -> None:
    """Everything of an app's builds that can be refused before anything is changed; `root` is the bundle's.

    Reads all files of the contexts: run it in a thread. Raises Refused (ContainerfileRefused included).
    """
    for label, container in built_containers(manifest).items():
        found = _judged(manifest, label, root, arch)
        where = f"{manifest.id}: {label}.build"
        own, boxes = own_images(manifest, arch), dict(manifest.containers) | _companions(manifest)
        for base in found.bases:
            name = own[base]
            layout = check_layout(root / "images" / name, platform_for(boxes[name], arch), where=where)
            refuse_triggers(layout, where=where)
            refuse_unmapped_volumes(layout, container, where=where)
        for path, entry in context_files(manifest, build_of(container)).items():
            check_file(root / "files" / build_of(container).context / path, entry)


def _companions(manifest: Manifest) -> dict[str, Container]:
    return {name: companion.as_container() for name, companion in manifest.companions.items()}


def _judged(manifest: Manifest, label: str, root: Path, arch: str) -> Containerfile:
    found = read_build(manifest, label, lambda path: read_file(root, manifest, path, MAX_BYTES))
    check_bases(manifest, label, found, arch)
    return found


async def build_image(
    machine: Machine, build: RenderedBuild, label: str, names: Names, manifest: Manifest, root: Path, arch: str
) -> None:
    """Build a container's image and remember it. Raises BuildFailed, Refused, Problem.

    The order: the mark that a build was begun; what it reads; the service; the record of what came out; the end of the
    mark. A kill after each of them is seen by its mark, or joined while the service goes on.
    """
    async with machine.builds.turn:
        if (await _state(machine, names, build)).active in BEGINNING:
            with suppress(CommandFailed, CommandTimedOut):
                await machine.systemd.start((build.service,), seconds=build.seconds)
        detail = await machine.podman.image(build.tag)
        if detail is None or detail.labels.get("archy.build") != build.inputs:
            await machine.podman.remove_image(build.tag)  # one that loses its name to another is nobody's
            detail = await _built(machine, build, label, names, manifest, root, arch)
        container = built_containers(manifest)[label]
        try:
            _check(detail, build, container, where=f"{names.app.id}: {label}.build")
        except Refused:
            await machine.podman.remove_image(build.tag)
            await clear_build(machine, names, label)
            raise
        machine.builds.record(names.app, build.tag, Built(detail.digest, detail.id))
        await clear_build(machine, names, label)


async def _built(
    machine: Machine, build: RenderedBuild, label: str, names: Names, manifest: Manifest, root: Path, arch: str
) -> ImageDetail:
    found = await trio.to_thread.run_sync(_judged, manifest, label, root, arch)
    await clear_build(machine, names, label)
    machine.builds.begin(names.app, label)
    try:
        await _stage(machine, build, label, names, manifest, root, arch, found)
        return await _run(machine, build, label, names)
    except Problem:
        await clear_build(machine, names, label)
        raise


async def _stage(
    machine: Machine,
    build: RenderedBuild,
    label: str,
    names: Names,
    manifest: Manifest,
    root: Path,
    arch: str,
    found: Containerfile,
) -> None:
    """Everything that the service reads."""
    scratch = f"{build.name}:{SCRATCH}"
    if found.from_scratch:
        folder = machine.builds.folder / names.slug / label / SCRATCH
        labels = {"archy.app": names.slug, "archy.container": label}
        write_index(folder, write_empty(folder, arch, labels), scratch)
        await machine.podman.import_image(folder, scratch)
    own = own_images(manifest, arch)
    text = found.text({base: f"{names.image(own[base])}@{base}" for base in found.bases}, scratch)
    declared = build_of(built_containers(manifest)[label])
    files, source = context_files(manifest, declared), root / "files" / declared.context
    await trio.to_thread.run_sync(machine.builds.stage, names.app, label, text, source, files)


async def _run(machine: Machine, build: RenderedBuild, label: str, names: Names) -> ImageDetail:
    state = await _state(machine, names, build)
    if state.load != "loaded" or state.needs_reload:
        await machine.systemd.daemon_reload()
    await machine.systemd.reset_failed((build.service,))
    try:
        await machine.systemd.start((build.service,), seconds=build.seconds + QUEUED)
    except (CommandFailed, CommandTimedOut) as error:
        said = await machine.systemd.said(build.service, lines=TOLD)
        raise BuildFailed(names.app.id, label, _reason(said) or error.what, build.service) from error
    detail = await machine.podman.image(build.tag)
    if detail is None:
        raise BuildFailed(names.app.id, label, "the build ended without an image", build.service)
    return detail


async def _state(machine: Machine, names: Names, build: RenderedBuild) -> UnitState:
    unknown = UnitState(build.service, "not-found", "inactive", "dead")
    return (await machine.systemd.show(names.stem, (build.service,))).get(build.service, unknown)


def _reason(said: list[str]) -> str:
    errors = [line for line in said if line.lower().startswith("error")]
    return (errors or said or [""])[-1].removeprefix("Error: ")[:600]


def _check(detail: ImageDetail, build: RenderedBuild, container: Container, *, where: str) -> None:
    if detail.labels.get("archy.build") != build.inputs:
        raise Refused("Podman built something else than it was told", where=where, remedy="upgrade Podman")
    mounted = {mount.path for mount in container.mounts}
    if loose := [path for path in detail.volumes if (path.rstrip("/") or "/") not in mounted]:
        raise Refused(
            f"the built image declares VOLUME {', '.join(loose)[:200]}, and no volume is mounted there: "
            "its data would be lost at every stop",
            where=where,
            remedy="the manifest has to mount a volume at each of these paths",
        )


async def clear_build(machine: Machine, names: Names, label: str) -> None:
    """Nothing is left of a build but its image: no service, no working container, no empty image, no copies."""
    service = names.build_service(label)
    await machine.systemd.stop((service,), seconds=STOP_SECONDS)
    await machine.systemd.reset_failed((service,))  # one that was killed counts as failed
    await machine.podman.remove_remains(f"localhost/{names.prefix}/{names.slug}/")
    await machine.podman.remove_image(f"{names.image(label)}:{SCRATCH}")
    await trio.to_thread.run_sync(machine.builds.clear, names.app, label)


async def remember_builds(machine: Machine, app: RenderedApp, files: Mapping[str, OwnedFile]) -> bool:
    """Take what units pin for what was built, where the record is lost and Podman has the image; was anything found?

    The image says itself of which inputs it was built, under a name that only this node gives.
    """
    found = False
    for box in app.containers:
        if box.build is None or not box.image.endswith(UNBUILT) or box.unit not in files:
            continue
        if files[box.unit].owner != app.names.slug:
            continue
        pinned = parse(box.unit, files[box.unit].text).values("Container", "Image")
        detail = await machine.podman.image(box.build.tag)
        if detail is None or detail.labels.get("archy.build") != box.build.inputs:
            continue
        if pinned == (f"{box.build.name}@{detail.digest}",):
            machine.builds.record(app.names.app, box.build.tag, Built(detail.digest, detail.id))
            log.info("a build is known again", extra={"app": app.names.slug, "container": box.label})
            found = True
    return found
