"""Images that are built on the node, through the orchestrator's own door, on a pretended machine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import trio

from apps.containerfile import ContainerfileRefused
from apps.problems import Problem, Refused, RolledBack
from orchestrator.bundle import Bundle
from orchestrator.faults import BuildFailed
from orchestrator.status import Progress
from tests.fakes.podman_machine import Crash
from tests.orchestrator.bundles import app_name, container, files_entry, make_bundle, sha256, write_files, write_layout
from tests.orchestrator.nodes import Node, run

HELLO = app_name()
CACHE = f"archy-{HELLO.slug}-cache"
WEB = f"archy-{HELLO.slug}-web"
BUILD = f"{CACHE}-build.service"
KILLED = (Crash, BaseExceptionGroup, Problem)
"""How the end of the pretended process arrives: some cleanup may find the database closed."""
PLAIN = {"b/Containerfile": "FROM scratch\nCOPY page /page\n", "b/page": "hello"}


def built(folder: Path, version: str = "1.0.0", *, files: dict[str, str] = PLAIN, **more: Any) -> Bundle:
    """web, and cache, whose image is built; `cache` and `bases` say more of it."""
    build = {"context": "b", "bases": more.pop("bases", [])}
    boxes = {"web": container(needs=["cache"]), "cache": {"build": build} | more.pop("cache", {})}
    bundle = make_bundle(folder, version, containers=boxes, **files_entry(files), **more)
    write_files(bundle, files)
    return bundle


def inputs(node: Node, label: str = "cache") -> str:
    return node.world.containers[f"archy-{HELLO.slug}-{label}"].labels["archy.build"]


def builds(node: Node) -> int:
    return sum(call == ("start", BUILD) for call in node.world.calls)


def is_empty(node: Node) -> bool:
    world, folder = node.world, node.settings.data_dir / "builds"
    left = (node.units(), world.containers, world.networks, world.images, world.builds.remains, world.services)
    return not any(left) and (not folder.exists() or list(folder.iterdir()) == [])


def test_an_app_with_a_build_is_installed_and_its_container_pins_what_came_out(node: Node, tmp_path: Path) -> None:
    told: list[Progress] = []  # R-MF11
    status = run(lambda: node.orchestrator.install(built(tmp_path), report=told.append))
    assert status.state == "running"
    assert [p.phase for p in told] == ["verify", "import", "build", "write", "start", "start", "health", "done"]
    box = node.world.containers[CACHE]
    (name, tag), (digest, id_) = next((k, v) for k, v in node.world.images.items() if k[0].endswith("/cache"))
    assert (box.image, box.image_id, tag) == (f"{name}@{digest}", id_, inputs(node)[:16])
    assert node.world.builds.details[id_][0]["archy.build"] == inputs(node)
    assert f"Image={name}@{digest}\n" in (node.settings.unit_dir / f"{CACHE}.container").read_text()
    (folder,) = (node.settings.data_dir / "builds").iterdir()
    assert [path.name for path in folder.iterdir()] == ["built.json"], "copies of the context are left"
    assert not any(tag == "scratch" for _, tag in node.world.images)


def test_planning_again_builds_nothing_and_neither_do_restart_and_reboot(node: Node, tmp_path: Path) -> None:
    async def work() -> None:  # R-ST15
        await node.orchestrator.install(built(tmp_path))
        before = node.changes()
        await node.tick()
        node.restart()
        await node.tick()
        assert node.changes() == before
        await node.orchestrator.restart(HELLO)
        await node.orchestrator.stop(HELLO)
        await node.orchestrator.start(HELLO)
        node.world.reboot()
        await node.settle()
        assert CACHE in node.world.containers
        assert builds(node) == 1

    run(work)


def test_an_update_builds_only_what_changed_and_restarts_only_that(node: Node, tmp_path: Path) -> None:  # R-ST19
    async def work() -> None:
        one = built(tmp_path)
        await node.orchestrator.install(one)
        before = {name: box.id for name, box in node.world.containers.items()}
        await node.orchestrator.install(built(tmp_path, "1.1.0"))
        assert builds(node) == 1, "the same inputs were built again"
        assert node.world.containers[CACHE].id == before[CACHE]
        await node.orchestrator.install(built(tmp_path, "1.2.0", files=PLAIN | {"b/page": "another"}))
        assert builds(node) == 2
        assert node.world.containers[CACHE].id != before[CACHE]
        tags = [tag for (name, tag) in node.world.images if name.endswith("/cache")]
        assert len(tags) == 2, "the image of the generation before is kept for a rollback"

    run(work)


def test_a_build_begins_with_an_image_of_its_own_app(node: Node, tmp_path: Path) -> None:  # R-MF12
    image = write_layout(tmp_path / "probe", b"web 1.0.0")
    base = image["platforms"][0]["manifest"]
    files = PLAIN | {"b/Containerfile": f"FROM anything@{base} AS one\nFROM one\nCOPY page /\n"}
    run(lambda: node.orchestrator.install(built(tmp_path, files=files, bases=[base])))
    assert CACHE in node.world.containers


@pytest.mark.parametrize("line", ["ADD http://example.com/x /", "FROM alpine", "RUN --network=host id", "COPY ../x /"])
def test_a_containerfile_that_reaches_outside_is_refused_before_anything_changes(
    node: Node, tmp_path: Path, line: str
) -> None:  # R-MF12
    bundle = built(tmp_path, files=PLAIN | {"b/Containerfile": f"FROM scratch\n{line}\n"})
    with pytest.raises(ContainerfileRefused, match="line 2"):
        run(lambda: node.orchestrator.install(bundle))
    assert node.changes() == []
    assert is_empty(node)


def test_a_base_that_is_no_image_of_the_app_is_refused_before_anything_changes(node: Node, tmp_path: Path) -> None:
    base = f"sha256:{'a' * 64}"  # R-MF12
    bundle = built(tmp_path, files=PLAIN | {"b/Containerfile": f"FROM x@{base}\n"}, bases=[base])
    with pytest.raises(Refused, match="no image of this app for amd64"):
        run(lambda: node.orchestrator.install(bundle))
    assert node.changes() == []


@pytest.mark.parametrize(
    ("config", "says"), [({"OnBuild": ["ADD http://x /"]}, "ONBUILD"), ({"Volumes": {"/d": {}}}, "/d")]
)
def test_a_base_with_triggers_or_volumes_of_its_own_is_refused(
    node: Node, tmp_path: Path, config: dict[str, Any], says: str
) -> None:  # R-MF10, R-MF12
    settings = {"architecture": "amd64", "os": "linux", "config": config}
    base = write_layout(tmp_path / "probe", b"web 1.0.0", config=dict(settings))["platforms"][0]["manifest"]
    files = PLAIN | {"b/Containerfile": f"FROM x@{base}\n"}
    mounts = [{"volume": "data", "path": "/data"}, {"volume": "data", "path": "/d"}]
    boxes = {"web": container(mounts=mounts), "cache": {"build": {"context": "b", "bases": [base]}}}
    bundle = make_bundle(tmp_path, containers=boxes, config=dict(settings), **files_entry(files))
    write_files(bundle, files)
    with pytest.raises(Refused, match=says):
        run(lambda: node.orchestrator.install(bundle))
    assert node.changes() == []


@pytest.mark.parametrize("harm", ["changed", "shorter", "longer", "gone", "link"])
def test_a_context_with_other_bytes_than_were_signed_is_refused_before_anything_changes(
    node: Node, tmp_path: Path, harm: str
) -> None:  # R-MF12
    bundle = built(tmp_path)
    page = bundle.root / "files" / "b" / "page"
    page.unlink()
    if harm == "link":
        page.symlink_to("/etc/hostname")
    elif harm != "gone":
        page.write_text({"changed": "hellp", "shorter": "hell", "longer": "hello!"}[harm])
    with pytest.raises(Refused):
        run(lambda: node.orchestrator.install(bundle))
    assert node.changes() == []


def test_a_file_that_was_not_signed_does_not_reach_the_build(node: Node, tmp_path: Path) -> None:  # R-MF12
    bundle = built(tmp_path)
    run(lambda: node.orchestrator.install(bundle))
    before = dict(node.world.images)
    (bundle.root / "files" / "b" / "smuggled").write_text("x")
    node.world.images = {key: value for key, value in before.items() if not key[0].endswith("/cache")}
    node.restart()
    run(node.settle)
    assert node.world.images == before


def test_a_file_that_changed_since_the_installation_goes_into_no_build_and_nothing_is_left(
    node: Node, tmp_path: Path
) -> None:  # R-MF12
    bundle = built(tmp_path)

    async def work() -> None:
        await node.orchestrator.install(bundle)
        page = bundle.root / "files" / "b" / "page"
        signed = page.read_text()
        await node.orchestrator.stop(bundle.name)
        before = dict(node.world.images)
        node.world.images = {key: value for key, value in before.items() if not key[0].endswith("/cache")}
        left = dict(node.world.images)
        page.write_text("hellp")
        with pytest.raises(Refused, match="other bytes than were signed"):
            await node.orchestrator.start(bundle.name)
        assert node.world.images == left
        assert node.machine.builds.read()[bundle.name.slug] == frozenset()
        page.write_text(signed)
        await node.orchestrator.start(bundle.name)
        assert node.world.images == before

    run(work)


def test_a_build_that_fails_says_why_and_leaves_nothing(node: Node, tmp_path: Path) -> None:  # R-ST10
    bundle = built(tmp_path, files=PLAIN | {"b/Containerfile": "FROM scratch\nRUN wget http://example.com/x\n"})
    with pytest.raises(BuildFailed, match=r"the image of cache can not be built: building at STEP .RUN wget"):
        run(lambda: node.orchestrator.install(bundle))
    assert is_empty(node)
    assert node.orchestrator.installed() == ()


def test_an_update_whose_build_fails_leaves_the_old_version_as_it_runs(node: Node, tmp_path: Path) -> None:  # R-FM5
    async def work() -> None:
        await node.orchestrator.install(built(tmp_path))
        before = dict(node.world.containers)
        bad = PLAIN | {"b/Containerfile": "FROM scratch\nRUN wget http://example.com/x\n"}
        with pytest.raises(RolledBack, match="can not be built"):
            await node.orchestrator.install(built(tmp_path, "2.0.0", files=bad))
        assert node.world.containers == before
        await node.settle()
        assert node.world.containers == before

    run(work)


def test_an_image_that_keeps_its_data_in_no_volume_is_removed_again(node: Node, tmp_path: Path) -> None:  # R-MF10
    with pytest.raises(ContainerfileRefused, match="VOLUME /data"):
        run(
            lambda: node.orchestrator.install(
                built(tmp_path, files=PLAIN | {"b/Containerfile": "FROM scratch\nVOLUME /data\n"})
            )
        )
    assert is_empty(node)


def test_an_image_that_podman_lost_is_built_again_from_the_signed_context(node: Node, tmp_path: Path) -> None:
    async def work() -> None:  # R-FM6
        await node.orchestrator.install(built(tmp_path))
        before, boxes = dict(node.world.images), dict(node.world.containers)
        node.world.images = {key: value for key, value in before.items() if not key[0].endswith("/cache")}
        node.restart()
        await node.settle()
        assert node.world.images == before
        assert node.world.containers == boxes, "the same image again restarts nothing"

    run(work)


def test_a_build_that_gives_other_bytes_the_second_time_is_pinned_anew(node: Node, tmp_path: Path) -> None:  # R-MF11
    async def work() -> None:
        await node.orchestrator.install(built(tmp_path))
        before = node.world.containers[CACHE]
        node.world.images.clear()
        node.world.builds.salt = "the time of day"
        node.restart()
        await node.settle()
        after = node.world.containers[CACHE]
        assert after.image != before.image
        assert after.labels == before.labels
        assert f"Image={after.image}\n" in (node.settings.unit_dir / f"{CACHE}.container").read_text()

    run(work)


def test_another_image_under_the_tag_is_not_what_runs(node: Node, tmp_path: Path) -> None:  # R-MF11
    async def work() -> None:
        await node.orchestrator.install(built(tmp_path))
        box = node.world.containers[CACHE]
        name = box.image.partition("@")[0]
        node.world.images[name, inputs(node)[:16]] = (sha256(b"evil"), sha256(b"evil config"))
        node.restart()
        await node.settle()
        assert node.world.containers[CACHE].image_id == box.image_id
        assert node.world.images[name, inputs(node)[:16]][1] == box.image_id

    run(work)


def test_uninstall_leaves_no_unit_no_image_and_no_record(node: Node, tmp_path: Path) -> None:  # R-ST10
    async def work() -> None:
        await node.orchestrator.install(built(tmp_path))
        assert f"{CACHE}.build" in node.units()
        await node.orchestrator.uninstall(HELLO, purge=False)

    run(work)
    assert is_empty(node)


@pytest.mark.parametrize("crash_at", range(60))
def test_a_kill_at_any_call_of_an_installation_ends_in_nothing_or_in_the_whole(
    node: Node, tmp_path: Path, crash_at: int
) -> None:  # R-ST15
    async def work() -> None:
        node.world.crash_at = crash_at
        try:
            await node.orchestrator.install(built(tmp_path))
        except KILLED:
            assert node.world.crashed
        node.world.crash_at = None
        if node.world.crashed:
            node.boot()
        await node.settle()
        if node.orchestrator.installed():
            assert {WEB, CACHE} <= set(node.world.containers)
            assert not node.world.builds.remains
        else:
            assert is_empty(node)

    run(work)


def test_a_kill_in_the_middle_of_a_build_is_undone_whole(node: Node, tmp_path: Path) -> None:  # R-ST10
    async def work() -> None:
        node.world.crash_in_build = True
        with pytest.raises(KILLED):
            await node.orchestrator.install(built(tmp_path))
        assert node.world.services[BUILD].active == "activating"
        node.boot()
        await node.settle()
        assert is_empty(node)
        assert (await node.orchestrator.install(built(tmp_path))).state == "running"

    run(work)


def test_a_build_that_goes_on_without_the_node_is_joined_and_not_begun_again(node: Node, tmp_path: Path) -> None:
    async def work() -> None:  # R-ST16
        await node.orchestrator.install(built(tmp_path))
        node.world.images.clear()
        node.restart()
        node.world.crash_in_build = True
        with pytest.raises(KILLED):
            await node.tick()
        calls = len(node.world.calls)
        node.boot()
        await node.settle()
        of_build = [call for call, what in node.world.calls[calls:] if what == BUILD and call in ("start", "stop")]
        assert of_build[0] == "start"
        assert CACHE in node.world.containers
        assert not node.world.builds.remains
        assert list((node.settings.data_dir / "builds").glob("*/cache")) == []

    run(work)


def test_a_build_that_is_not_wanted_any_more_is_stopped_and_cleared(node: Node, tmp_path: Path) -> None:
    async def work() -> None:
        await node.orchestrator.install(built(tmp_path))
        node.world.crash_in_build = True
        with pytest.raises(KILLED):
            await node.orchestrator.install(built(tmp_path, "2.0.0", files=PLAIN | {"b/page": "another"}))
        node.boot()
        await node.settle()
        assert BUILD not in node.world.services
        assert not node.world.builds.remains
        assert list((node.settings.data_dir / "builds").glob("*/cache")) == []
        assert [version for _, version, _ in node.orchestrator.installed()] == ["1.0.0"]

    run(work)


def test_a_lost_record_is_taken_from_the_unit_and_restarts_nothing(node: Node, tmp_path: Path) -> None:
    async def work() -> None:  # invariant 11
        await node.orchestrator.install(built(tmp_path))
        before = dict(node.world.containers)
        (record,) = (node.settings.data_dir / "builds").glob("*/built.json")
        for harm in ("{", ""):
            record.write_text(harm) if harm else record.unlink()
            node.restart()
            await node.settle()
            assert node.world.containers == before
            assert builds(node) == 1
            assert record.exists()

    run(work)


def test_an_app_with_a_build_is_adopted_as_it_runs_when_database_and_record_are_lost(
    node: Node, tmp_path: Path
) -> None:  # R-ST7
    async def work() -> None:
        bundle = built(tmp_path)
        await node.orchestrator.install(bundle)
        before = dict(node.world.containers)
        node.state.close()
        for path in node.home.glob("state.db*"):
            path.unlink()
        shutil.rmtree(node.settings.data_dir / "builds")
        node.boot()
        (orphan,) = await node.orchestrator.orphans()
        image = bundle.manifest.containers["web"].image
        assert image is not None
        known = {"web": image.platforms[0].manifest, "cache": f"build:{inputs(node)}"}
        assert orphan.is_of(HELLO, known)
        assert not orphan.is_of(HELLO, known | {"cache": f"build:{'0' * 64}"}), "another context, another release"
        await node.orchestrator.adopt(bundle)
        await node.settle()
        assert node.world.containers == before

    run(work)


def test_two_builds_do_not_run_at_once(node: Node, tmp_path: Path) -> None:  # R-ST20
    async def work() -> None:
        two = {"web": container(), "a": {"build": {"context": "b"}}, "b": {"build": {"context": "b"}}}
        bundle = make_bundle(tmp_path, containers=two, **files_entry(PLAIN))
        write_files(bundle, PLAIN)
        other = make_bundle(
            tmp_path, name=app_name("other"), containers={"web": {"build": {"context": "b"}}}, **files_entry(PLAIN)
        )
        write_files(other, PLAIN)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.orchestrator.install, bundle)
            nursery.start_soon(node.orchestrator.install, other)

    run(work)
    assert len(node.world.containers) == 4
    ids = {box.image_id for name, box in node.world.containers.items() if not name.endswith("hello-web")}
    assert len(ids) >= 3, "apps share no image, though they are built of the same"


def test_a_companion_is_built_like_any_container(node: Node, tmp_path: Path) -> None:  # R-MF4
    files = PLAIN
    ui = {"ui": {"build": {"context": "b"}, "serves": "web"}}
    bundle = make_bundle(tmp_path, companions=ui, **files_entry(files))
    write_files(bundle, files)
    run(lambda: node.orchestrator.install(bundle))
    assert f"archy-{HELLO.slug}-ui" in node.world.containers


def test_a_disk_without_room_for_the_context_is_told_and_leaves_nothing(node: Node, tmp_path: Path) -> None:
    blocked = node.settings.data_dir / "builds"
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.write_text("a file in the way")
    with pytest.raises(Problem, match="a build can not be prepared"):
        run(lambda: node.orchestrator.install(built(tmp_path)))
    assert not node.world.containers
    assert not node.units()
