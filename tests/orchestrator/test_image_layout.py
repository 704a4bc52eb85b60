"""Layouts are compared with what was signed before Podman sees them (R-MF11)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apps.manifest_parts import Platform
from apps.problems import Refused
from orchestrator.images import blob_path, check_layout, stage, verify_layers, write_index
from tests.orchestrator.bundles import sha256, tar_of, write_layout


def layout(folder: Path) -> Platform:
    return Platform.model_validate(write_layout(folder, b"content")["platforms"][0])


def spoil(folder: Path, platform: Platform, key: str, value: object) -> Platform:
    """Another manifest in the place of the signed one, under its own right digest; what a thief would sign."""
    path = blob_path(folder, platform.manifest)
    raw = json.dumps(json.loads(path.read_bytes()) | {key: value}).encode()
    blob_path(folder, sha256(raw)).write_bytes(raw)
    return platform.model_copy(update={"manifest": sha256(raw)})


def test_a_good_layout_is_accepted_and_hashed(tmp_path: Path) -> None:
    found = check_layout(tmp_path, layout(tmp_path), where="web")
    assert verify_layers(found, where="web") == len(tar_of({"content": b"content"}))


def test_manifest_bytes_that_do_not_match_their_digest_are_refused(tmp_path: Path) -> None:
    platform = layout(tmp_path)
    path = blob_path(tmp_path, platform.manifest)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(
        Refused, match=r"web: the image's manifest is sha256:[0-9a-f]+, and sha256:[0-9a-f]+ was signed"
    ):
        check_layout(tmp_path, platform, where="web")


def test_a_manifest_that_names_another_config_is_refused(tmp_path: Path) -> None:
    platform = layout(tmp_path)
    other = {"mediaType": "x", "digest": f"sha256:{'0' * 64}", "size": 1}
    with pytest.raises(Refused, match="the image's config is sha256:0000"):
        check_layout(tmp_path, spoil(tmp_path, platform, "config", other), where="web")


def test_a_layer_with_other_bytes_is_refused(tmp_path: Path) -> None:
    found = check_layout(tmp_path, layout(tmp_path), where="web")
    path = blob_path(tmp_path, found.layers[0])
    raw = bytearray(path.read_bytes())
    raw[0] ^= 1
    path.write_bytes(raw)
    with pytest.raises(Refused, match="has other bytes"):
        verify_layers(found, where="web")


def test_a_layer_that_podman_has_already_may_be_absent(tmp_path: Path) -> None:
    platform = layout(tmp_path)
    blob_path(tmp_path, check_layout(tmp_path, platform, where="web").layers[0]).unlink()
    assert verify_layers(check_layout(tmp_path, platform, where="web"), where="web") == 0


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ([], "not 1 to 127 layers"),
        ([{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": "x", "size": 1}], "plain tar"),
        (
            [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": "../../x", "size": 1}],
            "without a SHA-256",
        ),
        ([7], "wrong shape"),
    ],
)
def test_hostile_layers_are_refused(tmp_path: Path, layers: list[object], says: str) -> None:
    platform = spoil(tmp_path, layout(tmp_path), "layers", layers)
    with pytest.raises(Refused, match=says):
        check_layout(tmp_path, platform, where="web")


def test_a_missing_blob_is_told(tmp_path: Path) -> None:
    platform = layout(tmp_path)
    blob_path(tmp_path, platform.config).unlink()
    with pytest.raises(Refused, match="can not be read: No such file"):
        check_layout(tmp_path, platform, where="web")


def test_podman_gets_our_index_and_not_the_bundles(tmp_path: Path) -> None:
    platform = layout(tmp_path / "bundle")
    (tmp_path / "bundle" / "index.json").write_text('{"manifests": [{"digest": "evil"}]}')
    found = check_layout(tmp_path / "bundle", platform, where="web")
    write_index(stage(found, tmp_path / "staged"), found, "localhost/archy/x/web:1")
    index = json.loads((tmp_path / "staged" / "index.json").read_text())
    (entry,) = index["manifests"]
    assert entry["digest"] == platform.manifest
    assert entry["annotations"] == {"org.opencontainers.image.ref.name": "localhost/archy/x/web:1"}
    assert len(list((tmp_path / "staged" / "blobs" / "sha256").iterdir())) == 3
