"""The image index: canonical, bounded, one meaning for each blob."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from apps.images import MAX_LAYERS, ImageBlob, ImageIndex, platform_for
from apps.manifest import parse_manifest_json
from apps.names import PIECE_SIZE, BlobRef, Digest
from apps.problems import Refused

hexes = st.binary(min_size=32, max_size=32).map(bytes.hex)


@st.composite
def image_blobs(draw: st.DrawFn, largest: int = 1 << 30) -> ImageBlob:
    size = draw(st.integers(0, largest))
    pieces = Digest(draw(hexes)) if size > PIECE_SIZE else None
    return ImageBlob(draw(hexes), BlobRef(Digest(draw(hexes)), size, pieces))


indexes = st.builds(
    ImageIndex, image_blobs(4096), image_blobs(4096), st.lists(image_blobs(), min_size=1, max_size=4).map(tuple)
)


def sample() -> ImageIndex:
    def blob(digit: str, size: int = 10) -> ImageBlob:
        pieces = Digest("f" * 64) if size > PIECE_SIZE else None
        return ImageBlob(digit * 64, BlobRef(Digest(digit * 64), size, pieces))

    return ImageIndex(blob("a"), blob("b"), (blob("c", 2 << 20), blob("d")))


@given(indexes)
def test_an_index_round_trips(index: ImageIndex) -> None:
    assume(len({(sha256, ref) for sha256, ref in index.blobs()}) == 2 + len(index.layers))
    assert ImageIndex.parse(index.to_bytes()) == index


def test_a_layer_that_occurs_twice_is_one_blob() -> None:
    index = sample()
    twice = ImageIndex(index.manifest, index.config, index.layers * 2)
    assert len(twice.blobs()) == 4


def changed(**more: Any) -> bytes:
    import rfc8785

    return rfc8785.dumps(json.loads(sample().to_bytes()) | more)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (sample().to_bytes() + b" ", "not in canonical form"),
        (b"[" * 90_000, "not JSON"),
        (b" " * 200_000, "more than"),
        (changed(extra=1), "keys other than"),
        (changed(schema=2), "schema other than 1"),
        (changed(layers=[]), f"not 1 to {MAX_LAYERS} layers"),
        (changed(layers=[{}]), "not a blob of"),
        (changed(config={"sha256": "a" * 64, "blake3": "e" * 64, "size": 10}), "two meanings for sha256:aaaa"),
        (changed(config={"sha256": "A" * 64, "blake3": "e" * 64, "size": 10}), "64 lower-case hex"),
        (changed(config={"sha256": "b" * 64, "blake3": "b" * 64, "size": 5 << 20}), "too large"),
        (changed(config={"sha256": "b" * 64, "blake3": "b" * 64, "size": 10, "pieces": "a" * 64}), "piece list"),
    ],
)
def test_hostile_indexes_are_refused(raw: bytes, says: str) -> None:
    with pytest.raises(Refused, match=says):
        ImageIndex.parse(raw)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    with pytest.raises(Refused):
        ImageIndex.parse(raw)


def test_an_architecture_that_was_not_packed_is_told() -> None:
    index = {"blake3": "0" * 64, "size": 1}
    platform = {"arch": "amd64", "manifest": f"sha256:{'1' * 64}", "config": f"sha256:{'2' * 64}", "index": index}
    image = {"ref": "localhost/x:1", "platforms": [platform]}
    body = {"schema": 1, "id": "hello", "version": "1", "title": "x", "containers": {"web": {"image": image}}}
    web = parse_manifest_json(body, where="m").containers["web"]
    assert platform_for(web, "amd64").manifest == f"sha256:{'1' * 64}"
    with pytest.raises(Refused, match=r"no image for arm64 .*amd64"):
        platform_for(web, "arm64")
