"""Podman's broken state: found, mended within bounds, told when it can not be; apps come back from their units."""

from __future__ import annotations

import json
import os
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from apps.problems import Problem
from orchestrator import Finding, safe_fix
from orchestrator.plan import Wanted, plan
from orchestrator.podman_answers import ContainerSeen
from orchestrator.podman_care import KEPT_DATABASES, Ailment, RootlessCare, Signs, diagnose
from orchestrator.steps import Restart
from tests.orchestrator.bundles import app_name, container, make_bundle
from tests.orchestrator.nodes import Node, run
from tests.orchestrator.test_shares import in_order, rendered

HELLO = app_name()


def test_silence_alone_proves_nothing_and_a_lost_namespace_explains_what_died_with_it() -> None:
    assert diagnose(Signs()) == ()
    assert diagnose(Signs("timed out")) == (Ailment.SILENT,)
    assert diagnose(Signs("file is not a database", database_broken=True)) == (Ailment.DATABASE,)
    assert diagnose(Signs(namespace_gone=True, link_dead=True, names_dead=True)) == (Ailment.NAMESPACE,)
    assert diagnose(Signs(link_dead=True, names_dead=True)) == (Ailment.LINK, Ailment.NAMES)


def test_a_lost_database_gives_back_every_app_and_its_volumes(node: Node, tmp_path: Path) -> None:  # R-FM6
    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        (volume,) = node.world.volumes
        node.world.lose_database()
        await node.settle()
        assert len(node.world.containers) == 1
        assert node.world.volumes[volume] == (HELLO.slug, f"data of {HELLO.slug}")
        assert not node.world.forgotten

    run(work)


@pytest.mark.parametrize(("state", "mended"), [("initialized", False), ("created", True), ("exited", True)])
def test_a_container_that_begins_is_not_taken_for_one_that_podman_lost(state: str, mended: bool) -> None:  # R-FM6
    app = rendered(HELLO)
    seen = in_order([app])
    assert seen.containers is not None
    boxes = (replace(seen.containers[0], state=state), *seen.containers[1:])
    steps = plan(Wanted(app, True), replace(seen, containers=boxes))
    assert [type(step) for step in steps] == ([Restart] if mended else [])


def test_a_broken_database_is_moved_aside_only_when_it_is_proven_broken(node: Node, tmp_path: Path) -> None:  # R-FM6
    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        before = node.changes()
        node.world.broken.add("podman")
        node.care.signs = Signs("podman info did not end within 30 s")
        for _ in range(3):
            await node.tick()
            await trio.sleep(4000)
        assert node.care.cures == []
        assert node.changes() == before  # R-ST18
        (finding,) = node.orchestrator.findings()
        assert not finding.ok
        assert "did not end within 30 s" in finding.detail
        node.care.signs = Signs("file is not a database", database_broken=True)
        await node.tick()
        await node.settle()
        assert node.care.cures == [Ailment.DATABASE]
        assert len(node.world.containers) == 1
        (finding,) = node.orchestrator.findings()
        assert finding.ok

    run(work)


def test_a_cure_that_does_not_help_is_repeated_at_growing_pauses_and_told(node: Node, tmp_path: Path) -> None:  # R-FM6
    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        node.care.signs, node.care.helpless = Signs(names_dead=True), {Ailment.NAMES}
        for _ in range(120):
            await node.tick()
            await trio.sleep(30)
        assert 3 <= len(node.care.cures) <= 5
        (finding,) = node.orchestrator.findings()
        assert (finding.ok, finding.remedy) == (False, "podman network reload --all")
        assert "it does not help" in finding.detail

    run(work)


def test_a_lost_namespace_stops_running_apps_first_and_never_starts_what_was_stopped(
    node: Node, tmp_path: Path
) -> None:  # R-FM6, R-ST2
    async def work() -> None:
        other = app_name("other")
        await node.orchestrator.install(make_bundle(tmp_path))
        await node.orchestrator.install(make_bundle(tmp_path, name=other, containers={"web": container(18081)}))
        await node.orchestrator.stop(other)
        (old,) = node.world.containers.values()
        node.care.signs = Signs(namespace_gone=True)
        await node.tick()
        await node.settle()
        (new,) = node.world.containers.values()
        assert new is not old
        assert new.image == old.image

    run(work)


def test_what_the_repair_stopped_is_started_at_once_however_often_it_was_and_however_it_ended(
    node: Node, tmp_path: Path
) -> None:  # R-FM6, R-ST4
    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        node.world.stops_badly = True
        began = trio.current_time()
        for _ in range(5):
            (old,) = node.world.containers.values()
            node.care.signs = Signs(namespace_gone=True)
            for _ in range(3):  # the repair, the start, and all is seen to be well
                await node.tick()
            (new,) = node.world.containers.values()
            assert new is not old
        assert trio.current_time() == began

    run(work)


def test_links_are_looked_at_from_within_whenever_a_container_was_started(node: Node, tmp_path: Path) -> None:
    async def work() -> None:  # R-FM6
        await node.orchestrator.install(make_bundle(tmp_path))
        for _ in range(3):
            await node.tick()
        first = list(node.care.looked_at)
        await node.orchestrator.restart(HELLO)
        for _ in range(3):
            await node.tick()
        (name,) = node.world.containers
        assert (first, node.care.looked_at) == ([[name]], [[name], [name]])

    run(work)


MINE, OTHERS = os.getpid(), os.getppid()


@pytest.mark.parametrize(
    ("said", "gone"),
    [
        ({"attached": [MINE, OTHERS], "links": 2}, False),
        ({"attached": [OTHERS], "links": 1}, True),
        ({"attached": [], "links": 0}, True),
        ({"attached": [], "links": 3}, False),  # of somebody else: it may as well be that the question does not work
        ({"attached": None}, False),
        ("", False),
    ],
)
def test_a_container_is_cut_off_only_when_that_is_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: object, gone: bool
) -> None:  # R-FM6, R-ST18
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "podman").write_text(f"#!/bin/sh\necho '{json.dumps(said)}'\n")
    (bin_ / "podman").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:/usr/bin:/bin")
    namespace = tmp_path / "containers" / "networks" / "rootless-netns" / "rootless-netns"
    namespace.parent.mkdir(parents=True)
    namespace.touch()
    care = RootlessCare(tmp_path, tmp_path)
    # Every control group's line has a colon in it, which stands for the containers' ids here
    boxes = [ContainerSeen("", ":", "running", "", {}, "", frozenset({"own"}), pid) for pid in (MINE, OTHERS)]
    gone_meanwhile = replace(boxes[0], id="0123456789ab")
    by_hand = replace(boxes[0], networks=frozenset())

    async def work() -> None:
        assert await care.look(answered=True, living=boxes) == Signs(namespace_gone=gone)
        for nobody in ([gone_meanwhile], [by_hand], []):
            assert await care.look(answered=True, living=nobody) == Signs()

    trio.run(work)


def broken_database(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "db.sql"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.executemany("INSERT INTO t VALUES (?)", [("x" * 500,)] * 100)
    connection.close()
    raw = bytearray(path.read_bytes())
    raw[:64] = b"\xff" * 64
    path.write_bytes(raw)
    return path


def test_broken_databases_are_kept_and_their_number_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "podman").write_text(
        f"#!/bin/sh\ntest ! -e {tmp_path}/storage/db.sql || {{ echo broken >&2; exit 125; }}\n"
    )
    (bin_ / "podman").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:/usr/bin:/bin")
    care = RootlessCare(tmp_path / "run", tmp_path / "storage")

    async def work() -> None:
        for _ in range(KEPT_DATABASES + 2):
            broken_database(tmp_path / "storage")
            (tmp_path / "storage" / "db.sql-wal").write_bytes(b"what was not written back")
            signs = await care.look(answered=False)
            assert signs == Signs("broken", database_broken=True)
            await care.mend(Ailment.DATABASE)
        with pytest.raises(Problem):
            await care.mend(Ailment.SILENT)

    trio.run(work)
    kept = {path.name for path in (tmp_path / "storage").iterdir()}
    databases = {name for name in kept if not name.endswith(("-wal", "-shm"))}
    assert len(databases) == KEPT_DATABASES
    assert {f"{name}-wal" for name in databases} <= kept, "each log is beside the database it belongs to"
    assert {name.removesuffix("-wal").removesuffix("-shm") for name in kept} == databases


def test_a_sound_or_locked_database_is_not_taken_for_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "podman").write_text("#!/bin/sh\necho no >&2; exit 125\n")
    (bin_ / "podman").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:/usr/bin:/bin")
    with sqlite3.connect(tmp_path / "db.sql", isolation_level=None) as connection:
        connection.execute("CREATE TABLE t (x)")
        care = RootlessCare(tmp_path / "run", tmp_path)
        assert trio.run(lambda: care.look(answered=False)) == Signs("no")
        connection.execute("BEGIN EXCLUSIVE")
        assert trio.run(lambda: care.look(answered=False)) == Signs("no")
    connection.close()


def test_a_program_that_ended_is_told_from_one_that_never_was(tmp_path: Path) -> None:
    networks = tmp_path / "containers" / "networks"
    (networks / "rootless-netns").mkdir(parents=True)
    (networks / "aardvark-dns").mkdir()
    care = RootlessCare(tmp_path, tmp_path)
    assert trio.run(lambda: care.look(answered=True)) == Signs(namespace_gone=True)
    (networks / "rootless-netns" / "rootless-netns").touch()
    assert trio.run(lambda: care.look(answered=True)) == Signs()
    (networks / "aardvark-dns" / "aardvark.pid").write_text("99999999\n")
    assert trio.run(lambda: care.look(answered=True)) == Signs(names_dead=True)


def test_a_checkup_tells_what_belongs_to_no_app_and_removes_nothing(node: Node, tmp_path: Path) -> None:  # R-ST7
    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        assert [(f.name, f.ok) for f in await node.orchestrator.checkup()] == [("orphans", True)]
        (box,) = node.world.containers.values()
        node.world.containers["archy-left-web"] = type(box)(
            box.image, box.image_id, box.labels | {"archy.app": "left-0123456789"}, ()
        )
        await node.orchestrator.reconcile()
        (finding,) = await node.orchestrator.checkup()
        assert not finding.ok
        assert "container archy-left-web" in finding.detail
        assert "archy-left-web" in node.world.containers

    run(work)


def test_only_what_takes_nothing_away_is_fixed_by_itself() -> None:
    assert safe_fix(Finding("linger", False, "", ""))[:2] == ("loginctl", "enable-linger")
    assert safe_fix(Finding("linger", True, "", "")) == ()
    for name in ("podman", "orphans", "podman state", "/etc/subuid", "disk", "cgroup v2"):
        assert safe_fix(Finding(name, False, "", "rm -rf /")) == ()
