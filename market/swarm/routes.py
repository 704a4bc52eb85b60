"""From a source's URL to checked addresses: resolving, the address policy, redirects. trio; no connections here.

Guarantees: a `Route` carries only addresses that the policy permits, and the connection goes to those very addresses,
so that a name that resolves differently the second time (DNS rebinding) gains nothing; only origins may redirect, never
from HTTPS to HTTP, never to an address that the policy forbids.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from typing import Final
from urllib.parse import urljoin

import trio

from market.errors import Refused
from market.swarm.errors import AddressRefused, ConnectFailed, RedirectRefused
from market.swarm.sources import AddressPolicy, Source, SourceKind, Url, parse_url
from market.swarm.transport import Route

MAX_REDIRECTS: Final = 5
"""Release pages redirect once or twice; more is a loop."""
RESOLVED_SECONDS: Final = 30.0
"""How long an answer of the resolver is used: many small blobs come from one host."""
MAX_ADDRESSES: Final = 8
"""Addresses tried per host: a hostile zone may list hundreds."""

_Addresses = tuple[tuple[int, tuple[str, int] | tuple[str, int, int, int]], ...]


class Resolver:
    """Resolves and remembers for a short while. One per fetching session."""

    def __init__(self, policy: AddressPolicy, clock: Callable[[], float]) -> None:
        self._policy = policy
        self._clock = clock
        self._known: dict[tuple[str, int, bool], tuple[float, _Addresses]] = {}

    async def route(self, source: Source, url: Url, deadline: float) -> Route:
        """Checked addresses of `url`, which `source` named, within `deadline` seconds.

        Raises AddressRefused, ConnectFailed.
        """
        own = parse_url(source.url)
        trusted = source.configured and (url.host, url.port) == (own.host, own.port)
        key = (url.host, url.port, trusted)
        known = self._known.get(key)
        if known is None or known[0] < self._clock():
            permits = (lambda _: True) if trusted else self._policy.permits
            known = (self._clock() + RESOLVED_SECONDS, await _resolve(source, url, permits, deadline))
            self._known[key] = known
        return Route(url, known[1])

    async def redirect(self, source: Source, at: Url, location: str, deadline: float) -> Route:
        """The route that a redirect's Location names. RFC 9110, 10.2.2. Raises RedirectRefused, AddressRefused."""
        if source.kind is not SourceKind.ORIGIN:
            raise RedirectRefused(source.url, "a peer may not redirect")
        try:
            target = parse_url(urljoin(str(at), location))
        except (Refused, ValueError) as bad:
            raise RedirectRefused(source.url, f"redirects to what is no http(s) URL: {location[:80]!r}") from bad
        if at.scheme == "https" and target.scheme != "https":
            raise RedirectRefused(source.url, "redirects from HTTPS to plain HTTP")
        return await self.route(source, target, deadline)


async def _resolve(source: Source, url: Url, permits: Callable[[str], bool], deadline: float) -> _Addresses:
    found = _literal(url) or await _looked_up(source, url, deadline)
    addresses = tuple((family, address) for family, address in found[:MAX_ADDRESSES] if permits(str(address[0])))
    if not addresses:
        raise AddressRefused(
            source.url, f"{url.host} is at {found[0][1][0]}, a private address that strangers may not name"
        )
    return addresses


def _literal(url: Url) -> _Addresses:
    """What the resolver would say of a host that is an address already, as neighbours on the LAN are."""
    try:
        ip = ipaddress.ip_address(url.host)
    except ValueError:
        return ()
    if isinstance(ip, ipaddress.IPv4Address):
        return ((socket.AF_INET, (str(ip), url.port)),)
    return ((socket.AF_INET6, (str(ip), url.port, 0, 0)),) if ip.scope_id is None else ()


async def _looked_up(source: Source, url: Url, deadline: float) -> _Addresses:
    found = None
    try:
        with trio.move_on_after(deadline):
            found = await trio.socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as unknown:
        raise ConnectFailed(source.url, f"{url.host} does not resolve: {unknown}") from unknown
    if found is None:
        raise ConnectFailed(source.url, f"{url.host} did not resolve within {deadline:g} s")
    addresses = tuple(
        (int(family), address) for family, _, _, _, address in found if family in (socket.AF_INET, socket.AF_INET6)
    )
    if not addresses:
        raise ConnectFailed(source.url, f"{url.host} has no address on the internet")
    return addresses  # type: ignore[return-value]  # typeshed: a socket address of another family has bytes in it
