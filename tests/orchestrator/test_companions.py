"""Companions: beside the app, repaired with it, and never in its way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.bundle import Bundle
from tests.orchestrator.bundles import app_name, container, make_bundle, write_layout
from tests.orchestrator.nodes import Node, run

HELLO = app_name()
STEM = f"archy-{HELLO.slug}"


def accompanied(folder: Path, version: str = "1", **more: Any) -> Bundle:
    root = folder / f"{HELLO.slug}-{version}"
    image = write_layout(root / "images" / "ui", f"ui {version}".encode())
    ui = {"image": image, "serves": "web", "ports": [{"name": "ui", "container": 80, "host": "auto"}]}
    door = [{"id": "ui", "type": "ui", "port": "ui"}]
    return make_bundle(folder, version, companions={"ui": ui}, interfaces=door, **more)


def config(bundle: Bundle) -> str:
    image = bundle.manifest.companions["ui"].image
    assert image is not None
    return image.platforms[0].config


def test_a_companion_runs_beside_the_app_and_may_be_its_door(node: Node, tmp_path: Path) -> None:
    async def work() -> None:
        status = await node.orchestrator.install(accompanied(tmp_path))
        assert (status.state, status.urls) == ("running", ("http://127.0.0.1:20000/",))
        assert set(node.world.containers) == {f"{STEM}-web", f"{STEM}-ui"}
        before = node.changes()
        node.restart()
        await node.settle()
        assert node.changes() == before

    run(work)


def test_a_companions_lost_unit_is_back_within_one_tick(node: Node, tmp_path: Path) -> None:  # R-FM1
    async def work() -> None:
        await node.orchestrator.install(accompanied(tmp_path))
        (node.settings.unit_dir / f"{STEM}-ui.container").unlink()
        node.world.stop(f"{STEM}-ui.service")
        await node.tick()
        assert (node.settings.unit_dir / f"{STEM}-ui.container").exists()
        assert f"{STEM}-ui" in node.world.containers

    run(work)


def test_a_crash_looping_companion_neither_fails_nor_delays_its_app(node: Node, tmp_path: Path) -> None:  # R-ST4
    bundle = accompanied(tmp_path)
    node.world.crashing.add(config(bundle))

    async def work() -> None:
        status = await node.orchestrator.install(bundle)
        assert status.state == "running"
        assert {c.name: c.state for c in status.containers} == {"web": "running", "ui": "failed"}
        node.world.stop(f"{STEM}-web.service")
        await node.tick()
        assert f"{STEM}-web" in node.world.containers
        node.world.crashing.clear()
        await node.tick()
        assert f"{STEM}-ui" in node.world.containers

    run(work)


def test_a_stopped_app_reads_stopped_whatever_its_companion_does(node: Node, tmp_path: Path) -> None:  # R-ST3
    async def work() -> None:
        await node.orchestrator.install(accompanied(tmp_path))
        await node.orchestrator.stop(HELLO)
        assert not node.world.containers
        node.world.start(f"{STEM}-ui.service")
        (status,) = await node.orchestrator.status()
        assert status.state == "stopped"

    run(work)


def test_a_companions_image_is_checked_like_every_other(node: Node, tmp_path: Path) -> None:  # R-MF11
    bundle = accompanied(tmp_path)
    blob = bundle.layout("ui") / "blobs" / "sha256" / config(bundle)[7:]
    blob.write_bytes(blob.read_bytes().replace(b"linux", b"xunil"))
    with pytest.raises(Exception, match="was signed"):
        run(lambda: node.orchestrator.install(bundle))
    assert not node.world.images


def test_companion_and_container_share_no_host_port(node: Node, tmp_path: Path) -> None:  # R-ST9
    ui = {"image": {"ref": "a.b/c:1"}, "serves": "web", "ports": [{"name": "ui", "container": 80, "host": 18080}]}
    with pytest.raises(Exception, match=r"host port 18080 is already companions\.ui\.ports"):
        make_bundle(tmp_path, containers={"web": container(18080)}, companions={"ui": ui})
