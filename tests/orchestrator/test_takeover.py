"""Taking over containers that somebody else started: nothing made anew, nothing lost, nobody else's (R-ST7, R-MF14)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apps.problems import Problem, Refused, RolledBack
from orchestrator.bundle import Bundle
from orchestrator.faults import PortTaken, Unhealthy
from orchestrator.state import OpState
from orchestrator.stranger import Stranger, StrangerMount, StrangerPort
from tests.fakes.podman_machine import Crash
from tests.orchestrator.bundles import app_name, container, make_bundle
from tests.orchestrator.nodes import Node, run
from tests.orchestrator.strangers import (
    DATA,
    MOUNT,
    NOTES,
    PORT,
    WEB,
    by_hand,
    config_of,
    notes,
    take_over,
    touched,
)
from tests.orchestrator.test_adoption import lose_database


def test_a_container_started_by_hand_is_taken_over_untouched_and_left_alone(node: Node, tmp_path: Path) -> None:
    bundle = notes(tmp_path)  # R-ST7, invariant 11
    before = node.world.strangers[by_hand(node, bundle)]

    async def work() -> None:
        node.world.calls.clear()
        status = await take_over(node, bundle)
        assert (status.state, status.desired, status.adopted, status.units) == ("running", "running", True, ())
        assert status.urls == ()
        assert status.journal == ("notes",)
        for _ in range(3):
            await node.tick()
        node.restart()
        await node.settle()
        assert touched(node) == []
        assert (await node.orchestrator.status())[0].detail == "archy restart makes it a service"
        assert {s.name: s.value for s in node.orchestrator.settings(NOTES)} == {"upload": "3MiB"}
        assert node.orchestrator.secrets(NOTES) == {"password": "from-before"}

    run(work)
    assert list(node.world.strangers.values()) == [before]
    assert (node.units(), node.world.containers) == ([], {})


def test_the_operator_is_shown_what_is_taken_over_and_what_its_units_will_change(node: Node, tmp_path: Path) -> None:
    bundle = notes(tmp_path)
    local = replace(PORT, address="127.0.0.1")
    time = StrangerMount("bind", "/etc/localtime", "/etc/localtime", writable=False)
    id_ = by_hand(node, bundle, ports=(local, StrangerPort(9000, "tcp", 9000)), mounts=(MOUNT, time))
    node.world.strangers[id_] = replace(node.world.strangers[id_], networks=("friends",), privileged=True)
    offer = run(lambda: node.orchestrator.offer(NOTES, bundle.manifest))
    shown = offer.to_json()
    assert shown["data"] == [{"volume": "data", "source": DATA}]
    assert [(box["name"], box["id"], box["digest"]) for box in shown["containers"]] == [  # type: ignore[attr-defined]
        ("notes", id_, config_of(bundle))
    ]
    assert offer.changes == (
        "port 8088 is reached from the local network too",
        "port 9000 is not published any more",
        "/etc/localtime (/etc/localtime) is not there any more",
        "web leaves the network friends",
        "web is not privileged any more",
        "web does without TZ",
    )
    assert "from-before" not in repr(offer) + str(shown)


def asked_for(node: Node, bundle: Bundle, newer: Bundle) -> dict[str, Callable[[], Awaitable[Any]]]:
    return {
        "restart": lambda: node.orchestrator.restart(NOTES),
        "configure": lambda: node.orchestrator.configure(NOTES, {"upload": "1GiB"}),
        "rotate": lambda: node.orchestrator.rotate(NOTES, "password"),
        "reinstall": lambda: node.orchestrator.install(bundle),
        "update": lambda: node.orchestrator.install(newer),
        "stop and start": lambda: _stop_and_start(node),
    }


async def _stop_and_start(node: Node) -> None:
    assert (await node.orchestrator.stop(NOTES)).state == "stopped"
    await node.settle()
    assert [(box.state, box.restart) for box in node.world.strangers.values()] == [("exited", "no")]  # R-ST2
    node.world.reboot()
    await node.settle()
    assert [box.state for box in node.world.strangers.values()] == ["exited"]
    assert not node.world.containers
    await node.orchestrator.start(NOTES)


@pytest.mark.parametrize("by", ["restart", "configure", "rotate", "reinstall", "update", "stop and start"])
def test_it_becomes_a_unit_by_the_next_restart_that_is_asked_for(node: Node, tmp_path: Path, by: str) -> None:
    bundle, newer = notes(tmp_path), notes(tmp_path, "2")  # R-ST7
    by_hand(node, bundle)

    async def work() -> None:
        await take_over(node, bundle)
        await asked_for(node, bundle, newer)[by]()
        (box,) = node.world.containers.values()
        assert (box.ports, box.places) == (("8088",), {"/data": DATA})
        assert box.image_id == config_of(newer if by == "update" else bundle)
        assert node.world.strangers == {}
        assert node.world.places == {DATA: "data of notes+"}
        assert not node.world.volumes
        if by not in ("rotate",):
            assert set(box.secrets.values()) == {b"from-before"}
        (status,) = await node.orchestrator.status()
        assert (status.state, status.adopted) == ("running", False)
        before = dict(node.world.containers)
        await node.settle()
        node.world.reboot()
        await node.settle()
        assert set(node.world.containers) == set(before)

    run(work)


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("purge", [False, True])
def test_uninstalling_and_purging_leave_data_that_was_there_before(
    node: Node, tmp_path: Path, converted: bool, purge: bool
) -> None:  # R-ST10: import, then uninstall, has wiped data elsewhere
    bundle = notes(tmp_path, volumes={"data": {"on_uninstall": "remove"}})
    by_hand(node, bundle)

    async def work() -> None:
        await take_over(node, bundle)
        if converted:
            await node.orchestrator.restart(NOTES)
        assert node.orchestrator.adopted_data(NOTES) == (DATA,)
        assert node.orchestrator.disposable(NOTES) == ()
        await node.orchestrator.uninstall(NOTES, purge=purge)
        assert not any((node.units(), node.world.containers, node.world.strangers, node.world.images))
        assert list(node.world.places) == [DATA]
        await node.orchestrator.install(bundle)
        (box,) = node.world.containers.values()
        assert box.places == ({} if purge else {"/data": DATA})
        assert box.ports == (("20000",) if purge else ("8088",))

    run(work)


def test_a_lost_database_finds_adopted_data_again_in_the_units(node: Node, tmp_path: Path) -> None:
    bundle = notes(tmp_path)
    home = replace(MOUNT, source="/srv/100% notes", relabel="Z")
    by_hand(node, bundle, mounts=(home,))

    async def work() -> None:
        await take_over(node, bundle)
        await node.orchestrator.restart(NOTES)
        before = dict(node.world.containers)
        lose_database(node)
        node.world.calls.clear()
        await node.orchestrator.adopt(bundle)
        await node.settle()
        assert touched(node) == []
        assert node.world.containers == before
        assert node.orchestrator.adopted_data(NOTES) == ("/srv/100% notes",)

    # The pretended Podman reads the unit as it is written; systemd would make one sign of the two
    node.world.places["/srv/100%% notes"] = ""
    run(work)


def test_units_that_do_not_get_healthy_give_way_to_the_containers_as_they_were(node: Node, tmp_path: Path) -> None:
    bundle = notes(tmp_path)
    by_hand(node, bundle)

    async def work() -> None:
        await take_over(node, bundle)
        before = dict(node.world.strangers)
        node.world.ill.add(config_of(bundle))
        with pytest.raises(RolledBack, match="the adopted containers run again as before"):
            await node.orchestrator.restart(NOTES)
        with pytest.raises(RolledBack):
            await node.orchestrator.configure(NOTES, {"upload": "1GiB"})
        assert node.world.strangers == before
        assert not any((node.units(), node.world.containers, node.world.secrets, node.world.volumes))
        assert {s.value for s in node.orchestrator.settings(NOTES)} == {"3MiB"}
        node.world.ill.clear()
        await node.settle()
        assert node.world.strangers == before

    run(work)


def test_where_neither_starts_any_more_it_is_told_and_can_still_be_uninstalled(node: Node, tmp_path: Path) -> None:
    bundle = notes(tmp_path)
    by_hand(node, bundle)

    async def work() -> None:
        await take_over(node, bundle)
        node.world.ill.add(config_of(bundle))
        node.world.unstartable = True
        with pytest.raises(Unhealthy, match="neither its units nor the adopted containers start"):
            await node.orchestrator.restart(NOTES)
        assert not node.state.open_operations()
        await node.tick()  # tries again by itself
        await node.orchestrator.uninstall(NOTES, purge=False)
        assert not any((node.units(), node.world.containers, node.world.strangers))
        assert list(node.world.places) == [DATA]

    run(work)


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("crash_at", range(60))
def test_a_crash_while_it_becomes_a_unit_leaves_the_one_or_the_other(
    node: Node, tmp_path: Path, crash_at: int, bad: bool
) -> None:  # invariant 5
    bundle = notes(tmp_path)
    id_ = by_hand(node, bundle)

    async def crash() -> None:
        await take_over(node, bundle)
        node.world.crash_at = crash_at
        node.world.crashing = {config_of(bundle)} if bad else set()
        try:
            await node.orchestrator.restart(NOTES)
        except (Crash, BaseExceptionGroup, Problem):
            assert node.world.crashed or bad

    run(crash)
    node.world.crash_at = None
    proven = not (node.world.crashed or bad)
    if node.world.crashed:
        node.boot()
        states = [operation.state for operation in node.state.open_operations()]
        proven = states == [OpState.VERIFYING] or bool(node.world.containers and not states)
        box = node.world.strangers.get(id_)
        if states == [OpState.SWITCHING] and box is not None and box.alive:
            node.world.strangers[id_] = replace(box, state="stopping")  # as a `podman stop` that is killed leaves it
    node.world.crashing.clear()
    run(node.settle)
    assert [box.state for box in node.world.strangers.values()] == ([] if proven else ["running"])
    assert [box.restart for box in node.world.strangers.values()] == ([] if proven else ["always"])
    assert len(node.world.containers) == proven
    assert bool(node.units()) == bool(node.world.containers)
    assert not node.state.open_operations()
    assert list(node.world.places) == [DATA]


def test_a_container_that_died_or_is_gone_becomes_a_unit_since_nothing_is_left_to_spare(
    node: Node, tmp_path: Path
) -> None:
    bundle = notes(tmp_path)
    id_ = by_hand(node, bundle, restart="no")

    async def work() -> None:
        await take_over(node, bundle)
        node.world.reboot()
        await node.settle()
        assert [box.places for box in node.world.containers.values()] == [{"/data": DATA}]
        assert id_ not in node.world.strangers

    run(work)


def test_a_container_that_is_removed_behind_its_back_becomes_a_unit(node: Node, tmp_path: Path) -> None:
    bundle = notes(tmp_path)
    id_ = by_hand(node, bundle)

    async def work() -> None:
        await take_over(node, bundle)
        del node.world.strangers[id_]
        again = by_hand(node, bundle, state="exited")  # under the same name, and nobody agreed to that one
        await node.settle()
        assert [box.places for box in node.world.containers.values()] == [{"/data": DATA}]
        assert node.world.strangers[again].state == "exited"

    run(work)


def test_a_podman_that_does_not_answer_changes_nothing(node: Node, tmp_path: Path) -> None:  # R-ST18
    bundle = notes(tmp_path)
    by_hand(node, bundle)

    async def work() -> None:
        await take_over(node, bundle)
        node.world.calls.clear()
        node.world.broken = {"podman"}
        await node.tick()
        (status,) = await node.orchestrator.status()
        assert status.detail.startswith("stale")
        node.world.broken = set()
        assert touched(node) == []

    run(work)


def test_a_stopped_container_is_taken_over_stopped(node: Node, tmp_path: Path) -> None:  # R-ST2
    bundle = notes(tmp_path)
    by_hand(node, bundle, state="exited")

    async def work() -> None:
        status = await take_over(node, bundle)
        assert (status.state, status.desired, status.detail) == ("stopped", "stopped", "archy start makes it a service")
        await node.settle()
        node.world.reboot()
        await node.settle()
        assert [box.alive for box in node.world.strangers.values()] == [False]
        assert not node.world.containers
        assert (await node.orchestrator.start(NOTES)).state == "running"
        assert not node.world.strangers

    run(work)


def test_a_fixed_port_that_somebody_else_has_is_told_before_anything_changes(node: Node, tmp_path: Path) -> None:
    fixed, ui = container(18080, secrets=[]), [{"id": "ui", "type": "ui", "port": "web", "path": "/"}]  # R-ST9
    bundle = notes(tmp_path, containers={"web": fixed}, generated_secrets=[], settings=[], interfaces=ui)
    by_hand(node, bundle)
    node.world.held_ports[18080] = "process 7 (nginx)"

    async def work() -> None:
        offer = await node.orchestrator.offer(NOTES, bundle.manifest)
        assert "web: port 8088 becomes 18080" in offer.changes
        with pytest.raises(PortTaken, match="process 7"):
            await node.orchestrator.take_over(bundle, offer.ids)
        node.world.held_ports.clear()
        status = await node.orchestrator.take_over(bundle, offer.ids)
        assert status.urls == ("http://127.0.0.1:8088/",)
        node.world.held_ports[18080] = "process 8 (nginx)"
        node.world.calls.clear()
        with pytest.raises(PortTaken, match="process 8"):
            await node.orchestrator.restart(NOTES)
        assert touched(node) == []

    run(work)


def test_what_depends_on_others_becomes_a_unit_after_they_are_well(node: Node, tmp_path: Path) -> None:  # R-ST14
    chain = make_bundle(tmp_path, name=app_name("chain"), containers={"web": container(18090)})
    bundle = notes(tmp_path, dependencies=[{"id": "chain"}])
    by_hand(node, bundle, restart="no")

    async def work() -> None:
        with pytest.raises(Refused, match="chain"):
            await take_over(node, bundle)
        await node.orchestrator.install(chain)
        await take_over(node, bundle)
        node.world.ill.add(config_of(chain))
        node.world.reboot()
        for _ in range(3):
            await node.tick()
        assert WEB not in node.world.containers
        node.world.ill.clear()
        await node.settle()
        assert node.world.containers[WEB].places == {"/data": DATA}

    run(work)


def test_an_installed_app_takes_nothing_over_and_another_one_is_not_served_by_kept_containers(
    node: Node, tmp_path: Path
) -> None:
    bundle = notes(tmp_path, exports=[{"name": "web", "port": "web"}])
    wallet = make_bundle(tmp_path, name=app_name("wallet"), dependencies=[{"id": "notes"}])
    by_hand(node, bundle)

    async def work() -> None:
        await take_over(node, bundle)
        with pytest.raises(Refused, match="notes is installed"):
            await node.orchestrator.offer(NOTES, bundle.manifest)
        with pytest.raises(Refused, match="in no network of other apps") as caught:
            await node.orchestrator.install(wallet)
        assert caught.value.remedy == "archy restart notes makes it a service"
        await node.orchestrator.restart(NOTES)
        assert (await node.orchestrator.install(wallet)).state == "running"

    run(work)


def test_a_secret_of_an_earlier_installation_gives_way_to_the_one_the_data_was_made_with(
    node: Node, tmp_path: Path
) -> None:
    bundle = notes(tmp_path)

    async def work() -> None:
        await node.orchestrator.install(bundle)
        earlier = node.orchestrator.secrets(NOTES)
        await node.orchestrator.uninstall(NOTES, purge=False)
        by_hand(node, bundle)
        await take_over(node, bundle)
        assert node.orchestrator.secrets(NOTES) == {"password": "from-before"} != earlier
        await node.orchestrator.restart(NOTES)
        (box,) = node.world.containers.values()
        assert set(box.secrets.values()) == {b"from-before"}
        await node.settle()

    run(work)


def test_what_podman_says_is_read_as_it_is(tmp_path: Path) -> None:
    assert Stranger("x", "1", "paused", "sha256:0").alive
    assert StrangerMount("volume", "0" * 64, "/x").anonymous
    assert not StrangerMount("volume", "data", "/x").anonymous
