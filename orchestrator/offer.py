"""Is what somebody else started an app's containers, and what becomes of them? (R-ST7, R-MF14)

Guarantees: an `Offer` names one container for each of the manifest's, running exactly the image that was signed for it;
none of them is another app's or shares another app's data; every volume of theirs has its data in a place that can be
mounted again; everything that their units will change is told. All reasons against it are told at once. It never looks
at the machine: what was seen is an argument. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import ClassVar, Final

from apps.images import platform_for
from apps.manifest import Manifest
from apps.manifest_parts import Container, PortSpec
from apps.names import AppName
from apps.problems import Refused
from orchestrator.homes import Home, KeptContainer
from orchestrator.quadlet.keys import Version
from orchestrator.quadlet.render import setting_text
from orchestrator.settled import as_typed, fits
from orchestrator.stranger import Stranger, StrangerMount, StrangerPort

SYSTEM: Final = tuple(
    map(
        PurePosixPath,
        ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/root", "/run", "/sbin", "/sys", "/usr", "/tmp"),
    )
)
"""Folders that are the machine's: no app's data is there, and what is there opens the machine. /tmp does not last."""
_VOLUME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}")
"""Podman's own pattern (libpod/define, NameRegex)."""
_QUADLET: Final = (".volume", ".build", ".image")
"""What Quadlet would take for the name of a unit (podman-systemd.unit(5))."""
_OURS = re.compile(r"[a-z][a-z0-9]{0,15}-[a-z0-9][a-z0-9-]{1,38}-[0-9a-f]{10}-")
"""How what a node makes begins: prefix and slug (names.Names)."""
_SECRET = re.compile(r"[!-~]{1,4096}")
ADOPTABLE: Final = ("running", "exited", "created", "configured", "stopped")
"""States that mean running or not, and nothing in between."""
RESTART_SINCE: Final[Version] = (5, 1, 0)
"""Where `podman update --restart` came, which keeps Podman from starting again what gave way to units."""


class NotAdoptable(Refused):
    """Containers that a manifest names can not be adopted for it; nothing was changed."""

    kind: ClassVar[str] = "not-adoptable"


@dataclass(frozen=True, slots=True)
class Belongings:
    """What is whose on this node. `containers`: id -> app; `data`: folder or volume -> app; `own`: folders of the node
    that no app may see; `user`: the user's home folder; `podman`: its version."""

    prefix: str
    podman: Version
    containers: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    own: tuple[str, ...] = ()
    user: str = ""


@dataclass(frozen=True, slots=True)
class Offer:
    """What an operator is asked about. `secrets` are values and shown to nobody."""

    app: AppName
    version: str
    running: bool
    containers: tuple[tuple[str, Stranger], ...]
    """By label."""
    homes: Mapping[str, Home]
    ports: Mapping[tuple[str, str], int]
    """Host ports that `auto` keeps."""
    settings: Mapping[str, str]
    secrets: Mapping[str, str] = field(repr=False)
    changes: tuple[str, ...] = ()
    """What the units will change."""

    @property
    def kept(self) -> tuple[KeptContainer, ...]:
        return tuple(KeptContainer(label, box.name, box.id, box.restart) for label, box in self.containers)

    @property
    def ids(self) -> tuple[str, ...]:
        """What the operator agrees to."""
        return tuple(sorted(box.id for _, box in self.containers))

    def to_json(self) -> dict[str, object]:
        return {
            "app": str(self.app),
            "id": self.app.id,
            "version": self.version,
            "running": self.running,
            "containers": [
                {
                    "container": label,
                    "name": box.name,
                    "id": box.id,
                    "state": box.state,
                    "image": box.image,
                    "digest": box.image_id,
                    "ports": [f"{p.address or '*'}:{p.host}->{p.container}/{p.protocol}" for p in box.ports],
                }
                for label, box in self.containers
            ],
            "data": [{"volume": label, "source": home.source} for label, home in sorted(self.homes.items())],
            "changes": list(self.changes),
            "ids": list(self.ids),
        }


def make_offer(app: AppName, manifest: Manifest, arch: str, strangers: Sequence[Stranger], whose: Belongings) -> Offer:
    """What adopting these containers would mean. Raises NotAdoptable, with every reason.

    `strangers` are those that the manifest names; their `environment` is what they were given beyond their images'.
    """
    if not strangers:
        names = ", ".join(manifest.adopt.container_names)
        raise NotAdoptable(
            f"none of the containers that {app.id} would take over is here: {names or 'it names none'}",
            where=str(app),
            remedy=f"podman ps --all lists what is; archy install {app.id} begins anew",
        )
    reasons = [reason for box in strangers for reason in _unfit(box, whose)]
    matched, faults = _matched(manifest, arch, strangers)
    reasons += faults
    homes: dict[str, Home] = {}
    for label, box in matched.items():
        reasons += _data(manifest, label, box, whose, homes)
    reasons += _shared(homes)
    if len({box.alive for box in matched.values()}) > 1:
        reasons.append("some of its containers run and others do not: start or stop all of them")
    if reasons:
        raise NotAdoptable("; ".join(dict.fromkeys(reasons)), where=str(app), remedy=f"archy show {app.id}")
    changes: list[str] = []
    ports: dict[tuple[str, str], int] = {}
    for label, box in matched.items():
        container = manifest.containers[label]
        changes += _ports(label, container, box, ports)
        changes += _other(manifest, label, container, box)
    settings, told = _settings(manifest, matched)
    secrets, made = _secrets(manifest, matched)
    return Offer(
        app,
        manifest.version,
        all(box.alive for box in matched.values()),
        tuple(sorted(matched.items())),
        MappingProxyType(homes),
        MappingProxyType(ports),
        MappingProxyType(settings),
        MappingProxyType(secrets),
        tuple(dict.fromkeys((*changes, *told, *made))),
    )


def _unfit(box: Stranger, whose: Belongings) -> Iterator[str]:
    """Why a container is not to be adopted for anybody."""
    mark = next((value for key, value in sorted(box.labels.items()) if key == "archy.app"), "")
    if mark or any(key.startswith("archy.") for key in box.labels):
        yield f"{box.name} belongs to the app {mark or 'of another node'}"  # R-MF14
    elif _OURS.match(box.name) or box.name.startswith(f"{whose.prefix}-"):
        yield f"{box.name} has a name of an app of this node, or of another one"
    elif box.id in whose.containers:
        yield f"{box.name} belongs to the app {whose.containers[box.id]}"  # R-MF14
    if box.unit:
        yield f"{box.name} is run by the systemd unit {box.unit}, which would start it again: remove the unit first"
    if borrowed := [network for network in box.networks if network.startswith(("container:", "ns:"))]:
        yield f"{box.name} has the network of something else ({borrowed[0][:30]}), which a unit can not keep"
    if box.pod:
        yield f"{box.name} is in a pod, whose network and ports it can not keep"
    if box.passing:
        yield f"{box.name} was made with --rm, so that there would be nothing to come back to"
    if box.user_namespace not in ("", "host"):
        yield f"{box.name} maps user ids in its own way ({box.user_namespace}): its data would be somebody else's"
    if box.restart != "no" and whose.podman < RESTART_SINCE:
        since = ".".join(map(str, RESTART_SINCE[:2]))
        yield f"{box.name} is started again by Podman itself, which only Podman {since} can be told to leave"
    if box.state not in ADOPTABLE:
        yield f"{box.name} is {box.state}: start or stop it"


def _matched(manifest: Manifest, arch: str, strangers: Sequence[Stranger]) -> tuple[dict[str, Stranger], list[str]]:
    """Containers by the manifest's labels, and why some have none: only the image's digest decides."""
    signed: dict[str, list[str]] = {}
    reasons = []
    for label, container in manifest.containers.items():
        if container.image is None:
            reasons.append(f"{label} is built on the node, so that no digest of its image was signed")
        else:
            signed.setdefault(platform_for(container, arch).config, []).append(label)
    matched: dict[str, Stranger] = {}
    for box in strangers:
        labels = signed.get(box.image_id, [])
        if not labels:
            known = ", ".join(sorted(digest[:19] for digest in signed))
            reasons.append(
                f"{box.name} runs {box.image or 'an image'} ({box.image_id[:19]}), and {manifest.id} "
                f"{manifest.version} was signed with {known or 'none'}"
            )
        elif len(labels) > 1:
            reasons.append(f"{box.name} could be {' or '.join(sorted(labels))}, which run the same image")
        elif labels[0] in matched:
            reasons.append(f"{box.name} and {matched[labels[0]].name} could both be {labels[0]}")
        else:
            matched[labels[0]] = box
    named = {label for labels in signed.values() for label in labels}
    if not reasons and (lacking := sorted(named - matched.keys())):
        reasons.append(f"no container that it names runs the image of {', '.join(lacking)}")
    return matched, reasons


def _data(manifest: Manifest, label: str, box: Stranger, whose: Belongings, homes: dict[str, Home]) -> Iterator[str]:
    mounts = {mount.path: mount for mount in box.mounts}
    for wanted in manifest.containers[label].mounts:
        path = wanted.path.rstrip("/")
        mount = mounts.pop(path, None)
        if mount is None:
            yield f"{box.name} has nothing mounted at {path}, where {manifest.id} keeps its volume {wanted.volume}"
            continue
        if problem := _misplaced(mount, whose):
            yield f"{box.name} has {problem} at {path}"
            continue
        home = Home(mount.source, mount.relabel)
        if homes.setdefault(wanted.volume, home).source != home.source:
            yield f"the volume {wanted.volume} would be both {homes[wanted.volume].source} and {home.source}"
    derived = {file.into[label] for file in manifest.derived_files if label in file.into}
    for path, mount in sorted(mounts.items()):
        if mount.writable and mount.kind in ("bind", "volume") and path not in derived:
            yield f"{box.name} may write to {path} ({mount.source[:60]}), which {manifest.id} does not know as data"


def _misplaced(mount: StrangerMount, whose: Belongings) -> str:
    """Why data can not stay where it is; empty when it can."""
    if mount.kind == "volume":
        if mount.anonymous:
            return "an anonymous volume, which goes with its container: copy the data to one with a name"
        if not _VOLUME.fullmatch(mount.source) or mount.source.endswith(_QUADLET):
            return f"a volume whose name no unit can have ({mount.source[:60]!a})"
        if _OURS.match(mount.source) or mount.source.startswith(f"{whose.prefix}-") or mount.source in whose.data:
            return f"the data of another app ({whose.data.get(mount.source, mount.source)})"  # R-MF14, R-ST9
        return ""
    if mount.kind != "bind":
        return f"a mount of the kind {mount.kind[:20]!a}, which a unit can not keep"
    path = PurePosixPath(mount.source)
    if not path.is_absolute() or ".." in path.parts or ":" in mount.source or not mount.source.isprintable():
        return f"a folder that no unit can name ({mount.source[:60]!a})"
    if mount.source != mount.source.strip() or mount.source.endswith("\\"):
        return f"a folder that no unit can name ({mount.source[:60]!a})"
    for known, owner in whose.data.items():
        if known.startswith("/") and _overlap(path, PurePosixPath(known)):
            return f"the data of another app ({owner})"  # R-MF14, R-ST9
    if any(_overlap(path, PurePosixPath(own)) for own in whose.own):
        return f"a folder that no app is to see ({mount.source})"
    home = PurePosixPath(whose.user or "/nonexistent")
    if path == home or path in home.parents or any(_inside(path, system) for system in SYSTEM):
        return f"a folder of the system, not of an app ({mount.source})"
    return ""


def _inside(path: PurePosixPath, folder: PurePosixPath) -> bool:
    return path == folder or folder in path.parents


def _overlap(one: PurePosixPath, other: PurePosixPath) -> bool:
    return _inside(one, other) or _inside(other, one)


def _shared(homes: Mapping[str, Home]) -> Iterator[str]:
    """Two volumes in one place would be one volume (R-ST9)."""
    places = sorted((home.source, label) for label, home in homes.items())
    for (source, label), (other, another) in pairwise(places):
        if source == other:
            yield f"the volumes {label} and {another} would both be {source}"


def _ports(label: str, container: Container, box: Stranger, chosen: dict[tuple[str, str], int]) -> Iterator[str]:
    present: dict[tuple[int, str], list[StrangerPort]] = {}
    for port in box.ports:
        present.setdefault((port.container, port.protocol), []).append(port)
    for spec in container.ports:
        here = present.pop((spec.container, spec.protocol), [])
        if spec.host == "auto" and here:
            chosen[label, spec.name] = here[0].host
        yield from _port_changes(spec, here, chosen.get((label, spec.name)))
    for left in present.values():
        yield from (f"port {port.host} is not published any more" for port in left)


def _port_changes(spec: PortSpec, here: Sequence[StrangerPort], chosen: int | None) -> Iterator[str]:
    host = chosen if spec.host == "auto" else spec.host
    for port in here:
        if port.host == host:
            if port.everywhere != (spec.bind == "lan"):
                where = "from the local network too" if spec.bind == "lan" else "from this machine only"
                yield f"port {host} is reached {where}"
        elif isinstance(host, int):
            yield f"{spec.name}: port {port.host} becomes {host}"
        else:
            yield f"port {port.host} is not published any more"
    if not here and spec.host is not None:
        yield f"{spec.name} is published{f' on port {host}' if isinstance(host, int) else ''}"


def _other(manifest: Manifest, label: str, container: Container, box: Stranger) -> Iterator[str]:
    known = {mount.path.rstrip("/") for mount in container.mounts}
    for mount in box.mounts:
        if mount.path not in known and not mount.writable:
            yield f"{mount.path} ({mount.source[:60]}) is not there any more"
    yield from (f"{label} leaves the network {network}" for network in box.networks)
    if container.command and box.command != container.command:
        yield f"{label} is started with other arguments"
    if box.privileged:
        yield f"{label} is not privileged any more"
    if container.user is not None and container.user != box.user:
        yield f"{label} runs as the user {container.user}, not {box.user or 'of its image'}"
    variables = {setting.env[label] for setting in manifest.settings if label in setting.env}
    variables |= {use.env for use in container.secrets if use.env is not None}
    fixed = container.environment
    if other := sorted(key for key in fixed if key in box.environment and box.environment[key] != fixed[key]):
        yield f"{label} gets other values of {', '.join(other)}"
    if lost := sorted(box.environment.keys() - variables - fixed.keys()):
        yield f"{label} does without {', '.join(lost)}"


def _settings(manifest: Manifest, matched: Mapping[str, Stranger]) -> tuple[dict[str, str], list[str]]:
    values: dict[str, str] = {}
    told = []
    for setting in manifest.settings:
        texts = {matched[label].environment.get(name) for label, name in setting.env.items() if label in matched}
        given = sorted(text for text in texts if text is not None)
        if not given or given == [setting_text(setting, setting.default)]:
            continue
        value = as_typed(setting, given[0])
        if len(given) == 1 and fits(setting, value):
            values[setting.name] = value
        else:
            told.append(f"the setting {setting.name} has its default: what it was is no {setting.type}")
    return values, told


def _secrets(manifest: Manifest, matched: Mapping[str, Stranger]) -> tuple[dict[str, str], list[str]]:
    """A password that the data was made with is the app's secret from now on; others are made anew."""
    values: dict[str, str] = {}
    for label, box in matched.items():
        for use in manifest.containers[label].secrets:
            value = box.environment.get(use.env or "", "")
            if _SECRET.fullmatch(value):
                values.setdefault(use.name, value)
    made = [f"the secret {s.name} is made anew" for s in manifest.generated_secrets if s.name not in values]
    return values, made
