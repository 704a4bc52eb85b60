"""The operator's signed word on releases: attest, report, and "ran N days" where the operator opted in.

Guarantees that a word is signed by the identity in this home, counts here at once, and is offered to every relay; and
that nothing is ever said about what runs here unless the setting `attest_running` is on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
import trio
from pydantic import Field

from market.discovery import Candidate, Event, publish, sign_attestation, to_events
from market.discovery.events import decode_event
from market.errors import EnvironmentLacks, Problem, Refused
from market.identity import Keyring
from market.model import AppName, AttestKind, Digest
from market.node.browse import find_listing
from market.node.node import Node
from market.node.requests import Request
from market.node.running import Report
from market.node.verdicts import installed_release
from market.trust.memory import Ran
from market.trust.running import milestone, seen_running

logger = logging.getLogger("archy.node")

PUBLISH_SECONDS: Final = 20.0

LOOK_SECONDS: Final = 3600.0
"""Between two looks at what runs; days are counted, so that an hour is close enough."""

RAN_EXPIRES_DAYS: Final = 180
"""A release that ran well half a year ago says little about today."""

OWN: Final = "this node"
"""Where an event came from that was made here."""

_DAY: Final = 86_400


class Attest(Request):
    """A word on the installed release of an app, or on the one offered. `value` 0 withdraws what was said before."""

    app: str = Field(max_length=200)
    kind: Literal["reviewed", "rebuilt", "malware", "impersonation"]
    value: int = Field(ge=-100, le=100)
    note: str = Field("", max_length=280)
    days: int = Field(365, ge=1, le=3650)
    offline: bool = False


async def attest(node: Node, request: Attest, report: Report) -> Mapping[str, Any]:
    """Sign a word on a release, count it here, and publish it. Raises EnvironmentLacks without an identity."""
    if not node.home.identity.is_dir():
        raise EnvironmentLacks(
            "this home has no identity to sign with", where=str(node.home.identity), remedy="archy id init"
        )
    if not request.offline:
        await node.refresh()
    listing = find_listing(node, request.app)
    release = installed_release(node, listing.app) or listing.release
    if release is None:
        raise Refused("there is no release to speak about", where=str(listing.app), remedy="ask its publisher for one")
    kind = AttestKind(request.kind)
    expires = int(node.now()) + request.days * _DAY
    said = await _say(node, listing.app, release.digest, kind, request.value, request.note, expires)
    return {"schema": "archy/attestation/1", "app": str(listing.app), "version": release.version, **said}


async def keep_attesting(node: Node) -> None:
    """Look from time to time at what runs, and say so at each milestone, while the operator's setting is on."""
    before = node.now()
    while True:
        await trio.sleep(LOOK_SECONDS)
        now = node.now()
        await look_at_running(node, now - before)
        before = now


async def look_at_running(node: Node, elapsed: float) -> None:
    """One look, `elapsed` seconds after the one before. A word that no relay took is said again at the next look."""
    if not node.config.attest_running or not node.home.identity.is_dir():
        return
    running = {one.digest: one.name for one in await node.orchestrator.status() if one.state.startswith("running")}
    ran = seen_running(node.memory.load().ran, running, elapsed)
    for digest, app in running.items():
        due = milestone(ran[digest])
        if due is None:
            continue
        days, value = due
        expires = int(node.now()) + RAN_EXPIRES_DAYS * _DAY
        try:
            said = await _say(node, app, Digest(digest), AttestKind.RAN, value, f"ran {days} days", expires)
        except Problem as problem:
            logger.warning("could not attest that %s ran %d days: %s", app, days, problem)
            continue
        if any(relay["accepted"] for relay in said["relays"]):
            ran[digest] = Ran(ran[digest].seconds, days)
    node.memory.save(node.memory.load().with_ran(ran))


async def _say(
    node: Node, app: AppName, subject: Digest, kind: AttestKind, value: int, note: str, expires: int
) -> dict[str, Any]:
    def signed() -> tuple[Keyring, list[dict[str, Any]]]:
        keyring = Keyring.load(node.home.identity)
        word = sign_attestation(
            keyring, app, subject, kind=kind, value=value, expires=expires, note=note, now=node.now()
        )
        # The identity goes along: a relay that does not have it would leave the word without a speaker.
        return keyring, to_events(keyring, [*keyring.documents, word], node.now())

    keyring, events = await trio.to_thread.run_sync(signed)
    await trio.to_thread.run_sync(_count_here, node, events)
    node.circles.changed_here()
    results = await publish(events, node.index.relays(), timeout=PUBLISH_SECONDS)
    return {
        "kind": kind.value,
        "value": value,
        "note": note,
        "expires": expires,
        "release": subject.hex,
        "voter": keyring.did,
        "relays": [
            {**result.to_json(), "accepted": len(result.accepted) == len(events), "events": len(result.accepted)}
            for result in results
        ],
    }


def _count_here(node: Node, events: Sequence[Mapping[str, Any]]) -> None:
    """Through the same checks as everybody's."""
    decoded = [decode_event(msgspec.json.encode(event)) for event in events]
    node.index.ingest([Candidate(event, OWN) for event in decoded if isinstance(event, Event)])
