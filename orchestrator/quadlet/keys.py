"""Which Quadlet key is known from which Podman on.

One key that the generator does not know drops the whole unit (R-MF9), so only keys of this table are written, and one
that is too new is said with PodmanArgs= instead. Pure. Source: podman-systemd.unit(5) of each release; the entries at
5.4 are those that were tried on 5.4 and may be older.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

Version: TypeAlias = tuple[int, int, int]

OLDEST: Final[Version] = (5, 0, 0)
"""Older ones lack Notify=healthy and pasta's host-gateway."""

SINCE: Final[Mapping[str, Mapping[str, Version]]] = {
    "Container": dict.fromkeys(
        (
            "AddCapability",
            "AddDevice",
            "ContainerName",
            "DropCapability",
            "Environment",
            "Entrypoint",
            "Exec",
            "HealthCmd",
            "HealthInterval",
            "HealthRetries",
            "HealthStartPeriod",
            "HealthTimeout",
            "Image",
            "Label",
            "Network",
            "NoNewPrivileges",
            "Notify",
            "PodmanArgs",
            "PublishPort",
            "Pull",
            "ReadOnly",
            "Secret",
            "StopTimeout",
            "User",
            "Volume",
            "WorkingDir",
        ),
        OLDEST,
    )
    | {"AddHost": (5, 4, 0), "NetworkAlias": (5, 4, 0), "Memory": (5, 5, 0), "ReloadCmd": (5, 5, 0)},
    "Network": dict.fromkeys(
        ("DNS", "Gateway", "Internal", "Label", "NetworkName", "Options", "PodmanArgs", "Subnet"), OLDEST
    ),
    "Volume": dict.fromkeys(("Group", "Label", "PodmanArgs", "User", "VolumeName"), OLDEST),
    "Build": dict.fromkeys(
        ("File", "ForceRM", "ImageTag", "Label", "Network", "PodmanArgs", "Pull", "SetWorkingDirectory"),
        (5, 2, 0),  # the first with .build units
    ),
}

INSTEAD: Final[Mapping[str, str]] = {"AddHost": "--add-host", "NetworkAlias": "--network-alias"}
"""The podman-run(1) option that says the same."""


def line(section: str, key: str, value: str, podman: Version) -> tuple[str, str]:
    """The line for a key, or PodmanArgs= where this Podman does not know it. KeyError for a key outside the table."""
    if SINCE[section][key] <= podman:
        return key, value
    return "PodmanArgs", f"{INSTEAD[key]}={value}"


def parse_version(text: str) -> Version:
    """`5.4.2` or `5.5.0-rc1` -> (5, 4, 2). Raises ValueError."""
    numbers = [int(part) for part in text.split("-")[0].split("+")[0].split(".")[:3]]
    major, minor, patch = (*numbers, 0, 0, 0)[:3]
    return major, minor, patch
