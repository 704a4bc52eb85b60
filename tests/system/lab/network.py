"""Addresses for nodes: which /30 is free, and the pair of devices between two nodes.

A node's default route leads to this host, which forwards nothing for it: a node reaches the host and the nodes it is
linked with, and no other network.
"""

from __future__ import annotations

import ipaddress
import json
import secrets
import subprocess
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from tests.system.lab.host import LabFault, host_environment

__all__ = ["Pair", "choose_pair", "connect_namespaces", "device_name", "host_networks", "route_over"]

_POOL = ipaddress.IPv4Network("198.18.0.0/15")
"""Set aside for tests between network devices (RFC 2544, RFC 6890): no LAN, VPN or container network should use it."""

_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Pair:
    """The two usable addresses of a /30."""

    near: str
    far: str


def choose_pair(taken: Collection[str]) -> Pair:
    """A /30 that overlaps none of the networks or addresses in `taken` (text, as `ip` prints them). Raises LabFault."""
    used = [ipaddress.IPv4Network(network, strict=False) for network in taken]
    # A random place to start: two labs on one machine that do not see each other's folders seldom meet.
    start = secrets.randbelow(_POOL.num_addresses // 4)
    for step in range(_POOL.num_addresses // 4):
        index = (start + step) % (_POOL.num_addresses // 4)
        subnet = ipaddress.IPv4Network((int(_POOL.network_address) + 4 * index, 30))
        if not any(subnet.overlaps(network) for network in used):
            return Pair(str(subnet[1]), str(subnet[2]))
    raise LabFault(f"every /30 of {_POOL} is in use", where="lab network")


def host_networks() -> tuple[str, ...]:
    """What this host already routes or owns, IPv4, without the default route."""
    found = [str(route["dst"]) for route in _ip_json("route", "show", "table", "all") if route.get("dst") != "default"]
    for device in _ip_json("address"):
        found += [f"{entry['local']}/{entry['prefixlen']}" for entry in device.get("addr_info", ())]
    return tuple(found)


def device_name(prefix: str) -> str:
    """A name that no other device has; Linux allows 15 characters."""
    return f"{prefix}{secrets.token_hex(5)}"


def connect_namespaces(first: int, second: int, device: str, pair: Pair) -> None:
    """A cable between the network namespaces of two processes: `pair.near` at the first one's end."""
    _ip("link", "add", device, "netns", str(first), "type", "veth", "peer", "name", device, "netns", str(second))
    for process, address in ((first, pair.near), (second, pair.far)):
        _inside(process, "address", "add", f"{address}/30", "dev", device)
        _inside(process, "link", "set", device, "up")


def route_over(process: int, target: str, via: str, source: str) -> None:
    """In that process's network: reach one address over a neighbour, as coming from `source`."""
    _inside(process, "route", "replace", f"{target}/32", "via", via, "src", source)


def _ip_json(*arguments: str) -> Iterator[dict[str, Any]]:
    yield from json.loads(_ip("-4", "-json", *arguments) or "[]")


def _inside(process: int, *arguments: str) -> None:
    _checked(["nsenter", "--target", str(process), "--net", "ip", *arguments])


def _ip(*arguments: str) -> str:
    return _checked(["ip", *arguments])


def _checked(command: list[str]) -> str:
    done = subprocess.run(
        command, env=host_environment(), capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    if done.returncode != 0:
        raise LabFault(f"left with {done.returncode}: {done.stderr.strip()}", where=" ".join(command))
    return done.stdout
