"""Acquiring: real stores, real fetches over loopback HTTP, and bundles that are whole or absent."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import random
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from aiohttp import web
from blake3 import blake3

from apps.images import ImageBlob, ImageIndex
from apps.machines import local_arch
from apps.manifest import ManifestProblem
from market.acquire import AcquiredBundle, AcquireProgress, InconsistentRelease, NotEnoughRoom, acquire
from market.bridge import Bridge, open_bridge, serve
from market.errors import EnvironmentLacks, Refused
from market.model import AppName, BlobRef, Digest, Release
from market.packing import pack_app
from market.swarm import (
    AddressPolicy,
    AllSourcesFailed,
    Fetcher,
    PublisherInconsistent,
    SizeContradicted,
    Source,
    SourceKind,
    Store,
    blob_routes,
    open_store,
)
from tests.market.layouts import config_of, layer, sha256, write_layout

MANIFEST = """
schema: 1
id: hello
version: "1.0.0"
title: Hello
containers:
  web:
    image: {ref: localhost/hello:1.0.0}
  side:
    image: {ref: localhost/side:1.0.0}
derived_files: [{template: templates/hello.json, dest: config/hello.json, into: {web: /run/hello}, mode: "0444"}]
"""
PUBLISHER = "did:key:z6MkpTHR8VNsBxYAAWHut2Geadd9jSwuBV8xRoAnwWsdvktH"
BASE = layer("base", random.Random(1).randbytes(300_000))
BIG = layer("big", random.Random(2).randbytes(5 * 1024 * 1024 + 123))
UNREACHABLE = "http://127.0.0.1:9"


class Publisher:
    """Packs releases into a folder that any static web server can serve."""

    def __init__(self, root: Path) -> None:
        self.out = root / "out"
        self._root = root
        self._count = 0

    @property
    def blobs(self) -> Path:
        return self.out / "blobs"

    def release(self, version: str = "1.0.0", layers: Sequence[bytes] = (BASE, BIG), **more: Any) -> Release:
        self._count += 1
        folder = self._root / f"app{self._count}"
        (folder / "templates").mkdir(parents=True)
        (folder / "templates" / "hello.json").write_text('{"hello": 1}')
        (folder / "manifest.yml").write_text(MANIFEST.replace("1.0.0", version))
        web_image = write_layout(folder / "web-image", layers, **more)
        side_image = write_layout(folder / "side-image", [BASE])
        packed = pack_app(folder, {"web": web_image, "side": side_image}, self.out)
        return signed(version, packed.manifest.canonical())

    def add(self, raw: bytes) -> BlobRef:
        """Any bytes as a blob of the origin."""
        pieces = [blake3(raw[at : at + 1024 * 1024]).digest() for at in range(0, len(raw), 1024 * 1024)]
        listed = b"".join(pieces)
        if len(raw) > 1024 * 1024:
            (self.blobs / blake3(listed).hexdigest()).write_bytes(listed)
        digest = blake3(raw).hexdigest()
        (self.blobs / digest).write_bytes(raw)
        return BlobRef(Digest(digest), len(raw), Digest(blake3(listed).hexdigest()) if len(raw) > 1024 * 1024 else None)


def signed(version: str, manifest: dict[str, Any]) -> Release:
    digest = Digest(blake3(json.dumps(manifest).encode()).hexdigest())
    return Release(AppName(PUBLISHER, "hello"), version, 1, digest, manifest, ())


class Node:
    """A node's folders, and acquiring into them."""

    def __init__(self, root: Path, store: Store) -> None:
        self.store = store
        self.bundles = root / "bundles"

    async def acquire(self, release: Release, *sources: Source, **more: Any) -> AcquiredBundle:
        with Fetcher(self.store, sources, AddressPolicy(allow_private=True)) as fetcher:
            return await acquire(release, fetcher, self.store, self.bundles, **{"arch": "amd64", **more})

    def folders(self) -> list[str]:
        return sorted(path.name for path in self.bundles.iterdir()) if self.bundles.exists() else []


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path / "publisher")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with open_store(tmp_path / "node" / "blobs") as store:
        yield Node(tmp_path / "node", store)


@pytest.fixture
async def bridge() -> AsyncIterator[Bridge]:
    async with open_bridge() as opened:
        yield opened


@asynccontextmanager
async def static(bridge: Bridge, out: Path, kind: SourceKind = SourceKind.ORIGIN) -> AsyncIterator[Source]:
    """A plain static web server of a folder with blobs/."""
    app = web.Application()
    app.router.add_static("/blobs", out / "blobs")
    async with serve(bridge, app, tcp=("127.0.0.1", 0)) as at:
        yield Source(at.url, kind)


def dead(kind: SourceKind) -> Source:
    return Source(UNREACHABLE, kind)


def in_bundle(found: AcquiredBundle, path: str) -> bytes:
    return (found.root / path).read_bytes()


async def test_a_bundle_holds_exactly_what_the_release_names(
    bridge: Bridge, publisher: Publisher, node: Node, tmp_path: Path
) -> None:  # R-MF11, R-MF12
    release = publisher.release()
    async with static(bridge, publisher.out) as origin:
        found = await node.acquire(release, origin)
    assert node.folders() == [release.digest.hex] == [found.root.name]
    assert json.loads(in_bundle(found, "manifest.json")) == release.manifest
    assert in_bundle(found, "files/templates/hello.json") == b'{"hello": 1}'
    for name, layers in (("web", [BASE, BIG]), ("side", [BASE])):
        folder = found.root / "images" / name / "blobs" / "sha256"
        assert {path.name for path in folder.iterdir()} >= {sha256(raw) for raw in layers}
        assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in folder.iterdir())
    # The layouts are complete: packing them again gives the very same images.
    app = tmp_path / "again"
    shutil.copytree(tmp_path / "publisher" / "app1", app)
    images = {name: found.root / "images" / name for name in ("web", "side")}
    assert pack_app(app, images, tmp_path / "again-out").manifest.canonical() == release.manifest


async def test_the_report_says_who_served_what_and_what_was_here(
    bridge: Bridge, publisher: Publisher, node: Node
) -> None:
    first, second = publisher.release(), publisher.release("1.1.0", [BASE, layer("new", b"x" * 1000)])
    seen: list[AcquireProgress] = []
    async with static(bridge, publisher.out) as origin:
        before = (await node.acquire(first, origin, on_progress=seen.append)).report.to_json()
        update = (await node.acquire(second, origin)).report.to_json()
    assert before["sources"][0]["url"] == origin.url
    assert before["sources"][0]["bytes"] > len(BASE) + len(BIG)
    assert before["already_here"] == 0
    assert before["bans"] == []
    # Only what changed is fetched: the base layer, the other image and the template are here.
    assert update["already_here"] > len(BASE)
    assert update["sources"][0]["bytes"] < 20_000
    steps = list(dict.fromkeys(progress.step.value for progress in seen))
    assert steps == ["plan", "fetch", "check", "build", "done"]
    assert (seen[-1].done, seen[-1].total) == (seen[-1].total, seen[-1].total)
    assert all(a.done <= b.done for a, b in itertools.pairwise(seen))


async def test_many_small_layers_are_asked_for_at_the_same_time(
    bridge: Bridge, publisher: Publisher, node: Node
) -> None:
    layers = [layer(f"n{number}", b"x" * number) for number in range(20)]
    release = publisher.release(layers=layers)
    theirs = {blake3(raw).hexdigest() for raw in layers}
    waiting, together = 0, asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal waiting
        name = request.match_info["name"]
        if name in theirs:
            waiting += 1
            if waiting == 4:
                together.set()
            await together.wait()  # one after the other, this would be for ever
        return web.FileResponse(publisher.blobs / name)

    app = web.Application()
    app.router.add_get("/blobs/{name}", answer)
    seen: list[AcquireProgress] = []
    async with serve(bridge, app, tcp=("127.0.0.1", 0)) as at:
        found = await node.acquire(release, Source(at.url, SourceKind.ORIGIN), on_progress=seen.append)
    folder = found.root / "images" / "web" / "blobs" / "sha256"
    assert {path.name for path in folder.iterdir()} >= {sha256(raw) for raw in layers}
    assert (seen[-1].done, found.report.blobs) == (seen[-1].total, 20 + 8)


async def test_a_whole_bundle_is_returned_without_a_single_source(
    bridge: Bridge, publisher: Publisher, node: Node
) -> None:
    release = publisher.release()
    async with static(bridge, publisher.out) as origin:
        first = await node.acquire(release, origin)
    again = await node.acquire(release)
    assert (again.root, again.report.reused, again.report.fetch.fetched) == (first.root, True, 0)


@pytest.mark.parametrize("harm", ["layer gone", "file cut", "marker gone", "marker garbage", "layer is a link"])
async def test_a_damaged_bundle_is_built_again_from_the_store(
    bridge: Bridge, publisher: Publisher, node: Node, harm: str
) -> None:
    release = publisher.release()
    async with static(bridge, publisher.out) as origin:
        found = await node.acquire(release, origin)
    big = found.root / "images/web/blobs/sha256" / sha256(BIG)
    if harm.startswith("layer"):
        big.unlink()
    if harm == "layer is a link":
        big.symlink_to("/etc/passwd")
    if harm == "file cut":
        (found.root / "images/web/index.json").write_bytes(b"")
    if harm.startswith("marker"):
        (found.root / "bundle.json").unlink()
    if harm == "marker garbage":
        (found.root / "bundle.json").write_bytes(b"[1,2")
    again = await node.acquire(release)
    assert not again.report.reused
    assert big.read_bytes() == BIG
    assert node.folders() == [release.digest.hex]


async def test_peers_suffice_when_the_origin_is_down_and_the_reverse(
    bridge: Bridge, publisher: Publisher, node: Node, tmp_path: Path
) -> None:  # R-SW2
    release, newer = publisher.release(), publisher.release("1.1.0", [BASE, layer("new", b"x" * 100)])
    with open_store(tmp_path / "peer") as peer_store:
        for path in publisher.blobs.iterdir():
            peer_store.add_file(path)
        app = web.Application()
        app.add_routes(blob_routes(peer_store, lambda digest: True))
        async with serve(bridge, app, tcp=("127.0.0.1", 0)) as at:
            found = await node.acquire(release, dead(SourceKind.ORIGIN), Source(at.url, SourceKind.PEER))
    assert found.report.fetch.bytes_by_kind[SourceKind.PEER] > len(BIG)
    async with static(bridge, publisher.out) as origin:
        await node.acquire(newer, origin, dead(SourceKind.PEER))
    assert len(node.folders()) == 2


async def test_a_corrupting_peer_is_banned_and_named_in_the_report(
    bridge: Bridge, publisher: Publisher, node: Node, tmp_path: Path
) -> None:  # R-SW3
    release = publisher.release()
    big = blake3(BIG).hexdigest()
    lie = tmp_path / "lie"
    lie.write_bytes(b"\xff" * len(BIG))
    lied = asyncio.Event()

    async def truth(request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name == big:
            await lied.wait()  # so that the liar is asked at all, however fast this peer is
        return web.FileResponse(publisher.blobs / name)

    async def lies(request: web.Request) -> web.StreamResponse:
        lied.set()
        return web.FileResponse(lie)

    apps = []
    for handler in (truth, lies):
        apps.append(web.Application())
        apps[-1].router.add_get("/blobs/{name}", handler)
    async with (
        serve(bridge, apps[0], tcp=("127.0.0.1", 0)) as good,
        serve(bridge, apps[1], tcp=("127.0.0.1", 0)) as bad,
    ):
        found = await node.acquire(release, Source(good.url, SourceKind.PEER), Source(bad.url, SourceKind.PEER))
    (ban,) = found.report.to_json()["bans"]
    assert ban["url"] == bad.url
    assert "does not hash" in ban["reason"]
    assert in_bundle(found, f"images/web/blobs/sha256/{sha256(BIG)}") == BIG


async def test_without_any_source_nothing_is_changed_and_every_source_is_named(
    publisher: Publisher, node: Node
) -> None:
    with pytest.raises(AllSourcesFailed, match=UNREACHABLE):
        await node.acquire(publisher.release(), dead(SourceKind.PEER))
    assert node.folders() == []


# --- what was signed and does not fit together


def resigned(publisher: Publisher, release: Release, change: Callable[[ImageIndex], ImageIndex]) -> Release:
    """The publisher signs another image index for the web container, and everything that follows from it."""
    manifest = json.loads(json.dumps(release.manifest))
    platform = manifest["containers"]["web"]["image"]["platforms"][0]
    index = change(ImageIndex.parse((publisher.blobs / platform["index"]["blake3"]).read_bytes()))
    platform["index"] = publisher.add(index.to_bytes()).to_json()
    platform["manifest"] = f"sha256:{index.manifest.sha256}"
    platform["config"] = f"sha256:{index.config.sha256}"
    return signed(release.version, manifest)


def with_big_layer(blob: ImageBlob) -> Callable[[ImageIndex], ImageIndex]:
    return lambda index: replace(index, layers=(index.layers[0], blob))


async def is_inconsistent(bridge: Bridge, publisher: Publisher, node: Node, release: Release) -> str:
    async with static(bridge, publisher.out) as origin:
        with pytest.raises(InconsistentRelease) as found:
            await node.acquire(release, origin)
    assert node.folders() == []
    assert found.value.exit_code == 3
    return str(found.value)


async def test_a_layer_that_is_what_was_signed_but_not_what_the_image_says_is_refused(
    bridge: Bridge, publisher: Publisher, node: Node
) -> None:  # R-MF11
    other = bytes(reversed(BIG))
    swapped = ImageBlob(sha256(BIG), publisher_blob(publisher, other))
    message = await is_inconsistent(
        bridge, publisher, node, resigned(publisher, publisher.release(), with_big_layer(swapped))
    )
    assert sha256(BIG) in message
    assert sha256(other) in message
    assert "no source is to blame" in message


def publisher_blob(publisher: Publisher, raw: bytes) -> BlobRef:
    publisher.blobs.mkdir(parents=True, exist_ok=True)
    return publisher.add(raw)


async def test_an_image_manifest_that_lists_other_layers_is_refused(
    bridge: Bridge, publisher: Publisher, node: Node
) -> None:  # R-MF11: Podman does not check the manifest of a layout
    extra = layer("extra", b"not listed")
    swapped = ImageBlob(sha256(extra), publisher_blob(publisher, extra))
    release = resigned(publisher, publisher.release(), with_big_layer(swapped))
    assert "lists other blobs" in await is_inconsistent(bridge, publisher, node, release)


async def test_an_index_for_another_manifest_than_was_signed_is_refused(
    bridge: Bridge, publisher: Publisher, node: Node
) -> None:  # R-MF11
    release = publisher.release()
    manifest = json.loads(json.dumps(release.manifest))
    manifest["containers"]["web"]["image"]["platforms"][0]["manifest"] = "sha256:" + "0" * 64
    message = await is_inconsistent(bridge, publisher, node, signed("1.0.0", manifest))
    assert "another manifest or config" in message


async def test_an_image_whose_config_digest_differs_is_refused(
    bridge: Bridge, publisher: Publisher, node: Node
) -> None:  # R-MF11
    forged = json.dumps(config_of([BASE, BIG])).encode() + b" "

    def change(index: ImageIndex) -> ImageIndex:
        return replace(index, config=ImageBlob(index.config.sha256, publisher.add(forged)))

    release = resigned(publisher, publisher.release(), change)
    assert "image config" in await is_inconsistent(bridge, publisher, node, release)


async def test_an_image_for_another_architecture_than_it_is_signed_as_is_refused(
    bridge: Bridge, publisher: Publisher, node: Node
) -> None:
    release = publisher.release()
    text = json.dumps(release.manifest).replace('"amd64"', '"arm64"')
    async with static(bridge, publisher.out) as origin:
        with pytest.raises(InconsistentRelease, match="the image for arm64 is one for 'amd64'"):
            await node.acquire(signed("1.0.0", json.loads(text)), origin, arch="arm64")


async def test_a_machine_without_an_image_is_told_what_there_is(publisher: Publisher, node: Node) -> None:
    with pytest.raises(Refused, match="no image for arm64") as found:
        await node.acquire(publisher.release(), dead(SourceKind.ORIGIN), arch="arm64")
    assert "amd64" in found.value.remedy


async def test_a_blob_of_another_size_than_was_signed_is_refused(
    bridge: Bridge, publisher: Publisher, node: Node
) -> None:  # R-SW1, R-SW5
    release = publisher.release()
    manifest = json.loads(json.dumps(release.manifest))
    manifest["files"]["templates/hello.json"]["size"] += 1
    async with static(bridge, publisher.out, SourceKind.PEER) as peer:
        with pytest.raises(AllSourcesFailed):
            await node.acquire(signed("1.0.0", manifest), peer)
        assert node.folders() == []
        await node.acquire(release, peer)
        with pytest.raises(SizeContradicted):
            await node.acquire(signed("1.0.0", manifest), peer)
    assert node.folders() == [release.digest.hex]


async def test_a_piece_list_of_other_bytes_is_refused_and_no_peer_is_blamed(
    bridge: Bridge, publisher: Publisher, node: Node
) -> None:  # R-SW1
    other = bytes(reversed(BIG))
    listed = publisher_blob(publisher, other).pieces
    lying = ImageBlob(sha256(BIG), BlobRef(Digest(blake3(BIG).hexdigest()), len(BIG), listed))
    release = resigned(publisher, publisher.release(), with_big_layer(lying))
    stored = publisher.blobs / blake3(BIG).hexdigest()
    stored.unlink()
    stored.write_bytes(other)
    async with static(bridge, publisher.out, SourceKind.PEER) as peer:
        with pytest.raises(PublisherInconsistent):
            await node.acquire(release, peer)
    assert node.folders() == []
    assert not node.store.has(Digest(blake3(BIG).hexdigest()))


async def test_a_release_with_another_apps_manifest_is_refused(publisher: Publisher, node: Node) -> None:  # R-MF14
    release = replace(publisher.release(), app=AppName(PUBLISHER, "bitcoin"))
    with pytest.raises(InconsistentRelease, match="carries the manifest of hello"):
        await node.acquire(release)


async def test_a_manifest_that_is_not_packed_is_refused(publisher: Publisher, node: Node) -> None:  # R-MF12
    manifest = json.loads(json.dumps(publisher.release().manifest))
    del manifest["containers"]["web"]["image"]["platforms"]
    del manifest["files"]
    with pytest.raises(ManifestProblem) as found:
        await node.acquire(signed("1.0.0", manifest))
    assert len(found.value.errors) == 2


async def test_a_file_that_is_also_a_folder_is_refused(publisher: Publisher, node: Node) -> None:
    manifest = json.loads(json.dumps(publisher.release().manifest))
    manifest["files"]["templates"] = manifest["files"]["templates/hello.json"]
    with pytest.raises(InconsistentRelease, match="both a file and a folder"):
        await node.acquire(signed("1.0.0", manifest))


# --- room, and kills


async def test_a_full_disk_is_found_before_the_large_blobs_and_nothing_is_changed(
    bridge: Bridge, publisher: Publisher, node: Node
) -> None:
    release = publisher.release()
    async with static(bridge, publisher.out) as origin:
        with pytest.raises(
            NotEnoughRoom, match=r"Not enough room: needs 5\.\d MB, 2\.0 MB free\. Nothing was"
        ) as found:
            await node.acquire(release, origin, free=lambda folder: 2_000_000)
        assert found.value.exit_code == 4
        assert node.folders() == []
        assert not node.store.has(Digest(blake3(BASE).hexdigest()))
        await node.acquire(release, origin)


def test_machines_are_named_as_images_name_them() -> None:
    assert [local_arch(machine) for machine in ("x86_64", "aarch64")] == ["amd64", "arm64"]
    with pytest.raises(EnvironmentLacks, match="pdp11"):
        local_arch("pdp11")


async def test_killed_at_any_step_the_next_start_completes_the_bundle(
    bridge: Bridge, publisher: Publisher, tmp_path: Path
) -> None:  # R-SW4
    release = publisher.release()
    home, release_file = tmp_path / "home", tmp_path / "release.json"
    release_file.write_text(
        json.dumps(
            {
                "publisher": release.app.publisher,
                "id": release.app.id,
                "version": release.version,
                "digest": release.digest.hex,
                "manifest": release.manifest,
            }
        )
    )
    bundle = home / "bundles" / release.digest.hex
    home.mkdir()
    async with static(bridge, publisher.out) as origin:

        async def run(until: str) -> tuple[int, str]:
            argv = [sys.executable, "-m", "tests.market.acquire_child", home, release_file, origin.url, until]
            done = await trio.run_process([str(word) for word in argv], capture_stdout=True, check=False)
            return done.returncode, done.stdout.decode()

        for until in ("fetch", "check", "link:2", "done"):
            code, _ = await run(until)
            assert code == -signal.SIGKILL, until
            assert bundle.exists() == (until == "done"), until
        code, report = await run("never")
    assert code == 0
    assert json.loads(report)["reused"]
    assert [path.name for path in (home / "bundles").iterdir()] == [release.digest.hex]
    assert (bundle / "images/web/blobs/sha256" / sha256(BIG)).read_bytes() == BIG
