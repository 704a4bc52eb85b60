"""Subnets of apps without internet: chosen here, so that their networks can have one way out and no other, to the host.

A route needs its gateway, and a gateway is only known of a subnet that one has chosen. Guarantees: a chosen subnet
overlaps neither another network of Podman nor a way that this machine itself takes; it is the same again and again for
one app of one node as long as nobody else takes it. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from ipaddress import IPv4Network
from typing import Final

from apps.problems import Refused

RANGE: Final = IPv4Network("10.254.0.0/16")
"""Near the end of where Podman itself takes subnets, from the beginning (containers.conf(5), default_subnet_pools)."""
SIZE: Final = 26
"""Prefix: 61 containers in one app, 1,024 apps on one machine."""
COUNT: Final = 1 << SIZE - RANGE.prefixlen


def choose_subnet(wish: str, taken: Iterable[str]) -> str:
    """A free subnet, by preference the one that `wish` names. Raises Refused when none is free."""
    used = [network for network in map(_parsed, taken) if network is not None and network.overlaps(RANGE)]
    start = int.from_bytes(hashlib.sha256(wish.encode()).digest()[:4], "big")
    for place in range(start, start + COUNT):
        subnet = IPv4Network((int(RANGE[0]) + place % COUNT * (1 << 32 - SIZE), SIZE))
        if not any(subnet.overlaps(other) for other in used):
            return str(subnet)
    raise Refused("no free subnet for the app's network", remedy=f"keep {RANGE} free: podman network ls, ip route")


def gateway_of(subnet: str) -> str:
    """The address that Podman gives itself in a subnet: its first."""
    return str(IPv4Network(subnet)[1])


def is_subnet(text: str) -> bool:
    """Is it a subnet that could have been chosen here?"""
    network = _parsed(text)
    return network is not None and network.prefixlen == SIZE and network.subnet_of(RANGE)


def _parsed(text: str) -> IPv4Network | None:
    try:
        return IPv4Network(text, strict=False)
    except ValueError:
        return None  # IPv6, or nothing
