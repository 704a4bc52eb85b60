"""An app's life on a pretended machine, through the orchestrator's own door."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from apps.problems import EnvironmentLacks, NotRunning, Refused, RolledBack
from orchestrator.faults import PortTaken, Unhealthy, UnitRefused
from orchestrator.quadlet.keys import SINCE
from orchestrator.status import Progress
from tests.orchestrator.bundles import app_name, container, make_bundle, write_layout
from tests.orchestrator.nodes import Node, run

HELLO = app_name()


def config_of(node: Node) -> str:
    (box,) = node.world.containers.values()
    return box.image_id


def is_empty(node: Node) -> bool:
    world = node.world
    return not (node.units() or world.containers or world.networks or world.secrets or world.images or world.volumes)


def test_an_installed_app_runs_as_a_unit_and_says_where_it_is(node: Node, tmp_path: Path) -> None:
    told: list[Progress] = []
    bundle = make_bundle(tmp_path, interfaces=[{"id": "ui", "type": "ui", "port": "web"}])
    status = run(lambda: node.orchestrator.install(bundle, report=told.append))
    assert (status.state, status.desired, status.version) == ("running", "running", "1.0.0")
    assert status.urls == ("http://127.0.0.1:18080/",)
    assert status.units == (f"archy-{HELLO.slug}-web.service",)
    assert [p.phase for p in told] == ["verify", "import", "write", "start", "health", "done"]
    assert node.orchestrator.installed() == ((HELLO, "1.0.0", bundle.digest),)
    assert status.to_json()["containers"] == [status.containers[0].to_json()]


def test_planning_again_plans_nothing(node: Node, tmp_path: Path) -> None:  # R-ST15
    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        before = node.changes()
        await node.tick()
        await node.tick()
        assert node.changes() == before

    run(work)


def test_a_user_stop_holds_through_ticks_restart_and_reboot(node: Node, tmp_path: Path) -> None:  # R-ST2
    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        status = await node.orchestrator.stop(HELLO)
        assert (status.state, status.desired) == ("stopped", "stopped")
        await node.settle()
        node.restart()
        node.world.reboot()
        await node.settle()
        assert not node.world.containers
        assert not any("10-boot.conf" in unit for unit in node.units())
        assert (await node.orchestrator.start(HELLO)).state == "running"

    run(work)


def test_a_restart_makes_new_containers_and_is_refused_for_what_its_user_stopped(
    node: Node, tmp_path: Path
) -> None:  # R-ST2
    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        (before,) = node.world.containers.values()
        assert (await node.orchestrator.restart(HELLO)).state == "running"
        (after,) = node.world.containers.values()
        assert after is not before
        await node.orchestrator.stop(HELLO)
        with pytest.raises(NotRunning, match="was stopped"):
            await node.orchestrator.restart(HELLO)
        assert not node.world.containers

    run(work)


def test_a_running_app_is_back_after_a_reboot_without_the_orchestrator(node: Node, tmp_path: Path) -> None:
    run(lambda: node.orchestrator.install(make_bundle(tmp_path)))
    node.world.reboot()
    assert node.world.containers


def test_restarting_the_orchestrator_restarts_nothing(node: Node, tmp_path: Path) -> None:  # R-ST16
    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        before = node.changes()
        node.restart()
        await node.settle()
        assert node.changes() == before

    run(work)


def test_start_makes_a_missing_unit_again(node: Node, tmp_path: Path) -> None:  # R-ST6
    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        before = node.units()
        for name in before:
            (node.settings.unit_dir / name).unlink()
        await node.settle()
        assert node.units() == before
        assert node.world.containers

    run(work)


def test_a_container_killed_behind_its_back_is_started_again(node: Node, tmp_path: Path) -> None:
    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        node.world.stop(f"archy-{HELLO.slug}-web.service")
        await node.settle()
        assert node.world.containers

    run(work)


def test_a_network_lost_behind_its_back_is_made_again(node: Node, tmp_path: Path) -> None:
    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        node.world.networks.clear()
        node.world.containers.clear()
        node.world.services.pop(f"archy-{HELLO.slug}-web.service")
        await node.settle()
        assert node.world.containers
        assert node.world.networks

    run(work)


def test_an_update_keeps_data_and_secrets_and_changes_the_image(node: Node, tmp_path: Path) -> None:  # R-MF5
    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path, "1.0.0"))
        volumes, secrets, old = dict(node.world.volumes), dict(node.world.secrets), config_of(node)
        status = await node.orchestrator.install(make_bundle(tmp_path, "1.1.0"))
        assert status.version == "1.1.0"
        assert (node.world.volumes, node.world.secrets) == (volumes, secrets)
        assert config_of(node) != old

    run(work)


def test_only_two_generations_of_images_are_kept(node: Node, tmp_path: Path) -> None:
    async def work() -> None:
        for version in ("1", "2", "3", "4"):
            await node.orchestrator.install(make_bundle(tmp_path, version))
        assert len(node.world.images) == 2

    run(work)


def test_a_changed_manifest_restarts_only_the_container_it_changed(node: Node, tmp_path: Path) -> None:  # R-ST19
    web, db = container(needs=["db"]), {"health": {"tcp": {"port": 5432}}}

    async def work() -> None:
        layouts = {"web": web, "db": db}
        first = make_bundle(tmp_path, "1", containers=layouts)
        await node.orchestrator.install(first)
        images = {label: {"image": c.image.canonical()} for label, c in first.manifest.containers.items() if c.image}
        second = make_bundle(
            tmp_path,
            "2",
            containers={
                "web": web | images["web"] | {"environment": {"NEW": "1"}},
                "db": db | images["db"],
            },
        )
        for label in ("web", "db"):
            write_layout(second.layout(label), f"{label} 1".encode())
        node.world.calls.clear()
        await node.orchestrator.install(second)
        assert [call for call in node.changes() if call[0] == "restart"] == [
            ("restart", f"archy-{HELLO.slug}-web.service")
        ]
        assert not [call for call in node.changes() if call[0] in ("start", "stop")]

    run(work)


def test_an_update_that_never_gets_healthy_is_rolled_back(node: Node, tmp_path: Path) -> None:  # R-FM5
    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path, "1"))
        old, volumes = config_of(node), dict(node.world.volumes)
        bad = make_bundle(tmp_path, "2")
        node.world.ill.add(bad.manifest.containers["web"].image.platforms[0].config)  # type: ignore[union-attr]
        with pytest.raises(RolledBack, match="version 1 is back"):
            await node.orchestrator.install(bad)
        assert config_of(node) == old
        assert node.world.volumes == volumes
        assert len(node.world.images) == 1
        assert (await node.orchestrator.status())[0].version == "1"

    run(work)


def test_a_failed_first_install_leaves_nothing_behind(node: Node, tmp_path: Path) -> None:
    async def work() -> None:
        bad = make_bundle(tmp_path)
        node.world.crashing.add(bad.manifest.containers["web"].image.platforms[0].config)  # type: ignore[union-attr]
        with pytest.raises(Unhealthy, match="ends as soon as it is started: exit code 1"):
            await node.orchestrator.install(bad)
        assert is_empty(node)
        assert node.orchestrator.installed() == ()
        assert not list((node.settings.data_dir / "secrets").rglob("*"))

    run(work)


def test_a_cancelled_install_leaves_nothing_behind(node: Node, tmp_path: Path) -> None:
    async def work() -> None:
        bad = make_bundle(tmp_path)
        node.world.ill.add(bad.manifest.containers["web"].image.platforms[0].config)  # type: ignore[union-attr]
        with trio.move_on_after(1):
            await node.orchestrator.install(bad)
        assert is_empty(node)

    run(work)


def test_uninstall_keeps_the_data_and_install_finds_it_again(node: Node, tmp_path: Path) -> None:  # R-ST10, R-MF3
    async def work() -> None:
        bundle = make_bundle(tmp_path)
        await node.orchestrator.install(bundle)
        volumes, secrets = dict(node.world.volumes), dict(node.world.secrets)
        await node.orchestrator.uninstall(HELLO, purge=False)
        world = node.world
        assert not any((node.units(), world.containers, world.networks, world.secrets, world.images))
        assert world.volumes == volumes
        await node.orchestrator.install(bundle)
        assert (world.volumes, world.secrets) == (volumes, secrets)

    run(work)


def test_purge_removes_the_data_too(node: Node, tmp_path: Path) -> None:
    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        await node.orchestrator.uninstall(HELLO, purge=True)
        assert is_empty(node)
        assert not list((node.settings.data_dir / "secrets").rglob("*"))
        with pytest.raises(NotRunning, match="not installed"):
            await node.orchestrator.uninstall(HELLO, purge=False)

    run(work)


def test_a_failed_reinstall_over_kept_data_keeps_it(node: Node, tmp_path: Path) -> None:
    async def work() -> None:
        bundle = make_bundle(tmp_path)
        await node.orchestrator.install(bundle)
        volumes = dict(node.world.volumes)
        secret = (node.settings.data_dir / "secrets" / HELLO.slug / "password").read_bytes()
        await node.orchestrator.uninstall(HELLO, purge=False)
        node.world.ill.add(bundle.manifest.containers["web"].image.platforms[0].config)  # type: ignore[union-attr]
        with pytest.raises(Unhealthy):
            await node.orchestrator.install(bundle)
        assert node.world.volumes == volumes
        assert (node.settings.data_dir / "secrets" / HELLO.slug / "password").read_bytes() == secret

    run(work)


def test_uninstalling_one_publishers_app_leaves_the_others_of_that_name(node: Node, tmp_path: Path) -> None:  # R-MF14
    mallory = app_name("hello", "did:key:zMallory")

    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        await node.orchestrator.install(make_bundle(tmp_path, name=mallory, containers={"web": container(18081)}))
        await node.orchestrator.uninstall(mallory, purge=True)
        assert set(node.world.containers) == {f"archy-{HELLO.slug}-web"}
        assert set(node.world.volumes) == {f"archy-{HELLO.slug}-data"}

    run(work)


def test_an_app_whose_id_begins_with_anothers_name_is_not_taken_for_it(node: Node, tmp_path: Path) -> None:  # R-MF14
    lookalike = app_name(f"{HELLO.slug}-x", "did:key:zMallory")

    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        await node.orchestrator.install(make_bundle(tmp_path, name=lookalike, containers={"web": container(18081)}))
        before = dict(node.world.secrets)
        await node.orchestrator.uninstall(HELLO, purge=True)
        assert set(node.world.containers) == {f"archy-{lookalike.slug}-web"}
        assert node.world.secrets == {name: value for name, value in before.items() if lookalike.slug in name}

    run(work)


def test_two_apps_that_want_one_port_are_told_of_both(node: Node, tmp_path: Path) -> None:  # R-ST9
    other = app_name("world")

    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        before, calls = node.units(), node.changes()
        with pytest.raises(
            PortTaken, match=r"host port 18080 of world is already hello's \(containers\.web\.ports\[0\]"
        ):
            await node.orchestrator.install(make_bundle(tmp_path, name=other))
        assert (node.units(), node.changes()) == (before, calls)

    run(work)


def test_a_port_held_by_a_stranger_is_found_before_anything_changes(node: Node, tmp_path: Path) -> None:  # R-ST9
    node.world.held_ports[18080] = "process 77 (nginx)"

    async def work() -> None:
        with pytest.raises(PortTaken, match=r"host port 18080 of hello is held by process 77 \(nginx\)"):
            await node.orchestrator.install(make_bundle(tmp_path))
        assert is_empty(node)
        assert node.orchestrator.installed() == ()

    run(work)


def test_an_image_with_another_config_is_refused_before_anything_changes(node: Node, tmp_path: Path) -> None:  # R-MF11
    bundle = make_bundle(tmp_path)
    platform = bundle.manifest.containers["web"].image.platforms[0]  # type: ignore[union-attr]
    blob = bundle.layout("web") / "blobs" / "sha256" / platform.config[7:]
    blob.write_bytes(blob.read_bytes().replace(b"amd64", b"amd46"))

    async def work() -> None:
        with pytest.raises(Refused, match=r"and sha256:.* was signed"):
            await node.orchestrator.install(bundle)
        assert is_empty(node)
        assert not node.changes()

    run(work)


def test_an_image_whose_volume_is_not_mounted_is_refused(node: Node, tmp_path: Path) -> None:  # R-MF10
    config = {"architecture": "amd64", "os": "linux", "config": {"Volumes": {"/data": {}, "/cache": {}}}}
    with pytest.raises(Refused, match="declares VOLUME /cache"):
        run(lambda: node.orchestrator.install(make_bundle(tmp_path, config=config)))
    assert is_empty(node)


def test_what_this_node_cannot_carry_out_is_refused_by_name(node: Node, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, updates={"rollback": "off", "strategy": "stop-snapshot-start"})
    with pytest.raises(Refused) as caught:
        run(lambda: node.orchestrator.install(bundle))
    assert "updates.rollback: not supported by this node yet: updates with rollback" in str(caught.value)
    assert "updates.strategy: not supported by this node yet" in str(caught.value)
    assert is_empty(node)


def test_a_podman_that_is_too_old_for_the_app_is_told(node: Node, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"this node has 5\.4\.2, and >=6 is needed"):
        run(lambda: node.orchestrator.install(make_bundle(tmp_path, requires={"podman": ">=6"})))


def test_a_disk_without_room_is_told_before_anything_changes(node: Node, tmp_path: Path) -> None:
    node.host.free = 1 << 30
    with pytest.raises(EnvironmentLacks, match="needs 7168 MiB free, and there are 1024 MiB"):
        run(lambda: node.orchestrator.install(make_bundle(tmp_path, disk={"install": 2 << 30, "min_free": 5 << 30})))
    assert is_empty(node)


def test_a_unit_that_the_generator_refuses_is_never_put_in_place(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # R-MF9
    known = dict(SINCE["Container"])
    del known["AddHost"]
    bundle = make_bundle(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("tests.fakes.systemd.SINCE", {**SINCE, "Container": known})
        with pytest.raises(UnitRefused, match="unsupported key 'AddHost'"):
            run(lambda: node.orchestrator.install(bundle))
    assert is_empty(node)


def test_foreign_units_are_reported_and_left_alone(node: Node, tmp_path: Path) -> None:  # R-ST7, R-ST8
    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        units = node.settings.unit_dir
        orphan = (units / f"archy-{HELLO.slug}-web.container").read_text().replace(HELLO.slug, "gone-0123456789")
        (units / "archy-gone-0123456789-web.container").write_text(orphan)
        (units / "archy-mine.container").write_text("[Container]\nImage=mine\n")
        assert await node.orchestrator.unclaimed() == ("unit archy-gone-0123456789-web.container",)
        await node.tick()
        assert (units / "archy-gone-0123456789-web.container").exists()
        assert (units / "archy-mine.container").exists()

    run(work)


def test_secrets_are_in_no_unit_and_their_permissions_are_put_right(node: Node, tmp_path: Path) -> None:  # R-MF3
    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        path = node.settings.data_dir / "secrets" / HELLO.slug / "password"
        value = path.read_bytes()
        assert path.stat().st_mode & 0o777 == 0o600
        for unit in node.units():
            assert value not in (node.settings.unit_dir / unit).read_bytes()
        path.chmod(0o644)
        node.world.secrets.clear()
        node.world.stop(f"archy-{HELLO.slug}-web.service")
        await node.settle()
        assert path.stat().st_mode & 0o777 == 0o600
        assert list(node.world.secrets.values()) == [value]
        assert os.stat(path.parent).st_mode & 0o777 == 0o700

    run(work)


def test_logs_are_those_of_the_apps_containers(node: Node, tmp_path: Path) -> None:
    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        assert await node.orchestrator.logs(HELLO, lines=5) == [f"archy-{HELLO.slug}-web: started"]

    run(work)


def test_the_watch_mends_at_a_tick_and_at_once_when_woken(node: Node, tmp_path: Path) -> None:  # R-ST15
    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        async with trio.open_nursery() as nursery:
            await nursery.start(node.orchestrator.run)
            await trio.testing.wait_all_tasks_blocked()
            node.world.stop(f"archy-{HELLO.slug}-web.service")
            node.orchestrator.wake()
            await trio.sleep(1)
            assert node.world.containers
            node.world.stop(f"archy-{HELLO.slug}-web.service")
            await trio.sleep(31)
            assert node.world.containers
            nursery.cancel_scope.cancel()

    run(work)
