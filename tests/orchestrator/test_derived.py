"""Derived files in an app's life: made before the start, again whenever they differ, and told to who reads them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from apps.manifest import ManifestProblem, parse_manifest_json
from apps.problems import Refused
from orchestrator.bundle import Bundle
from tests.fakes.podman_machine import Crash
from tests.orchestrator.bundles import app_name, container, make_bundle
from tests.orchestrator.nodes import Node, run

HELLO = app_name()
TEMPLATE = "greeting={{ settings.greeting }}\n{{ secrets.password|rpcauth('me') }}\n"
INSIDE = "/run/config/app.conf"
SERVICE = f"archy-{HELLO.slug}-web.service"


def deriving(
    folder: Path, version: str = "1", *, template: str = TEMPLATE, on_change: str = "restart", **more: Any
) -> Bundle:
    raw = template.encode()
    derived = {"template": "t/app.conf", "dest": "app.conf", "into": {"web": "/run/config"}, "on_change": on_change}
    known: dict[str, Any] = {
        "derived_files": [derived],
        "files": {"t/app.conf": {"blake3": blake3(raw).hexdigest(), "size": len(raw)}},
        "settings": [{"name": "greeting", "default": "Hello"}],
    }
    bundle = make_bundle(folder, version, **(known | more))
    (bundle.root / "files" / "t").mkdir(parents=True, exist_ok=True)
    (bundle.root / "files" / "t" / "app.conf").write_bytes(raw)
    return bundle


def read_by_app(node: Node) -> str:
    (box,) = node.world.containers.values()
    return box.read[INSIDE].decode()


def on_disk(node: Node) -> Path:
    (path,) = (node.settings.data_dir / "derived" / HELLO.slug).rglob("app.conf")
    return path


def test_a_file_is_there_before_the_first_start_and_nobody_else_reads_it(node: Node, tmp_path: Path) -> None:
    async def work() -> None:
        await node.orchestrator.install(deriving(tmp_path))
        assert read_by_app(node).startswith("greeting=Hello\nme:")
        assert on_disk(node).stat().st_mode & 0o777 == 0o600
        assert (node.settings.data_dir / "derived" / HELLO.slug).stat().st_mode & 0o777 == 0o700
        before = node.changes()
        await node.tick()
        node.restart()
        await node.settle()
        assert node.changes() == before  # R-ST15, R-ST16

    run(work)


@pytest.mark.parametrize("harm", ["edited", "lost", "opened to all", "made a link", "made a pipe", "grown"])
def test_an_edited_or_lost_file_is_made_again_within_one_tick_and_the_app_restarted(
    node: Node, tmp_path: Path, harm: str
) -> None:  # R-FM2
    async def work() -> None:
        await node.orchestrator.install(deriving(tmp_path))
        path, content = on_disk(node), on_disk(node).read_bytes()
        match harm:
            case "edited":
                path.write_text("greeting=mallory\n")
            case "lost":
                path.unlink()
            case "opened to all":
                path.chmod(0o666)
            case "made a pipe":
                path.unlink()
                os.mkfifo(path)
            case "grown":
                os.truncate(path, 1 << 36)  # more than any memory holds
            case _:
                path.rename(tmp_path / "elsewhere")
                path.symlink_to(tmp_path / "elsewhere")
        node.world.calls.clear()
        await node.tick()
        assert (path.read_bytes(), path.stat().st_mode & 0o777) == (content, 0o600)
        assert not path.is_symlink()
        assert node.changes() == [("restart", SERVICE)]
        await node.tick()
        assert node.changes() == [("restart", SERVICE)]

    run(work)


def test_files_nobody_asked_for_are_removed(node: Node, tmp_path: Path) -> None:
    async def work() -> None:
        await node.orchestrator.install(deriving(tmp_path))
        stray = on_disk(node).with_name("extra.conf")
        stray.write_text("x")
        await node.tick()
        assert not stray.exists()

    run(work)


@pytest.mark.parametrize(("on_change", "call"), [("restart", "restart"), ("reload", "hang_up"), ("none", None)])
def test_a_changed_setting_reaches_the_file_and_is_told_as_declared(
    node: Node, tmp_path: Path, on_change: str, call: str | None
) -> None:
    async def work() -> None:
        await node.orchestrator.install(deriving(tmp_path, on_change=on_change))
        node.world.calls.clear()
        await node.orchestrator.configure(HELLO, {"greeting": "Hi"})
        assert on_disk(node).read_text().startswith("greeting=Hi\n")
        assert [name for name, _ in node.changes()] == ([call] if call else [])
        await node.tick()
        assert len(node.changes()) == (1 if call else 0)

    run(work)


def test_an_update_brings_the_new_versions_file(node: Node, tmp_path: Path) -> None:
    async def work() -> None:
        await node.orchestrator.install(deriving(tmp_path))
        await node.orchestrator.install(deriving(tmp_path, "2", template="v={{ app.version }}\n"))
        assert read_by_app(node) == "v=2\n"

    run(work)


@pytest.mark.parametrize("on_change", ["restart", "reload"])
def test_a_crash_anywhere_in_a_change_loses_no_restart(tmp_path: Path, on_change: str) -> None:
    for at in range(60):
        folder = tmp_path / str(at)
        node, bundle = Node(folder), deriving(folder, on_change=on_change)

        async def work(node: Node = node, bundle: Bundle = bundle, at: int = at) -> bool:
            await node.orchestrator.install(bundle)
            node.world.calls.clear()
            node.world.crash_at = at
            with suppress(Crash, BaseExceptionGroup):
                await node.orchestrator.configure(HELLO, {"greeting": "Hi"})
            dead, node.world.crash_at = node.world.crashed, None
            if dead:
                node.boot()
                await node.settle()
            assert on_disk(node).read_text().startswith("greeting=Hi\n")
            if on_change == "restart":
                assert read_by_app(node).startswith("greeting=Hi\n"), f"crash at call {at}"
            else:
                assert [name for name, _ in node.changes()].count("hang_up") >= 1, f"crash at call {at}"
            return dead

        if not run(work):
            assert at > 3
            return
    raise AssertionError("the operation never ended")


def test_a_template_with_other_bytes_than_signed_is_refused_before_anything_changes(
    node: Node, tmp_path: Path
) -> None:  # R-MF12, invariant 6
    bundle = deriving(tmp_path)
    (bundle.root / "files" / "t" / "app.conf").write_text("greeting=mallory\n")
    with pytest.raises(Refused, match="other bytes than were signed"):
        run(lambda: node.orchestrator.install(bundle))
    assert not node.units()
    assert not node.changes()


def test_a_template_that_asks_for_what_is_not_there_is_refused_before_anything_changes(
    node: Node, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match=r"hello: t/app\.conf: 'nobody' is undefined"):
        run(lambda: node.orchestrator.install(deriving(tmp_path, template="{{ nobody }}")))
    assert not node.changes()


def test_a_lost_secret_is_never_made_again_under_a_file_that_was_derived_from_it(node: Node, tmp_path: Path) -> None:
    other = app_name("world")

    async def work() -> None:
        await node.orchestrator.install(deriving(tmp_path))
        await node.orchestrator.install(make_bundle(tmp_path, name=other, containers={"web": container(18081)}))
        content = on_disk(node).read_bytes()
        (node.settings.data_dir / "secrets" / HELLO.slug / "password").unlink()
        node.world.secrets.pop(f"archy-{HELLO.slug}-password")
        node.world.stop(f"archy-{other.slug}-web.service")
        await node.tick()
        assert on_disk(node).read_bytes() == content
        assert not (node.settings.data_dir / "secrets" / HELLO.slug / "password").exists()
        assert f"archy-{other.slug}-web" in node.world.containers  # R-ST4

    run(work)


def test_uninstall_leaves_no_derived_file(node: Node, tmp_path: Path) -> None:  # R-ST10
    async def work() -> None:
        await node.orchestrator.install(deriving(tmp_path))
        await node.orchestrator.uninstall(HELLO, purge=False)
        assert not list((node.settings.data_dir / "derived").iterdir())

    run(work)


@pytest.mark.parametrize(
    ("derived", "more", "path", "says"),
    [
        ({"into": {"nobody": "/run/c"}}, {}, "derived_files[0].into.nobody", "no container 'nobody'"),
        ({"into": {"web": "/data"}}, {}, "derived_files[0].into.web", "a volume is mounted there"),
        ({"into": {"web": "/run/c"}}, {"user": "1000"}, "derived_files[0].into.web", "web runs as 1000"),
        ({}, {}, "derived_files[0].into", "the key is missing"),
    ],
)
def test_a_file_that_no_container_could_read_is_told_by_the_manifest(
    derived: dict[str, Any], more: dict[str, Any], path: str, says: str
) -> None:
    body = {
        "schema": 1,
        "id": "hello",
        "version": "1",
        "title": "x",
        "volumes": {"data": {}},
        "containers": {
            "web": {"image": {"ref": "localhost/x:1"}, "mounts": [{"volume": "data", "path": "/data"}]} | more
        },
        "derived_files": [{"template": "t", "dest": "c"} | derived],
    }
    with pytest.raises(ManifestProblem) as caught:
        parse_manifest_json(body, where="m")
    assert [(e.path, e.message[: len(says)]) for e in caught.value.errors] == [(path, says)]
