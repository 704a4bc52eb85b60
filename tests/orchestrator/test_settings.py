"""Settings, secrets and ports that a node chooses: what holds, what is refused, what survives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.manifest import parse_manifest_json
from apps.problems import NotRunning, RolledBack, UsageProblem
from orchestrator.bundle import Bundle
from orchestrator.quadlet.text import parse
from orchestrator.settled import choose_ports, settle
from tests.orchestrator.bundles import app_name, container, make_bundle
from tests.orchestrator.nodes import Node, run

HELLO = app_name()
SETTINGS = [
    {"name": "greeting", "default": "Hello", "env": {"web": "GREETING"}},
    {"name": "upload", "type": "size", "default": "4GiB", "env": {"web": "MAX_UPLOAD"}},
    {"name": "unused", "type": "truth", "default": "false"},
]


def configurable(folder: Path, version: str = "1", **more: Any) -> Bundle:
    return make_bundle(folder, version, **({"settings": SETTINGS} | more))


def environment(node: Node) -> tuple[str, ...]:
    name = f"archy-{HELLO.slug}-web.container"
    return parse(name, (node.settings.unit_dir / name).read_text()).values("Container", "Environment")


def test_a_changed_setting_reaches_the_container_by_a_restart_and_holds(node: Node, tmp_path: Path) -> None:
    async def work() -> None:
        await node.orchestrator.install(configurable(tmp_path))
        settings = await node.orchestrator.configure(HELLO, {"upload": "1GiB", "greeting": "Hi there"})
        assert {s.name: s.value for s in settings} == {"greeting": "Hi there", "upload": "1GiB", "unused": "false"}
        assert ("restart", f"archy-{HELLO.slug}-web.service") in node.changes()
        assert environment(node) == ('"GREETING=Hi there"', "MAX_UPLOAD=1073741824")
        await node.orchestrator.install(configurable(tmp_path, "2"))
        await node.orchestrator.uninstall(HELLO, purge=False)
        await node.orchestrator.install(configurable(tmp_path, "2"))
        assert '"GREETING=Hi there"' in environment(node)
        await node.orchestrator.configure(HELLO, {"greeting": None})
        assert "GREETING=Hello" in environment(node)
        await node.orchestrator.uninstall(HELLO, purge=True)
        await node.orchestrator.install(configurable(tmp_path, "2"))
        assert "MAX_UPLOAD=4294967296" in environment(node)

    run(work)


def test_a_setting_that_nothing_reads_restarts_nothing(node: Node, tmp_path: Path) -> None:  # R-ST19
    async def work() -> None:
        await node.orchestrator.install(configurable(tmp_path))
        before = node.changes()
        await node.orchestrator.configure(HELLO, {"unused": "true"})
        assert node.changes() == before

    run(work)


def test_values_that_are_wrong_are_all_named_and_change_nothing(node: Node, tmp_path: Path) -> None:
    async def work() -> None:
        await node.orchestrator.install(configurable(tmp_path))
        before = node.changes()
        with pytest.raises(UsageProblem) as caught:
            await node.orchestrator.configure(
                HELLO, {"upload": "much", "unused": "yes", "nothing": "1", "greeting": "a\nExecStart=/bin/sh"}
            )
        for part in ("'much' is not a size", "'yes' is not a truth", "no setting 'nothing'", "is not a text"):
            assert part in str(caught.value)
        assert node.changes() == before
        assert {s.value for s in node.orchestrator.settings(HELLO)} == {"Hello", "4GiB", "false"}

    run(work)


def test_a_setting_that_makes_the_app_ill_is_taken_back(node: Node, tmp_path: Path) -> None:
    bundle = configurable(tmp_path)
    config = bundle.manifest.containers["web"].image.platforms[0].config  # type: ignore[union-attr]

    async def work() -> None:
        await node.orchestrator.install(bundle)
        node.world.ill.add(config)
        with pytest.raises(RolledBack, match="the old ones are back"):
            await node.orchestrator.configure(HELLO, {"greeting": "Boo"})
        assert "GREETING=Hello" in environment(node)
        assert node.orchestrator.settings(HELLO)[0].value == "Hello"

    run(work)


def test_a_stopped_app_takes_settings_and_stays_stopped(node: Node, tmp_path: Path) -> None:  # R-ST2
    async def work() -> None:
        await node.orchestrator.install(configurable(tmp_path))
        await node.orchestrator.stop(HELLO)
        await node.orchestrator.configure(HELLO, {"greeting": "Later"})
        assert not node.world.containers
        await node.orchestrator.start(HELLO)
        assert "GREETING=Later" in environment(node)

    run(work)


def test_a_value_that_a_new_version_does_not_take_gives_way_to_its_default(node: Node, tmp_path: Path) -> None:
    narrower = [{"name": "greeting", "type": "number", "default": "3", "env": {"web": "GREETING"}}]

    async def work() -> None:
        await node.orchestrator.install(configurable(tmp_path))
        await node.orchestrator.configure(HELLO, {"greeting": "many"})
        await node.orchestrator.install(configurable(tmp_path, "2", settings=narrower))
        assert "GREETING=3" in environment(node)

    run(work)


def test_secrets_are_shown_to_their_operator(node: Node, tmp_path: Path) -> None:
    async def work() -> None:
        with pytest.raises(NotRunning):
            node.orchestrator.secrets(HELLO)
        await node.orchestrator.install(make_bundle(tmp_path))
        value = node.world.secrets[f"archy-{HELLO.slug}-password"].decode()
        assert node.orchestrator.secrets(HELLO) == {"password": value}

    run(work)


def automatic(folder: Path, name: Any, version: str = "1") -> Bundle:
    ports = [{"name": "web", "container": 8080, "host": "auto"}]
    interfaces = [{"id": "ui", "type": "ui", "port": "web"}]
    box = {"web": container(ports=ports)}
    return make_bundle(folder, version, name=name, containers=box, interfaces=interfaces)


def test_an_automatic_port_is_free_kept_and_told(node: Node, tmp_path: Path) -> None:  # R-ST9, R-MF5
    other = app_name("world")
    node.world.held_ports[20000] = "process 77 (nginx)"

    async def work() -> None:
        first = await node.orchestrator.install(automatic(tmp_path, HELLO))
        second = await node.orchestrator.install(automatic(tmp_path, other))
        assert (first.urls, second.urls) == (("http://127.0.0.1:20001/",), ("http://127.0.0.1:20002/",))
        node.world.held_ports.clear()
        again = await node.orchestrator.install(automatic(tmp_path, other, "2"))
        assert again.urls == second.urls
        await node.orchestrator.uninstall(other, purge=False)
        back = await node.orchestrator.install(automatic(tmp_path, other, "2"))
        assert back.urls == second.urls
        node.restart()
        await node.settle()
        assert [status.urls for status in await node.orchestrator.status()] == [first.urls, second.urls]

    run(work)


@given(st.sets(st.integers(20000, 20010)), st.sets(st.integers(20000, 20010)))
def test_a_chosen_port_is_never_one_of_anothers(taken: set[int], held: set[int]) -> None:  # R-ST9, invariant 7
    ports = [{"name": f"p{n}", "container": 80 + n, "host": "auto"} for n in range(3)]
    ports.append({"name": "fixed", "container": 90, "host": 20003})
    image = {"ref": "localhost/x:1"}
    body = {"schema": 1, "id": "hello", "version": "1", "title": "x"}
    manifest = parse_manifest_json(body | {"containers": {"web": {"image": image, "ports": ports}}}, where="m")
    chosen = choose_ports(
        manifest,
        {("web", "p1"): 20005},
        frozenset((port, "tcp") for port in taken),
        lambda port, bind, protocol: "held" if port in held else "",
    )
    numbers = list(chosen.values())
    assert len(set(numbers)) == 3
    assert not set(numbers) & (taken | held | {20003})
    assert (chosen["web", "p1"] == 20005) == (20005 not in taken | held) or 20005 in numbers
    settled = settle(manifest, {}, chosen)
    assert [port.host for port in settled.containers["web"].ports] == [*numbers, 20003]
