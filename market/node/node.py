"""One node: every part opened in one nursery, owned by one process.

Owns the order of opening and closing, and who may read which address. It holds no rule about apps, trust or blobs;
those live in the parts, and what a door can ask for lives in `market.node.operations`.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Final

import trio

from apps.machines import local_arch
from apps.manifest import Manifest, parse_manifest_json
from apps.names import AppName, BlobRef, Digest
from apps.permissions import permissions_of
from market.bridge import Bridge, open_bridge
from market.bundle_folder import remove_bundle
from market.discovery import Discovery, Index, SchnorrSigner, open_index
from market.errors import Problem, ungrouped
from market.identity import Keyring
from market.node.circles import CircleKeeper
from market.node.config import NodeConfig, load_config
from market.node.home import Home
from market.node.ports import OpenOrchestrator, OrchestratorPort, Preflight
from market.node.providers import Neighbours, peers_of
from market.node.running import Operations
from market.node.sharing import blobs_of, refs_of
from market.swarm import AddressPolicy, Source, SourceKind, Store, UploadLimits, open_store
from market.trust import AnchorBook, Circle, TrustMemory
from orchestrator import Settings, default_unit_dir, open_orchestrator
from orchestrator import preflight as bundled_preflight

logger = logging.getLogger("archy.node")

BEGIN_SECONDS: Final = 5.0
"""What a question waits at most for relays that a node has just begun to ask; most have shown all in one."""
SYNC_SECONDS: Final = 10.0
"""One pass over all relays when no sessions are being kept."""


@dataclass(slots=True)
class Node:
    """The opened parts. `live` says that sessions with relays are kept, so that the index needs no asking."""

    home: Home
    config: NodeConfig
    index: Index
    discovery: Discovery
    store: Store
    bridge: Bridge
    anchors: AnchorBook
    memory: TrustMemory
    circles: CircleKeeper
    orchestrator: OrchestratorPort
    preflight: Preflight
    operations: Operations
    now: Callable[[], float]
    live: bool = False
    shared: frozenset[Digest] = frozenset()
    bundles_in_use: frozenset[str] = frozenset()
    """Release digests (hex) of installed apps, when last looked."""
    neighbours: Neighbours = field(default_factory=Neighbours)
    app_locks: dict[AppName, trio.Lock] = field(default_factory=dict)

    def lock_of(self, app: AppName) -> trio.Lock:
        """At most one operation per app at a time (R-ST20)."""
        return self.app_locks.setdefault(app, trio.Lock())

    async def refresh(self) -> None:
        """Ask the relays once, or let the sessions that are kept with them show what there is, if they just began."""
        if self.live:
            await self.discovery.begun(BEGIN_SECONDS)
        else:
            await self.discovery.sync(SYNC_SECONDS)

    def sources(self, origins: tuple[str, ...], app: AppName | None = None) -> tuple[Source, ...]:
        """Where blobs may come from: what the publisher signed, then every peer that is known (see `providers`)."""
        return (*(Source(url, SourceKind.ORIGIN) for url in origins), *peers_of(self, app))

    def shares_app(self, app: AppName) -> bool:
        """Whether peers may have this app's blobs: asking for them tells what runs here."""
        return self.config.share and not {app.id, str(app)} & set(self.config.unshared)

    def upload_limits(self) -> UploadLimits:
        mbit = self.config.upload_mbit
        return UploadLimits(rate=mbit * 125_000 if mbit else None)

    def needed(self) -> Iterator[BlobRef]:
        """The blobs of every installed app, which no collection may touch (R-SW6)."""
        for app, _, _ in self.orchestrator.installed():
            manifest = self._installed_manifest(app)
            if manifest is not None:
                yield from refs_of(manifest, self.store, local_arch())

    @property
    def addresses(self) -> AddressPolicy:
        return AddressPolicy(allow_private=self.config.allow_private_origins)

    def granted(self, app: AppName) -> tuple[str, ...]:
        """The permissions that the installed generation of `app` runs with; none while it is not installed."""
        manifest = self._installed_manifest(app)
        return permissions_of(manifest) if manifest is not None else ()

    def shares(self, digest: Digest) -> bool:
        """Whether a peer may have this blob (R-SW7)."""
        return digest in self.shared

    def look_at_shared(self) -> None:
        """Work out anew what is shared, and let go of bundles that no app runs from any more.

        Called when an app or a pin comes or goes. A bundle is removed only if an app ran from it when last looked, so
        that what an unfinished installation needs stays.
        """
        digests = set(self.store.pins())
        installed = frozenset(digest for _, _, digest in self.orchestrator.installed())
        for gone in self.bundles_in_use - installed:
            remove_bundle(self.home.bundles, gone)
        self.bundles_in_use = installed
        for app, _, _ in self.orchestrator.installed():
            if self.shares_app(app):
                manifest = self._installed_manifest(app)
                if manifest is not None:
                    digests.update(blobs_of(manifest, self.store, local_arch()))
        self.shared = frozenset(digests)

    def _installed_manifest(self, app: AppName) -> Manifest | None:
        for name, _, digest in self.orchestrator.installed():
            if name == app:
                path = self.home.bundles / digest / "manifest.json"
                try:
                    return parse_manifest_json(json.loads(path.read_bytes()), where=str(path))
                except (OSError, ValueError, Problem) as fault:
                    logger.warning("the bundle of %s is not readable: %s", app, fault)
        return None


@asynccontextmanager
async def _bundled(home: Home, prefix: str) -> AsyncIterator[OrchestratorPort]:
    settings = Settings(state_db=home.apps_state, data_dir=home.apps_data, unit_dir=default_unit_dir(), prefix=prefix)
    async with open_orchestrator(settings) as opened:
        yield opened


def _nostr_keys(anchors: AnchorBook, index: Index) -> tuple[str, ...]:
    """Whose lists matter, as hex keys: the anchors (named so, or by their DID's history), then who is followed."""
    known = anchors.load()
    people = {anchor.person for anchor in known.entries}
    named = {person.removeprefix("nostr:") for person in people if person.startswith("nostr:")}
    histories = (index.identity(person) for person in people - {f"nostr:{key}" for key in named})
    latest = (history.latest for history in histories if history is not None)
    named = named.union(*(entry.entry.nostr for entry in latest if entry is not None))
    followed = (person.removeprefix("nostr:") for person in known.follows if person.startswith("nostr:"))
    return tuple(dict.fromkeys((*sorted(named), *followed)))


def _circle(home: Home, anchors: AnchorBook, index: Index, now: Callable[[], float]) -> Circle:
    """What the index knows of people, seen from the operator's anchors. Takes a while: call it in a thread."""
    try:
        own = Keyring.load(home.identity).did if home.identity.is_dir() else ""
    except Problem as problem:
        logger.warning("this home's identity can not be read, so its own votes do not count: %s", problem)
        own = ""
    return Circle.of(index.evidence(), replace(anchors.load(), own=own), now=int(now()))


def _own_key(home: Home) -> SchnorrSigner | None:
    """Who reads, for a relay of the operator's that lets members in only."""
    if not (home.identity / "nostr.key").exists():
        return None
    try:
        return Keyring.load(home.identity)
    except Problem as problem:
        logger.warning("this home's identity can not be read, so relays are not told who reads: %s", problem)
        return None


def _publishers(anchors: AnchorBook, orchestrator: OrchestratorPort) -> tuple[str, ...]:
    """Whose own write relays are asked too (NIP-65): publishers of what is installed here, then anchors."""
    installed = (app.publisher for app, _, _ in orchestrator.installed())
    named = (anchor.person for anchor in anchors.load().entries if anchor.person.startswith("did:"))
    return tuple(dict.fromkeys((*installed, *named)))


@asynccontextmanager
async def open_node(
    home: Home,
    *,
    open_apps: OpenOrchestrator = _bundled,
    preflight: Preflight = bundled_preflight,
    now: Callable[[], float] = time.time,
) -> AsyncIterator[Node]:
    """Take the home's lock and open every part. Raises Unreachable while another process owns the home.

    A problem of whoever uses the node leaves this as it is, and not in the group of a nursery that they never saw.
    """
    async with AsyncExitStack() as stack:
        stack.enter_context(ungrouped())
        stack.enter_context(home.locked())
        config = load_config(home.config)
        index = stack.enter_context(open_index(home.index, now=now))
        store = stack.enter_context(open_store(home.blobs))
        bridge = await stack.enter_async_context(open_bridge())
        orchestrator = await stack.enter_async_context(open_apps(home, config.unit_prefix))
        nursery = await stack.enter_async_context(trio.open_nursery())
        anchors = AnchorBook(home.anchors)
        node = Node(
            home=home,
            config=config,
            index=index,
            discovery=Discovery(
                index,
                index.relays(),
                now,
                people=lambda: _nostr_keys(anchors, index),
                publishers=lambda: _publishers(anchors, orchestrator),
                signer=lambda: _own_key(home),
                allow_private=config.allow_private_origins,
            ),
            store=store,
            bridge=bridge,
            anchors=anchors,
            memory=TrustMemory(home.trust_memory),
            circles=CircleKeeper(lambda: _circle(home, anchors, index, now), now),
            orchestrator=orchestrator,
            preflight=preflight,
            operations=Operations(nursery),
            now=now,
        )
        node.look_at_shared()
        node.discovery.on_change = node.circles.changed
        try:
            yield node
        finally:
            nursery.cancel_scope.cancel()
