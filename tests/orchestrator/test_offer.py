"""What containers of somebody else are offered for: whose they are decides, and what could not be kept (R-ST7)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apps.problems import Refused
from orchestrator import NotAdoptable
from orchestrator.bundle import Bundle
from orchestrator.stranger import StrangerMount
from tests.orchestrator.bundles import app_name, container, make_bundle
from tests.orchestrator.nodes import Node, run
from tests.orchestrator.strangers import (
    AUTO,
    DATA,
    MOUNT,
    NOTES,
    WEB,
    by_hand,
    config_of,
    notes,
    take_over,
    touched,
)


def stack(folder: Path) -> Bundle:
    boxes = {
        "web": container(ports=AUTO, mounts=[], secrets=[], needs=["db"]),
        "db": {"mounts": [{"volume": "data", "path": "/db", "exclusive": True}], "stop_grace_secs": 1},
    }
    return notes(folder, containers=boxes, settings=[], generated_secrets=[])


def test_each_container_of_a_stack_is_found_by_its_image_whatever_its_name(node: Node, tmp_path: Path) -> None:
    bundle = stack(tmp_path)
    by_hand(node, bundle, "my-notes", "web", mounts=(), environment={})
    by_hand(node, bundle, "notes", "db", mounts=(StrangerMount("volume", "pg", "/db"),), ports=())

    async def work() -> None:
        offer = await node.orchestrator.offer(NOTES, bundle.manifest)
        assert [(label, box.name) for label, box in offer.containers] == [("db", "notes"), ("web", "my-notes")]
        await take_over(node, bundle)
        node.world.calls.clear()
        await node.orchestrator.restart(NOTES)
        stops = [node_id for call, node_id in node.world.calls if call == "stop_stranger"]
        assert stops == [offer.containers[1][1].id, offer.containers[0][1].id]  # web first: it needs db
        assert node.world.containers[f"archy-{NOTES.slug}-db"].places == {"/db": "pg"}

    run(work)


def refused(node: Node, bundle: Bundle) -> str:
    """Why nothing can be taken over; nothing was changed by asking."""
    node.world.calls.clear()
    with pytest.raises(NotAdoptable) as caught:
        run(lambda: node.orchestrator.offer(bundle.name, bundle.manifest))
    assert touched(node) == []
    assert node.orchestrator.installed() == ()
    return caught.value.what


def other(node: Node, bundle: Bundle, **more: Any) -> Callable[[], Any]:
    return lambda: by_hand(node, bundle, **more)


MANY: tuple[tuple[dict[str, Any], str], ...] = (
    ({"labels": {"archy.app": "bitcoin-0123456789"}}, "belongs to the app bitcoin-0123456789"),
    ({"labels": {"archy.prefix": "other"}}, "belongs to the app of another node"),
    ({"labels": {"PODMAN_SYSTEMD_UNIT": "notes.service"}}, "run by the systemd unit notes.service"),
    ({"pod": "5" * 64}, "is in a pod"),
    ({"networks": ("container:" + "6" * 64,)}, "has the network of something else"),
    ({"passing": True}, "made with --rm"),
    ({"user_namespace": "keep-id"}, "maps user ids in its own way"),
    ({"state": "paused"}, "is paused"),
    ({"mounts": ()}, "has nothing mounted at /data"),
    ({"mounts": (StrangerMount("volume", "a" * 64, "/data"),)}, "an anonymous volume"),
    ({"mounts": (StrangerMount("volume", "x.volume", "/data"),)}, "no unit can have"),
    ({"mounts": (StrangerMount("volume", "archy-other-0123456789-data", "/data"),)}, "the data of another app"),
    ({"mounts": (StrangerMount("tmpfs", "", "/data"),)}, "'tmpfs'"),
    ({"mounts": (replace(MOUNT, source="/srv/a:b"),)}, "no unit can name"),
    ({"mounts": (replace(MOUNT, source="/srv/a\nExecStart=x"),)}, "no unit can name"),
    ({"mounts": (replace(MOUNT, source="/"),)}, "a folder that no app is to see"),
    ({"mounts": (replace(MOUNT, source="/etc/cron.d"),)}, "a folder of the system"),
    ({"mounts": (replace(MOUNT, source="/run/user/1000"),)}, "a folder of the system"),
    ({"mounts": (replace(MOUNT, source=str(Path.home() / ".ssh")),)}, "a folder"),
    ({"mounts": (MOUNT, StrangerMount("bind", "/srv/more", "/more"))}, "may write to /more"),
    ({"mounts": (replace(MOUNT, source="/srv/gone/../x"),)}, "no unit can name"),
)


@pytest.mark.parametrize(("how", "why"), MANY)
def test_a_container_that_could_not_be_kept_or_is_not_its_own_is_refused(
    node: Node, tmp_path: Path, how: dict[str, Any], why: str
) -> None:  # R-MF14, R-ST9
    bundle = notes(tmp_path)
    by_hand(node, bundle, **how)
    assert why in refused(node, bundle)


def test_what_podman_would_start_again_by_itself_is_left_to_a_podman_that_can_be_told_not_to(
    node: Node, tmp_path: Path
) -> None:  # R-ST7
    bundle = notes(tmp_path)
    by_hand(node, bundle)
    node.world.podman_version = (5, 0, 3)
    assert "only Podman 5.1 can be told to leave" in refused(node, bundle)
    node.world.strangers.clear()
    by_hand(node, bundle, restart="no")
    assert run(lambda: node.orchestrator.offer(NOTES, bundle.manifest)).ids


def test_data_behind_a_link_is_refused(node: Node, tmp_path: Path) -> None:  # R-MF14: it may lead elsewhere tomorrow
    bundle = notes(tmp_path)
    by_hand(node, bundle)
    node.world.places.clear()
    assert f"no folders, or behind a link: {DATA}" in refused(node, bundle)


def test_an_image_of_another_digest_is_refused(node: Node, tmp_path: Path) -> None:  # R-ST7, R-MF11
    bundle = notes(tmp_path)
    by_hand(node, notes(tmp_path, "0"))
    assert "notes runs docker.io/notes:1 (sha256:" in (told := refused(node, bundle))
    assert f"was signed with {config_of(bundle)[:19]}" in told


def test_what_is_ambiguous_is_refused_with_all_reasons_at_once(node: Node, tmp_path: Path) -> None:
    bundle = notes(tmp_path)
    by_hand(node, bundle)
    by_hand(node, bundle, "my-notes", mounts=(), passing=True)
    told = refused(node, bundle)
    assert "my-notes was made with --rm" in told
    assert "my-notes and notes could both be web" in told


def test_half_a_stack_is_not_taken_over(node: Node, tmp_path: Path) -> None:
    bundle = stack(tmp_path)
    by_hand(node, bundle, "notes", "db", mounts=(replace(MOUNT, path="/db"),), ports=())
    assert "no container that it names runs the image of web" in refused(node, bundle)
    by_hand(node, bundle, "my-notes", "web", mounts=(), state="exited")
    assert "some of its containers run and others do not" in refused(node, bundle)


def test_nothing_is_offered_where_nothing_is(node: Node, tmp_path: Path) -> None:
    assert "none of the containers that notes would take over is here: notes, my-notes" in refused(
        node, notes(tmp_path)
    )


def test_a_publisher_who_names_another_apps_container_gets_nothing(node: Node, tmp_path: Path) -> None:  # R-MF14
    """Neither one of units, nor one that was adopted, nor a third one that reads an adopted app's data."""
    bundle, mallory = notes(tmp_path), app_name("evil", "did:key:zMallory")

    def naming(name: str) -> Bundle:
        boxes = {"web": container(18999, secrets=[]) | {"image": bundle.manifest.containers["web"].image}}
        adopt = {"container_names": [name]}
        made = make_bundle(tmp_path / "m", name=mallory, containers={"web": container(18999)}, adopt=adopt)
        web = made.manifest.containers["web"].model_copy(update={"image": boxes["web"]["image"]})
        return replace(made, manifest=made.manifest.model_copy(update={"containers": {"web": web}}))

    async def offered(name: str) -> str:
        with pytest.raises(NotAdoptable) as caught:
            await node.orchestrator.offer(mallory, naming(name).manifest)
        return caught.value.what

    async def work() -> None:
        by_hand(node, bundle)
        assert (await node.orchestrator.offer(mallory, naming("notes").manifest)).kept  # nobody's yet
        await take_over(node, bundle)
        assert f"notes belongs to the app {NOTES.slug}" in await offered("notes")
        by_hand(node, bundle, "backup", ports=(), mounts=(replace(MOUNT, source=f"{DATA}/inner"),))
        assert f"the data of another app ({NOTES.slug})" in await offered("backup")
        await node.orchestrator.restart(NOTES)
        before = dict(node.world.containers)
        assert f"{WEB} belongs to the app {NOTES.slug}" in await offered(WEB)
        await node.orchestrator.uninstall(NOTES, purge=False)
        assert f"the data of another app ({NOTES.slug})" in await offered("backup")
        assert before

    run(work)


def test_containers_that_were_exchanged_after_the_question_are_not_taken(node: Node, tmp_path: Path) -> None:
    bundle = notes(tmp_path)
    id_ = by_hand(node, bundle)

    async def work() -> None:
        offer = await node.orchestrator.offer(NOTES, bundle.manifest)
        del node.world.strangers[id_]
        by_hand(node, bundle)
        with pytest.raises(Refused, match="other containers are here than those that were agreed to"):
            await node.orchestrator.take_over(bundle, offer.ids)
        assert node.orchestrator.installed() == ()
        assert node.orchestrator.adopted_data(NOTES) == ()

    run(work)
