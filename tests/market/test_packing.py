"""Packing: from a folder and image layouts to a manifest in which every byte is named by content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from blake3 import blake3

from apps.containerfile import ContainerfileRefused
from apps.images import ImageIndex
from apps.manifest import ManifestProblem, parse_manifest_json
from market.errors import EnvironmentLacks, UsageProblem
from market.identity.canonical import canonical_bytes
from market.oci import BadImage
from market.packing import BadFile, PackedApp, TooLarge, pack_app
from tests.market.layouts import config_of, layer, sha256, write_layout

MANIFEST = """
schema: 1
id: hello
version: "1.0.0"
title: Hello
containers:
  web:
    image: {ref: localhost/hello:1.0.0}
    ports: [{name: http, container: 8080, host: 8080}]
    mounts: [{volume: data, path: /data}]
volumes:
  data: {}
"""
LAYERS = (layer("base", b"base" * 1000), layer("app", b"\x00" * (2 * 1024 * 1024 + 17)))


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "manifest.yml").write_text(MANIFEST)
    return folder


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return write_layout(tmp_path / "layout", LAYERS, volumes=["/data"])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def with_text(app: Path, text: str) -> None:
    (app / "manifest.yml").write_text(MANIFEST + text)


def test_every_blob_is_named_by_its_content_and_nothing_else_is_written(
    app: Path, layout: Path, tmp_path: Path
) -> None:  # R-MF12
    packed = pack_app(app, {"web": layout}, tmp_path / "out")
    written = contents(tmp_path / "out")
    raw = written.pop("manifest.json")
    assert raw == canonical_bytes(packed.manifest.canonical())
    assert parse_manifest_json(json.loads(raw), where="out") == packed.manifest
    assert written == {f"blobs/{digest}": data for data in written.values() for digest in [blake3(data).hexdigest()]}
    assert {f"blobs/{d.hex}": size for d, size in packed.blobs.items()} == {n: len(data) for n, data in written.items()}


def test_the_index_names_manifest_config_and_layers_by_both_digests(app: Path, layout: Path, tmp_path: Path) -> None:
    packed = pack_app(app, {"web": layout}, tmp_path / "out")
    image = packed.manifest.containers["web"].image
    assert image is not None
    (platform,) = image.platforms
    blobs = tmp_path / "out" / "blobs"
    index = ImageIndex.parse((blobs / platform.index.blake3).read_bytes())
    assert platform.arch == "amd64"
    assert (platform.manifest, platform.config) == (f"sha256:{index.manifest.sha256}", f"sha256:{index.config.sha256}")
    assert [blob.sha256 for blob in index.layers] == [sha256(raw) for raw in LAYERS]
    for digest, ref in index.blobs():
        data = (blobs / ref.blake3.hex).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (digest, ref.size)
    big = index.layers[1].ref
    assert big.pieces is not None
    listed = (blobs / big.pieces.hex).read_bytes()
    pieces = [LAYERS[1][start : start + 1024 * 1024] for start in range(0, len(LAYERS[1]), 1024 * 1024)]
    assert listed == b"".join(blake3(piece).digest() for piece in pieces)


def test_packing_twice_gives_the_same_bytes_also_over_a_damaged_blob(app: Path, layout: Path, tmp_path: Path) -> None:
    packed = pack_app(app, {"web": layout}, tmp_path / "one")
    first = contents(tmp_path / "one")
    victim = tmp_path / "one" / "blobs" / max(packed.blobs, key=lambda digest: packed.blobs[digest]).hex
    size = victim.stat().st_size
    victim.unlink()
    victim.write_bytes(b"\xff" * size)
    pack_app(app, {"web": layout}, tmp_path / "one")
    pack_app(app, {"web": layout}, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == first


def test_templates_assets_and_build_contexts_are_packed_by_content(app: Path, layout: Path, tmp_path: Path) -> None:
    with_text(
        app,
        """
companions:
  ui: {build: {context: build/ui}, serves: web}
derived_files:
  - {template: templates/hello.json, dest: config/hello.json, into: {web: /run/hello}, mode: "0444"}
hooks:
  post_install:
    - {copy_from_host: {src: assets/logo.svg, dest: "web:/data/logo.svg"}}
""",
    )
    texts = {
        "templates/hello.json": b"{}",
        "assets/logo.svg": b"<svg/>",
        "build/ui/Containerfile": b"FROM scratch\n",
        "build/ui/www/index.html": b"hello",
    }
    for name, data in texts.items():
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).write_bytes(data)
    packed = pack_app(app, {"web": layout}, tmp_path / "out")
    assert {path: (entry.blake3, entry.size) for path, entry in packed.manifest.files.items()} == {
        name: (blake3(data).hexdigest(), len(data)) for name, data in texts.items()
    }
    (app / "assets/logo.svg").write_bytes(b"edited afterwards")
    logo = packed.manifest.files["assets/logo.svg"]
    assert (tmp_path / "out" / "blobs" / logo.blake3).read_bytes() == b"<svg/>"


def test_one_image_per_architecture(app: Path, layout: Path, tmp_path: Path) -> None:
    arm = write_layout(tmp_path / "arm", LAYERS, volumes=["/data"], arch="arm64")
    packed = pack_app(app, {"web": [arm, layout]}, tmp_path / "out")
    image = packed.manifest.containers["web"].image
    assert image is not None
    assert [platform.arch for platform in image.platforms] == ["amd64", "arm64"]
    with pytest.raises(UsageProblem, match="two images of web for amd64"):
        pack_app(app, {"web": [layout, layout]}, tmp_path / "out2")


def refused(kind: type[Exception], app: Path, images: dict[str, Path], out: Path) -> str:
    """Packs, and shows the refusal; whatever was packed there before is still there."""
    out.mkdir()
    (out / "manifest.json").write_bytes(b"the release before")
    with pytest.raises(kind) as found:
        pack_app(app, dict(images), out)
    assert (out / "manifest.json").read_bytes() == b"the release before"
    assert not [path for path in out.rglob(".*") if path.is_file()]
    return str(found.value)


def test_compressed_layers_are_refused_with_the_command_that_mends_it(app: Path, tmp_path: Path) -> None:
    gzip = "application/vnd.oci.image.layer.v1.tar+gzip"
    bad = write_layout(tmp_path / "bad", LAYERS, volumes=["/data"], layer_type=gzip)
    assert "podman save --uncompressed" in refused(BadImage, app, {"web": bad}, tmp_path / "out")


def test_a_declared_volume_that_nothing_maps_is_refused(app: Path, tmp_path: Path) -> None:  # R-MF10
    bad = write_layout(tmp_path / "bad", LAYERS, volumes=["/data", "/var/lib/db"])
    message = refused(BadImage, app, {"web": bad}, tmp_path / "out")
    assert "VOLUME /var/lib/db" in message
    assert "/data," not in message


@pytest.mark.parametrize("which", [0, 1])
def test_a_layer_with_other_bytes_than_its_digest_says_is_refused(
    app: Path, layout: Path, tmp_path: Path, which: int
) -> None:  # R-MF11
    path = layout / "blobs" / "sha256" / sha256(LAYERS[which])
    path.write_bytes(LAYERS[which][:-1] + b"!")
    assert str(path) in refused(BadImage, app, {"web": layout}, tmp_path / "out")


def test_an_image_manifest_with_other_bytes_than_its_digest_says_is_refused(
    app: Path, layout: Path, tmp_path: Path
) -> None:  # R-MF11: Podman does not check this one
    index = json.loads((layout / "index.json").read_text())
    path = layout / "blobs" / "sha256" / index["manifests"][0]["digest"].removeprefix("sha256:")
    path.write_bytes(path.read_bytes() + b" ")
    assert "SHA-256" in refused(BadImage, app, {"web": layout}, tmp_path / "out")


def test_a_config_of_other_layers_or_another_system_is_refused(app: Path, tmp_path: Path) -> None:
    other = write_layout(tmp_path / "other", LAYERS, config=config_of(LAYERS[:1]))
    assert "does not describe" in refused(BadImage, app, {"web": other}, tmp_path / "out1")
    windows = write_layout(tmp_path / "windows", LAYERS, config={**config_of(LAYERS), "os": "windows"})
    assert "not for linux" in refused(BadImage, app, {"web": windows}, tmp_path / "out2")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("oci-layout", b'{"imageLayoutVersion":"2.0.0"}'),
        ("oci-layout", b"[" * 60_000),
        ("index.json", b'{"schemaVersion":2,"manifests":[]}'),
        ("index.json", b'{"schemaVersion":2,"manifests":[{"digest":"sha256:../../etc/passwd"}]}'),
        ("index.json", b" " * 100_000),
        ("index.json", b"\xff"),
    ],
)
def test_a_hostile_layout_is_refused(app: Path, layout: Path, tmp_path: Path, file: str, content: bytes) -> None:
    (layout / file).write_bytes(content)
    refused(BadImage, app, {"web": layout}, tmp_path / "out")


def test_a_folder_that_is_no_layout_is_refused(app: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "podman save" in refused(BadImage, app, {"web": tmp_path / "empty"}, tmp_path / "out")


def test_images_that_fit_no_container_and_missing_ones_are_named(app: Path, layout: Path, tmp_path: Path) -> None:
    assert "db" in refused(UsageProblem, app, {"web": layout, "db": layout}, tmp_path / "out1")
    assert "web" in refused(UsageProblem, app, {}, tmp_path / "out2")


def test_all_errors_of_a_manifest_are_told_at_once(app: Path, layout: Path, tmp_path: Path) -> None:  # R-MF2
    (app / "manifest.yml").write_text(MANIFEST.replace("id: hello", "id: HELLO").replace("8080, host", "0, host"))
    message = refused(ManifestProblem, app, {"web": layout}, tmp_path / "out")
    assert "id:" in message
    assert "ports[0].container" in message


def test_a_file_that_is_named_and_not_there_is_refused(app: Path, layout: Path, tmp_path: Path) -> None:
    with_text(app, "derived_files: [{template: templates/gone.json, dest: gone, mode: '0444', into: {web: /run/h}}]\n")
    assert "templates/gone.json" in refused(BadFile, app, {"web": layout}, tmp_path / "out")


@pytest.mark.parametrize("linked", ["templates", "templates/secret.json"])
def test_a_link_out_of_the_folder_is_refused(app: Path, layout: Path, tmp_path: Path, linked: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.json").write_text("private")
    with_text(app, "derived_files: [{template: templates/secret.json, dest: s, mode: '0444', into: {web: /h}}]\n")
    if linked == "templates":
        (app / "templates").symlink_to(outside)
    else:
        (app / "templates").mkdir()
        (app / linked).symlink_to(outside / "secret.json")
    assert "link" in refused(BadFile, app, {"web": layout}, tmp_path / "out")


@pytest.mark.parametrize("kind", ["file link", "folder link", "pipe"])
def test_a_build_context_holds_files_and_folders_only(app: Path, layout: Path, tmp_path: Path, kind: str) -> None:
    with_text(app, "companions: {ui: {build: {context: build/ui}, serves: web}}\n")
    (app / "build" / "ui").mkdir(parents=True)
    odd = app / "build" / "ui" / "odd"
    if kind == "pipe":
        os.mkfifo(odd)
    else:
        odd.symlink_to("/etc/passwd" if kind == "file link" else "/etc")
    assert "odd" in refused(BadFile, app, {"web": layout}, tmp_path / "out")


def with_build(app: Path, containerfile: str, bases: str = "") -> None:
    with_text(app, f"companions: {{ui: {{build: {{context: build/ui, bases: [{bases}]}}, serves: web}}}}\n")
    (app / "build" / "ui").mkdir(parents=True)
    (app / "build" / "ui" / "page").write_text("hello")
    (app / "build" / "ui" / "Containerfile").write_text(containerfile)


def test_a_containerfile_that_reaches_outside_is_told_to_its_author(app: Path, layout: Path, tmp_path: Path) -> None:
    with_build(app, "FROM alpine\nADD https://example.com/x /x\nCOPY page missing /srv/\n")  # R-MF12
    text = refused(ContainerfileRefused, app, {"web": layout}, tmp_path / "out")
    assert "companions.ui.build" in text
    for line in ("line 1: not a base pinned by digest", "line 2: ADD is not allowed", "line 3: 'missing' is not in"):
        assert line in text


def test_a_build_begins_with_an_image_of_its_own_app(app: Path, layout: Path, tmp_path: Path) -> None:  # R-MF12
    other = f"sha256:{'a' * 64}"
    with_build(app, f"FROM base@{other}\n", other)
    assert "which is no image of this app" in refused(BadFile, app, {"web": layout}, tmp_path / "out")
    entry = json.loads((layout / "index.json").read_bytes())["manifests"][0]
    (app / "manifest.yml").write_text(MANIFEST)
    shutil.rmtree(app / "build")
    with_build(app, f"FROM base@{entry['digest']}\n", entry["digest"])
    packed = pack_app(app, {"web": layout}, tmp_path / "out")
    assert packed.manifest.companions["ui"].build is not None


def test_a_context_without_a_containerfile_is_refused(app: Path, layout: Path, tmp_path: Path) -> None:
    with_build(app, "")
    (app / "build" / "ui" / "Containerfile").unlink()
    assert "Containerfile" in refused(ManifestProblem, app, {"web": layout}, tmp_path / "out")


def test_a_manifest_that_fits_no_release_is_refused(app: Path, layout: Path, tmp_path: Path) -> None:
    words = "\n".join(f"      NAME_{number}: {'x' * 200}" for number in range(150))
    text = MANIFEST.replace("volumes:\n", f"    environment:\n{words}\nvolumes:\n")
    (app / "manifest.yml").write_text(text)
    assert "fit into a release" in refused(TooLarge, app, {"web": layout}, tmp_path / "out")


def test_a_folder_without_a_manifest_and_an_out_that_is_a_file_are_clear_faults(
    app: Path, layout: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageProblem, match="can not be read"):
        pack_app(tmp_path, {"web": layout}, tmp_path / "out")
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(EnvironmentLacks):
        pack_app(app, {"web": layout}, tmp_path / "taken")


def test_an_update_adds_its_blobs_beside_those_of_the_release_before(app: Path, layout: Path, tmp_path: Path) -> None:
    def pack(version: str, images: Path) -> PackedApp:
        (app / "manifest.yml").write_text(MANIFEST.replace("1.0.0", version))
        return pack_app(app, {"web": images}, tmp_path / "out")

    before = pack("1.0.0", layout)
    newer = (LAYERS[0], layer("app", b"\x01" * 100))
    after = pack("1.1.0", write_layout(tmp_path / "newer", newer, volumes=["/data"]))
    names = {path.name for path in (tmp_path / "out" / "blobs").iterdir()}
    assert names == {digest.hex for digest in (*before.blobs, *after.blobs)}
    assert set(before.blobs) & set(after.blobs), "the base layer is shared"
