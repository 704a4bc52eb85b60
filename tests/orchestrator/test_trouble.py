"""A pretended machine in trouble: Podman is silent, a disk is full, a record is damaged, an app fails for ever.

Nothing is stopped for it, and no app has to wait for another's trouble (R-ST4, R-ST11, R-ST18).
"""

from __future__ import annotations

import resource
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import trio

from apps.problems import Problem
from orchestrator.converge import wait_healthy
from orchestrator.faults import Busy, CommandTimedOut, StateProblem, Unhealthy
from orchestrator.generations import Generations
from orchestrator.health import Check
from orchestrator.podman import ContainerSeen
from tests.orchestrator.bundles import app_name, container, make_bundle
from tests.orchestrator.nodes import Node, run

HELLO = app_name()


def is_empty(node: Node) -> bool:
    world = node.world
    return not (node.units() or world.containers or world.networks or world.secrets or world.images or world.volumes)


def test_a_podman_that_does_not_answer_stops_nothing(node: Node, tmp_path: Path) -> None:  # R-ST18, R-ST11
    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        before, known = node.changes(), (await node.orchestrator.status())[0]
        for side in ("podman", "systemd"):
            node.world.broken = {side}
            await node.tick()
            (status,) = await node.orchestrator.status()
            assert status.detail.startswith("stale:")
            assert (status.version, status.containers) == (known.version, known.containers)
        assert node.changes() == before

    run(work)


def test_a_full_state_folder_is_told_and_changes_nothing(node: Node, tmp_path: Path) -> None:
    (node.settings.data_dir).mkdir(parents=True)
    (node.settings.data_dir / "staging").write_text("a file where a folder is needed")
    with pytest.raises(Problem, match="no room to work in"):
        run(lambda: node.orchestrator.install(make_bundle(tmp_path)))
    assert is_empty(node)


def test_a_state_database_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "state.db").mkdir()
    with pytest.raises(StateProblem, match="the state can not be stored"):
        Node(tmp_path)


def test_two_operations_on_one_app_do_not_mix(node: Node, tmp_path: Path) -> None:  # R-ST20
    async def work() -> None:
        bundle = make_bundle(tmp_path)
        config = bundle.manifest.containers["web"].image.platforms[0].config  # type: ignore[union-attr]
        node.world.ill.add(config)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.orchestrator.install, bundle)
            await trio.sleep(2)
            with pytest.raises(Busy, match="hello is installing"):
                await node.orchestrator.stop(HELLO)
            node.world.ill.clear()
        assert node.world.containers

    run(work)


def test_a_failing_app_is_retried_with_growing_pauses_and_delays_no_other(node: Node, tmp_path: Path) -> None:  # R-ST4
    other = app_name("world")

    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        await node.orchestrator.install(make_bundle(tmp_path, name=other, containers={"web": container(18081)}))
        bad, good = f"archy-{HELLO.slug}-web.service", f"archy-{other.slug}-web.service"
        node.world.crashing.add(node.world.containers[bad.removesuffix(".service")].image_id)
        node.world.stop(bad)
        await node.tick()
        node.world.stop(good)
        node.world.calls.clear()
        await node.tick()
        assert ("start", good) in node.changes()

    run(work)


def test_an_app_whose_record_is_damaged_delays_no_other(node: Node, tmp_path: Path) -> None:  # R-ST4
    other = app_name("world")

    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        await node.orchestrator.install(make_bundle(tmp_path, name=other, containers={"web": container(18081)}))
        database = sqlite3.connect(node.settings.state_db)
        with database:
            database.execute("UPDATE generations SET manifest = '{}' WHERE slug = ?", (HELLO.slug,))
        database.close()
        node.restart()
        good = f"archy-{other.slug}-web.service"
        node.world.stop(good)
        await node.tick()
        assert good.removesuffix(".service") in node.world.containers
        states = {status.name: status for status in await node.orchestrator.status()}
        assert (states[other].state, states[other].detail) == ("running", "")
        assert states[HELLO].detail.startswith("stale:")

    run(work)


def test_a_podman_that_hangs_keeps_nobody_waiting_for_a_list_that_is_known(
    node: Node, tmp_path: Path
) -> None:  # R-ST11
    async def forever(prefix: str) -> tuple[ContainerSeen, ...]:
        await trio.sleep(30)
        raise CommandTimedOut(("podman", "ps", "--all"), 30)

    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        node.podman.containers = forever  # type: ignore[method-assign]
        began = trio.current_time()
        (status,) = await node.orchestrator.status()
        assert trio.current_time() - began < 10
        assert status.state == "running"
        assert status.detail == "stale: no answer from this machine within 5 s"
        node.restart()
        (status,) = await node.orchestrator.status()
        told = "stale: podman ps --all did not end within 30 s (archy doctor says what does not answer)"
        assert (status.state, status.detail) == ("unknown", told)

    run(work)


def test_a_machine_that_does_not_answer_is_named_where_an_app_can_not_be_proven(node: Node, tmp_path: Path) -> None:
    async def work() -> None:
        bundle = make_bundle(tmp_path)
        await node.orchestrator.install(bundle)
        loaded = Generations(node.state, node.machine, "amd64").fresh(bundle, (5, 4, 2))
        node.world.broken = {"podman"}
        with pytest.raises(Unhealthy, match=r"in time \(5 s\): systemd or Podman did not answer"):
            await wait_healthy(node.machine, loaded, 5)

    run(work)


def test_an_app_that_is_removed_while_all_are_looked_at_is_no_fault(node: Node, tmp_path: Path) -> None:
    other = app_name("world")

    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        await node.orchestrator.install(make_bundle(tmp_path, name=other, containers={"web": container(18081)}))
        ask = node.machine.prober.ask

        async def slow(checks: Sequence[Check]) -> Mapping[str, str]:
            await node.orchestrator.uninstall(HELLO, purge=True)
            return await ask(checks)

        node.machine.prober.ask = slow  # type: ignore[method-assign]
        assert [status.name for status in await node.orchestrator.status()] == [other]

    run(work)


def test_what_the_disk_refuses_to_one_app_delays_no_other(node: Node, tmp_path: Path) -> None:  # R-ST4, chaos 6
    other = app_name("world")

    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        await node.orchestrator.install(make_bundle(tmp_path, name=other, containers={"web": container(18081)}))
        bad = node.settings.unit_dir / f"archy-{HELLO.slug}-web.container"
        bad.unlink()
        good = f"archy-{other.slug}-web.service"
        node.world.stop(good)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        # No file can grow, as on a full disk; what is only to be started needs none
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        try:
            await node.tick()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert good.removesuffix(".service") in node.world.containers
        await trio.sleep(400)
        await node.settle()
        assert bad.exists()

    run(work)
