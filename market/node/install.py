"""Installing and updating: verdict and consent first, then every blob, then the orchestrator.

Guarantees: nothing is fetched before the verdict admits it and the operator consented; `--yes` answers neither for a
gate nor for new permissions; an update that fails leaves the old version.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import Field

from apps.machines import local_arch
from market.acquire import AcquiredBundle, AcquireProgress, AcquireStep, InconsistentRelease, acquire
from market.errors import EnvironmentLacks, Refused, UsageProblem
from market.model import AppName, Listing, Release
from market.node.browse import brief, find_listing, listing_json
from market.node.node import Node
from market.node.requests import DIGEST_TEXT, Request
from market.node.running import Report
from market.node.verdicts import (
    judged,
    manifest_of,
    release_builds,
    release_disposable,
    release_permissions,
    remember_broken,
    remember_signer,
    signer_of,
)
from market.swarm import Fetcher, PublisherInconsistent, SizeContradicted
from market.trust import Continuity, Outcome, Verdict
from orchestrator import AppStatus, Bundle, Progress

ESSENTIAL: Final = frozenset({"podman", "quadlet", "user systemd"})
"""Findings without which no app can run; the others make it run worse, and the doctor tells them."""


class Plan(Request):
    """What an install would do: `ID` or `PUBLISHER/ID`."""

    app: str = Field(max_length=200)
    offline: bool = False


class Install(Request):
    """`consent`: `yes` is the flag, `person` an answer at a terminal to the plan for the release `release`."""

    app: str = Field(max_length=200)
    consent: Literal["yes", "person"]
    release: str | None = Field(None, pattern=DIGEST_TEXT)
    allow: tuple[str, ...] = Field((), max_length=64)
    offline: bool = False


class Update(Request):
    """One app, or all of them; `check` only says what is offered."""

    app: str | None = Field(None, max_length=200)
    consent: Literal["yes", "person"] = "yes"
    allow: tuple[str, ...] = Field((), max_length=64)
    check: bool = False
    offline: bool = False


async def plan(node: Node, request: Plan, report: Report) -> Mapping[str, Any]:
    """What would be installed, under which verdict, with which permissions."""
    if not request.offline:
        await node.refresh()
    listing = find_listing(node, request.app)
    release = release_of(listing)
    return {
        "schema": "archy/plan/1",
        **listing_json(node, listing),
        "verdict": judged(node, listing, await node.circles.fresh()).to_json(),
        "permissions": list(release_permissions(release)),
        "disposable": list(release_disposable(release)),
        "builds": list(release_builds(release)),
        "adoptable": list(await node.orchestrator.present(manifest_of(release))),
    }


async def install(node: Node, request: Install, report: Report) -> Mapping[str, Any]:
    """Install the newest release of an app. Raises Refused (gates, policy, permissions) before anything is fetched."""
    if not request.offline:
        report({"phase": "discover", "text": f"looking for {request.app}"})
        await node.refresh()
    listing = find_listing(node, request.app)
    release = release_of(listing)
    if request.release is not None and request.release != release.digest.hex:
        raise Refused(
            f"{listing.app.id} {release.version} is not the release that was agreed to",
            remedy="look at it again with `archy show`, then install",
        )
    async with node.lock_of(listing.app):
        return await _make_it_run(node, listing, release, request.consent, request.allow, report)


async def update(node: Node, request: Update, report: Report) -> Mapping[str, Any]:
    """Bring installed apps to the newest release. Raises Refused if the one named app may not be updated."""
    if not request.offline:
        report({"phase": "discover", "text": "asking for newer releases"})
        await node.refresh()
    offers = [offer for offer in _offers(node) if request.app is None or _is_named(offer[0], request.app)]
    if request.app is not None and not any(
        _is_named(name, request.app) for name, _, _ in node.orchestrator.installed()
    ):
        raise UsageProblem(f"{request.app} is not installed", remedy="`archy ps` lists what is")
    rows = [
        {
            "app": str(name),
            "from": old,
            "to": listing.release.version,
            "signer": dict(signer_of(node, listing).to_json()),
        }
        for name, old, listing in offers
        if listing.release
    ]
    if request.check:
        return {"schema": "archy/updates/1", "offers": rows}
    done = []
    for name, _, listing in offers:
        async with node.lock_of(name):
            release = release_of(listing)
            done.append(await _make_it_run(node, listing, release, request.consent, request.allow, report))
    return {"schema": "archy/update/1", "offers": rows, "updated": done}


async def _make_it_run(
    node: Node, listing: Listing, release: Release, consent: str, allow: tuple[str, ...], report: Report
) -> Mapping[str, Any]:
    verdict = judged(node, listing, await node.circles.fresh(), agreed=allow)
    report({"phase": "verify", "text": f"{listing.title} {release.version} by {listing.app.publisher}"})
    if verdict.signer.continuity is not Continuity.FIRST_SEEN:
        # Before anything is fetched: who signs this now, and what the key history says about a change.
        report({"phase": "signer", "text": verdict.signer.text})
    report({"phase": "score", "text": f"{verdict.points} of 100: {verdict.band}"})
    admit(verdict, consent, listing)
    await require_machine(node)
    started = node.now()
    bundle = await fetch_bundle(node, release, report)
    fetched = node.now()
    status = await _hand_over(node, release, bundle, report)
    remember_signer(node, release)
    node.look_at_shared()
    return {
        "schema": "archy/install/1",
        **listing_json(node, listing),
        "verdict": brief(verdict),
        "fetch": bundle.report.to_json(),
        "seconds": {"fetch": round(fetched - started, 3), "install": round(node.now() - fetched, 3)},
        "status": status.to_json(),
    }


def admit(verdict: Verdict, consent: str, listing: Listing) -> None:
    """Raises Refused where the verdict, or the lack of the operator's own word, stands against an app."""
    if verdict.outcome is Outcome.REFUSE:
        raise Refused(
            f"refused: {'; '.join(verdict.reasons)}",
            where=str(listing.app),
            remedy="`archy show --why` has the evidence",
        )
    if verdict.outcome is Outcome.ASK and consent != "person" and not verdict.answerable:
        raise Refused(
            f"this needs your own word: {'; '.join(verdict.reasons)}",
            where=str(listing.app),
            remedy="; ".join(verdict.would_change[:2]) or "run it at a terminal without --yes",
        )


async def require_machine(node: Node) -> None:
    """Before anything is fetched. Raises EnvironmentLacks with the command that mends it."""
    for finding in await node.preflight():
        if finding.name in ESSENTIAL and not finding.ok:
            raise EnvironmentLacks(
                f"{finding.name}: {finding.detail}", remedy=f"{finding.remedy}; `archy doctor` looks at everything"
            )


async def fetch_bundle(node: Node, release: Release, report: Report) -> AcquiredBundle:
    """A release's bundle, of which only what is not here is fetched. Raises Problem."""

    def told(progress: AcquireProgress) -> None:
        if progress.step in (AcquireStep.FETCH, AcquireStep.DONE):
            report({"phase": "fetch", **progress.to_json()})

    publisher = release.app.publisher
    sources = node.sources(release.origins, release.app)
    share = node.shares_app(release.app)
    with Fetcher(node.store, sources, node.addresses, publisher=publisher, share=share) as fetcher:
        try:
            return await acquire(release, fetcher, node.store, node.home.bundles, arch=local_arch(), on_progress=told)
        except (InconsistentRelease, PublisherInconsistent, SizeContradicted) as found:
            remember_broken(node, release, found)
            raise


async def _hand_over(node: Node, release: Release, acquired: AcquiredBundle, report: Report) -> AppStatus:
    bundle = Bundle.load(acquired.root, release.app, release.version, release.digest.hex)

    def told(progress: Progress) -> None:
        report({"phase": "install", "text": f"{progress.phase} {progress.detail}".strip()})

    return await node.orchestrator.install(bundle, report=told)


def release_of(listing: Listing) -> Release:
    """What is on offer. Raises Refused when nothing is."""
    if listing.release is None:
        reasons = "; ".join(flag.text for flag in listing.flags) or "its publisher has no release on this channel"
        raise Refused(f"nothing to install: {reasons}", where=str(listing.app), remedy="ask its publisher to publish")
    return listing.release


def _offers(node: Node) -> list[tuple[AppName, str, Listing]]:
    found = []
    for name, version, digest in node.orchestrator.installed():
        listing = node.index.listing(name, node.config.channel)
        if listing is None or listing.release is None or listing.release.digest.hex == digest:
            continue
        running = next((r for r in node.index.releases(name) if r.digest.hex == digest), None)
        if running is None or listing.release.seq > running.seq:
            found.append((name, version, listing))
    return found


def _is_named(name: AppName, word: str) -> bool:
    return word in (name.id, str(name))
