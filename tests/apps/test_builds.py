"""What a build is made of, and the digest that stands for it: by the signed manifest alone."""

from __future__ import annotations

from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from apps.builds import build_of, built_containers, check_bases, context_files, input_digest, own_images, read_build
from apps.containerfile import ContainerfileRefused
from apps.manifest import Manifest, ManifestProblem, parse_manifest_json
from apps.problems import Refused

PINNED = f"sha256:{'c' * 64}"
ARM = f"sha256:{'d' * 64}"
FILES = {"b/Containerfile": "FROM scratch\nCOPY page /\n", "b/page": "hello", "other/page": "not in it"}


def entry(text: str) -> dict[str, Any]:
    return {"blake3": blake3(text.encode()).hexdigest(), "size": len(text.encode())}


def manifest(files: dict[str, str] = FILES, bases: tuple[str, ...] = (), **more: Any) -> Manifest:
    index = {"blake3": "0" * 64, "size": 1}
    platforms = [
        {"arch": arch, "manifest": digest, "config": f"sha256:{'e' * 64}", "index": index}
        for arch, digest in (("amd64", PINNED), ("arm64", ARM))
    ]
    body = {
        "schema": 1,
        "id": "hello",
        "version": "1.0",
        "title": "Hello",
        "containers": {
            "web": {"build": {"context": "b", "bases": list(bases)}},
            "db": {"image": {"ref": "localhost/db:1", "platforms": platforms}},
        },
        "files": {path: entry(text) for path, text in files.items()},
    }
    return parse_manifest_json(body | more, where="m")


def digest(of: Manifest, arch: str = "amd64") -> str:
    return input_digest(of, build_of(built_containers(of)["web"]), arch)


def test_the_context_is_what_lies_in_its_folder_and_nothing_beside() -> None:
    found = manifest()
    assert set(context_files(found, build_of(found.containers["web"]))) == {"Containerfile", "page"}
    beside = manifest(FILES | {"bb/page": "x", "b.txt": "y"})
    assert digest(beside) == digest(found)


def test_every_input_is_in_the_digest() -> None:  # R-MF12
    plain = manifest()
    others = {
        digest(plain),
        digest(plain, "arm64"),
        digest(manifest(FILES | {"b/page": "hellp"})),
        digest(manifest(FILES | {"b/Containerfile": "FROM scratch\n"})),
        digest(manifest(FILES | {"b/more": ""})),
        digest(manifest({**{path: text for path, text in FILES.items() if path != "b/page"}, "b/pagf": "hello"})),
        digest(manifest(bases=(PINNED,))),
        digest(manifest(bases=(PINNED, ARM))),
    }
    assert len(others) == 8


def test_what_goes_into_no_image_is_not_in_the_digest() -> None:  # R-ST19
    more: dict[str, Any] = {"title": "Another title", "volumes": {"data": {}}, "summary": "x"}
    assert digest(manifest(**more)) == digest(manifest())
    assert digest(manifest(bases=(PINNED, ARM))) == digest(manifest(bases=(ARM, PINNED, ARM)))


texts = st.dictionaries(st.sampled_from(["b/x", "b/y", "b/d/x"]), st.text(max_size=3), max_size=3)


@given(texts, texts)
def test_two_contexts_have_one_digest_exactly_when_they_are_one(one: dict[str, str], other: dict[str, str]) -> None:
    assert (digest(manifest(FILES | one)) == digest(manifest(FILES | other))) == (one == other)


def test_a_base_is_an_image_of_the_app_itself_for_this_machine() -> None:  # R-MF12
    files = FILES | {"b/Containerfile": f"FROM base@{PINNED}\n"}
    found = manifest(files, bases=(PINNED, ARM))
    assert own_images(found, "amd64") == {PINNED: "db"}
    parsed = read_build(found, "web", lambda path: files[path].encode())
    check_bases(found, "web", parsed, "amd64")
    for arch in ("arm64", "riscv64"):
        with pytest.raises(Refused, match="no image of this app"):
            check_bases(found, "web", parsed, arch)


def test_the_fault_of_a_companions_containerfile_says_whose_it_is() -> None:
    ui = {"ui": {"build": {"context": "b"}, "serves": "db"}}
    found = manifest(companions=ui)
    with pytest.raises(ContainerfileRefused, match=r"hello: companions\.ui\.build"):
        read_build(found, "ui", lambda _: b"FROM alpine\n")


def test_a_volume_is_judged_by_the_containers_own_mounts() -> None:  # R-MF10
    raw = b"FROM scratch\nVOLUME /data\n"
    with pytest.raises(ContainerfileRefused, match="line 2: VOLUME /data"):
        read_build(manifest(), "web", lambda _: raw)
    web = {"build": {"context": "b"}, "mounts": [{"volume": "data", "path": "/data"}]}
    assert read_build(manifest(containers={"web": web}, volumes={"data": {}}), "web", lambda _: raw)


def test_a_build_without_a_containerfile_is_not_packed() -> None:  # R-MF12
    found = manifest({"b/page": "hello"})
    assert [error.path for error in found.unpacked()] == ["files.b/Containerfile"]


def test_a_container_does_not_take_the_name_of_anothers_build() -> None:
    web = {"build": {"context": "b"}}
    with pytest.raises(ManifestProblem, match="web-build is taken"):
        manifest(containers={"web": web, "web-build": web})
    with pytest.raises(ManifestProblem, match=r"17 bases"):
        manifest(bases=tuple(f"sha256:{n:064x}" for n in range(17)))
