"""Blobs by the operator's hand: store, fetch, check, keep, let go, and see who has them.

Guarantees: what is installed or pinned is never collected (R-SW6); a blob that was fetched by its digest alone is said
to be so, since only its whole could be checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import trio
from pydantic import Field

from apps.machines import local_arch
from apps.manifest import parse_manifest_json
from market.errors import Problem, Refused, UsageProblem
from market.model import AppName, BlobRef, Digest, Release
from market.node.browse import find_listing
from market.node.node import Node
from market.node.providers import asked, peers_of
from market.node.requests import DIGEST_TEXT, Request
from market.node.running import Report
from market.node.sharing import refs_of
from market.swarm import (
    Fetcher,
    FetchProgress,
    Source,
    SourceKind,
    Store,
    UnlistedProgress,
    fetch_unlisted,
    hash_file,
)

MAX_UNLISTED: Final = 4 * 1024 * 1024 * 1024
"""Bytes of a blob that is fetched by its digest alone, unless the operator says otherwise."""


class AddBlobs(Request):
    """Files on this machine that become blobs of this node, kept until they are unpinned."""

    paths: tuple[str, ...] = Field(min_length=1, max_length=10_000)


class OneBlob(Request):
    """A blob by its BLAKE3 digest: 64 lower-case hex digits."""

    digest: str = Field(pattern=DIGEST_TEXT)


class GetBlob(OneBlob):
    """Where to look: a signed listing (`ID` or `PUBLISHER/ID`) or base URLs; `size` and `pieces` if they are known."""

    app: str | None = Field(None, max_length=200)
    origins: tuple[str, ...] = Field((), max_length=16)
    size: int | None = Field(None, ge=0)
    pieces: str | None = Field(None, pattern=DIGEST_TEXT)
    most: int = Field(MAX_UNLISTED, ge=1)
    pin: bool = True


class VerifyBlobs(Request):
    """These, or all that are in the store."""

    digests: tuple[str, ...] = Field((), max_length=10_000)


class Collect(Request):
    """Let go of what nothing needs, least recently used first, until at most `quota` bytes are used."""

    quota: int = Field(0, ge=0)


async def blobs(node: Node, request: Request, report: Report) -> Mapping[str, Any]:
    """Every complete blob in this node's store."""
    rows = await trio.to_thread.run_sync(lambda: list(node.store.list()))
    pins = node.store.pins()
    return {
        "schema": "archy/blobs/1",
        "blobs": [
            {
                "blake3": row.digest.hex,
                "size": row.size,
                "pinned": row.digest in pins,
                "shared": node.shares(row.digest),
            }
            for row in rows
        ],
    }


async def add(node: Node, request: AddBlobs, report: Report) -> Mapping[str, Any]:
    """Store and pin files."""
    added = []
    for number, word in enumerate(request.paths):
        ref = await trio.to_thread.run_sync(_add_file, node.store, Path(word))
        node.store.pin(ref.blake3)
        added.append(ref.to_json())
        report({"phase": "blobs", "text": word, "done": number + 1, "total": len(request.paths), "unit": "files"})
    node.look_at_shared()
    return {"schema": "archy/blobs/1", "blobs": added}


def _add_file(store: Store, path: Path) -> BlobRef:
    if not path.is_file():
        raise UsageProblem("no such file", where=str(path), remedy="name files, not folders")
    return store.add_file(path)


async def get(node: Node, request: GetBlob, report: Report) -> Mapping[str, Any]:
    """Fetch one blob, and pin it unless told otherwise."""
    digest = Digest(request.digest)
    known, app, origins = _known_ref(node, request)
    sources = (
        *(Source(url, SourceKind.ORIGIN, configured=True) for url in request.origins),
        *node.sources(origins, app),
    )
    answer = await _fetch_known(node, known, sources, report) if known else await _fetch_bare(node, request, report)
    if request.pin:
        node.store.pin(digest)
        node.look_at_shared()
    return {
        "schema": "archy/blob/1",
        **answer,
        "path": str(node.store.path(digest)),
        "pinned": request.pin,
        "signed": app is not None,
    }


def _known_ref(node: Node, request: GetBlob) -> tuple[BlobRef | None, AppName | None, tuple[str, ...]]:
    digest = Digest(request.digest)
    if request.app is not None:
        listing = find_listing(node, request.app)
        for release in (listing.release,) if listing.release else ():
            for ref in _refs(node, release):
                if ref.blake3 == digest:
                    return ref, listing.app, release.origins
        raise Refused(
            f"{listing.app.id} names no such blob, as far as is known here",
            where=digest.hex,
            remedy="blobs of an image are known once its index is here: install the app, or name --origin",
        )
    if request.size is not None:
        return BlobRef(digest, request.size, Digest(request.pieces) if request.pieces else None), None, ()
    return None, None, ()


def _refs(node: Node, release: Release) -> Iterator[BlobRef]:
    manifest = parse_manifest_json(release.manifest, where=f"{release.app} {release.version}")
    return refs_of(manifest, node.store, local_arch())


async def _fetch_known(node: Node, ref: BlobRef, sources: tuple[Source, ...], report: Report) -> dict[str, Any]:
    def told(progress: FetchProgress) -> None:
        _tell(report, progress.done, progress.total, progress.rate, f"{len(sources)} sources")

    with Fetcher(node.store, sources, node.addresses) as fetcher:
        fetched = await fetcher.fetch(ref, told)
    return {"blob": ref.to_json(), "fetch": fetched.to_json(), "checked": "by piece"}


def _tell(report: Report, done: int, total: int, rate: float, who: str) -> None:
    left = f", {(total - done) / rate:.0f} s left" if rate and total else ""
    report({"phase": "fetch", "text": f"{rate / 1e6:.1f} MB/s from {who}{left}", "done": done, "total": total})


async def _fetch_bare(node: Node, request: GetBlob, report: Report) -> dict[str, Any]:
    digest = Digest(request.digest)
    if node.store.has(digest):
        ref = await trio.to_thread.run_sync(lambda: hash_file(node.store.path(digest))[0])
        return {"blob": ref.to_json(), "fetch": None, "checked": "as a whole"}
    sources = (
        *(Source(url, SourceKind.ORIGIN, configured=True) for url in request.origins),
        *node.sources(()),
    )
    if not sources:
        raise UsageProblem("nobody to ask", where=digest.hex, remedy="add --origin URL, --app APP, or configure peers")

    def told(progress: UnlistedProgress) -> None:
        who = f"{progress.source.url} (of {len(sources)} sources)"
        _tell(report, progress.done, progress.total, progress.rate, who)

    ref, who = await fetch_unlisted(
        node.store, digest, sources, addresses=node.addresses, limit=request.most, on_progress=told
    )
    return {"blob": ref.to_json(), "fetch": {"sources": [{"url": who.url}]}, "checked": "as a whole"}


async def verify(node: Node, request: VerifyBlobs, report: Report) -> Mapping[str, Any]:
    """Hash stored blobs again; a damaged one is taken out of the store."""
    wanted = [Digest(word) for word in request.digests] or [row.digest for row in node.store.list()]
    rows = []
    for number, digest in enumerate(wanted):
        problem = await trio.to_thread.run_sync(_check, node.store, digest)
        rows.append({"blake3": digest.hex, "ok": problem is None, "problem": problem or ""})
        report({"phase": "verify", "text": digest.hex[:16], "done": number + 1, "total": len(wanted), "unit": "blobs"})
    return {"schema": "archy/blobs-verified/1", "ok": all(row["ok"] for row in rows), "blobs": rows}


def _check(store: Store, digest: Digest) -> str | None:
    try:
        store.verify_whole(digest)
    except Problem as problem:
        return problem.what
    return None


async def pin(node: Node, request: OneBlob, report: Report) -> Mapping[str, Any]:
    """Keep a blob, and share it, until it is unpinned."""
    node.store.pin(Digest(request.digest))
    node.look_at_shared()
    return {"schema": "archy/blob-pin/1", "blake3": request.digest, "pinned": True}


async def unpin(node: Node, request: OneBlob, report: Report) -> Mapping[str, Any]:
    """No longer keep a blob for its own sake."""
    node.store.unpin(Digest(request.digest))
    node.look_at_shared()
    return {"schema": "archy/blob-pin/1", "blake3": request.digest, "pinned": False}


async def collect(node: Node, request: Collect, report: Report) -> Mapping[str, Any]:
    """Remove what no installed app, pin or running fetch needs."""
    roots = list(node.needed())
    done = await trio.to_thread.run_sync(lambda: node.store.gc(roots, request.quota))
    return {
        "schema": "archy/blobs-collected/1",
        "removed": [digest.hex for digest in done.removed],
        "freed": done.freed,
        "kept": done.kept,
    }


async def peers(node: Node, request: OneBlob, report: Report) -> Mapping[str, Any]:
    """Who has a blob, and how good they have been: every peer that this node knows is asked."""
    rows = await asked(node, Digest(request.digest), peers_of(node))
    return {"schema": "archy/blob-peers/1", "blake3": request.digest, "peers": rows}
