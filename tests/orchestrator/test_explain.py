"""`archy app render --explain`: every line has its reason, and what is explained is still the same unit."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.manifest import parse_manifest_yaml
from orchestrator.links import Installed, linked
from orchestrator.names import Names
from orchestrator.preview import render_units
from orchestrator.quadlet.explain import WHY, explain, lines
from orchestrator.quadlet.keys import SINCE, Version
from orchestrator.quadlet.render import Target, render
from orchestrator.quadlet.text import parse
from tests.orchestrator.bundles import app_name
from tests.orchestrator.test_render import NAMES, built_stack, stack

PROJECT = Path(__file__).parents[2]
MANIFESTS = sorted([*PROJECT.glob("apps/*/manifest.yml"), *PROJECT.glob("tests/system/gate/apps/*/manifest.yml")])


def stack_units(podman: Version = (5, 4, 2)) -> dict[str, str]:
    """A stack without internet that needs another app, by file."""
    own = Installed(NAMES.app, stack(), "running")
    other = Installed(app_name("other"), stack(id="other", exports=[{"name": "api", "port": "web"}]), "running")
    app = render(stack(), NAMES, Target("archy", podman, "amd64"), linked(own, {"other": other}, [], "archy"))
    return {**app.files, **app.boot}


def whys(text: str, key: str) -> list[str]:
    return [line.why for line in lines(text) if line.key == key]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.parent.name)
def test_every_line_of_the_apps_in_this_project_has_a_reason(path: Path) -> None:
    manifest = parse_manifest_yaml(path.read_bytes(), where=str(path))
    units = render_units(app_name(manifest.id), manifest, arch="amd64", podman="5.4.2")
    assert units
    for name, text in units.items():
        assert [line for line in lines(text) if not line.why] == [], name


@pytest.mark.parametrize("podman", [(5, 0, 0), (5, 4, 2)])
def test_what_is_explained_is_the_same_unit_line_by_line(podman: Version) -> None:
    for name, text in stack_units(podman).items():
        assert all(line.why for line in lines(text)), name
        assert parse(name, explain(text)) == parse(name, text)
        assert [line for line in explain(text).splitlines() if line in text.splitlines()] == text.splitlines()


def test_a_reason_that_lines_in_a_row_share_is_told_once() -> None:
    told = explain(stack_units()[f"{NAMES.container('db')}.container"])
    assert told.count("# `health.cmd`") == 1
    assert "# started means healthy" in told


def test_a_key_that_means_two_things_is_explained_by_its_value() -> None:
    units = stack_units()
    web = units[f"{NAMES.container('web')}.container"]
    assert len(set(whys(web, "After"))) == 2
    assert len(set(whys(web, "Network"))) == 2
    assert len(set(whys(web, "Label"))) == len(whys(web, "Label")) == 5
    assert "writes beside its volumes" in whys(web, "ReadOnly")[0]
    assert "can not be changed" in whys(units[f"{NAMES.container('db')}.container"], "ReadOnly")[0]
    assert all("`permissions.internet: none`" in why for why in whys(units[f"{NAMES.network}.network"], "DNS"))


def test_an_option_that_stands_for_a_newer_key_is_explained_as_that_key() -> None:
    web = stack_units((5, 0, 0))[f"{NAMES.container('web')}.container"]
    assert whys(web, "PodmanArgs")[0] == f"AddHost=, as this Podman has to be told it: {WHY['Container', 'AddHost']}"


def test_no_sentence_is_about_a_key_that_no_unit_may_have() -> None:
    assert [key for section, key in WHY if section in SINCE and key not in SINCE[section]] == []


def test_a_line_of_somebody_else_has_no_invented_reason() -> None:
    (line,) = lines("[Service]\nExecStart=/bin/sh\n")
    assert line.why == ""
    assert explain("[Service]\nExecStart=/bin/sh\n") == "[Service]\nExecStart=/bin/sh\n"


def test_every_line_of_a_build_has_a_reason_of_its_own() -> None:
    app = render(built_stack(), NAMES, Target("archy", (5, 4, 2), "amd64"))
    text = app.files[f"{NAMES.container('web')}.build"]
    assert [line for line in lines(text) if not line.why] == []
    assert parse("x", explain(text)) == parse("x", text)
    assert "no step is taken from an image in the store" in whys(text, "PodmanArgs")[0]
    assert whys(text, "MemoryMax")[0] == "the node's own limit for every build, whatever it is a build of"
    web = app.files[f"{NAMES.container('web')}.container"]
    assert "digest of all that its image is built of: other inputs, another container" in whys(web, "Label")


def test_derived_files_and_volumes_are_told_apart() -> None:
    path = PROJECT / "tests/system/gate/apps/chain/manifest.yml"
    manifest = parse_manifest_yaml(path.read_bytes(), where=str(path))
    names = Names("archy", app_name("chain"))
    units = render_units(names.app, manifest, arch="amd64", podman="5.4.2")
    reasons = whys(units[f"{names.container('web')}.container"], "Volume")
    assert [why.split(":")[0] for why in reasons] == ["`mounts`", "`derived_files`"]
