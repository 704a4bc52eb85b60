"""SIGKILL between any two calls of an operation, then a new process: the old generation or the new one, whole."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from apps.problems import RolledBack
from orchestrator.bundle import Bundle
from orchestrator.faults import StateProblem, Unhealthy
from tests.fakes.podman_machine import Crash
from tests.orchestrator.bundles import app_name, container, make_bundle
from tests.orchestrator.nodes import Node, run

HELLO = app_name()
MOST_CALLS = 60
"""More calls than any of these operations makes; the loop ends at the first crash that comes too late."""


QUICK = {
    "web": container(health={"http": {"port": "web"}, "interval": 1, "retries": 1, "timeout": 1, "start_period": 0})
}
"""Given up after two seconds, so that not every call is a health check."""


async def crashes(node: Node, at: int, work: Callable[[], Awaitable[object]]) -> bool:
    """Did the process die in the n-th call of the work?"""
    node.world.crash_at = at
    with suppress(Crash, StateProblem, Unhealthy, RolledBack, BaseExceptionGroup):
        await work()
    dead = node.world.crashed
    node.world.crash_at = None
    return dead


def config(bundle: Bundle) -> str:
    image = bundle.manifest.containers["web"].image
    assert image is not None
    return image.platforms[0].config


def running(node: Node) -> list[str]:
    return [box.image_id for box in node.world.containers.values()]


@pytest.mark.parametrize("healthy", [True, False])
def test_a_crash_anywhere_in_a_first_install_leaves_all_or_nothing(tmp_path: Path, healthy: bool) -> None:
    for at in range(MOST_CALLS):
        folder = tmp_path / str(at)
        node, bundle = Node(folder), make_bundle(folder, containers=QUICK)
        if not healthy:
            node.world.ill.add(config(bundle))

        async def work(node: Node = node, bundle: Bundle = bundle, at: int = at) -> bool:
            dead = await crashes(node, at, lambda: node.orchestrator.install(bundle))
            if not dead:
                return False
            node.boot()
            await node.settle()
            world = node.world
            if node.orchestrator.installed():
                assert healthy
                assert running(node) == [config(bundle)]
            else:
                left = (node.units(), world.containers, world.networks, world.volumes, world.secrets, world.images)
                assert not any(left), f"crash at call {at} left {left}"
            assert not node.state.open_operations()
            return True

        if not run(work):
            assert at > 10
            return
    raise AssertionError("the operation never ended")


def test_a_crash_anywhere_in_an_update_leaves_the_old_or_the_new_with_its_data(tmp_path: Path) -> None:
    outcomes = set()
    for at in range(MOST_CALLS):
        folder = tmp_path / str(at)
        node = Node(folder)
        old, new = make_bundle(folder, "1"), make_bundle(folder, "2")

        async def work(node: Node = node, old: Bundle = old, new: Bundle = new, at: int = at) -> bool:
            await node.orchestrator.install(old)
            volumes, secrets = dict(node.world.volumes), dict(node.world.secrets)
            if not await crashes(node, at, lambda: node.orchestrator.install(new)):
                return False
            node.boot()
            await node.settle()
            ((_, version, _),) = node.orchestrator.installed()
            outcomes.add(version)
            assert running(node) == [config(old if version == "1" else new)], f"crash at call {at}"
            assert (node.world.volumes, node.world.secrets) == (volumes, secrets)
            assert not node.state.open_operations()
            return True

        if not run(work):
            assert outcomes == {"1", "2"}
            return
    raise AssertionError("the operation never ended")


def test_a_crash_anywhere_in_an_uninstall_is_finished_by_the_next_process(tmp_path: Path) -> None:
    for at in range(MOST_CALLS):
        folder = tmp_path / str(at)
        node, bundle = Node(folder), make_bundle(folder)

        async def work(node: Node = node, bundle: Bundle = bundle, at: int = at) -> bool:
            await node.orchestrator.install(bundle)
            volumes = dict(node.world.volumes)
            if not await crashes(node, at, lambda: node.orchestrator.uninstall(HELLO, purge=False)):
                return False
            node.boot()
            await node.settle()
            world = node.world
            gone = not (node.units() or world.containers or world.networks or world.secrets or world.images)
            assert gone == (not node.orchestrator.installed()), f"crash at call {at}"
            assert world.volumes == volumes
            return True

        if not run(work):
            return
    raise AssertionError("the operation never ended")


@pytest.mark.parametrize("ill", [True, False])
def test_a_crash_anywhere_in_a_change_of_settings_leaves_what_the_app_does_well_with(tmp_path: Path, ill: bool) -> None:
    settings = [{"name": "greeting", "default": "Hello", "env": {"web": "GREETING"}}]
    seen = set()
    for at in range(MOST_CALLS):
        folder = tmp_path / str(at)
        node, bundle = Node(folder), make_bundle(folder, containers=QUICK, settings=settings)

        async def work(node: Node = node, bundle: Bundle = bundle, at: int = at) -> bool:
            await node.orchestrator.install(bundle)
            if ill:
                node.world.ill.add(config(bundle))
            if not await crashes(node, at, lambda: node.orchestrator.configure(HELLO, {"greeting": "Boo"})):
                return False
            node.boot()
            await node.settle()
            value = node.orchestrator.settings(HELLO)[0].value
            [unit] = [path for path in node.settings.unit_dir.iterdir() if path.name.endswith("-web.container")]
            assert f"GREETING={value}" in unit.read_text(), f"crash at call {at}"
            assert value == "Hello" or not ill, f"crash at call {at}"
            assert not node.state.choices.on_trial()
            seen.add(value)
            return True

        if not run(work):
            assert seen == ({"Hello"} if ill else {"Boo"})
            return
    raise AssertionError("the change never ended")
