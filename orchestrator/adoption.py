"""Apps that are on the machine and not in the database: found, recognised, and what they were set to (R-ST7).

After the database was lost or restored from a backup, units and containers go on under their names. Guarantees: an app
is recognised only by units and containers that carry its mark and pin the images of the release, digest by digest;
what its user stopped is recognised as stopped (R-ST2). Looks only. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from apps.manifest import Manifest
from apps.names import AppName
from apps.problems import Problem, Refused
from orchestrator.homes import Home
from orchestrator.names import Names
from orchestrator.plan import Observed
from orchestrator.plan_units import ALIVE
from orchestrator.quadlet.render import setting_text
from orchestrator.quadlet.rendered import RenderedApp
from orchestrator.quadlet.text import UnitFile, parse
from orchestrator.settled import Ports, as_typed, fits
from orchestrator.subnets import is_subnet
from orchestrator.unit_folder import OwnedFile

_PUBLISHED = re.compile(r"(?:127\.0\.0\.1:)?([0-9]{1,5}):([0-9]{1,5})(?:/(udp))?")


@dataclass(frozen=True, slots=True)
class Orphan:
    """An app without an entry in the database.

    `images`: `name@digest` by container, as its units pin them; `name@build:<digest of all that goes in>` for one that
    was built here, since what came out is known to nobody else.
    """

    slug: str
    images: Mapping[str, str]
    running: bool

    @property
    def id(self) -> str:
        """The app's id; whose it is can not be told from a slug."""
        return self.slug[:-11]

    def is_of(self, app: AppName, images: Mapping[str, str]) -> bool:
        """Is it this app, with these manifest digests by container?"""
        mine = {label: image.rpartition("@")[2] for label, image in self.images.items()}
        return app.slug == self.slug and mine == dict(images)


def orphans(known: frozenset[str], prefix: str, seen: Observed) -> tuple[Orphan, ...]:
    """Every app that has units here and no entry in the database."""
    slugs = {file.owner for file in seen.files.values()} - known
    found = []
    for slug in sorted(slugs):
        start = f"{prefix}-{slug}-"
        units = _containers(slug, seen.files)
        images = {
            unit.name.removeprefix(start).removesuffix(".container"): _told(unit, image)
            for unit in units
            for image in unit.values("Container", "Image")
            if unit.name.startswith(start)
        }
        if images:
            found.append(Orphan(slug, images, _alive(slug, seen)))
    return tuple(found)


def _told(unit: UnitFile, image: str) -> str:
    inputs = [
        label.partition("=")[2] for label in unit.values("Container", "Label") if label.startswith("archy.build=")
    ]
    return f"{image.partition('@')[0]}@build:{inputs[0]}" if inputs else image


def is_here(slug: str, seen: Observed) -> bool:
    """Is there a unit or a container of the app?"""
    return bool(_containers(slug, seen.files)) or any(
        box.labels.get("archy.app") == slug for box in seen.containers or ()
    )


def recognise(app: RenderedApp, seen: Observed) -> bool:
    """Is what is here this very release? Then: whether it is to run, else its user has stopped it.

    Raises Refused when another image runs or is pinned under one of its names, or nothing is here.
    """
    slug = app.names.slug
    boxes = {box.name: box for box in seen.containers or ()}
    found = False
    for container in app.containers:
        file, box = seen.files.get(container.unit), boxes.get(container.name)
        pinned = _parsed(container.unit, file).values("Container", "Image") if file and file.owner == slug else ()
        if pinned and pinned != (container.image,):
            raise _another(app, container.name, pinned[0].rpartition("@")[2])
        if box is not None and (box.image_id != container.config or box.labels.get("archy.app") != slug):
            raise _another(app, container.name, box.image_id)
        found = found or bool(pinned) or box is not None
    if not found:
        raise Refused(f"nothing of {app.names.app.id} is here", where=str(app.names.app), remedy="archy install")
    return _alive(slug, seen) or any(name in seen.files for name in app.boot)


def pinned_images(slug: str, files: Mapping[str, OwnedFile]) -> frozenset[str]:
    """`name@digest` of every image that the app's units run."""
    return frozenset(image for unit in _containers(slug, files) for image in unit.values("Container", "Image"))


def of_unknown_release(slug: str, configs: frozenset[str], seen: Observed) -> str:
    """What runs of a known app and is of none of the generations that the database knows; empty when nothing is.

    `configs` are their images as Podman tells them. Asked when a unit pins another image; one that was only edited is
    mended like any other.
    """
    mine = (box for box in seen.containers or () if box.labels.get("archy.app") == slug and box.state in ALIVE)
    return next((box.name for box in mine if box.image_id not in configs), "")


def _another(app: RenderedApp, name: str, image: str) -> Refused:
    id_ = app.names.app.id
    return Refused(
        f"{name} is here already, from another release ({image[:19]})",
        where=str(app.names.app),
        remedy=f"archy adopt {id_}, then archy update {id_}",
    )


def _alive(slug: str, seen: Observed) -> bool:
    return any(box.labels.get("archy.app") == slug and box.state in ALIVE for box in seen.containers or ())


def _containers(slug: str, files: Mapping[str, OwnedFile]) -> list[UnitFile]:
    return [
        _parsed(name, file)
        for name, file in sorted(files.items())
        if file.owner == slug and name.endswith(".container")
    ]


def _parsed(name: str, file: OwnedFile) -> UnitFile:
    try:
        return parse(name, file.text)
    except Problem:
        return UnitFile(name, file.owner, ())  # damaged: nothing of it is believed


def held_ports(slug: str, files: Mapping[str, OwnedFile]) -> set[tuple[int, str]]:
    """(port, protocol) that the app's units publish on the host."""
    published = (
        _PUBLISHED.fullmatch(value)
        for unit in _containers(slug, files)
        for value in unit.values("Container", "PublishPort")
    )
    return {(int(match[1]), match[3] or "tcp") for match in published if match}


def remembered_ports(manifest: Manifest, names: Names, files: Mapping[str, OwnedFile]) -> Ports:
    """Host ports of `auto`, as the units have them."""
    boxes = {label: box.ports for label, box in manifest.companions.items()} | {
        label: box.ports for label, box in manifest.containers.items()
    }
    found = {}
    for label, ports in boxes.items():
        name = f"{names.container(label)}.container"
        values = _parsed(name, files[name]).values("Container", "PublishPort") if name in files else ()
        published = {
            (int(match[2]), match[3] or "tcp"): int(match[1]) for match in map(_PUBLISHED.fullmatch, values) if match
        }
        for port in ports:
            if port.host == "auto" and (port.container, port.protocol) in published:
                found[label, port.name] = published[port.container, port.protocol]
    return found


def remembered_subnet(names: Names, files: Mapping[str, OwnedFile]) -> str:
    """The subnet that was chosen for the app's network; empty when its unit has none."""
    name = f"{names.network}.network"
    found = _parsed(name, files[name]).values("Network", "Subnet") if name in files else ()
    return found[0] if found and is_subnet(found[0]) else ""


def remembered_homes(manifest: Manifest, names: Names, files: Mapping[str, OwnedFile]) -> dict[str, Home]:
    """Where the units have the data of volumes that are not this node's (ADR 12)."""
    found = {}
    for label, container in manifest.containers.items():
        name = f"{names.container(label)}.container"
        values = _parsed(name, files[name]).values("Container", "Volume") if name in files else ()
        for mount in container.mounts:
            for value in map(_single, values):
                source, _, rest = value.partition(":")
                path, _, modes = rest.partition(":")
                if path == mount.path and not source.endswith(".volume"):
                    found[mount.volume] = Home(source, "".join(m for m in modes.split(",") if m in ("z", "Z")))
    return found


def _single(text: str) -> str:
    """The inverse of `quadlet.text.literal`."""
    return text.replace("%%", "%").replace("$$", "$")


def remembered_settings(manifest: Manifest, names: Names, files: Mapping[str, OwnedFile]) -> dict[str, str]:
    """Values of settings that are no default, as the units have them; one that no container gets is not remembered."""
    found = {}
    for setting in manifest.settings:
        for label, variable in setting.env.items():
            name = f"{names.container(label)}.container"
            lines = _parsed(name, files[name]).values("Container", "Environment") if name in files else ()
            values = [text.partition("=")[2] for text in map(_unquoted, lines) if text.partition("=")[0] == variable]
            if values and values[0] != setting_text(setting, setting.default):
                value = as_typed(setting, values[0])
                if fits(setting, value):
                    found[setting.name] = value
    return found


def _unquoted(word: str) -> str:
    """The inverse of `quadlet.text.word`."""
    if len(word) < 2 or word[0] != '"' or word[-1] != '"':
        return word
    return re.sub(r"\\(.)", r"\1", word[1:-1].replace("%%", "%").replace("$$", "$"))
