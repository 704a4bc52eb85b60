"""A manifest with this node's choices filled in: the operator's values of settings, host ports instead of `auto`.

Guarantees: everything behind it (units, checks, addresses) needs to know only the manifest; what is chosen fits the
manifest's types, and a value that an older version took and this one does not gives way to the default. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

from apps.manifest import Manifest
from apps.manifest_parts import Container, PortSpec, Setting
from apps.manifest_values import parse_size
from apps.problems import Refused, UsageProblem

AUTO_PORTS = range(20000, 30000)
"""Where `host: auto` looks: below Linux's ephemeral ports (32768), above what servers usually claim."""
MAX_VALUE = 4096
"""Characters of a setting, as of any argument in a manifest."""

_PATTERNS = {"number": re.compile(r"-?(0|[1-9][0-9]{0,14})"), "truth": re.compile(r"true|false")}
_RIGHT = {
    "number": "write a whole number",
    "truth": "write true or false",
    "size": "write a size: 512MiB, 4GiB",
    "text": f"write one line of at most {MAX_VALUE} characters",
}

_UNITS: Final = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1))

Ports = Mapping[tuple[str, str], int]


def fits(setting: Setting, value: str) -> bool:
    """Is the value one of the setting's type?"""
    if len(value) > MAX_VALUE or not value.isprintable():
        return False
    if setting.type == "size":
        return parse_size(value) is not None
    pattern = _PATTERNS.get(setting.type)
    return pattern is None or bool(pattern.fullmatch(value))


def as_typed(setting: Setting, text: str) -> str:
    """A variable's text as a value of the setting; variables have sizes in bytes."""
    if setting.type != "size" or not text.isdecimal() or not text.isascii():
        return text
    size = int(text[:20])
    return next(f"{size // factor}{unit}" for unit, factor in _UNITS if size % factor == 0)


def checked_values(manifest: Manifest, values: Mapping[str, str | None]) -> None:
    """Values as an operator typed them, None for the default. Raises UsageProblem, naming every one that is wrong."""
    known = {setting.name: setting for setting in manifest.settings}
    wrong = []
    for name, value in values.items():
        if (setting := known.get(name)) is None:
            choice = f"settings are {', '.join(sorted(known))}" if known else "it has none"
            wrong.append(f"no setting {name[:40]!a} ({choice})")
        elif value is not None and not fits(setting, value):
            wrong.append(f"{name}={value[:60]!a} is not a {setting.type} ({_RIGHT[setting.type]})")
    if wrong:
        raise UsageProblem("; ".join(wrong), where=manifest.id, remedy=f"archy config {manifest.id} lists its settings")


def settle(manifest: Manifest, values: Mapping[str, str], ports: Ports) -> Manifest:
    """The manifest as it runs here, companions among its containers; `auto` stays where no port was chosen yet."""
    settings = tuple(
        setting.model_copy(update={"default": values[setting.name]})
        if setting.name in values and fits(setting, values[setting.name])
        else setting
        for setting in manifest.settings
    )
    containers = {label: _with_ports(label, box, ports) for label, box in _boxes(manifest).items()}
    return manifest.model_copy(update={"settings": settings, "containers": MappingProxyType(containers)})


def _boxes(manifest: Manifest) -> dict[str, Container]:
    """Containers, and companions as containers that start after what they serve."""
    companions = {label: companion.as_container() for label, companion in manifest.companions.items()}
    return {**companions, **manifest.containers}


def _with_ports(label: str, container: Container, ports: Ports) -> Container:
    if not any(port.host == "auto" for port in container.ports):
        return container
    chosen = tuple(
        port.model_copy(update={"host": ports[label, port.name]})
        if port.host == "auto" and (label, port.name) in ports
        else port
        for port in container.ports
    )
    return container.model_copy(update={"ports": chosen})


def choose_ports(
    manifest: Manifest, kept: Ports, taken: frozenset[tuple[int, str]], problem: Callable[[int, str, str], str]
) -> dict[tuple[str, str], int]:
    """A host port for every `auto`: the one it had when nobody took it, else the lowest free one.

    `taken` are (port, protocol) of other apps; `problem` asks the machine, empty when it can be had. Raises Refused.
    """
    used = set(taken) | {(port.host, port.protocol) for _, port in _ports(manifest) if isinstance(port.host, int)}
    chosen: dict[tuple[str, str], int] = {}
    for label, port in _ports(manifest):
        if port.host != "auto":
            continue
        before = kept.get((label, port.name))
        for number in (*((before,) if before else ()), *AUTO_PORTS):
            if (number, port.protocol) not in used and not problem(number, port.bind, port.protocol):
                used.add((number, port.protocol))
                chosen[label, port.name] = number
                break
        else:
            raise Refused(f"no free host port for {label}'s {port.name}", where=manifest.id, remedy="stop another app")
    return chosen


def _ports(manifest: Manifest) -> Iterator[tuple[str, PortSpec]]:
    for label, container in sorted(_boxes(manifest).items()):
        for port in container.ports:
            yield label, port
