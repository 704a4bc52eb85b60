"""From a release that was admitted to a bundle on disk: every blob fetched, every digest checked, one rename.

Guarantees: a bundle folder exists whole or not at all, and holds exactly what the release names: by BLAKE3 as it was
signed, and by SHA-256 as the images say (R-MF11), so that neither a publisher's slip nor a liar gets further than the
store. Order: indexes -> OCI manifests and configs -> room on the disk -> layers and files -> `bundle_folder.build`.
Killed between any two of these, the next call goes on from there. One process owns `bundles`.
It refuses to know verdicts, relays and how apps run.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

import trio

from apps.images import MAX_INDEX_BYTES, MAX_MANIFEST_BYTES, ImageIndex
from apps.manifest import Manifest, parse_manifest_json
from apps.manifest_parts import Platform
from market.bundle_folder import BundlePart, build, is_whole
from market.bundle_plan import BlobPlan, check_image, plan_blobs
from market.bundle_plan import InconsistentRelease as InconsistentRelease
from market.errors import EnvironmentLacks, Refused
from market.identity.canonical import canonical_bytes
from market.model import BlobRef, Release
from market.oci import LAYOUT_FILE, Descriptor, layout_index
from market.swarm import Fetcher, FetchProgress, FetchReport, Store
from market.swarm.disk import told


class NotEnoughRoom(EnvironmentLacks):
    """The disk has no room for what is still missing."""

    kind: ClassVar[str] = "not-enough-room"


class AcquireStep(StrEnum):
    """The steps, in their order."""

    PLAN = "plan"
    FETCH = "fetch"
    CHECK = "check"
    BUILD = "build"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class AcquireProgress:
    """Where an acquisition stands. `done` and `total` are bytes of the blobs known so far."""

    step: AcquireStep
    text: str
    done: int
    total: int

    def to_json(self) -> dict[str, object]:
        return {"step": self.step.value, "text": self.text, "done": self.done, "total": self.total}


@dataclass(frozen=True, slots=True)
class AcquireReport:
    """Who served what. `reused`: the bundle was there already, and nothing was looked at but its marker and sizes."""

    fetch: FetchReport
    blobs: int
    reused: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            **self.fetch.to_json(),
            "blobs": self.blobs,
            "reused": self.reused,
            "already_here": self.fetch.already_present,
            "bans": [{"url": url, "reason": reason} for url, reason in self.fetch.banned.items()],
        }


@dataclass(frozen=True, slots=True)
class AcquiredBundle:
    """A whole bundle: `root/manifest.json`, `root/images/<container>/` (OCI layouts), `root/files/<path>`."""

    root: Path
    manifest: Manifest
    report: AcquireReport


OnProgress = Callable[[AcquireProgress], None]
FreeSpace = Callable[[Path], int]


def free_space(folder: Path) -> int:
    """Bytes an ordinary user may still write there."""
    with told(folder):
        state = os.statvfs(folder)
    return state.f_bavail * state.f_frsize


async def acquire(
    release: Release,
    fetcher: Fetcher,
    store: Store,
    bundles: Path,
    *,
    arch: str,
    on_progress: OnProgress | None = None,
    free: FreeSpace = free_space,
) -> AcquiredBundle:
    """Bring the release's bundle to `bundles/<release digest>` and return it; at once if it is there, whole.

    Raises ManifestProblem and Refused (manifest, architecture), InconsistentRelease, NotEnoughRoom, and what
    `Fetcher.fetch` raises. Whatever verified so far stays in the store for the next call.
    """
    manifest = _signed_manifest(release)
    plan = plan_blobs(manifest, arch)
    if await trio.to_thread.run_sync(is_whole, bundles, release.digest, arch):
        return AcquiredBundle(bundles / release.digest.hex, manifest, AcquireReport(FetchReport(), 0, reused=True))
    work = _Acquisition(release, manifest, fetcher, store, bundles, arch, on_progress or _silent, free)
    with ExitStack() as work.leases:
        parts = await work.bring(plan)
        work.tell(AcquireStep.BUILD, f"{len(parts)} blobs")
        root = await trio.to_thread.run_sync(work.build, parts)
    work.tell(AcquireStep.DONE, release.version)
    return AcquiredBundle(root, manifest, AcquireReport(work.report, len(work.fetched)))


def _silent(progress: AcquireProgress) -> None:
    """Nobody asked."""


def _signed_manifest(release: Release) -> Manifest:
    where = f"{release.app} {release.version}"
    manifest = parse_manifest_json(release.manifest, where=where)
    manifest.require_packed(where=where)
    if (manifest.id, manifest.version) != (release.app.id, release.version):
        # Otherwise one app's release could carry another's manifest, and take its name.
        raise InconsistentRelease(
            f"the release carries the manifest of {manifest.id} {manifest.version}",
            where=where,
            remedy="ask the publisher to sign it again",
        )
    return manifest


class _Acquisition:
    """One run of `acquire`: what was fetched and reported so far."""

    def __init__(
        self,
        release: Release,
        manifest: Manifest,
        fetcher: Fetcher,
        store: Store,
        bundles: Path,
        arch: str,
        on_progress: OnProgress,
        free: FreeSpace,
    ) -> None:
        self._release = release
        self._manifest = manifest
        self._fetcher = fetcher
        self._store = store
        self._bundles = bundles
        self._arch = arch
        self._on_progress = on_progress
        self._free = free
        self._total = 0
        self._done = 0
        self._checked: set[tuple[BlobRef, str]] = set()
        self.leases = ExitStack()
        self.report = FetchReport()
        self.fetched: dict[BlobRef, None] = {}

    @property
    def _where(self) -> str:
        return f"{self._release.app} {self._release.version}"

    def tell(self, step: AcquireStep, text: str, extra: int = 0) -> None:
        self._on_progress(AcquireProgress(step, text, self._done + extra, self._total))

    async def bring(self, plan: BlobPlan) -> tuple[BundlePart, ...]:
        """Everything that the bundle consists of, fetched and checked."""
        self._expect(plan.blobs())
        parts = await self._bring_images(plan.images)
        parts += [BundlePart(f"files/{path}", ref) for path, ref in plan.files.items()]
        refs = [part.ref for part in parts]
        self._expect(refs)
        await self._check_room(refs)
        await self._fetch_small(refs, AcquireStep.FETCH)
        small, large = _by_size(parts)
        await self._check(small)
        for part in large:
            await self._fetch(part.ref, part.path, AcquireStep.FETCH)
            await self._check([part])
        return tuple(parts)

    async def _bring_images(self, images: Mapping[str, Platform]) -> list[BundlePart]:
        """Every image's index, then its OCI manifest and config, which must say what the index says."""
        for container, image in images.items():
            if image.index.size > MAX_INDEX_BYTES:
                raise self._inconsistent(f"an image index of {image.index.size} bytes", self._at(container))
        await self._fetch_small((image.index.blob for image in images.values()), AcquireStep.PLAN)
        indexes = {container: await self._read_index(container, image) for container, image in images.items()}
        described = (blob.ref for index in indexes.values() for blob in (index.manifest, index.config))
        await self._fetch_small(described, AcquireStep.PLAN)
        parts: list[BundlePart] = []
        for container, index in indexes.items():
            await self._check_image(container, index)
            parts += [BundlePart(f"{_blobs_of(container)}/{sha256}", ref, sha256) for sha256, ref in index.blobs()]
        return parts

    async def _read_index(self, container: str, image: Platform) -> ImageIndex:
        where = self._at(container)
        raw = await self._read(image.index.blob, f"{container}: index", MAX_INDEX_BYTES)
        with self._signed_together():
            index = ImageIndex.parse(raw, where=where)
        if (image.manifest, image.config) != (f"sha256:{index.manifest.sha256}", f"sha256:{index.config.sha256}"):
            raise self._inconsistent("the image index names another manifest or config than the release", where)
        return index

    async def _check_image(self, container: str, index: ImageIndex) -> None:
        raw_manifest = await self._read(index.manifest.ref, f"{container}: manifest", MAX_MANIFEST_BYTES)
        raw_config = await self._read(index.config.ref, f"{container}: config", MAX_MANIFEST_BYTES)
        with self._signed_together():
            check_image(index, raw_manifest, raw_config, arch=self._arch, where=self._at(container))
        self._checked |= {(blob.ref, blob.sha256) for blob in (index.manifest, index.config)}

    def _at(self, container: str) -> str:
        return f"{self._where}: containers.{container}"

    @contextmanager
    def _signed_together(self) -> Iterator[None]:
        """What does not fit in here was signed that way."""
        try:
            yield
        except Refused as fault:
            raise self._inconsistent(fault.what, fault.where) from fault

    async def _read(self, ref: BlobRef, text: str, most: int) -> bytes:
        await self._fetch(ref, text, AcquireStep.PLAN)
        return await trio.to_thread.run_sync(self._store.read_bytes, ref.blake3, most)

    async def _fetch(self, ref: BlobRef, text: str, step: AcquireStep) -> None:
        if ref in self.fetched:
            return

        def told_by(progress: FetchProgress) -> None:
            self.tell(step, text, progress.done)

        self.tell(step, text)
        self.report += await self._fetcher.fetch(ref, told_by)
        self._hold([ref])

    async def _fetch_small(self, refs: Iterable[BlobRef], step: AcquireStep) -> None:
        """All blobs of one piece among these, together: one by one they would cost a round trip each, and more."""
        small = [ref for ref in dict.fromkeys(refs) if ref.pieces is None and ref not in self.fetched]
        if not small:
            return
        text = f"{len(small)} small blobs" if len(small) > 1 else "1 small blob"

        def told_of(stored: Sequence[BlobRef]) -> None:
            self._hold(stored)
            self.tell(step, text)

        self.tell(step, text)
        self.report += await self._fetcher.fetch_many(small, told_of)

    def _hold(self, stored: Iterable[BlobRef]) -> None:
        """These are here, and stay until the bundle is built."""
        for ref in stored:
            self.leases.enter_context(self._store.lease(ref.blake3))
            self.fetched[ref] = None
            self._done += ref.size

    def _expect(self, refs: Iterable[BlobRef]) -> None:
        self._total = sum(ref.size for ref in {*refs, *self.fetched})

    async def _check_room(self, refs: Iterable[BlobRef]) -> None:
        """Before the large blobs: room for what is missing, and for what the app wants to stay free."""
        wanted = dict.fromkeys(refs)
        missing = [ref for ref in wanted if not self._store.has(ref.blake3)]
        needs = sum(ref.size for ref in missing) + (self._manifest.disk.min_free or 0)
        room = self._free(self._store.root)
        if needs > room:
            for ref in missing:
                needs -= await self._resumable(ref)
        if needs > room:
            raise self._no_room(needs, room)
        with told(self._bundles):
            self._bundles.mkdir(mode=0o700, parents=True, exist_ok=True)
            links = self._bundles.stat().st_dev == self._store.root.stat().st_dev
        copies = 0 if links else sum(ref.size for ref in wanted)
        if copies > (room := self._free(self._bundles)):
            raise self._no_room(copies, room)

    async def _resumable(self, ref: BlobRef) -> int:
        """Bytes that an earlier attempt left on the disk."""
        async with self._store.turn(ref.blake3):
            table = await trio.to_thread.run_sync(self._store.table, ref)
            if table is None:
                return 0
            with await trio.to_thread.run_sync(self._store.open_partial, ref, table) as partial:
                return partial.verified_bytes

    def _no_room(self, needs: int, room: int) -> NotEnoughRoom:
        return NotEnoughRoom(
            f"Not enough room: needs {_size(needs)}, {_size(room)} free. Nothing was changed.",
            where=self._where,
            remedy=f"free some space: `df -h {self._store.root}`",
        )

    async def _check(self, parts: Iterable[BundlePart]) -> None:
        """The SHA-256 that the images name of these blobs, each once."""
        due = {(part.ref, part.sha256): part for part in parts if part.sha256}
        due = {key: part for key, part in due.items() if key not in self._checked}
        if due:
            first, *more = due.values()
            self.tell(AcquireStep.CHECK, f"{first.path} and {len(more)} more" if more else first.path)
            await trio.to_thread.run_sync(self._check_files, tuple(due.values()))
            self._checked |= due.keys()

    def _check_files(self, parts: Iterable[BundlePart]) -> None:
        for part in parts:
            path = self._store.path(part.ref.blake3)
            with told(path), path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != part.sha256:
                raise self._inconsistent(f"its SHA-256 is {found}, not {part.sha256}", f"{self._where}: {part.path}")

    def _inconsistent(self, what: str, where: str) -> InconsistentRelease:
        return InconsistentRelease(what, where=where, remedy="no source is to blame: ask the publisher to sign again")

    def build(self, parts: Sequence[BundlePart]) -> Path:
        """Make the folder of what `bring` brought."""
        texts = dict(self._texts(parts))
        return build(self._bundles, self._release.digest, self._arch, self._store, parts, texts)

    def _texts(self, parts: Sequence[BundlePart]) -> Iterator[tuple[str, bytes]]:
        """The small files that no blob holds."""
        yield "manifest.json", canonical_bytes(self._manifest.canonical())
        sizes = {part.path: part.ref.size for part in parts}
        for container, image in plan_blobs(self._manifest, self._arch).images.items():
            sha256 = image.manifest.removeprefix("sha256:")
            manifest = Descriptor(sha256, sizes[f"{_blobs_of(container)}/{sha256}"])
            name = f"localhost/archy/{self._release.app.slug}/{container}"
            yield f"images/{container}/oci-layout", LAYOUT_FILE
            yield f"images/{container}/index.json", layout_index(manifest, name=name)


def _by_size(parts: Iterable[BundlePart]) -> tuple[list[BundlePart], list[BundlePart]]:
    """Those of one piece, and those above."""
    small: list[BundlePart] = []
    large: list[BundlePart] = []
    for part in parts:
        (small if part.ref.pieces is None else large).append(part)
    return small, large


def _blobs_of(container: str) -> str:
    return f"images/{container}/blobs/sha256"


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
