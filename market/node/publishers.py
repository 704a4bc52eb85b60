"""What is known and decided about publishers, and what this node does for them while it runs.

Two duties: the heads of this home's own apps are said again before they expire, and what relays lost of the apps that
run here (identity, releases, revocations) is given back to them, with proofs of contradictions. A publisher that is
proven to have said two things stays blocked until the operator names the document that counts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

import trio
from coincurve import PrivateKey, PublicKeyXOnly
from pydantic import Field

from market.discovery import (
    PublishResult,
    decide,
    due_heads,
    faults_of,
    known_history,
    new_proof_events,
    publish,
    refreshed_heads,
    relays_of,
    to_events,
)
from market.errors import Problem, UsageProblem
from market.identity import Keyring, is_did
from market.model import AppName
from market.node.node import Node
from market.node.requests import DIGEST_TEXT, Request
from market.node.running import Report

FIRST_SECONDS: Final = 60.0
"""After the start: relays have shown by then what they have."""
DUTY_SECONDS: Final = 6 * 3600.0
"""Between two rounds; a head is due thirty days before its end, so any of a hundred rounds will do."""
PUBLISH_SECONDS: Final = 60.0

logger = logging.getLogger("archy.node")


class OnePublisher(Request):
    """A publisher's DID."""

    publisher: str = Field(max_length=200)


class Decide(OnePublisher):
    """The digest of the document that counts, of those that contradict each other."""

    keep: str = Field(pattern=DIGEST_TEXT)


async def publisher(node: Node, request: OnePublisher, report: Report) -> Mapping[str, Any]:
    """A publisher's key history, its apps, and everything that is proven against it."""
    did = _did(request)
    faults = [fault.to_json() for fault in faults_of(node.index, did)]
    return {"schema": "archy/publisher/1", **known_history(node.index, did), "faults": faults}


async def decide_publisher(node: Node, request: Decide, report: Report) -> Mapping[str, Any]:
    """The operator's own word about a contradiction; installs of this publisher are open again after the last one."""
    await trio.to_thread.run_sync(decide, node.index, _did(request), request.keep)
    node.circles.changed()
    return await publisher(node, request, report)


def _did(request: OnePublisher) -> str:
    did = request.publisher if request.publisher.startswith("did:") else f"did:key:{request.publisher}"
    if not is_did(did):
        raise UsageProblem(f"{request.publisher[:80]!r} is no publisher", remedy="did:key:z6Mk...; `archy show` has it")
    return did


async def keep_publishing(node: Node) -> None:
    """Both duties, for ever; a fault of one does not keep the other from being done."""
    await trio.sleep(FIRST_SECONDS)
    while True:
        for duty in (refresh_own_heads, give_back):
            try:
                await duty(node)
            except Problem as problem:
                logger.warning("publishing: %s", problem)
        await trio.sleep(DUTY_SECONDS)


async def refresh_own_heads(node: Node) -> tuple[PublishResult, ...]:
    """Say again what is newest of this home's own apps, where that is due; nothing without an online key here."""
    if not (node.home.identity / "online.key").exists():
        return ()
    keyring = await trio.to_thread.run_sync(Keyring.load, node.home.identity)
    apps = await trio.to_thread.run_sync(lambda: due_heads(keyring, node.index, now=node.now()))
    if not apps:
        return ()
    documents = await trio.to_thread.run_sync(lambda: refreshed_heads(keyring, node.index, apps, now=node.now()))
    events = to_events(keyring, documents, node.now())
    relays = dict.fromkeys((*relays_of(keyring), *node.index.relays()))
    results = await publish(events, list(relays), timeout=PUBLISH_SECONDS, signer=keyring)
    taken = sum(len(one.accepted) == len(events) for one in results)
    logger.info("said again what is newest of %s, on %d of %d relays", ", ".join(apps), taken, len(relays))
    return results


async def give_back(node: Node) -> tuple[PublishResult, ...]:
    """What relays lost of the apps that run here, and contradictions that they have not shown."""
    installed: list[AppName] = [app for app, _, _ in node.orchestrator.installed()]
    results = await node.discovery.rebroadcast(installed, timeout=PUBLISH_SECONDS)
    proofs = await trio.to_thread.run_sync(new_proof_events, node.index, _Anybody(), node.now())
    if proofs:
        results += await publish(proofs, node.index.relays(), timeout=PUBLISH_SECONDS)
    return results


class _Anybody:
    """A Nostr key for once: a proof proves itself, and who hands it on need not be known."""

    def __init__(self) -> None:
        self._key = PrivateKey()
        self.nostr_pubkey = PublicKeyXOnly.from_secret(self._key.secret).format().hex()

    def sign_schnorr(self, digest: bytes) -> bytes:
        return self._key.sign_schnorr(digest)
