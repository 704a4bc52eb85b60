"""Hooks: once per installation, only with the app's own signed files, and whole or not at all (R-MF4)."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from apps.manifest import ManifestProblem, parse_manifest_json
from apps.problems import Problem
from orchestrator.bundle import Bundle
from orchestrator.faults import StateProblem
from tests.fakes.podman_machine import Crash
from tests.orchestrator.bundles import app_name, files_entry, make_bundle, write_files
from tests.orchestrator.nodes import Node, run

HELLO = app_name()
WEB = f"archy-{HELLO.slug}-web"
COPY = {"copy_from_host": {"src": "assets/seed", "dest": "web:/data/seed"}}


def hooked(folder: Path, version: str = "1", *, argv: tuple[str, ...] = ("prepare",)) -> Bundle:
    hooks = {"post_install": [COPY, {"exec": {"in": "web", "argv": list(argv), "timeout": 5}}]}
    files = {"assets/seed": "a seed"}
    bundle = make_bundle(folder, version, hooks=hooks, **files_entry(files))
    write_files(bundle, files)
    return bundle


def ran(node: Node) -> list[tuple[str, str]]:
    return [call for call in node.changes() if call[0] in ("copy_into", "execute")]


ONCE = [("copy_into", f"seed {WEB}:/data/seed"), ("execute", f"{WEB} prepare")]


def test_hooks_run_once_per_installation_in_order(node: Node, tmp_path: Path) -> None:
    async def work() -> None:
        await node.orchestrator.install(hooked(tmp_path))
        assert ran(node) == ONCE
        await node.orchestrator.install(hooked(tmp_path, "2"))
        await node.orchestrator.stop(HELLO)
        await node.orchestrator.start(HELLO)
        node.restart()
        node.world.reboot()
        await node.settle()
        assert ran(node) == ONCE
        await node.orchestrator.uninstall(HELLO, purge=False)
        await node.orchestrator.install(hooked(tmp_path, "2"))
        assert ran(node) == ONCE * 2

    run(work)


@pytest.mark.parametrize("argv", [("false",), ("sleep", "99")])
def test_a_hook_that_fails_or_never_ends_undoes_the_installation(
    node: Node, tmp_path: Path, argv: tuple[str, ...]
) -> None:
    with pytest.raises(Problem, match=r"hooks\.post_install\[1\]: a hook failed"):
        run(lambda: node.orchestrator.install(hooked(tmp_path, argv=argv)))
    assert not node.world.containers
    assert not node.orchestrator.installed()


def test_an_asset_with_other_bytes_than_signed_is_never_copied(node: Node, tmp_path: Path) -> None:  # R-MF12
    bundle = hooked(tmp_path)
    (bundle.root / "files" / "assets" / "seed").write_text("poison")
    with pytest.raises(Problem, match="other bytes than were signed"):
        run(lambda: node.orchestrator.install(bundle))
    assert not ran(node)


def test_a_crash_while_hooks_run_begins_the_installation_anew_and_never_runs_them_twice(tmp_path: Path) -> None:
    outcomes = set()
    for at in range(60):
        folder = tmp_path / str(at)
        node, bundle = Node(folder), hooked(folder)

        async def work(node: Node = node, bundle: Bundle = bundle, at: int = at) -> bool:
            node.world.crash_at = at
            with suppress(Crash, StateProblem, BaseExceptionGroup):
                await node.orchestrator.install(bundle)
            dead, node.world.crash_at = node.world.crashed, None
            if dead:
                node.boot()
                await node.settle()
                assert not node.state.open_operations()
            whole = bool(node.orchestrator.installed())
            outcomes.add(whole)
            assert bool(node.world.containers) == whole, f"crash at call {at}"
            assert len(ran(node)) <= 2
            assert not whole or ran(node) == ONCE
            return dead

        if not run(work):
            assert outcomes == {True, False}
            return
    raise AssertionError("the operation never ended")


@pytest.mark.parametrize(
    "dest",
    [
        "web:/etc/seed",
        "web:/data/../etc/seed",
        "web:/data",
        "nobody:/data/x",
        "/data/x",
        "web:/data/./x",
        "web:/fixed/x",
    ],
)
def test_a_copy_that_leaves_the_apps_volumes_is_refused(dest: str) -> None:
    mounts: list[dict[str, Any]] = [
        {"volume": "data", "path": "/data"},
        {"volume": "fixed", "path": "/fixed", "read_only": True},
    ]
    body = {
        "schema": 1,
        "id": "hello",
        "version": "1",
        "title": "x",
        "volumes": {"data": {}, "fixed": {}},
        "containers": {"web": {"image": {"ref": "localhost/x:1"}, "mounts": mounts}},
        "hooks": {"post_install": [{"copy_from_host": {"src": "seed", "dest": dest}}]},
    }
    with pytest.raises(ManifestProblem, match=r"hooks\.post_install\[0\]\.copy_from_host\.dest"):
        parse_manifest_json(body, where="m")
