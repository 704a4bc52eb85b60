"""Adoption: what goes on running after its database was lost is taken back as it is, never made anew (R-ST7)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apps.problems import Refused
from orchestrator.bundle import Bundle
from orchestrator.faults import CommandTimedOut
from tests.orchestrator.bundles import app_name, container, files_entry, make_bundle, write_files
from tests.orchestrator.nodes import Node, run

HELLO = app_name()
WEB = f"archy-{HELLO.slug}-web"
SETTINGS = [
    {"name": "greeting", "default": "Hello", "env": {"web": "GREETING"}},
    {"name": "upload", "type": "size", "default": "4GiB", "env": {"web": "MAX_UPLOAD"}},
]
NASTY = 'a "b" \\n 100% $HOME ü'


def chosen(folder: Path, version: str = "1", **more: Any) -> Bundle:
    """An app with all that is chosen on the node: an automatic port, settings, a secret in a file, a hook."""
    ports = [{"name": "web", "container": 8080, "host": "auto"}]
    derived = {"template": "t", "dest": "app.conf", "into": {"web": "/run/conf"}}
    files = {"t": "{{ secrets.password }} {{ settings.greeting }}\n", "seed": "a seed"}
    known: dict[str, Any] = {
        "containers": {"web": container(ports=ports)},
        "settings": SETTINGS,
        "derived_files": [derived],
        "hooks": {"post_install": [{"copy_from_host": {"src": "seed", "dest": "web:/data/seed"}}]},
        **files_entry(files),
    }
    bundle = make_bundle(folder, version, **(known | more))
    write_files(bundle, files)
    return bundle


def lose_database(node: Node, *, secrets: bool = False) -> None:
    """What is left of a node after its state was lost, or restored from before the app was installed."""
    node.state.close()
    for path in node.settings.state_db.parent.glob("state.db*"):
        path.unlink()
    if secrets:
        for path in sorted((node.settings.data_dir / "secrets").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    node.boot()


def silent_calls(node: Node) -> list[tuple[str, str]]:
    """Everything that was done to the machine; asking for a secret does nothing."""
    return [call for call in node.changes() if call[0] != "secret"]


@pytest.mark.parametrize("secrets", [False, True])
@pytest.mark.parametrize("by", ["adopt", "install"])
def test_what_runs_is_taken_back_as_it_is_with_its_port_settings_and_secrets(
    node: Node, tmp_path: Path, by: str, secrets: bool
) -> None:  # R-ST7, R-ST16, invariant 11
    node.world.held_ports[20000] = "process 77 (nginx)"

    async def work() -> None:
        await node.orchestrator.install(chosen(tmp_path))
        await node.orchestrator.configure(HELLO, {"greeting": NASTY, "upload": "3MiB"})
        before, value = dict(node.world.containers), node.orchestrator.secrets(HELLO)
        lose_database(node, secrets=secrets)
        node.world.held_ports[20001] = "process 80 (rootlessport)"
        (orphan,) = await node.orchestrator.orphans()
        assert (orphan.slug, orphan.id, orphan.running) == (HELLO.slug, "hello", True)
        node.world.calls.clear()
        status = await getattr(node.orchestrator, by)(chosen(tmp_path))
        assert (status.state, status.desired, status.version) == ("running", "running", "1")
        assert silent_calls(node) == []
        await node.settle()
        assert silent_calls(node) == []
        assert node.world.containers == before
        assert {s.name: s.value for s in node.orchestrator.settings(HELLO)} == {"greeting": NASTY, "upload": "3MiB"}
        assert node.orchestrator.secrets(HELLO) == value
        assert await node.orchestrator.orphans() == ()
        node.world.held_ports.clear()
        await node.orchestrator.install(chosen(tmp_path, "2"))
        await node.orchestrator.uninstall(HELLO, purge=True)
        assert not any((node.units(), node.world.containers, node.world.volumes, node.world.secrets))

    run(work)


def test_a_rotated_secret_is_taken_back_from_podman_under_its_turn(node: Node, tmp_path: Path) -> None:  # R-MF3
    async def work() -> None:
        await node.orchestrator.install(chosen(tmp_path))
        for _ in range(2):
            await node.orchestrator.rotate(HELLO, "password")
        before, value = dict(node.world.containers), node.orchestrator.secrets(HELLO)
        lose_database(node, secrets=True)
        await node.orchestrator.adopt(chosen(tmp_path))
        assert node.orchestrator.secrets(HELLO) == value
        assert node.world.containers == before

    run(work)


def test_what_its_user_had_stopped_is_taken_back_stopped(node: Node, tmp_path: Path) -> None:  # R-ST2
    async def work() -> None:
        await node.orchestrator.install(chosen(tmp_path))
        await node.orchestrator.stop(HELLO)
        lose_database(node)
        status = await node.orchestrator.adopt(chosen(tmp_path))
        assert (status.state, status.desired) == ("stopped", "stopped")
        await node.settle()
        assert not node.world.containers
        assert (await node.orchestrator.start(HELLO)).urls == ()

    run(work)


@pytest.mark.parametrize("by", ["adopt", "install"])
def test_another_release_than_the_one_that_runs_is_not_taken_for_it(
    node: Node, tmp_path: Path, by: str
) -> None:  # R-ST7
    async def work() -> None:
        await node.orchestrator.install(chosen(tmp_path))
        before, units = dict(node.world.containers), node.units()
        lose_database(node)
        node.world.calls.clear()
        with pytest.raises(Refused, match="is here already, from another release") as caught:
            await getattr(node.orchestrator, by)(chosen(tmp_path, "2"))
        assert caught.value.remedy == "archy adopt hello, then archy update hello"
        assert (node.world.containers, node.units()) == (before, units)
        assert silent_calls(node) == []
        assert node.orchestrator.installed() == ()

    run(work)


def test_another_publishers_app_of_that_id_does_not_take_it_over(node: Node, tmp_path: Path) -> None:  # R-MF14
    mallory = app_name("hello", "did:key:zMallory")

    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        before = dict(node.world.containers)
        lose_database(node)
        with pytest.raises(Refused, match="nothing of hello is here"):
            await node.orchestrator.adopt(make_bundle(tmp_path / "m", name=mallory))
        await node.orchestrator.install(make_bundle(tmp_path / "m", name=mallory, containers={"web": container(18081)}))
        assert {name: box for name, box in node.world.containers.items() if name == WEB} == before
        assert (await node.orchestrator.adopt(make_bundle(tmp_path))).state == "running"

    run(work)


def test_a_container_of_another_image_under_an_apps_name_is_refused(node: Node, tmp_path: Path) -> None:  # R-MF11
    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        lose_database(node)
        node.world.containers[WEB].image_id = "sha256:" + "6" * 64
        with pytest.raises(Refused, match="from another release"):
            await node.orchestrator.adopt(make_bundle(tmp_path))
        assert node.orchestrator.installed() == ()

    run(work)


def test_dead_remains_of_another_release_are_installed_over(node: Node, tmp_path: Path) -> None:
    async def work() -> None:
        await node.orchestrator.install(chosen(tmp_path))
        await node.orchestrator.stop(HELLO)
        lose_database(node)
        status = await node.orchestrator.install(chosen(tmp_path, "2"))
        assert (status.state, status.version) == ("running", "2")

    run(work)


def test_an_installed_app_is_not_adopted_and_nothing_is_not_either(node: Node, tmp_path: Path) -> None:
    async def work() -> None:
        with pytest.raises(Refused, match="nothing of hello is here"):
            await node.orchestrator.adopt(make_bundle(tmp_path))
        await node.orchestrator.install(make_bundle(tmp_path))
        with pytest.raises(Refused, match="hello is installed"):
            await node.orchestrator.adopt(make_bundle(tmp_path))

    run(work)


def test_dependants_and_what_they_need_are_taken_back_one_after_the_other(node: Node, tmp_path: Path) -> None:
    chain, wallet = app_name("chain"), app_name("wallet")
    provider = make_bundle(
        tmp_path, name=chain, containers={"web": container(18090)}, exports=[{"name": "rpc", "port": "web"}]
    )
    dependant = make_bundle(tmp_path, name=wallet, dependencies=[{"id": "chain"}])

    async def work() -> None:
        await node.orchestrator.install(provider)
        await node.orchestrator.install(dependant)
        ids = {name: box.id for name, box in node.world.containers.items()}
        links = dict(node.world.links)
        lose_database(node)
        assert [orphan.id for orphan in await node.orchestrator.orphans()] == ["chain", "wallet"]
        await node.orchestrator.adopt(provider)
        await node.orchestrator.adopt(dependant)
        await node.settle()
        assert {name: box.id for name, box in node.world.containers.items()} == ids
        assert node.world.links == links
        assert all(set(box.networks) == set(links) for box in node.world.containers.values())

    run(work)


def test_a_database_from_before_an_update_never_brings_the_older_release_back(
    node: Node, tmp_path: Path
) -> None:  # R-ST7, R-DS3, invariant 8
    """The newer release may have changed its data; it goes on, and the next update takes it as it runs."""

    async def work() -> None:
        await node.orchestrator.install(chosen(tmp_path))
        node.state.close()
        old = node.settings.state_db.read_bytes()
        node.boot()
        await node.orchestrator.install(chosen(tmp_path, "2"))
        node.state.close()
        for path in node.settings.state_db.parent.glob("state.db*"):
            path.unlink()
        node.settings.state_db.write_bytes(old)
        node.boot()
        before, units = (
            dict(node.world.containers),
            {unit: (node.settings.unit_dir / unit).read_text() for unit in node.units()},
        )
        node.world.calls.clear()
        for _ in range(3):
            await node.tick()
        for act in (node.orchestrator.stop, node.orchestrator.start, node.orchestrator.restart):
            with pytest.raises(Refused, match="runs from a release that this node's database does not know") as caught:
                await act(HELLO)
            assert caught.value.remedy.startswith("archy update hello")
        with pytest.raises(Refused):
            await node.orchestrator.configure(HELLO, {"greeting": "x"})
        with pytest.raises(Refused):
            await node.orchestrator.rotate(HELLO, "password")
        told = [finding for finding in await node.orchestrator.checkup() if finding.name == "releases"]
        assert [(finding.ok, finding.remedy) for finding in told] == [(False, caught.value.remedy)]
        assert silent_calls(node) == []
        status = await node.orchestrator.install(chosen(tmp_path, "2"))
        assert (status.version, status.state) == ("2", "running")
        assert not [finding for finding in await node.orchestrator.checkup() if finding.name == "releases"]
        await node.settle()
        assert node.world.containers == before
        assert {unit: (node.settings.unit_dir / unit).read_text() for unit in node.units()} == units

    run(work)


def test_a_unit_that_was_edited_to_another_image_is_still_mended(node: Node, tmp_path: Path) -> None:  # R-MF11
    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        (name,) = [unit for unit in node.units() if unit.endswith(".container")]
        path = node.settings.unit_dir / name
        good = path.read_text()
        path.write_text(good.replace("@sha256:", "@sha256:0"))
        await node.settle()
        assert path.read_text() == good
        assert len(node.world.containers) == 1

    run(work)


def test_a_machine_that_does_not_answer_is_told_to_who_asked_and_in_no_log(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.world.broken = {"podman", "systemd"}
    with pytest.raises(CommandTimedOut):
        run(node.orchestrator.orphans)
    assert caplog.records == []
    run(node.tick)
    told = [vars(record)["problem"] for record in caplog.records]
    assert told
    assert len(told) == len(set(told)), "the same is told twice"
