"""Who else may have an app's blobs: the operator's peers, nodes that signed so, nodes on this LAN, old acquaintances.

Guarantees: nobody's word is more than a hint, since every byte is checked; what strangers name is held to the address
policy (R-SW5), and a neighbour's address must be one of a private network; all of it is bounded. Own words go out only
where the operator set an `announce` URL or turned `lan` on.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import secrets
import socket
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import trio
from zeroconf import IPVersion, ServiceInfo, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from market.bridge import Bridge
from market.discovery import publish, reading, to_events
from market.discovery.own import announced
from market.errors import Problem, Refused
from market.identity.keyring import Keyring
from market.model import AppName, Digest
from market.swarm import Source, SourceKind
from market.swarm.errors import SourceFault
from market.swarm.probe import has_blob

if TYPE_CHECKING:
    from market.node.node import Node

SERVICE: Final = "_archy-blobs._tcp.local."
MAX_NEIGHBOURS: Final = 16
"""A household has fewer; whoever floods the LAN with names gains no more places."""
MAX_REMEMBERED_PEERS: Final = 6
MAX_SIGNED: Final = 6
"""Endpoints of signed providers that are asked for one app: a fetch uses 16 sources at most."""
INFO_SECONDS: Final = 3.0
ANNOUNCE_SECONDS: Final = 1800.0
"""Half of what a provider's word is believed for."""
PUBLISH_SECONDS: Final = 10.0

logger = logging.getLogger("archy.node")


@dataclass(slots=True)
class Neighbours:
    """Base URLs of nodes on this LAN, by their service name. Filled on the asyncio loop, read anywhere."""

    found: dict[str, str] = field(default_factory=dict)
    own: str = ""

    def urls(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.found.values()))

    def note(self, name: str, addresses: Iterable[str], port: int | None) -> None:
        """A neighbour said where it is. Loopback, link-local and public addresses are not taken (SSRF)."""
        usable = [address for address in addresses if is_neighbourly(address)]
        if name == self.own or not usable or not port or (name not in self.found and len(self.found) >= MAX_NEIGHBOURS):
            return
        host = f"[{usable[0]}]" if ":" in usable[0] else usable[0]
        self.found[name] = f"http://{host}:{port}"

    def forget(self, name: str) -> None:
        self.found.pop(name, None)


def is_neighbourly(address: str) -> bool:
    """Whether an address can be a neighbour's on a private network: RFC 1918, RFC 4193."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    return ip.is_private and not (ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified)


@asynccontextmanager
async def neighbours(bridge: Bridge, listening: tuple[str, int] | None) -> AsyncIterator[Neighbours]:
    """Look for nodes on the LAN while the block lasts, and be found if this one listens. mDNS, RFC 6762 and 6763."""
    known = Neighbours()
    lan = await bridge.run(_open, known, listening)
    try:
        yield known
    finally:
        with trio.CancelScope(shield=True):
            await bridge.run(lan.close)


@dataclass(slots=True)
class _Lan:
    """Lives on the asyncio loop."""

    known: Neighbours
    zeroconf: AsyncZeroconf
    browser: AsyncServiceBrowser | None = None
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def changed(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is ServiceStateChange.Removed:
            self.known.forget(name)
            return
        task = asyncio.get_running_loop().create_task(self._ask(name))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _ask(self, name: str) -> None:
        info = AsyncServiceInfo(SERVICE, name)
        if await info.async_request(self.zeroconf.zeroconf, INFO_SECONDS * 1000):
            self.known.note(name, info.parsed_addresses(IPVersion.All), info.port)

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        if self.browser is not None:
            await self.browser.async_cancel()
        await self.zeroconf.async_close()


async def _open(known: Neighbours, listening: tuple[str, int] | None) -> _Lan:
    zeroconf = AsyncZeroconf()
    lan = _Lan(known, zeroconf)
    if listening is not None:
        # A name of its own for every run: it tells the household nothing about the node's identity.
        known.own = f"archy-{secrets.token_hex(4)}.{SERVICE}"
        addresses = _own_addresses(listening[0])
        info = ServiceInfo(SERVICE, known.own, port=listening[1], parsed_addresses=addresses)
        if addresses:
            await zeroconf.async_register_service(info)
    lan.browser = AsyncServiceBrowser(zeroconf.zeroconf, SERVICE, handlers=[lan.changed])
    return lan


def _own_addresses(host: str) -> list[str]:
    """Where neighbours reach a server that listens at `host`; for the wildcard, the address that leads outside."""
    if host not in ("0.0.0.0", "::"):
        return [host] if is_neighbourly(host) else []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("224.0.0.251", 5353))  # sends nothing: it only asks the kernel for a route
        except OSError:
            return []
        address = str(probe.getsockname()[0])
    return [address] if is_neighbourly(address) else []


def peers_of(node: Node, app: AppName | None = None) -> tuple[Source, ...]:
    """Everybody but the origin: configured, on the LAN, signed for this app, good before; each URL once."""
    found: dict[str, Source] = {}

    def add(urls: Iterable[str], *, trusted: bool) -> None:
        for url in urls:
            try:
                source = Source(url, SourceKind.PEER, configured=trusted)
            except Refused:
                continue  # a stranger's word that is no URL
            found.setdefault(source.url, source)

    add(node.config.peers, trusted=True)
    add(node.neighbours.urls(), trusted=True)
    add(_signed(node, app)[:MAX_SIGNED], trusted=False)
    add(node.store.sources.good_peers(node.now(), MAX_REMEMBERED_PEERS), trusted=False)
    return tuple(found.values())


def _signed(node: Node, app: AppName | None) -> tuple[str, ...]:
    if app is None:
        return ()
    with node.index.reading() as db:
        providers = reading.providers(db, app, node.now())
    return tuple(dict.fromkeys(url for provider in providers for url in provider.endpoints))


async def asked(node: Node, digest: Digest, peers: tuple[Source, ...]) -> list[dict[str, Any]]:
    """Ask every peer whether it has the blob; what is remembered of each goes along."""
    remembered = dict(node.store.sources.rows(node.now()))
    rows: dict[str, dict[str, Any]] = {}

    async def ask(peer: Source) -> None:
        began = time.monotonic()
        try:
            size: int | None = await has_blob(peer, digest, node.addresses)
            problem = ""
        except SourceFault as fault:
            size, problem = None, fault.what
        past = remembered.get(peer.url)
        rows[peer.url] = {
            "url": peer.url,
            "has": size is not None,
            "size": size,
            "problem": problem,
            "milliseconds": round(1000 * (time.monotonic() - began), 1),
            "rate": past.rate if past else None,
            "brought": past.brought if past else 0,
            "lies": round(past.blame, 2) if past else 0.0,
        }

    async with trio.open_nursery() as nursery:
        for peer in peers:
            nursery.start_soon(ask, peer)
    return sorted(rows.values(), key=lambda row: (not row["has"], -(row["rate"] or 0.0), row["url"]))


async def keep_announcing(node: Node) -> None:
    """Say on the relays every half hour which apps' blobs are served here, while the operator's setting is on."""
    while True:
        try:
            await announce(node)
        except Problem as problem:
            logger.warning("could not announce what is served here: %s", problem)
        await trio.sleep(ANNOUNCE_SECONDS)


async def announce(node: Node) -> int:
    """Publish one provider document; the number of relays that took it. Nothing without a URL or an identity."""
    apps = tuple(app for app, _, _ in node.orchestrator.installed() if node.shares_app(app))
    if not node.config.announce or not apps or not node.home.identity.is_dir():
        return 0

    def signed() -> list[dict[str, Any]]:
        keyring = Keyring.load(node.home.identity)
        documents = announced(keyring, [node.config.announce], node.config.upload_mbit or 1000, apps, now=node.now())
        return to_events(keyring, documents, node.now())

    events = await trio.to_thread.run_sync(signed)
    results = await publish(events, node.index.relays(), timeout=PUBLISH_SECONDS)
    return sum(len(result.accepted) == len(events) for result in results)
