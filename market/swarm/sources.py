"""Where bytes may come from, and which addresses this node may be sent to. Pure values; no resolving, no sockets.

Guarantees: a `Source` has a plain http or https base URL without credentials, query or fragment.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from urllib.parse import SplitResult, urlsplit

from market.errors import Refused
from market.model import Digest

MAX_URL: Final = 2048
"""Characters of a URL from a signed document or a redirect; what common servers accept."""


class SourceKind(StrEnum):
    """The origin is what the publisher signed; a peer is anyone else."""

    ORIGIN = "origin"
    PEER = "peer"


@dataclass(frozen=True, slots=True)
class Source:
    """One base URL; a blob is at `<url>/blobs/<64 hex digits>`. Raises Refused for what is no such URL."""

    url: str
    kind: SourceKind
    configured: bool = False
    """The operator wrote this address himself, so it may be private whatever the AddressPolicy says."""

    def __post_init__(self) -> None:
        parse_url(self.url)
        if urlsplit(self.url).query:
            raise Refused("a base URL has no query", where=self.url[:200])
        object.__setattr__(self, "url", self.url.rstrip("/"))

    def blob_url(self, digest: Digest) -> str:
        return f"{self.url}/blobs/{digest.hex}"


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """Which addresses a stranger (a signed origin, a redirect, a provider) may send this node to (R-SW5)."""

    allow_private: bool = False

    def permits(self, address: str) -> bool:
        return self.allow_private or is_public(address)


@dataclass(frozen=True, slots=True)
class Url:
    """The parts of an absolute http(s) URL that a request needs."""

    scheme: str
    host: str
    port: int
    target: str
    """Path and query, as sent in the request line."""

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"


_PRINTABLE: Final = re.compile(r"[\x21-\x7e]*")
_PORTS: Final = {"http": 80, "https": 443}


def parse_url(text: str) -> Url:
    """Read an absolute http(s) URL. RFC 3986. Raises Refused."""
    shown = text[:200]
    if len(text) > MAX_URL or not _PRINTABLE.fullmatch(text):
        raise Refused("not a URL: too long, or with characters that a URL has not", where=shown)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as bad:
        raise Refused(f"not a URL: {bad}", where=shown) from bad
    _check_parts(parts, shown)
    assert parts.hostname is not None
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Url(parts.scheme, parts.hostname, _PORTS[parts.scheme] if port is None else port, target)


def _check_parts(parts: SplitResult, shown: str) -> None:
    if parts.scheme not in _PORTS:
        raise Refused("a source is an http or https URL", where=shown)
    if not parts.hostname:
        raise Refused("a URL without a host", where=shown)
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise Refused("a source URL has neither credentials nor a fragment", where=shown)


_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """False for every address that is not the public internet's, also inside IPv6 forms that carry an IPv4 address."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        carried = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:  # RFC 6052
            carried = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if carried is not None:
            return is_public(str(carried))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved
