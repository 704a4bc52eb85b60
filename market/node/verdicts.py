"""What a verdict is based on: the policy, every permission, the key history, and what this node remembers.

Guarantees that a release once found broken is refused from then on, and that a change of signer is announced with the
key history's word on it, before anything is fetched. The rules themselves are in `market.trust`.
"""

from __future__ import annotations

from apps.builds import built_containers
from apps.manifest import Manifest, parse_manifest_json
from apps.permissions import permissions_of
from market.errors import Refused
from market.model import AppName, Digest, Listing, Release, SignedBy
from market.node.node import Node
from market.trust import Circle, Continuity, KnownSigner, Permissions, Signer, Verdict, compare, judge_in


def judged(node: Node, listing: Listing, circle: Circle, *, agreed: tuple[str, ...] = ()) -> Verdict:
    """This operator's verdict on a listing, now. `agreed` are permissions the operator just named."""
    whole = release_permissions(listing.release) if listing.release is not None else ()
    granted = {*node.granted(listing.app), *agreed} if whole else set()
    return judge_in(
        circle,
        listing,
        now=int(node.now()),
        policy=node.config.policy,
        permissions=Permissions(
            wanted=tuple(word for word in whole if word not in granted),
            denied=frozenset(node.config.never_allow),
            whole=whole,
        ),
        signer=signer_of(node, listing),
        broken=node.memory.load().broken_releases(),
    )


def signer_of(node: Node, listing: Listing) -> Signer:
    """How the offer's signer compares to what ran or was pinned here under that id, with the key history's verdict."""
    app = listing.app
    now = signed_by(node, listing)
    before = node.memory.load().signer_of(app.id, app.publisher)
    if before is None:
        here = [(name, digest) for name, _, digest in node.orchestrator.installed() if name.id == app.id]
        here.sort(key=lambda one: one[0] != app)
        if here:
            name, digest = here[0]
            before = node.index.signed_by(Digest(digest)) or SignedBy(name.publisher, 0, "")
            if before.publisher == app.publisher and not before.key:
                return Signer(
                    Continuity.SAME, "The same publisher as before; its earlier release is not known any more."
                )
    return compare(before, now, node.index.identity(app.publisher))


def remember_signer(node: Node, release: Release) -> None:
    """From now on this is who signs that app here."""
    signed = node.index.signed_by(release.digest)
    if signed is not None:
        node.memory.save(node.memory.load().with_signer(KnownSigner(release.app.id, signed)))


def remember_broken(node: Node, release: Release, found: Refused) -> None:
    """From now on the digest gate refuses this release: its parts are not what its publisher signed together."""
    text = f"A part of this release is not what was signed: {found.what}"
    node.memory.save(node.memory.load().with_broken(release.digest, text))


def manifest_of(release: Release) -> Manifest:
    """The signed manifest of a release."""
    return parse_manifest_json(release.manifest, where=f"{release.app} {release.version}")


def release_permissions(release: Release) -> tuple[str, ...]:
    """What the release may do on this machine, in stable words."""
    return permissions_of(manifest_of(release))


def release_builds(release: Release) -> tuple[str, ...]:
    """Containers whose images this machine would build."""
    return tuple(sorted(built_containers(manifest_of(release))))


def release_disposable(release: Release) -> tuple[str, ...]:
    """Volumes that the release's publisher would have go with the app; the operator is asked then (R-ST10)."""
    volumes = manifest_of(release).volumes
    return tuple(sorted(label for label, volume in volumes.items() if volume.on_uninstall == "remove"))


def signed_by(node: Node, listing: Listing) -> SignedBy | None:
    """Who signed the release on offer."""
    return node.index.signed_by(listing.release.digest) if listing.release else None


def installed_release(node: Node, app: AppName) -> Release | None:
    """The release that is installed, if the index still knows it."""
    digest = next((digest for name, _, digest in node.orchestrator.installed() if name == app), None)
    return next((one for one in node.index.releases(app) if one.digest.hex == digest), None)
