"""Apps that run here and are not known: this node's own after its database was lost, and what somebody else started.

The first are told by their mark, `<id>-<digest of its publisher>`, and by the digests of their images; whose each is
and which release comes from the index (R-ST7). The second are what a release names and offers to take over (ADR 12).
Guarantees: what the verdict refuses is taken neither back nor over, and what runs is never touched by asking.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import Field

from apps.builds import build_of, built_containers, input_digest
from apps.images import image_containers, platform_for
from apps.machines import local_arch
from apps.manifest import parse_manifest_json
from apps.names import AppName
from market.errors import Problem, Refused, UsageProblem
from market.model import Listing, Release
from market.node.browse import find_listing
from market.node.install import admit, fetch_bundle, release_of, require_machine
from market.node.node import Node
from market.node.requests import DIGEST_TEXT, Request
from market.node.running import Report
from market.node.verdicts import judged, manifest_of, release_permissions, remember_signer
from orchestrator import Bundle, Orphan


class Adopt(Request):
    """One app, or every one of this node's own; `check` only says what could be taken back, or over.

    `containers` and `release` are what an operator saw and agreed to, where containers of somebody else are taken over.
    """

    app: str | None = Field(None, max_length=200)
    consent: Literal["yes", "person"] = "yes"
    containers: tuple[str, ...] = Field((), max_length=256)
    release: str | None = Field(None, pattern=DIGEST_TEXT)
    allow: tuple[str, ...] = Field((), max_length=64)
    check: bool = False
    offline: bool = False


@dataclass(frozen=True, slots=True)
class _Found:
    orphan: Orphan
    listing: Listing | None = None
    release: Release | None = None

    @property
    def why_not(self) -> str:
        if self.listing is None:
            return "no publisher that is known here has such an app"
        return "" if self.release is not None else "no release that is known here has the images that it runs"

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.orphan.id,
            "slug": self.orphan.slug,
            "running": self.orphan.running,
            "app": str(self.listing.app) if self.listing else None,
            "version": self.release.version if self.release else None,
            "why_not": self.why_not,
        }


async def adopt(node: Node, request: Adopt, report: Report) -> Mapping[str, Any]:
    """Take back, or over, what runs and is not known. Raises UsageProblem for an app that is not among it, Refused."""
    found = [_found(node, orphan) for orphan in await node.orchestrator.orphans()]
    if any(one.why_not for one in found) and not request.offline:
        report({"phase": "discover", "text": "asking for the releases that run"})
        await node.refresh()
        found = [_found(node, one.orphan) for one in found]
    if request.app is not None:
        found = [one for one in found if _is_named(one, request.app)]
        if not found:
            return await _take_over(node, request, request.app, report)
    rows = [one.to_json() for one in found]
    if request.check:
        return {"schema": "archy/adoptable/1", "apps": rows, "offers": []}
    done, left = await _take_back_all(node, found, request.consent, report)
    if not done and left:
        raise left[0][1]
    told = [{"app": str(one.listing.app) if one.listing else one.orphan.slug, "why": str(why)} for one, why in left]
    return {"schema": "archy/adopted/1", "adopted": done, "left": told}


async def _take_over(node: Node, request: Adopt, word: str, report: Report) -> Mapping[str, Any]:
    """Containers that somebody else started, which the newest release of the app names."""
    if not request.offline:
        report({"phase": "discover", "text": f"looking for {word}"})
        await node.refresh()
    try:
        listing = find_listing(node, word)
        release = release_of(listing)
        manifest = manifest_of(release)
        names = manifest.adopt.container_names
    except UsageProblem:
        names = ()
    if not names:
        raise UsageProblem(f"{word!r} is not here without being known", remedy="archy adopt --check, archy ps")
    if request.check:
        offer = {**(await node.orchestrator.offer(listing.app, manifest)).to_json(), "release": release.digest.hex}
        return {"schema": "archy/adoptable/1", "apps": [], "offers": [offer]}
    if request.release not in (None, release.digest.hex):
        raise Refused(
            f"{listing.app.id} {release.version} is not the release that was agreed to",
            remedy=f"look at it again with `archy adopt {word} --check`",
        )
    async with node.lock_of(listing.app):
        admit(judged(node, listing, await node.circles.fresh(), agreed=request.allow), request.consent, listing)
        await require_machine(node)
        report({"phase": "adopt", "text": f"{listing.app.id} {release.version}"})
        acquired = await fetch_bundle(node, release, report)
        bundle = Bundle.load(acquired.root, listing.app, release.version, release.digest.hex)
        status = await node.orchestrator.take_over(bundle, request.containers)
        remember_signer(node, release)
        node.look_at_shared()
    row = {"app": str(listing.app), "status": status.to_json()}
    return {"schema": "archy/adopted/1", "adopted": [row], "left": []}


async def _take_back_all(
    node: Node, found: list[_Found], consent: str, report: Report
) -> tuple[list[Mapping[str, Any]], list[tuple[_Found, Problem]]]:
    """What others need first: each round takes back what can be, until a round takes back nothing."""
    done: list[Mapping[str, Any]] = []
    left = [(one, Problem("")) for one in found]
    while left:
        again: list[tuple[_Found, Problem]] = []
        for one, _ in left:
            try:
                done.append(await _take_back(node, one, consent, report))
            except Problem as problem:
                again.append((one, problem))
        if len(again) == len(left):
            return done, again
        left = again
    return done, []


async def _take_back(node: Node, one: _Found, consent: str, report: Report) -> Mapping[str, Any]:
    if one.listing is None or one.release is None:
        remedy = "`archy relays` says who was asked; what is not to be kept: archy doctor"
        raise Refused(
            f"{one.orphan.id} goes on without being known: {one.why_not}", where=one.orphan.slug, remedy=remedy
        )
    name, release = one.listing.app, one.release
    async with node.lock_of(name):
        # The release that runs, with what it was allowed when it was installed; a newer one is an update's matter
        listing = replace(one.listing, release=release)
        agreed = release_permissions(release)
        admit(judged(node, listing, await node.circles.fresh(), agreed=agreed), consent, listing)
        report({"phase": "adopt", "text": f"{name.id} {release.version}"})
        acquired = await fetch_bundle(node, release, report)
        bundle = Bundle.load(acquired.root, name, release.version, release.digest.hex)
        status = await node.orchestrator.adopt(bundle)
        remember_signer(node, release)
        node.look_at_shared()
    return {"app": str(name), "status": status.to_json()}


def _found(node: Node, orphan: Orphan) -> _Found:
    for listing in node.index.candidates(AppName("", orphan.id).id, node.config.channel):
        if listing.app.slug == orphan.slug:
            releases = node.index.releases(listing.app)
            mine = (release for release in releases if orphan.is_of(release.app, _images(release)))
            return _Found(orphan, listing, next(mine, None))
    return _Found(orphan)


def _images(release: Release) -> dict[str, str]:
    """What `Orphan.is_of` compares, by container, for this machine; empty for a release that has no image for it."""
    try:
        manifest = parse_manifest_json(release.manifest, where=str(release.app))
        boxes = image_containers(manifest).items()
        images = {label: platform_for(box, local_arch()).manifest for label, box in boxes}
        for label, box in built_containers(manifest).items():
            images[label] = f"build:{input_digest(manifest, build_of(box), local_arch())}"
        return images
    except Refused:
        return {}


def _is_named(one: _Found, word: str) -> bool:
    return word in (one.orphan.id, one.orphan.slug, str(one.listing.app) if one.listing else "")
