"""A container that is not this node's, as Podman inspects it: what it runs, where its data is, what it publishes.

Guarantees: a `Stranger` is typed and bounded whatever Podman wrote. Who made the container is not trusted either: its
labels and mounts are told here and judged in `offer`. Pure. Source: podman-container-inspect(1).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

ALIVE: Final = ("running", "paused", "stopping", "restarting")
"""States in which its processes live; `initialized` has none yet."""
_UNNAMED = re.compile(r"[0-9a-f]{64}")
"""How Podman names an anonymous volume."""


@dataclass(frozen=True, slots=True)
class StrangerMount:
    """`kind`: bind, volume, or another of Podman's words. `source` is a path on the host or a volume's name."""

    kind: str
    source: str
    path: str
    """Inside."""
    writable: bool = True
    relabel: str = ""
    """`z` or `Z`: shared or private for SELinux."""

    @property
    def anonymous(self) -> bool:
        """`podman rm --volumes` removes it with its container."""
        return self.kind == "volume" and _UNNAMED.fullmatch(self.source) is not None


@dataclass(frozen=True, slots=True)
class StrangerPort:
    """A published port; `address` is the host's, empty for every one."""

    container: int
    protocol: str
    host: int
    address: str = ""

    @property
    def everywhere(self) -> bool:
        """Is it published to the local network?"""
        return self.address in ("", "0.0.0.0", "::")


@dataclass(frozen=True, slots=True)
class Stranger:
    """One container. `restart` as `podman run --restart` takes it; `unit` is the systemd unit that runs it."""

    name: str
    id: str
    state: str
    image_id: str
    """`sha256:...` of the image's config."""
    image: str = ""
    """The name it was started from."""
    labels: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[StrangerMount, ...] = ()
    ports: tuple[StrangerPort, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Passwords may be among it."""
    user: str = ""
    restart: str = "no"
    passing: bool = False
    """Made with --rm."""
    pod: str = ""
    user_namespace: str = ""
    networks: tuple[str, ...] = ()
    """Bridges with names of their own, and `host` or `container:...` where it has no network of its own."""
    command: tuple[str, ...] = ()
    privileged: bool = False

    @property
    def alive(self) -> bool:
        return self.state in ALIVE

    @property
    def unit(self) -> str:
        return self.labels.get("PODMAN_SYSTEMD_UNIT", "")


def stranger(item: Mapping[str, Any]) -> Stranger:
    """One inspected container."""
    config, host = _part(item, "Config"), _part(item, "HostConfig")
    variables = (str(text).partition("=")[::2] for text in config.get("Env") or ())
    return Stranger(
        str(item.get("Name", "")).removeprefix("/"),
        str(item.get("Id", "")),
        str(_part(item, "State").get("Status", "")),
        f"sha256:{str(item.get('Image', '')).removeprefix('sha256:')}",
        str(item.get("ImageName", "")),
        {str(key): str(value) for key, value in _part(config, "Labels").items()},
        tuple(_mount(mount) for mount in item.get("Mounts") or ()),
        tuple(_ports(_part(host, "PortBindings"))),
        dict(variables),
        str(config.get("User", "")),
        _policy(_part(host, "RestartPolicy")),
        bool(host.get("AutoRemove")),
        str(item.get("Pod", "")),
        str(host.get("UsernsMode", "")),
        tuple(sorted(_networks(host, _part(_part(item, "NetworkSettings"), "Networks")))),
        tuple(map(str, config.get("Cmd") or ())),
        bool(host.get("Privileged")),
    )


_USUAL: Final = frozenset(("", "bridge", "podman", "pasta", "slirp4netns", "none", "private", "default"))
"""Networks that nobody else is reached by name in (podman-run(1), --network)."""


def _networks(host: Mapping[str, Any], joined: Mapping[str, Any]) -> frozenset[str]:
    mode = str(host.get("NetworkMode", ""))
    return frozenset((mode, *map(str, joined))) - _USUAL


def _part(item: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = item.get(key)
    return value if isinstance(value, dict) else {}


def _policy(policy: Mapping[str, Any]) -> str:
    name, most = str(policy.get("Name") or "no"), policy.get("MaximumRetryCount")
    return f"{name}:{most}" if name == "on-failure" and isinstance(most, int) and most > 0 else name


def _mount(mount: Mapping[str, Any]) -> StrangerMount:
    kind = str(mount.get("Type", ""))
    modes = [word for word in str(mount.get("Mode", "")).split(",") if word in ("z", "Z")]
    source = mount.get("Name" if kind == "volume" else "Source", "")
    path = str(mount.get("Destination", "")).rstrip("/") or "/"
    return StrangerMount(kind, str(source), path, bool(mount.get("RW")), "".join(modes[:1]))


def _ports(bindings: Mapping[str, Any]) -> list[StrangerPort]:
    found = []
    for inside, published in bindings.items():
        port, _, protocol = str(inside).partition("/")
        for one in published or ():
            host = str(one.get("HostPort", ""))
            if port.isdigit() and host.isdigit():
                found.append(StrangerPort(int(port), protocol or "tcp", int(host), str(one.get("HostIp", ""))))
    return found


def held_by(strangers: Iterable[Stranger]) -> frozenset[tuple[int, str]]:
    """(port, protocol) that they hold on the host now."""
    return frozenset((port.host, port.protocol) for box in strangers if box.alive for port in box.ports)
