"""A manifest as the units that run it.

Guarantees: the same input gives the same bytes; every image is pinned by digest with Pull=never (R-MF11), one
that is to be built by a digest that no image has until it was built; secrets
appear by name only; capabilities, new privileges and a writable root are off unless the manifest declares them
(R-MF7); only keys that the installed Podman knows are written (R-MF9). Pure.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from apps.images import platform_for
from apps.manifest import Manifest
from apps.manifest_parts import Container, Health, Setting, Volume
from apps.manifest_values import parse_size
from orchestrator.containers_conf import DEFAULT
from orchestrator.homes import Home
from orchestrator.links import Linked
from orchestrator.names import Names, folder_of, slice_name
from orchestrator.quadlet.build import UNBUILT, build_unit, rendered_build
from orchestrator.quadlet.keys import INSTEAD, Version, line
from orchestrator.quadlet.rendered import RenderedApp, RenderedContainer
from orchestrator.quadlet.text import Section, UnitFile, literal, word, words
from orchestrator.subnets import gateway_of

BOOT_DROP_IN = "10-boot.conf"
STOP_MARGIN = 15
"""Seconds between the grace given to the container and systemd's own patience (R-ST1)."""
NO_LINKS = Linked()
KEPT = 1024
"""Apps whose rendering is kept, with some ten KiB each: a tick renders all of them, and hardly ever a new one."""
START_MARGIN = 60
"""Seconds for Podman itself to set a container up on a busy machine."""


@dataclass(frozen=True, slots=True)
class Target:
    """What units are rendered for: the node's prefix, its Podman and its architecture as OCI names it."""

    prefix: str
    podman: Version
    arch: str
    derived: str = "%h/.local/share/archy/apps/derived"
    """Folder of derived files, as a unit has it (`%` doubled unless it is a specifier)."""
    subnet: str = ""
    """That of the app's network where the app has no internet; without one it does not reach the host either."""
    host: str = DEFAULT
    """The host's address inside containers."""
    builds: str = "%h/.local/share/archy/apps/builds"
    """Folder of what builds read, written like `derived`."""
    homes: Mapping[str, Home] = field(default_factory=dict)
    """Where the data of volumes is that this node did not make; they have no unit of their own (ADR 12)."""


def render(manifest: Manifest, names: Names, target: Target, linked: Linked = NO_LINKS) -> RenderedApp:
    """Raises Refused when there is no image for the target's architecture."""
    return _render(_Question(manifest, names, target, linked))


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    """What `render` was asked. Manifests have no hash, and comparing two that are one costs next to nothing."""

    manifest: Manifest
    names: Names
    target: Target
    linked: Linked

    def __hash__(self) -> int:
        return hash((self.names, self.manifest.version))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Question) and (
            (self.names, self.target, self.linked, self.manifest)
            == (other.names, other.target, other.linked, other.manifest)
        )


@lru_cache(maxsize=KEPT)
def _render(question: _Question) -> RenderedApp:
    manifest, names, target, linked = question.manifest, question.names, question.target, question.linked
    network = _network(manifest, names, target)
    network_spec = _spec(network)
    network = _labelled(network, "Network", f"archy.spec={network_spec}")
    own = {label: volume for label, volume in sorted(manifest.volumes.items()) if label not in target.homes}
    volumes = [_volume(names, label, volume, target) for label, volume in own.items()]
    units, containers, boot = [network, *volumes], [], {}
    for label in start_order(manifest):
        # An app that links to this one joins its containers as they run; only a later start reads these lines.
        alone = _container(manifest, names, label, network_spec, target, NO_LINKS)
        unit = alone if linked == NO_LINKS else _container(manifest, names, label, network_spec, target, linked)
        spec = _spec(alone)
        unit = _labelled(unit, "Container", f"archy.spec={spec}")
        units.append(unit)
        container = manifest.containers[label]
        if (build := rendered_build(manifest, names, label, target.arch)) is not None:
            units.append(build_unit(names, label, build, target.builds, target.prefix, target.podman))
        containers.append(
            RenderedContainer(
                label,
                names.container(label),
                names.service(label),
                unit.name,
                _image(names, label, container, target),
                "" if build else platform_for(container, target.arch).config,
                spec,
                container.stop_grace_secs,
                start_timeout(container),
                linked.joined.get(label, {}),
                label in manifest.companions,
                build,
            )
        )
        boot[f"{unit.name}.d/{BOOT_DROP_IN}"] = _boot(unit.name, names).text()
    return RenderedApp(
        names,
        MappingProxyType({unit.name: unit.text() for unit in units}),
        MappingProxyType(boot),
        tuple(containers),
        names.network,
        network_spec,
        tuple(map(names.volume, own)),
        tuple(secret.name for secret in manifest.generated_secrets),
        linked.networks,
    )


def start_order(manifest: Manifest) -> tuple[str, ...]:
    """Containers so that each comes after what it needs; by name where the manifest leaves it open."""
    done: list[str] = []
    left = set(manifest.containers)
    while left:
        ready = sorted(name for name in left if set(manifest.containers[name].needs) <= set(done))
        done += ready
        left -= set(ready)
    return tuple(done)


def start_timeout(container: Container) -> int:
    """Seconds systemd allows for a start. Notify=healthy makes the start wait for the first healthy answer."""
    return START_MARGIN + (health_window(container.health) if container.health and container.health.cmd else 0)


def health_window(health: Health | None) -> int:
    """Seconds after which a container that was never healthy is given up."""
    return health.start_period + health.retries * (health.interval + health.timeout) if health else 0


def setting_text(setting: Setting, value: str) -> str:
    """What a setting's environment variable holds: sizes as bytes, everything else as written."""
    size = parse_size(value) if setting.type == "size" else None
    return value if size is None else str(size)


_SUPERVISION: Final = frozenset(
    ("Restart", "RestartSec", "TimeoutStartSec", "TimeoutStopSec", "SuccessExitStatus", "Description")
)
"""How systemd watches a service; the process inside is the same, so that a change of it waits for the next start."""


def _spec(unit: UnitFile) -> str:
    """What the unit means and not how it is written: order, comments, supervision and the way in which this Podman has
    to be told make no difference, so that a newer node or Podman restarts nothing that stays the same (R-ST19)."""
    facts = [
        _meaning(section.name, key, value)
        for section in unit.sections
        for key, value in section.lines
        if section.name != "Unit" and key not in _SUPERVISION
    ]
    return hashlib.sha256(json.dumps(sorted(facts)).encode()).hexdigest()[:32]


def _meaning(section: str, key: str, value: str) -> tuple[str, str, str]:
    for known, option in INSTEAD.items():
        if key == "PodmanArgs" and value.startswith(f"{option}="):
            return section, known, value.removeprefix(f"{option}=")
    return section, key, value


def _labelled(unit: UnitFile, section: str, label: str) -> UnitFile:
    sections = tuple(
        Section(s.name, (*s.lines, ("Label", word(label)))) if s.name == section else s for s in unit.sections
    )
    return UnitFile(unit.name, unit.owner, sections)


def _labels(names: Names) -> list[tuple[str, str]]:
    return [("Label", f"archy.prefix={names.prefix}"), ("Label", f"archy.app={names.slug}")]


def _network(manifest: Manifest, names: Names, target: Target) -> UnitFile:
    lines = [("NetworkName", names.network), *_labels(names)]
    lines.append(("Options", "isolate=true"))  # neither reaches other apps' bridges nor is reached from them (R-MF13)
    if manifest.permissions.internet == "none":
        # Not Internal=true: netavark makes no firewall rules for an internal network, so that apps with internet reach
        # its containers (tried, netavark 1.14). Without a default route nothing outside is reached either, and a name
        # server that does not answer keeps aardvark-dns from carrying names, and what is hidden in them, out.
        lines += [("Options", "no_default_route=1"), ("DNS", "127.0.0.1")]
        if target.subnet:  # R-FM4: one way out, to the host's address alone
            gateway = gateway_of(target.subnet)
            lines += [("Subnet", target.subnet), ("Gateway", gateway)]
            lines.append(("PodmanArgs", f"--route={target.host}/32,{gateway}"))
    checked = tuple(line("Network", key, value, target.podman) for key, value in lines)
    return UnitFile(
        f"{names.network}.network",
        names.slug,
        (Section("Unit", (("Description", f"Network of app {names.slug}"),)), Section("Network", checked)),
    )


def _volume(names: Names, label: str, volume: Volume, target: Target) -> UnitFile:
    lines = [("VolumeName", names.volume(label)), *_labels(names), ("Label", f"archy.volume={label}")]
    if volume.owner is not None:
        user, _, group = volume.owner.partition(":")
        lines += [("User", user), ("Group", group)]
    checked = tuple(line("Volume", key, value, target.podman) for key, value in lines)
    return UnitFile(
        f"{names.volume(label)}.volume",
        names.slug,
        (Section("Unit", (("Description", f"Volume {label} of app {names.slug}"),)), Section("Volume", checked)),
    )


def _boot(unit: str, names: Names) -> UnitFile:
    return UnitFile(f"{unit}.d/{BOOT_DROP_IN}", names.slug, (Section("Install", (("WantedBy", "default.target"),)),))


def _image(names: Names, label: str, container: Container, target: Target) -> str:
    digest = UNBUILT if container.build is not None else platform_for(container, target.arch).manifest
    return f"{names.image(label)}@{digest}"


def _container(
    manifest: Manifest, names: Names, label: str, network_spec: str, target: Target, linked: Linked
) -> UnitFile:
    container = manifest.containers[label]
    lines = [
        ("ContainerName", names.container(label)),
        ("Image", _image(names, label, container, target)),
        ("Pull", "never"),
        *_labels(names),
        ("Label", f"archy.container={label}"),
        ("Label", f"archy.network={network_spec}"),
        *_built(manifest, names, label, target),
        *_process(container),
        *_environment(manifest, label, container),
        *_networks(names, label, container, linked.joined.get(label, {})),
        *_attachments(names, container, target),
        *_derived(manifest, names, label, target),
        *_confinement(container),
        *_health(manifest, label, container),
        ("StopTimeout", str(container.stop_grace_secs)),
    ]
    checked = tuple(line("Container", key, value, target.podman) for key, value in lines)
    unit = [("Description", f"App {names.slug}, container {label}"), ("StartLimitIntervalSec", "300")]
    unit.append(("StartLimitBurst", "5"))
    unit += [("After", names.service(need)) for need in sorted(container.needs)]
    # Requires= or Wants= would start what its user stopped (R-ST2)
    unit += [("After", service) for service in linked.after]
    return UnitFile(
        f"{names.container(label)}.container",
        names.slug,
        (Section("Unit", tuple(unit)), Section("Container", checked), Section("Service", _service(container, target))),
    )


def _built(manifest: Manifest, names: Names, label: str, target: Target) -> list[tuple[str, str]]:
    """What the image is built of is part of what the container is; which bytes come out, is not known yet."""
    build = rendered_build(manifest, names, label, target.arch)
    return [] if build is None else [("Label", f"archy.build={build.inputs}")]


def _process(container: Container) -> list[tuple[str, str]]:
    lines = []
    if container.entrypoint:
        lines.append(("Entrypoint", literal(json.dumps(list(container.entrypoint)))))
    if container.command:
        lines.append(("Exec", words(container.command)))
    if container.user is not None:
        lines.append(("User", container.user))
    if container.working_dir is not None:
        lines.append(("WorkingDir", container.working_dir))
    return lines


def _environment(manifest: Manifest, label: str, container: Container) -> list[tuple[str, str]]:
    values = dict(container.environment)
    for setting in manifest.settings:
        if (variable := setting.env.get(label)) is not None:
            values[variable] = setting_text(setting, setting.default)
    return [("Environment", word(f"{key}={value}")) for key, value in sorted(values.items())]


def _networks(
    names: Names, label: str, container: Container, joined: Mapping[str, tuple[str, ...]]
) -> list[tuple[str, str]]:
    own = tuple(dict.fromkeys((label, *container.network_aliases)))
    if not joined:
        return [("Network", f"{names.network}.network"), *[("NetworkAlias", alias) for alias in own]]
    # NetworkAlias= would give its names within the app to other apps too
    lines = [("Network", f"{names.network}.network{_aliases(own)}")]
    return lines + [("Network", f"{network}{_aliases(aliases)}") for network, aliases in sorted(joined.items())]


def _aliases(names: tuple[str, ...]) -> str:
    return ":" + ",".join(f"alias={name}" for name in names) if names else ""


def _attachments(names: Names, container: Container, target: Target) -> list[tuple[str, str]]:
    lines = [("AddHost", "host.archipelago:host-gateway")]  # R-FM4
    for port in container.ports:
        if port.host is not None:
            address = "127.0.0.1:" if port.bind == "loopback" else ""
            protocol = "/udp" if port.protocol == "udp" else ""
            lines.append(("PublishPort", f"{address}{port.host}:{port.container}{protocol}"))
    for mount in container.mounts:
        if (home := target.homes.get(mount.volume)) is not None:
            lines.append(("Volume", literal(home.mounted(mount.path, read_only=mount.read_only))))
            continue
        mode = ":ro" if mount.read_only else ""
        lines.append(("Volume", f"{names.volume(mount.volume)}.volume:{mount.path}{mode}"))
    for use in container.secrets:
        lines.append(("Secret", _secret(names.secret(use.name), use.file, use.env, container.user)))
    return lines


def _derived(manifest: Manifest, names: Names, label: str, target: Target) -> list[tuple[str, str]]:
    """Folders, not files: what replaces a file by rename reaches a running container only that way."""
    inside = sorted({derived.into[label] for derived in manifest.derived_files if label in derived.into})
    return [("Volume", f"{target.derived}/{names.slug}/{folder_of(label, folder)}:{folder}:ro,Z") for folder in inside]


def _secret(name: str, file: str | None, env: str | None, user: str | None) -> str:
    if env is not None:
        return f"{name},type=env,target={env}"
    uid, _, gid = (user or "0").partition(":")
    owner = f",uid={uid}" if uid.isdigit() else ""
    owner += f",gid={gid or uid}" if (gid or uid).isdigit() else ""
    # A user known by name only: Podman can not resolve it here, so the file is readable inside that container.
    mode = "0400" if uid.isdigit() else "0444"
    return f"{name},type=mount,target={file},mode={mode}{owner}"


def _confinement(container: Container) -> list[tuple[str, str]]:
    lines = [("DropCapability", "all"), ("NoNewPrivileges", "true")]
    lines += [("AddCapability", f"CAP_{name}") for name in sorted(container.security.capabilities)]
    lines.append(("ReadOnly", "true" if container.security.read_only else "false"))
    lines += [("AddDevice", device) for device in sorted(container.security.devices)]
    return lines


def _health(manifest: Manifest, label: str, container: Container) -> list[tuple[str, str]]:
    health = container.health
    if health is None or not health.cmd:
        return []  # http and tcp checks are made by our own prober
    lines = [
        ("HealthCmd", literal(json.dumps(list(health.cmd)))),
        ("HealthInterval", f"{health.interval}s"),
        ("HealthTimeout", f"{health.timeout}s"),
        ("HealthRetries", str(health.retries)),
        ("HealthStartPeriod", f"{health.start_period}s"),
    ]
    if any(label in other.needs for other in manifest.containers.values()):
        lines.append(("Notify", "healthy"))  # what needs it starts after its first healthy answer (R-ST14)
    return lines


def _service(container: Container, target: Target) -> tuple[tuple[str, str], ...]:
    lines = [
        ("Slice", slice_name(target.prefix)),
        ("Restart", "always"),
        ("RestartSec", "10"),
        ("TimeoutStartSec", str(start_timeout(container))),
        ("TimeoutStopSec", str(container.stop_grace_secs + STOP_MARGIN)),
        ("SuccessExitStatus", "143"),  # ended by the SIGTERM of a stop
    ]
    limits = container.resources
    if limits.memory is not None:
        lines.append(("MemoryMax", str(limits.memory)))
    if limits.cpus is not None:
        whole, _, part = limits.cpus.partition(".")
        lines.append(("CPUQuota", f"{int(whole) * 100 + int(part.ljust(2, '0'))}%"))
    if limits.pids is not None:
        lines.append(("TasksMax", str(limits.pids)))
    return tuple(lines)
