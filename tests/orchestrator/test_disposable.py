"""Volumes that a publisher would have go with the app: they go when the operator says so, and never else (R-ST10)."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.problems import Problem, UsageProblem
from orchestrator.bundle import Bundle
from tests.fakes.podman_machine import Crash
from tests.orchestrator.bundles import app_name, container, make_bundle
from tests.orchestrator.nodes import Node, run

HELLO = app_name()
DATA, CACHE = f"archy-{HELLO.slug}-data", f"archy-{HELLO.slug}-cache"


def cached(folder: Path) -> Bundle:
    mounts = [{"volume": "data", "path": "/data"}, {"volume": "cache", "path": "/cache"}]
    volumes = {"data": {}, "cache": {"on_uninstall": "remove"}}
    return make_bundle(folder, containers={"web": container(mounts=mounts)}, volumes=volumes)


async def installed(node: Node, folder: Path) -> None:
    await node.orchestrator.install(cached(folder))
    assert {DATA, CACHE} <= set(node.world.volumes)


def test_a_plain_uninstall_keeps_every_volume(node: Node, tmp_path: Path) -> None:
    async def work() -> None:
        await installed(node, tmp_path)
        assert node.orchestrator.disposable(HELLO) == ("cache",)
        await node.orchestrator.uninstall(HELLO, purge=False)
        assert {DATA, CACHE} <= set(node.world.volumes)

    run(work)


def test_a_volume_that_its_operator_lets_go_goes_alone(node: Node, tmp_path: Path) -> None:
    async def work() -> None:
        await installed(node, tmp_path)
        await node.orchestrator.uninstall(HELLO, purge=False, drop=("cache",))
        assert DATA in node.world.volumes
        assert CACHE not in node.world.volumes
        assert node.machine.secrets.known(HELLO), "secrets are data too"
        assert (await node.orchestrator.install(cached(tmp_path))).state == "running"
        assert node.world.volumes[DATA][1].startswith("data of")

    run(work)


@pytest.mark.parametrize("name", ["data", "nothing", ""])
def test_a_volume_that_is_to_be_kept_does_not_go_without_a_purge(node: Node, tmp_path: Path, name: str) -> None:
    async def work() -> None:
        await installed(node, tmp_path)
        with pytest.raises(UsageProblem, match="has no volume"):
            await node.orchestrator.uninstall(HELLO, purge=False, drop=("cache", name))
        assert {DATA, CACHE} <= set(node.world.volumes)
        assert node.world.containers, "the app is gone all the same"

    run(work)


@pytest.mark.parametrize("crash_at", range(16))
def test_a_kill_forgets_neither_what_goes_nor_what_stays(node: Node, tmp_path: Path, crash_at: int) -> None:
    async def work() -> None:
        await installed(node, tmp_path)
        node.world.crash_at = crash_at
        begun = True
        try:
            await node.orchestrator.uninstall(HELLO, purge=False, drop=("cache",))
        except (Crash, BaseExceptionGroup, Problem):
            begun = False
        node.world.crash_at = None
        if node.world.crashed:
            node.boot()
        await node.settle()
        gone = not node.orchestrator.installed()
        assert gone or not begun
        assert (CACHE not in node.world.volumes) == gone
        assert DATA in node.world.volumes

    run(work)
