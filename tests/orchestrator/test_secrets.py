"""Secrets: made once, mended from Podman's copy, made anew by the operator's word alone (R-MF3)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from apps.manifest_parts import GeneratedSecret
from apps.problems import Problem, RolledBack, UsageProblem
from orchestrator.bundle import Bundle
from orchestrator.secret_files import SecretFiles
from tests.fakes.podman_machine import Crash
from tests.orchestrator.bundles import app_name, container, files_entry, make_bundle, write_files
from tests.orchestrator.nodes import Node, run

HELLO = app_name()
NAME = f"archy-{HELLO.slug}-password"
SERVICE = f"archy-{HELLO.slug}-web.service"


def deriving(folder: Path, *, on_change: str = "restart", used: bool = True, **more: Any) -> Bundle:
    """The secret in a derived file and, where it is `used`, in the container itself."""
    files = {"t": "password={{ secrets.password }}\n"}
    derived = {"template": "t", "dest": "app.conf", "into": {"web": "/run/conf"}, "on_change": on_change}
    box = container() if used else container(secrets=[])
    bundle = make_bundle(folder, containers={"web": box}, derived_files=[derived], **files_entry(files), **more)
    write_files(bundle, files)
    return bundle


def folder_of(node: Node) -> Path:
    return node.settings.data_dir / "secrets" / HELLO.slug


def everywhere(node: Node) -> bytes:
    """All that the node and Podman hold, and what the container was given at its start."""
    files = [path.read_bytes() for path in node.home.rglob("*") if path.is_file() and "state.db" not in path.name]
    boxes = [value for box in node.world.containers.values() for value in (*box.secrets.values(), *box.read.values())]
    return b"\n".join([*files, *node.world.secrets.values(), *boxes])


@pytest.mark.parametrize(
    ("on_change", "used", "told"),
    [
        ("restart", True, "restart"),
        ("reload", True, "restart"),
        ("reload", False, "hang_up"),
        ("none", False, None),
    ],
)
def test_a_rotated_secret_reaches_all_that_reads_it_and_the_old_value_is_gone(
    node: Node, tmp_path: Path, on_change: str, used: bool, told: str | None
) -> None:
    async def work() -> None:
        await node.orchestrator.install(deriving(tmp_path, on_change=on_change, used=used))
        old = node.orchestrator.secrets(HELLO)["password"].encode()
        node.world.calls.clear()
        await node.orchestrator.rotate(HELLO, "password")
        new = node.orchestrator.secrets(HELLO)["password"].encode()
        (file,) = (node.settings.data_dir / "derived" / HELLO.slug).rglob("app.conf")
        assert file.read_bytes() == b"password=" + new + b"\n"
        assert list(node.world.secrets.values()) == [new]
        (box,) = node.world.containers.values()
        assert list(box.secrets.values()) == ([new] if used else [])
        if told != "restart":  # what it read at its start is in its memory, as it was
            box.read.clear()
        assert old not in everywhere(node)
        assert [call for call, _ in node.changes() if call in ("restart", "hang_up")] == ([told] if told else [])
        before = node.changes()
        node.restart()
        await node.settle()
        assert node.changes() == before  # R-ST15, R-ST16

    run(work)


def test_secrets_are_rotated_again_and_survive_updates_and_reinstallation(node: Node, tmp_path: Path) -> None:
    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        for _ in range(3):
            await node.orchestrator.rotate(HELLO, "password")
        value = node.orchestrator.secrets(HELLO)
        assert list(node.world.secrets) == [f"{NAME}.3"]
        assert sorted(path.name for path in folder_of(node).iterdir()) == [".password.3.sum", "password.3"]
        await node.orchestrator.install(make_bundle(tmp_path, "2"))
        await node.orchestrator.uninstall(HELLO, purge=False)
        assert not node.world.secrets
        await node.orchestrator.install(make_bundle(tmp_path, "2"))
        assert node.orchestrator.secrets(HELLO) == value
        assert list(node.world.secrets) == [f"{NAME}.3"]
        await node.orchestrator.uninstall(HELLO, purge=True)
        assert not folder_of(node).exists()

    run(work)


def test_a_secret_that_the_app_does_not_do_well_with_is_taken_back(node: Node, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    config = bundle.manifest.containers["web"].image.platforms[0].config  # type: ignore[union-attr]

    async def work() -> None:
        await node.orchestrator.install(bundle)
        before = (node.orchestrator.secrets(HELLO), dict(node.world.secrets), sorted(folder_of(node).iterdir()))
        node.world.ill.add(config)
        with pytest.raises(RolledBack, match="did not do well with the new password, the old one is back"):
            await node.orchestrator.rotate(HELLO, "password")
        assert (
            node.orchestrator.secrets(HELLO),
            dict(node.world.secrets),
            sorted(folder_of(node).iterdir()),
        ) == before
        (box,) = node.world.containers.values()
        assert box.secrets == before[1]

    run(work)


def test_a_stopped_app_stays_stopped_and_starts_with_the_new_value(node: Node, tmp_path: Path) -> None:  # R-ST2
    async def work() -> None:
        await node.orchestrator.install(deriving(tmp_path))
        old = node.orchestrator.secrets(HELLO)["password"].encode()
        await node.orchestrator.stop(HELLO)
        await node.orchestrator.rotate(HELLO, "password")
        assert not node.world.containers
        assert old not in everywhere(node)
        await node.orchestrator.start(HELLO)
        (box,) = node.world.containers.values()
        assert list(box.secrets.values()) == [node.orchestrator.secrets(HELLO)["password"].encode()]

    run(work)


def test_what_is_no_secret_is_told_and_changes_nothing(node: Node, tmp_path: Path) -> None:
    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        before = node.changes()
        with pytest.raises(UsageProblem, match="hello has no secret 'nothing'") as caught:
            await node.orchestrator.rotate(HELLO, "nothing")
        assert caught.value.remedy == "its secrets: password"
        assert node.changes() == before

    run(work)


def test_a_crash_anywhere_in_a_rotation_leaves_one_value_and_everybody_has_it(tmp_path: Path) -> None:
    outcomes = set()
    for at in range(60):
        folder = tmp_path / str(at)
        node, bundle = Node(folder), deriving(folder)

        async def work(node: Node = node, bundle: Bundle = bundle, at: int = at) -> bool:
            await node.orchestrator.install(bundle)
            old = node.orchestrator.secrets(HELLO)["password"]
            node.world.crash_at = at
            with suppress(Crash, BaseExceptionGroup):
                await node.orchestrator.rotate(HELLO, "password")
            dead, node.world.crash_at = node.world.crashed, None
            if dead:
                node.boot()
                await node.settle()
            value = node.orchestrator.secrets(HELLO)["password"]
            outcomes.add(value == old)
            (box,) = node.world.containers.values()
            assert list(box.secrets.values()) == [value.encode()], f"crash at call {at}"
            assert box.read["/run/conf/app.conf"] == f"password={value}\n".encode()
            assert list(node.world.secrets.values()) == [value.encode()]
            assert value == old or old.encode() not in everywhere(node)
            return dead

        if not run(work):
            assert outcomes == {True, False} or outcomes == {False}
            return
    raise AssertionError("the operation never ended")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _link(path: Path) -> None:
    path.rename(path.with_name(".elsewhere"))
    path.symlink_to(".elsewhere")


HARM: tuple[Callable[[Path], object], ...] = (_cut, _empty, _link, Path.unlink)


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("rotated", [False, True])
def test_a_damaged_or_lost_file_is_mended_from_podmans_copy_within_one_tick(
    node: Node, tmp_path: Path, harm: Callable[[Path], object], rotated: bool
) -> None:  # R-MF3
    async def work() -> None:
        await node.orchestrator.install(deriving(tmp_path))
        if rotated:
            await node.orchestrator.rotate(HELLO, "password")
        value = node.orchestrator.secrets(HELLO)
        path = folder_of(node) / ("password.1" if rotated else "password")
        harm(path)
        node.world.calls.clear()
        await node.tick()
        assert node.orchestrator.secrets(HELLO) == value
        assert (path.stat().st_mode & 0o777, path.is_symlink()) == (0o600, False)
        assert [call for call in node.changes() if call[0] != "secret"] == []

    run(work)


def test_drifted_permissions_are_put_right_within_one_tick(node: Node, tmp_path: Path) -> None:  # R-MF3
    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        (folder_of(node) / "password").chmod(0o666)
        folder_of(node).chmod(0o755)
        await node.tick()
        assert (folder_of(node) / "password").stat().st_mode & 0o777 == 0o600
        assert folder_of(node).stat().st_mode & 0o777 == 0o700

    run(work)


def test_another_value_at_podman_is_not_taken_for_the_lost_one(node: Node, tmp_path: Path) -> None:  # R-MF3
    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        (folder_of(node) / "password").unlink()
        node.world.secrets[NAME] = b"mallory"
        await node.tick()
        assert node.orchestrator.secrets(HELLO) == {}
        (finding,) = [found for found in await node.orchestrator.checkup() if found.name == "secrets"]
        assert (finding.ok, finding.detail) == (False, "hello: password lost or damaged")
        with pytest.raises(Problem, match="lost or damaged, and not at Podman either: password"):
            await node.orchestrator.install(make_bundle(tmp_path, "2"))
        await node.orchestrator.rotate(HELLO, "password")
        assert list(node.world.secrets.values()) == [node.orchestrator.secrets(HELLO)["password"].encode()]

    run(work)


def test_a_dependant_gets_the_new_value_of_what_is_exported_to_it(node: Node, tmp_path: Path) -> None:
    wallet = app_name("wallet")
    files = {"t": "{{ dependencies.hello.rpc.secret }}\n"}
    derived = {"template": "t", "dest": "w.conf", "into": {"web": "/run/conf"}}
    box = {"web": container(18081)}
    needs = make_bundle(
        tmp_path,
        name=wallet,
        containers=box,
        dependencies=[{"id": "hello"}],
        derived_files=[derived],
        **files_entry(files),
    )
    write_files(needs, files)
    exports = [{"name": "rpc", "port": "web", "secret": "password"}]

    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path, exports=exports))
        await node.orchestrator.install(needs)
        await node.orchestrator.rotate(HELLO, "password")
        value = node.orchestrator.secrets(HELLO)["password"]
        assert node.world.containers[f"archy-{wallet.slug}-web"].read["/run/conf/w.conf"].decode() == f"{value}\n"

    run(work)


def test_a_file_from_before_there_were_sums_is_good_as_it_is(tmp_path: Path) -> None:
    files, secret = SecretFiles(tmp_path), GeneratedSecret(name="password")
    value = files.ensure(HELLO, secret)
    (tmp_path / HELLO.slug / ".password.sum").unlink()
    assert files.ensure(HELLO, secret) == value
    assert files.ailing(HELLO, ["password"]) == ()
