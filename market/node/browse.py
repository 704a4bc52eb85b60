"""Looking at the market: search, show, and finding the one app that a word means.

Nothing is hidden here for being little trusted (R-TR4): a refused app is listed with the reason of its refusal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import Field

from market.discovery import Wanted
from market.discovery.reading import chain
from market.errors import Refused, UsageProblem
from market.model import AppName, Listing
from market.node.node import Node
from market.node.requests import Request
from market.node.running import Report
from market.node.verdicts import judged, release_permissions
from market.trust import Circle, Outcome, Verdict

MAX_RESULTS: Final = 500
"""More than anybody reads; each of them gets its verdict."""


class Search(Request):
    """Words to look for; empty lists everything. Every filter narrows. `offline` asks no relay."""

    text: str = Field("", max_length=200)
    category: str = Field("", max_length=40)
    publisher: str = Field("", max_length=200)
    arch: str = Field("", max_length=40)
    without: tuple[str, ...] = Field((), max_length=16)
    """Permissions that the app must not ask for."""
    min_score: int = Field(0, ge=0, le=100)
    limit: int = Field(50, ge=1, le=MAX_RESULTS)
    offline: bool = False


class Show(Request):
    """An app: `ID` or `PUBLISHER/ID`."""

    app: str = Field(max_length=200)
    offline: bool = False


async def search(node: Node, request: Search, report: Report) -> Mapping[str, Any]:
    """Listings that match, best rank first; what is refused comes last, with its reason (R-TR4)."""
    if not request.offline:
        await node.refresh()
    circle = await node.circles.fresh()
    wanted = Wanted(
        request.text, request.category, request.publisher, request.arch, request.without, standing=standing_of(circle)
    )
    # Points are not in the index: what they narrow has to be looked for among more than is shown.
    found = node.index.search(wanted, MAX_RESULTS if request.min_score else request.limit, node.config.channel)
    verdicts = [(listing, judged(node, listing, circle)) for listing in found]
    verdicts = [(listing, verdict) for listing, verdict in verdicts if verdict.points >= request.min_score]
    verdicts.sort(key=lambda one: one[1].outcome is Outcome.REFUSE)
    shown = verdicts[: request.limit]
    return {
        "schema": "archy/search/1",
        "results": [{**listing_json(node, listing), "verdict": brief(verdict)} for listing, verdict in shown],
    }


async def show(node: Node, request: Show, report: Report) -> Mapping[str, Any]:
    """One app with its whole verdict, its permissions and its versions."""
    if not request.offline:
        await node.refresh()
    listing = find_listing(node, request.app)
    releases = node.index.releases(listing.app)
    return {
        "schema": "archy/show/1",
        **listing_json(node, listing),
        "verdict": judged(node, listing, await node.circles.fresh()).to_json(),
        "permissions": list(release_permissions(listing.release)) if listing.release else [],
        "chain": _chain(node, listing),
        "versions": [{"version": r.version, "seq": r.seq, "digest": r.digest.hex} for r in releases],
    }


def _chain(node: Node, listing: Listing) -> dict[str, Any]:
    """How far back the offered release can be followed, and the digest at which the chain breaks off here."""
    if listing.release is None:
        return {"versions": [], "missing": ""}
    with node.index.reading() as db:
        versions, missing = chain(db, listing.app, listing.release)
    return {"versions": list(versions), "missing": missing}


def standing_of(circle: Circle) -> dict[str, float]:
    """Publishers with weight in the operator's circle, for ranking."""
    people = zip(circle.graph.names, circle.weights.tolist(), strict=True)
    return {person: weight for person, weight in people if weight > 0 and person.startswith("did:")}


def find_listing(node: Node, word: str) -> Listing:
    """The listing that `word` means. Raises Refused (exit 3) when two publishers use the id, or when none does."""
    publisher, slash, id_ = word.rpartition("/")
    try:
        name = AppName(publisher, id_)
    except Refused as error:  # a slip of the hand is no refusal
        raise UsageProblem(error.what, remedy=error.remedy) from error
    if slash:
        listing = node.index.listing(name, node.config.channel)
        if listing is None:
            raise UsageProblem(f"no app {word!r} is known here", remedy="`archy search` lists what is")
        return listing
    candidates = node.index.candidates(name.id)
    if not candidates:
        raise UsageProblem(
            f"no app {word!r} is known here", remedy="`archy search` lists what is; `archy relays` says who was asked"
        )
    if len(candidates) > 1:
        names = ", ".join(str(c.app) for c in candidates)
        raise Refused(f"{len(candidates)} publishers offer {word!r}: {names}", remedy="name one as PUBLISHER/ID")
    return find_listing(node, str(candidates[0].app))


def brief(verdict: Verdict) -> dict[str, Any]:
    """The verdict without its evidence, for lists."""
    whole = verdict.to_json()
    return {key: whole[key] for key in ("outcome", "points", "band", "reasons") if key in whole}


def listing_json(node: Node, listing: Listing) -> dict[str, Any]:
    """A listing for a door."""
    installed = {name: (version, digest) for name, version, digest in node.orchestrator.installed()}
    here = installed.get(listing.app)
    return {
        "app": str(listing.app),
        "id": listing.app.id,
        "publisher": listing.app.publisher,
        "title": listing.title,
        "summary": listing.summary,
        "categories": list(listing.categories),
        "homepage": listing.homepage,
        "version": listing.release.version if listing.release else None,
        "release": listing.release.digest.hex if listing.release else None,
        "installed": here[0] if here else None,
        "flags": [{"kind": f.kind.value, "text": f.text, "evidence": list(f.evidence)} for f in listing.flags],
        "relays": list(listing.relays),
        "confirmed": listing.extra.get("head_made"),
        "expires": listing.head_expires,
    }
