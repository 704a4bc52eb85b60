"""Takes steps. Each is idempotent, bounded by a deadline, logged; none decides what should be.

Units are put in place only after Quadlet's generator accepted them (R-MF9), an image only after its bytes were
compared with what was signed (R-MF11). Secrets' values pass through here and are never logged.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import trio

from apps.images import platform_for
from apps.manifest import Manifest
from apps.problems import Problem, Refused
from orchestrator.building import build_image, clear_build
from orchestrator.faults import CommandFailed, CommandTimedOut, Unhealthy, UnitRefused
from orchestrator.images import check_layout, image_name, stage, verify_layers, write_index
from orchestrator.machine import Machine
from orchestrator.names import Names, service_of
from orchestrator.quadlet.build import RenderedBuild
from orchestrator.quadlet.text import owner_of
from orchestrator.steps import (
    BuildImage,
    ClearBuilds,
    Connect,
    CreateLink,
    DaemonReload,
    ImportImage,
    Reload,
    RemoveBuilds,
    RemoveContainers,
    RemoveDerived,
    RemoveImages,
    RemoveLink,
    RemoveNetwork,
    RemoveSecrets,
    RemoveVolume,
    ResetFailed,
    Restart,
    Start,
    Step,
    StopUnits,
    WriteDerived,
    WriteSecrets,
    WriteUnits,
)
from orchestrator.together import all_of

log = logging.getLogger(__name__)

SECRETS_AT_ONCE: Final = 4
"""Programs that give Podman a secret each; most of their time is their start."""


@dataclass(frozen=True, slots=True)
class Source:
    """What the steps of one generation draw on: its manifest and its bundle."""

    names: Names
    manifest: Manifest
    root: Path
    arch: str


async def take(machine: Machine, step: Step, source: Source | None, names: Names) -> None:
    """Take one step; `source` may be None where an app is only removed. Raises Problem."""
    facts: dict[str, object] = {"app": names.slug, "step": type(step).__name__, "of": _subject(step)}
    begun = trio.current_time()
    try:
        try:
            await _take(machine, step, source, names)
        except OSError as error:  # this app's trouble, and no defect that ends the mending of others (R-ST4)
            what, where = error.strerror or str(error), str(error.filename or names.slug)
            raise Problem(what, where=where, remedy="free space, or make it writable for this user") from error
    except Problem as problem:
        seconds = round(trio.current_time() - begun, 2)
        log.warning("step failed", extra={**facts, "seconds": seconds, "problem": str(problem)})
        raise
    log.info("step", extra={**facts, "seconds": round(trio.current_time() - begun, 2)})


def _subject(step: Step) -> str:
    """What a step is about, by name alone: contents may be secret."""
    match step:
        case WriteUnits(files, removed):
            return ",".join((*files, *(f"-{name}" for name in removed)))
        case WriteDerived(files, removed):
            return ",".join((*(file.path for file in files), *(f"-{path}" for path in removed)))
        case StopUnits(names) | WriteSecrets(names) | RemoveSecrets(names) | RemoveImages(names):
            return ",".join(names)
        case RemoveContainers(names) | ResetFailed(names):
            return ",".join(names)
        case Start(service) | Restart(service):
            return service
        case ImportImage(label) | Reload(label) | BuildImage(label):
            return label
        case ClearBuilds(labels) | RemoveBuilds(labels):
            return ",".join(labels)
        case CreateLink(network):
            return network.name
        case Connect(network, container):
            return f"{container} {network}"
        case RemoveLink(name) | RemoveNetwork(name) | RemoveVolume(name):
            return name
        case DaemonReload() | RemoveDerived():
            return ""


LINK_TRIES: Final = 4
"""A look at the other app joins its container again once, with what was wanted when it began."""


async def _remove_link(machine: Machine, network: str, containers: Iterable[str], *, kept: bool) -> None:
    """Take these containers out of the network of two apps, and remove it. The other app is looked after at the same
    time: who has joined again meanwhile is taken out again."""
    for turn in range(LINK_TRIES):
        for container in containers:
            await machine.podman.disconnect(network, container)
        if kept:
            break
        try:
            await machine.podman.remove_network(network)
            break
        except CommandFailed:
            seen = await machine.podman.containers(machine.prefix)
            containers = [box.name for box in seen if network in box.networks]
            if not containers or turn == LINK_TRIES - 1:
                raise


async def _take(machine: Machine, step: Step, source: Source | None, names: Names) -> None:
    match step:
        case WriteSecrets(labels):
            await _write_secrets(machine, labels, _needed(source))
        case ImportImage(container, image):
            await import_image(machine, container, image, _needed(source))
        case BuildImage(label, build):
            await _build_image(machine, label, build, _needed(source))
        case WriteUnits(files, removed):
            await _write_units(machine, files, removed)
        case DaemonReload():
            await machine.systemd.daemon_reload()
        case WriteDerived(files, removed, pending):
            machine.derived.write(names.app, files, removed, pending)
        case Reload(container, name):
            await machine.podman.hang_up(name)
            machine.derived.settle(names.app, container)
        case CreateLink(network):
            await machine.podman.create_link(network, names.prefix)
        case Connect(network_name, container, aliases):
            await machine.podman.connect(network_name, container, aliases)
        case RemoveLink(network_name, containers, kept):
            await _remove_link(machine, network_name, containers, kept=kept)
        case StopUnits(services, seconds):
            await machine.systemd.stop(services, seconds=seconds)
        case Start(service, seconds, known):
            await _start(machine.systemd.start, machine, service, seconds, names, known=known)
        case Restart(service, seconds):
            await _start(machine.systemd.restart, machine, service, seconds, names, known=True)
        case ResetFailed(services):
            await machine.systemd.reset_failed(services)
        case _:
            await _remove(machine, step, names)


class _Begin(Protocol):
    async def __call__(self, services: Sequence[str], *, seconds: float) -> None: ...


async def _start(begin: _Begin, machine: Machine, service: str, seconds: int, names: Names, *, known: bool) -> None:
    if known:
        await machine.systemd.reset_failed((service,))
    try:
        await begin((service,), seconds=seconds)
    except (CommandFailed, CommandTimedOut) as error:
        raise Unhealthy(
            f"{service} does not start: {error.what}",
            where=names.slug,
            remedy=f"journalctl --user -u {service} shows what it said",
        ) from error


def _needed(source: Source | None) -> Source:
    if source is None:
        raise Problem("a removal asked for something of a bundle")
    return source


async def _remove(machine: Machine, step: Step, app: Names) -> None:
    match step:
        case RemoveDerived():
            machine.derived.remove(app.app)
        case RemoveContainers(names):
            await machine.podman.remove_containers(names)
        case ClearBuilds(labels) | RemoveBuilds(labels):
            for label in labels:
                await clear_build(machine, app, label)
            if isinstance(step, RemoveBuilds):
                machine.builds.forget(app.app)
        case RemoveNetwork(name):
            await machine.podman.remove_network(name)
        case RemoveSecrets(names):
            await machine.podman.remove_secrets(names)
        case RemoveImages(names):
            for name in names:
                await machine.podman.remove_image(name)
        case RemoveVolume(name):
            await machine.podman.remove_volume(name)


async def _build_image(machine: Machine, label: str, build: RenderedBuild, source: Source) -> None:
    await build_image(machine, build, label, source.names, source.manifest, source.root, source.arch)


async def _write_secrets(machine: Machine, names: tuple[str, ...], source: Source) -> None:
    limit = trio.CapacityLimiter(SECRETS_AT_ONCE)
    labels = {"archy.prefix": source.names.prefix, "archy.app": source.names.slug}

    async def write(name: str) -> None:
        async with limit:
            value = machine.secrets.value(source.names.app, name)
            await machine.podman.create_secret(source.names.secret(name), value, labels)

    await all_of(*(partial(write, s.name) for s in source.manifest.generated_secrets if s.name in names))


async def _write_units(machine: Machine, files: Mapping[str, str], removed: tuple[str, ...]) -> None:
    if files:
        await dry_run(machine, files)
    machine.folder.write(files)
    machine.folder.remove(removed)


async def dry_run(machine: Machine, files: Mapping[str, str]) -> None:
    """Let Quadlet's generator read the units from a folder aside. Raises UnitRefused."""
    # A unit that refers to another file needs it beside it, and refers to none of another app.
    apps = {owner_of(text) for text in files.values()}
    own = {name: file.text for name, file in machine.folder.read().items() if file.owner in apps}
    together = own | dict(files)
    with _aside(machine) as folder:
        for name, text in together.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        made = await machine.systemd.dry_run(folder)
    wanted = {name for name in files if "/" not in name}
    missing = sorted(name for name in wanted if service_of(name) not in made.services)
    if missing:
        said = "; ".join(line for line in made.complaints if any(name in line for name in missing))
        raise UnitRefused(f"Quadlet does not accept {', '.join(missing)}: {said[:500]}", remedy="tell the publisher")


async def import_image(machine: Machine, container: str, image: str, source: Source) -> None:
    """Check a container's layout again, import it, and check what was imported. Raises Refused."""
    where = f"{source.names.slug}: containers.{container}.image"
    platform = platform_for(source.manifest.containers[container], source.arch)
    layout = check_layout(source.root / "images" / container, platform, where=where)
    await trio.to_thread.run_sync(lambda: verify_layers(layout, where=where))
    name = image_name(source.names.image(container), platform.manifest)
    with _aside(machine) as folder:
        write_index(stage(layout, folder / "layout"), layout, name)
        await machine.podman.import_image(folder / "layout", name)
    found = [seen for seen in await machine.podman.images(machine.prefix) if f"{seen.name}:{seen.tag}" == name]
    if not any(f"{seen.name}@{seen.digest}" == image and seen.id == platform.config for seen in found):
        await machine.podman.remove_image(name)
        raise Refused(
            "Podman imported another image than the signed one", where=where, remedy="upgrade Podman, or report this"
        )


class _aside:
    """A folder that is gone afterwards. What the disk refuses in it is a Problem."""

    def __init__(self, machine: Machine) -> None:
        self._parent = machine.staging
        self._folder: Path | None = None

    def __enter__(self) -> Path:
        try:
            self._parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._folder = Path(tempfile.mkdtemp(dir=self._parent))
        except OSError as error:
            raise self._no_room(error) from error
        return self._folder

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise self._no_room(error) from error

    def _no_room(self, error: OSError) -> Problem:
        return Problem(
            f"no room to work in: {error.strerror}",
            where=str(self._parent),
            remedy="free space, or make the folder writable for this user",
        )
