"""Rendering: golden files, the same bytes for the same input, and text that nothing can break out of."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.manifest import Manifest, parse_manifest_json
from apps.problems import Problem, Refused
from orchestrator.names import Names, service_of
from orchestrator.preview import render_units
from orchestrator.quadlet.build import Built
from orchestrator.quadlet.keys import SINCE, Version, parse_version
from orchestrator.quadlet.render import Target, render
from orchestrator.quadlet.rendered import RenderedApp, RenderedContainer
from orchestrator.quadlet.text import Section, UnitFile, keys_of, owner_of, parse, word
from tests.orchestrator.bundles import app_name

GOLDEN = Path(__file__).parent / "golden"
NAMES = Names("archy", app_name())


def image(digit: str) -> dict[str, Any]:
    platform = {
        "arch": "amd64",
        "manifest": f"sha256:{digit * 64}",
        "config": f"sha256:{'f' * 63}{digit}",
        "index": {"blake3": "0" * 64, "size": 1},
    }
    return {"ref": "localhost/x:1", "platforms": [platform]}


def stack(**more: Any) -> Manifest:
    body: dict[str, Any] = {
        "schema": 1,
        "id": "hello",
        "version": "1.0-1",
        "title": "Hello",
        "generated_secrets": [{"name": "password"}],
        "volumes": {"data": {}, "db": {"owner": "999:999"}},
        "settings": [{"name": "upload", "type": "size", "default": "4GiB", "env": {"web": "MAX_UPLOAD"}}],
        "containers": {
            "web": {
                "image": image("1"),
                "needs": ["db"],
                "command": ["serve", "--title", '100% "mine" $HOME'],
                "entrypoint": ["/init"],
                "environment": {"GREETING": "it's a 'nice' \\day", "PLAIN": "x"},
                "ports": [
                    {"name": "web", "container": 80, "host": 8080, "bind": "lan"},
                    {"name": "admin", "container": 81, "host": 8081},
                    {"name": "dns", "container": 53, "host": 5353, "protocol": "udp"},
                    {"name": "inner", "container": 82},
                ],
                "secrets": [{"name": "password", "file": "/run/secrets/password"}],
                "mounts": [{"volume": "data", "path": "/data", "read_only": True}],
                "health": {"http": {"port": "web", "path": "/ping"}},
                "resources": {"memory": 1 << 29, "cpus": "1.5", "pids": 100},
                "security": {
                    "capabilities": ["NET_BIND_SERVICE", "CHOWN"],
                    "read_only": False,
                    "devices": ["/dev/dri"],
                },
                "stop_grace_secs": 60,
            },
            "db": {
                "image": image("2"),
                "user": "999",
                "network_aliases": ["database"],
                "secrets": [{"name": "password", "env": "DB_PASSWORD"}],
                "mounts": [{"volume": "db", "path": "/var/lib/db", "exclusive": True}],
                "health": {"cmd": ["ready", "-U", "a b"], "interval": 10, "retries": 5, "start_period": 30},
            },
        },
    }
    return parse_manifest_json(body | more, where="m")


def built_stack(**more: Any) -> Manifest:
    """A stack whose web is built, from a file of its own and the image of db."""
    body = stack().canonical()
    body["containers"]["web"] = {"build": {"context": "build/web", "bases": [f"sha256:{'2' * 64}"]}, "needs": ["db"]}
    files = {"build/web/Containerfile": "1", "build/web/page": "2", "beside": "3"}
    body["files"] = {path: {"blake3": digit * 64, "size": 9} for path, digit in files.items()}
    return parse_manifest_json(body | {"settings": []} | more, where="m")


def rendered(manifest: Manifest, podman: Version = (5, 4, 2)) -> RenderedApp:
    return render(manifest, NAMES, Target("archy", podman, "amd64"))


def everything(app: RenderedApp) -> str:
    files = {**app.files, **app.boot}
    return "".join(f"=== {name}\n{text}\n" for name, text in sorted(files.items()))


@pytest.mark.parametrize(
    ("name", "manifest", "podman"),
    [
        ("stack", stack(), (5, 4, 2)),
        ("stack-5.0", stack(), (5, 0, 0)),
        ("outbound", stack(permissions={"internet": "outbound"}), (5, 4, 2)),
        ("built", built_stack(), (5, 4, 2)),
    ],
)
def test_units_are_as_in_the_golden_files(name: str, manifest: Manifest, podman: Version) -> None:
    path = GOLDEN / f"{name}.txt"
    text = everything(rendered(manifest, podman))
    if os.environ.get("ARCHY_GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text(), "ARCHY_GOLDEN=write writes them again"


def test_a_newer_podman_that_is_told_otherwise_restarts_nothing() -> None:  # R-ST19
    old, new = rendered(stack(), (5, 0, 0)), rendered(stack(), (5, 4, 2))
    assert dict(old.files) != dict(new.files)
    assert [c.spec for c in old.containers] == [c.spec for c in new.containers]
    assert old.network_spec == new.network_spec


def test_a_change_of_what_runs_restarts_and_one_of_how_it_is_watched_does_not() -> None:  # R-ST19
    def spec(**more: object) -> str:
        body = stack().canonical()
        body["containers"]["db"] |= more
        return {c.label: c.spec for c in rendered(parse_manifest_json(body, where="m")).containers}["db"]

    same = spec()
    assert spec(user="998") != same
    assert spec(environment={"A": "b"}) != same
    assert spec(resources={"memory": 1 << 28}) != same
    assert spec(needs=[]) == same


def test_rendering_twice_gives_the_same_bytes_whatever_the_order_of_the_manifest() -> None:  # invariant 12
    body = stack().canonical()
    turned = {key: dict(reversed(value.items())) if isinstance(value, dict) else value for key, value in body.items()}
    assert everything(rendered(parse_manifest_json(turned, where="m"))) == everything(rendered(stack()))


@pytest.mark.parametrize("manifest", [stack(), built_stack()], ids=["stack", "built"])
def test_what_is_printed_parses_back(manifest: Manifest) -> None:
    for name, text in {**rendered(manifest).files, **rendered(manifest).boot}.items():
        unit = parse(name, text)
        assert unit.text() == text
        assert owner_of(text) == NAMES.slug


@pytest.mark.parametrize("podman", [(5, 0, 0), (5, 2, 0), (5, 4, 2), (6, 0, 0)])
def test_only_keys_that_this_podman_knows_are_written(podman: Version) -> None:  # R-MF9
    manifest = built_stack() if podman >= (5, 2, 0) else stack()
    for name, text in rendered(manifest, podman).files.items():
        for section, key in keys_of(parse(name, text)):
            if section in SINCE:
                assert SINCE[section][key] <= podman


def test_every_image_is_pinned_and_never_pulled() -> None:  # R-MF11
    for container in rendered(stack()).containers:
        unit = parse(container.unit, rendered(stack()).files[container.unit])
        assert "@sha256:" in container.image
        assert unit.values("Container", "Image") == (container.image,)
        assert unit.values("Container", "Pull") == ("never",)


def test_everything_is_dropped_that_was_not_declared() -> None:  # R-MF7
    unit = parse("db", rendered(stack()).files[f"{NAMES.container('db')}.container"])
    assert unit.values("Container", "DropCapability") == ("all",)
    assert unit.values("Container", "AddCapability") == ()
    assert unit.values("Container", "NoNewPrivileges") == ("true",)
    assert unit.values("Container", "ReadOnly") == ("true",)


def test_grace_and_deadline_follow_the_manifest() -> None:  # R-ST1
    unit = parse("web", rendered(stack()).files[f"{NAMES.container('web')}.container"])
    assert unit.values("Container", "StopTimeout") == ("60",)
    assert unit.values("Service", "TimeoutStopSec") == ("75",)


def test_only_what_changed_gets_another_specification() -> None:  # R-ST19
    before = {c.label: c.spec for c in rendered(stack()).containers}
    body = stack().canonical()
    body["containers"]["web"]["environment"]["PLAIN"] = "y"
    after = {c.label: c.spec for c in rendered(parse_manifest_json(body, where="m")).containers}
    assert before["db"] == after["db"]
    assert before["web"] != after["web"]


def test_no_two_units_make_one_service() -> None:
    services = [service_of(name) for name in rendered(built_stack()).files]
    assert len(services) == len(set(services))


def test_an_image_for_another_architecture_is_refused() -> None:
    with pytest.raises(Refused, match="no image for riscv64"):
        render(stack(), NAMES, Target("archy", (5, 4, 2), "riscv64"))


def test_a_podman_without_units_for_builds_is_refused_by_name() -> None:  # R-MF9
    with pytest.raises(Refused, match=r"Podman 5\.1\.0 has no units for builds, 5\.2\.0 is needed"):
        rendered(built_stack(), (5, 1, 0))


BUILT = Built(f"sha256:{'7' * 64}", f"sha256:{'8' * 64}")


def test_what_is_not_built_yet_is_pinned_to_a_digest_that_nothing_has() -> None:  # R-MF11
    web = next(box for box in rendered(built_stack()).containers if box.label == "web")
    assert (web.image, web.config) == (f"{NAMES.image('web')}@sha256:{'0' * 64}", "")


def test_what_was_built_is_pinned_and_everything_else_stays_as_it_was() -> None:  # R-MF11, R-ST19
    before = rendered(built_stack(), (5, 4, 2))
    web = next(box for box in before.containers if box.label == "web")
    assert web.build is not None
    after = before.with_built({web.build.tag: BUILT, f"{NAMES.image('db')}:x": BUILT})
    (changed,) = [name for name in before.files if before.files[name] != after.files[name]]
    assert changed == web.unit
    assert after.files[web.unit] == before.files[web.unit].replace("0" * 64, "7" * 64)
    assert [(box.label, box.spec) for box in before.containers] == [(box.label, box.spec) for box in after.containers]
    assert {box.label: box.config for box in after.containers}["web"] == BUILT.id
    assert after.with_built({web.build.tag: BUILT}) == after
    again = after.with_built({web.build.tag: replace(BUILT, digest=f"sha256:{'9' * 64}")})
    assert parse("x", again.files[web.unit]).values("Container", "Image") == (
        f"{NAMES.image('web')}@sha256:{'9' * 64}",
    )


def test_a_value_that_looks_like_the_pin_is_not_taken_for_it() -> None:
    trap = f"Image={NAMES.image('web')}@sha256:{'0' * 64}"
    body = built_stack().canonical()
    body["containers"]["web"]["environment"] = {"A": trap}
    body["title"] = trap[:60]
    app = rendered(parse_manifest_json(body, where="m"))
    web = next(box for box in app.containers if box.label == "web")
    assert web.build is not None
    unit = parse("x", app.with_built({web.build.tag: BUILT}).files[web.unit])
    assert unit.values("Container", "Image") == (f"{NAMES.image('web')}@{BUILT.digest}",)
    assert unit.values("Container", "Environment") == (f"A={trap}",)


def test_another_byte_in_a_context_is_another_tag_and_another_container() -> None:  # R-ST19, R-MF12
    def web(page: str) -> RenderedContainer:
        body = built_stack().canonical()
        body["files"]["build/web/page"]["blake3"] = page * 64
        return next(box for box in rendered(parse_manifest_json(body, where="m")).containers if box.label == "web")

    one, same, other = web("2"), web("2"), web("4")
    assert one == same
    assert one.build is not None
    assert other.build is not None
    assert one.build.tag != other.build.tag
    assert one.spec != other.spec


def test_a_build_has_no_network_no_registry_no_cache_and_an_end() -> None:  # R-MF12
    app = rendered(built_stack())
    unit = parse("x", app.files[f"{NAMES.container('web')}.build"])
    assert unit.values("Build", "Network") == ("none",)
    assert unit.values("Build", "Pull") == ("never",)
    assert {"--no-cache", "--layers=false", "--cap-drop=all"} <= set(unit.values("Build", "PodmanArgs"))
    assert unit.values("Service", "TimeoutStartSec") == ("900",)
    assert unit.values("Service", "Slice") == ("archy-apps.slice",)
    assert not any(name.startswith(f"{unit.name}.d") for name in app.boot), "a build starts with the machine"


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=30))  # type: ignore[arg-type]
def test_no_value_starts_a_line_of_its_own(value: str) -> None:
    unit = UnitFile("x.container", "hello", (Section("Container", (("Environment", word(value)),)),))
    try:
        text = unit.text()
    except Problem:
        return
    assert parse("x.container", text) == unit


@pytest.mark.parametrize("value", ["a\nExecStart=/bin/sh", "a\rb", "a\\", " a", "a\u2028b", "\x00"])
def test_a_raw_value_that_could_break_out_is_refused(value: str) -> None:
    with pytest.raises(Problem, match="not a value for a unit file"):
        UnitFile("x", "hello", (Section("Unit", (("Description", value),)),)).text()


def test_an_unpacked_manifest_can_be_looked_at() -> None:
    body = {
        "id": "hello",
        "version": "1",
        "schema": 1,
        "title": "x",
        "containers": {"web": {"image": {"ref": "a.b/c:1"}}},
    }
    units = render_units(app_name(), parse_manifest_json(body, where="m"), arch="arm64", podman="5.4.2")
    assert f"@sha256:{'0' * 64}" in units[f"{NAMES.container('web')}.container"]
    assert f"{NAMES.container('web')}.container.d/10-boot.conf" in units
    with pytest.raises(ValueError, match="invalid literal"):
        render_units(app_name(), stack(), arch="amd64", podman="new")


def test_podman_versions_are_read() -> None:
    assert [parse_version(text) for text in ("5.4.2", "5.5.0-rc1", "6", "5.4.2+ds1")] == [
        (5, 4, 2),
        (5, 5, 0),
        (6, 0, 0),
        (5, 4, 2),
    ]
