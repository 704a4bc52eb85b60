"""Whom the operator trusts, as operations of the node: anchors, pins, distrust, and an own follow list.

Guarantees that a change the operator makes here is in the next verdict. The rules themselves are in `market.trust`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trio
from pydantic import Field

from market.discovery.events import Event, decode_event, verify
from market.discovery.reasons import Refusal
from market.errors import Refused, UsageProblem
from market.model import Listing
from market.node import nip05
from market.node.browse import find_listing
from market.node.node import Node
from market.node.requests import Request
from market.node.running import Report
from market.node.verdicts import signed_by
from market.swarm import AddressPolicy
from market.trust import KnownSigner, person_id
from market.trust.files import read_bounded
from market.trust.follow_file import MAX_LIST_FILE, FollowFile, parse_follow_list


class AddAnchor(Request):
    """Somebody this operator trusts: a DID, an npub, a hex Nostr key, or a NIP-05 name."""

    who: str = Field(max_length=320)
    label: str = Field("", max_length=100)
    weight: int = Field(1, ge=1, le=100)


class RemoveAnchor(Request):
    """The same word that `anchors` lists."""

    who: str = Field(max_length=320)


class Distrust(Request):
    """Somebody not to be listened to; nobody: only list them. `undo` takes it back."""

    who: str | None = Field(None, max_length=320)
    undo: bool = False


class ImportFollows(Request):
    """A file of this machine (lines of people, or a signed list), or the npub of somebody whose list is known."""

    source: str = Field(max_length=4096)


class OfApp(Request):
    """An app: `ID` or `PUBLISHER/ID`."""

    app: str = Field(max_length=200)
    offline: bool = False


async def anchors(node: Node, request: Request, report: Report) -> Mapping[str, Any]:
    """The operator's anchors, how many people an imported list has, and who is distrusted."""
    known = node.anchors.load()
    return {
        "schema": "archy/anchors/1",
        "anchors": [anchor.to_json() for anchor in known.entries],
        "follows": len(known.follows),
        "distrusted": list(known.distrusted),
    }


async def add_anchor(node: Node, request: AddAnchor, report: Report) -> Mapping[str, Any]:
    """Trust somebody. A NIP-05 name is looked up now, and the key it has now is what is trusted from here on."""
    who, label = request.who, request.label
    if nip05.is_name(who):
        who = await _looked_up(who)
        label = label or request.who.strip().lower()[:100]
    node.anchors.add(who, label=label, weight=request.weight)
    node.circles.changed_here()
    return await anchors(node, request, report)


async def remove_anchor(node: Node, request: RemoveAnchor, report: Report) -> Mapping[str, Any]:
    """Trust them no longer. A NIP-05 name means the anchor that bears it as its label."""
    who = request.who.strip()
    if nip05.is_name(who):
        who = next((one.person for one in node.anchors.list() if one.label == who.lower()), who)
    node.anchors.remove(who)
    node.circles.changed_here()
    return await anchors(node, request, report)


async def distrust(node: Node, request: Distrust, report: Report) -> Mapping[str, Any]:
    """Listen to somebody no longer, or again; without a name only say who is distrusted."""
    if request.who is not None:
        who = await _looked_up(request.who) if nip05.is_name(request.who) else request.who
        node.anchors.listen_again(who) if request.undo else node.anchors.distrust(who)
        node.circles.changed_here()
    return await anchors(node, request, report)


async def import_follows(node: Node, request: ImportFollows, report: Report) -> Mapping[str, Any]:
    """Take a follow list as the operator's own; it replaces the one before. An empty file ends it."""
    found = await trio.to_thread.run_sync(_follow_list, node, request.source)
    imported = node.anchors.follow(found.people)
    node.circles.changed_here()
    return {"schema": "archy/import/1", "imported": imported, "ignored": dict(found.ignored)}


async def pin(node: Node, request: OfApp, report: Report) -> Mapping[str, Any]:
    """Trust an app's publisher, and remember who signs that app: anybody else under its name is announced."""
    listing = await _listing(node, request)
    signed = signed_by(node, listing)
    if signed is None:
        raise Refused("there is no release whose signer could be pinned", where=str(listing.app))
    publisher = listing.app.publisher
    if all(anchor.person != publisher for anchor in node.anchors.list()):
        node.anchors.add(publisher, label=f"publisher of {listing.app.id}")
    node.memory.save(node.memory.load().with_signer(KnownSigner(listing.app.id, signed, pinned=True)))
    node.circles.changed_here()
    return {"schema": "archy/pin/1", "app": str(listing.app), "pinned": True, "key": signed.key, "entry": signed.keys}


async def unpin(node: Node, request: OfApp, report: Report) -> Mapping[str, Any]:
    """Forget an app's signer, and trust its publisher no longer unless another of its apps is pinned."""
    publisher, slash, id_ = request.app.rpartition("/")
    pinned = [one for one in node.memory.load().signers if one.pinned and one.app == id_]
    named = [one for one in pinned if not slash or one.signed.publisher == publisher]
    if len(named) != 1:
        raise UsageProblem(
            f"{len(named)} pinned apps are called {request.app!r}", remedy="`archy trust pin` lists none"
        )
    gone = named[0]
    remembered = node.memory.load().without_signer(gone.app, gone.signed.publisher)
    node.memory.save(remembered)
    others = [one for one in remembered.signers if one.pinned and one.signed.publisher == gone.signed.publisher]
    if not others and any(anchor.person == gone.signed.publisher for anchor in node.anchors.list()):
        node.anchors.remove(gone.signed.publisher)
    node.circles.changed_here()
    return {"schema": "archy/pin/1", "app": f"{gone.signed.publisher}/{gone.app}", "pinned": False}


async def _listing(node: Node, request: OfApp) -> Listing:
    if not request.offline:
        await node.refresh()
    return find_listing(node, request.app)


async def _looked_up(name: str) -> str:
    # A name is a stranger's word for where to connect, whatever the operator allows publishers' origins.
    return await trio.to_thread.run_sync(nip05.look_up, name, AddressPolicy(), abandon_on_cancel=True)


def _follow_list(node: Node, source: str) -> FollowFile:
    path = Path(source)
    if not path.is_file():
        person = person_id(source)
        if not person.startswith("nostr:"):
            raise UsageProblem("only Nostr keys publish follow lists", where=source, remedy="name an npub or a file")
        listed = node.index.follows_of(person.removeprefix("nostr:"))
        if not listed:
            raise UsageProblem(
                "no follow list of theirs is known here",
                where=source,
                remedy="`archy trust anchor add` them once and search, so that relays are asked for it",
            )
        return parse_follow_list(listed)
    try:
        raw = read_bounded(path, MAX_LIST_FILE) or b""
        text = raw.decode()
    except (OSError, ValueError) as error:
        raise UsageProblem(f"can not be read as a follow list: {error}", where=source) from error
    return parse_follow_list(_people_of_event(raw, source) if text.lstrip().startswith("{") else text.splitlines())


def _people_of_event(raw: bytes, where: str) -> tuple[str, ...]:
    """NIP-02 and NIP-51: the people of a signed list, if the signature is genuine."""
    event: Event | Refusal = decode_event(raw)
    refusal = event if isinstance(event, Refusal) else verify(event)
    if refusal is not None or isinstance(event, Refusal):
        raise Refused(f"no genuine event: {refusal}", where=where, remedy="export the list again")
    return event.tag("p")
