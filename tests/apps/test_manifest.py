"""The manifest: strict, typed, closed under its references, and told about with all its faults at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.manifest import ManifestProblem, parse_manifest_json, parse_manifest_yaml
from apps.manifest_values import parse_size, satisfies
from apps.names import BlobRef, Digest

WHOLE = (Path(__file__).parent / "immich.yml").read_text()
A64 = "a" * 64


def small(**more: Any) -> dict[str, Any]:
    web = {"image": {"ref": "localhost/x:1"}} | more.pop("web", {})
    return {"schema": 1, "id": "hello", "version": "1.0", "title": "Hello", "containers": {"web": web}} | more


def faults(obj: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(ManifestProblem) as caught:
        parse_manifest_json(obj, where="m")
    return {path: f"{message} ({remedy})" for path, message, remedy in caught.value.errors}


def test_the_whole_schema_is_read_and_typed() -> None:
    manifest = parse_manifest_yaml(WHOLE, where="m")
    server, postgres = manifest.containers["server"], manifest.containers["postgres"]
    assert (manifest.version, manifest.categories) == ("2.1.0-3", ("photos",))
    assert server.resources.memory == 2 << 30
    assert server.resources.cpus == "2.0"
    assert server.ports[0].host == 2283
    assert server.health is not None
    assert server.health.start_period == 300
    assert server.security.read_only
    assert postgres.mounts[0].exclusive
    assert manifest.files["templates/immich.json"].blob == BlobRef(Digest(A64), 812)
    assert manifest.permissions.internet == "outbound"


def test_canonical_form_round_trips_and_is_jcs() -> None:
    manifest = parse_manifest_yaml(WHOLE, where="m")
    body = manifest.canonical()
    assert parse_manifest_json(json.loads(rfc8785.dumps(body)), where="m") == manifest
    assert parse_manifest_json(body, where="m").canonical() == body


def test_canonical_form_holds_no_float_and_ascii_keys_only() -> None:
    def walk(value: object) -> None:
        assert not isinstance(value, float)
        if isinstance(value, dict):
            for key, item in value.items():
                assert key.isascii()
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    walk(parse_manifest_yaml(WHOLE, where="m").canonical())


def test_all_faults_are_told_at_once_with_path_and_remedy() -> None:  # R-MF2
    text = """
schema: 2
id: Immich
version: "2.1"
titel: Immich
containers:
  web:
    image: {ref: foo}
    privileged: true
    ports: [{name: web, container: 22:22, host: 80}, {name: b, container: 80, host: 80}]
    needs: [db]
    resources: {memory: 2GB}
    mounts: [{volume: data, path: /../etc}, {host: /run/podman/podman.sock, path: /x, volume: d}]
    security: {read_only: "yes", capabilities: [SYS_ADMIN]}
    health: {http: {port: wob}}
    network_aliases: [UPPER_case]
  Web_2: {}
volumes: {d: {}}
interfaces: [{id: ui, type: foo, port: nope}]
"""
    with pytest.raises(ManifestProblem) as caught:
        parse_manifest_yaml(text, where="bad.yml")
    assert [error.path for error in caught.value.errors] == [
        "containers.Web_2",
        "containers.Web_2",
        "containers.web.health.http.port",
        "containers.web.image.ref",
        "containers.web.mounts[0].path",
        "containers.web.mounts[0].volume",
        "containers.web.mounts[1].host",
        "containers.web.needs[0]",
        "containers.web.network_aliases[0]",
        "containers.web.ports[0].container",
        "containers.web.ports[1].host",
        "containers.web.privileged",
        "containers.web.resources.memory",
        "containers.web.security.capabilities[0]",
        "containers.web.security.read_only",
        "id",
        "interfaces[0].port",
        "interfaces[0].type",
        "schema",
        "titel",
        "title",
    ]
    text = str(caught.value)
    assert text.startswith("bad.yml: 21 errors in the manifest:")
    assert "titel: unknown key (did you mean title?)" in text
    assert "write a whole number and an IEC unit: 512MiB, 2GiB" in text
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("more", "path", "says"),
    [
        ({"web": {"build": {"context": "b"}}}, "containers.web", "exactly one of image and build"),  # R-MF1
        ({"web": {"image": {"ref": "nginx"}}}, "containers.web.image.ref", "registry included"),  # R-MF1
        (
            {"web": {"mounts": [{"volume": "d", "path": "/run/podman/podman.sock"}]}},
            "containers.web.mounts[0].path",
            "host",
        ),
        ({"web": {"mounts": [{"volume": "d", "path": "/a/../../b"}]}}, "containers.web.mounts[0].path", "leaves"),
        (
            {"web": {"environment": {"A": "x\nExecStart=/bin/evil"}}},
            "containers.web.environment.A",
            "control character",
        ),
        ({"web": {"environment": {"A B": "x"}}}, "containers.web.environment.A B", "environment variable"),
        ({"web": {"command": ["a\0b"]}}, "containers.web.command[0]", "control character"),
        ({"web": {"user": "root; id"}}, "containers.web.user", "not a user"),
        ({"web": {"ports": [{"name": "a", "container": True}]}}, "containers.web.ports[0].container", "whole number"),
        ({"web": {"ports": [{"name": "a", "container": 8080.0}]}}, "containers.web.ports[0].container", "whole number"),
        ({"web": {"ports": [{"name": "a", "container": 70000}]}}, "containers.web.ports[0].container", "out of range"),
        ({"web": {"security": {"devices": ["/dev/sda"]}}}, "containers.web.security.devices[0]", "/dev/dri"),
        ({"web": {"secrets": [{"name": "x", "file": "/x"}]}}, "containers.web.secrets[0].name", "no generated secret"),
        ({"web": {"needs": ["web"]}}, "containers.web.needs", "run in a circle"),
        ({"web": {"resources": {"memory": "2GiB"}}}, "containers.web.resources.memory", "whole number of bytes"),
        ({"schema": True}, "schema", "write 1"),
        (
            {"derived_files": [{"template": "../../etc/passwd", "dest": "a"}]},
            "derived_files[0].template",
            "inside the app",
        ),
        ({"files": {"/etc/passwd": {"blake3": A64, "size": 1}}}, "files./etc/passwd", "inside the app"),
        ({"files": {"a": {"blake3": A64, "size": 2 << 20}}}, "files.a", "pieces"),
        ({"settings": [{"name": "n", "type": "number", "default": "x"}]}, "settings[0].default", "not a number"),
        ({"requires": {"podman": "5"}}, "requires.podman", "version range"),
        ({"permissions": {"internet": "all"}}, "permissions.internet", "'none' or 'outbound'"),
        ({"containers": {"network": {"image": {"ref": "localhost/x:1"}}}}, "containers.network", "another name"),
        ({"containers": {}}, "containers", "1 to 32"),
        ({"containers": []}, "containers", "keys and values"),
        ({"homepage": "javascript:alert(1)"}, "homepage", "https"),
        ({"adopt": {"container_names": ["--all"]}}, "adopt.container_names[0]", "not a name of a container"),
        ({"adopt": {"container_names": [f"x{n}" for n in range(65)]}}, "adopt.container_names", "65 names"),
    ],
)
def test_hostile_and_wrong_values_are_refused_by_key_path(more: dict[str, Any], path: str, says: str) -> None:  # R-MF2
    found = faults(small(**more))
    assert says in found[path], found


def test_an_exclusive_volume_has_one_container() -> None:  # R-ST9
    mount = {"volume": "data", "path": "/data", "exclusive": True}
    two = {name: {"image": {"ref": "localhost/x:1"}, "mounts": [mount]} for name in ("one", "two")}
    found = faults(small(containers=two, volumes={"data": {}}))
    assert "containers.one.mounts[0] and containers.two.mounts[0]" in found["containers.two.mounts[0]"]


def test_unpacked_manifest_is_valid_and_says_what_packing_adds() -> None:
    manifest = parse_manifest_json(small(), where="m")
    with pytest.raises(ManifestProblem, match=r"containers\.web\.image\.platforms: the image is not packed"):
        manifest.require_packed()


def test_nothing_can_be_changed_after_parsing() -> None:
    manifest = parse_manifest_yaml(WHOLE, where="m")
    with pytest.raises(ValueError, match="frozen"):
        manifest.version = "3"  # type: ignore[misc]
    with pytest.raises(TypeError):
        manifest.containers["server"].environment["A"] = "b"  # type: ignore[index]


def test_a_deep_signed_manifest_is_refused_without_recursion() -> None:
    deep: Any = {}
    for _ in range(100_000):
        deep = {"a": deep}
    with pytest.raises(ManifestProblem, match="nested too deep"):
        parse_manifest_json(deep, where="m")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(sorted(parse_manifest_yaml(WHOLE, where="m").canonical()))


@settings(deadline=None)  # a loaded machine is no fault of the value
@given(keys, json_values)
def test_any_value_anywhere_is_read_or_refused(key: str, value: object) -> None:
    body = parse_manifest_yaml(WHOLE, where="m").canonical() | {key: value}
    try:
        manifest = parse_manifest_json(body, where="m")
    except ManifestProblem:
        return
    assert parse_manifest_json(manifest.canonical(), where="m") == manifest


@pytest.mark.parametrize(
    ("version", "wanted", "good"),
    [
        ("5.4.2", ">=5.0", True),
        ("5.4.2", ">=5.0,<5.4", False),
        ("2.10", ">2.9", True),
        ("2.0", "==2.0.0", True),
        ("2.1.0-3", ">2.1.0-2", True),
        ("nonsense", ">=0", False),
    ],
)
def test_version_ranges_compare_numbers_not_text(version: str, wanted: str, good: bool) -> None:
    assert satisfies(version, wanted) is good


@given(st.integers(1, 999), st.sampled_from(["B", "KiB", "MiB", "GiB", "TiB"]))
def test_sizes_are_iec(number: int, unit: str) -> None:
    power = ["B", "KiB", "MiB", "GiB", "TiB"].index(unit)
    assert parse_size(f"{number}{unit}") == number * 1024**power
    assert parse_size(f"{number}{unit.replace('i', '')}") == (number if unit == "B" else None)
