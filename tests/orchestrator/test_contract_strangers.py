"""What the orchestrator relies on where containers are not its own: one suite for the fake and for the real Podman.

Without ARCHY_CONTRACT it runs on the fake. With ARCHY_CONTRACT=real, inside a lab node, it runs on the user's own
Podman (tests/system/test_takeover.py starts it there).
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from orchestrator.faults import CommandFailed
from orchestrator.images import check_layout, stage, write_index
from orchestrator.names import slice_name
from orchestrator.podman import Podman, RootlessPodman
from orchestrator.process import run
from orchestrator.stranger import Stranger, StrangerMount, StrangerPort
from tests.fakes.podman import FakePodman
from tests.fakes.podman_machine import Machine
from tests.orchestrator.bundles import app_name
from tests.orchestrator.driver import web_bundle, web_container
from tests.orchestrator.test_contract import BUSYBOX, REAL

NAME, VOLUME = "contractstranger", "contractstrangerdata"
IMAGE = "localhost/somebody/contract:1"
SLICE = slice_name("contract")


@dataclass
class Yard:
    """A Podman, and a container that somebody made by hand."""

    podman: Podman
    machine: Machine
    folder: Path
    config: str

    async def make(self, *, restart: str = "no") -> Stranger:
        if REAL:
            ports = ("--publish", "18097:8080", "--publish", "127.0.0.1:18098:81/udp")
            mounts = ("--volume", f"{self.folder}:/data", "--volume", f"{VOLUME}:/named:ro,z")
            more = ("--env", "FOO=a=b", "--label", "a=b", "--user", "1:1", f"--restart={restart}", "--stop-timeout=1")
            server = (BUSYBOX, "httpd", "-f", "-p", "8080")
            argv = ("podman", "run", "--detach", "--name", NAME, *ports, *mounts, *more, IMAGE, *server)
            (await run(argv, seconds=60)).checked()
        else:
            binds = (
                StrangerMount("bind", str(self.folder), "/data"),
                StrangerMount("volume", VOLUME, "/named", False, "z"),
            )
            published = (StrangerPort(8080, "tcp", 18097, "0.0.0.0"), StrangerPort(81, "udp", 18098, "127.0.0.1"))
            self.machine.meet(
                NAME,
                self.config,
                mounts=binds,
                ports=published,
                environment={"FOO": "a=b"},
                labels={"a": "b"},
                user="1:1",
                restart=restart,
                command=(BUSYBOX, "httpd", "-f", "-p", "8080"),
            )
        return await self.seen()

    async def seen(self) -> Stranger:
        (found,) = await self.podman.strangers((NAME,))
        return found


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[Yard]:
    machine = Machine(tmp_path / "units")
    podman: Podman = RootlessPodman() if REAL else FakePodman(machine)
    bundle = web_bundle(tmp_path, app_name("contract"), "1", containers={"web": web_container(18097)})
    image = bundle.manifest.containers["web"].image
    assert image is not None
    layout = check_layout(bundle.layout("web"), image.platforms[0], where="test")
    write_index(stage(layout, tmp_path / "staged"), layout, IMAGE)
    await podman.import_image(tmp_path / "staged", IMAGE)
    folder = tmp_path / "data"
    folder.mkdir()
    yield Yard(podman, machine, folder, image.platforms[0].config)
    with trio.CancelScope(shield=True):
        for box in await podman.strangers((NAME,)):
            await podman.stop(box.id, grace=1)
            await podman.discard((box.id,))
        if REAL:
            await run(("podman", "volume", "rm", "--force", VOLUME), seconds=30)
        await podman.remove_image(IMAGE)
        shutil.rmtree(tmp_path / "staged")


async def test_a_container_is_seen_as_it_was_made(yard: Yard) -> None:
    made = await yard.make(restart="on-failure:3")
    assert (made.name, made.state, made.alive) == (NAME, "running", True)
    assert made.image_id == yard.config  # the digest that a manifest signs
    assert made.labels["a"] == "b"
    assert sorted(made.ports, key=lambda port: port.container) == [
        StrangerPort(81, "udp", 18098, "127.0.0.1"),
        StrangerPort(8080, "tcp", 18097, "0.0.0.0"),
    ]
    assert sorted(made.mounts, key=lambda mount: mount.path) == [
        StrangerMount("bind", str(yard.folder), "/data"),
        StrangerMount("volume", VOLUME, "/named", writable=False, relabel="z"),
    ]
    assert made.environment["FOO"] == "a=b"
    assert (made.user, made.restart, made.passing, made.pod, made.unit) == ("1:1", "on-failure:3", False, "", "")
    assert (made.user_namespace, made.networks, made.privileged) == ("", (), False)
    assert made.command == (BUSYBOX, "httpd", "-f", "-p", "8080")


async def test_it_is_found_by_name_and_by_whole_id_and_by_nothing_else(yard: Yard) -> None:
    made = await yard.make()
    podman = yard.podman
    assert await podman.strangers(()) == ()
    assert await podman.strangers(("contractnobody", NAME, made.id)) == (made,)
    assert await podman.strangers((made.id[:12],)) == ()
    async with podman.at_hand():
        assert await podman.strangers((NAME,)) == (made,)
        assert await podman.strangers((NAME, "contractnobody")) == (made,)


async def test_it_is_stopped_and_started_again_as_it_was(yard: Yard) -> None:
    made = await yard.make(restart="always")
    for _ in range(2):
        await yard.podman.start(made.id, seconds=60, slice_=SLICE)
    assert (await yard.seen()) == made
    for _ in range(2):
        await yard.podman.stop(made.id, grace=1)
    assert (await yard.seen()).state == "exited"
    await yard.podman.start(made.id, seconds=60, slice_=SLICE)
    assert (await yard.seen()) == made


async def test_its_restart_policy_is_changed_while_it_runs_and_while_it_does_not(yard: Yard) -> None:
    made = await yard.make(restart="always")
    await yard.podman.set_restart(made.id, "no")
    assert (await yard.seen()).restart == "no"
    assert (await yard.seen()).alive
    await yard.podman.stop(made.id, grace=1)
    for policy in ("unless-stopped", "on-failure:5", "on-failure", "always"):
        await yard.podman.set_restart(made.id, policy)
        assert (await yard.seen()).restart == policy
    assert not (await yard.seen()).alive


async def test_it_is_discarded_only_when_it_is_down_and_its_data_stays(yard: Yard) -> None:
    made = await yard.make()
    with pytest.raises(CommandFailed):
        await yard.podman.discard((made.id,))
    await yard.podman.stop(made.id, grace=1)
    for _ in range(2):
        await yard.podman.discard((made.id, "0" * 64))
    assert await yard.podman.strangers((NAME,)) == ()
    assert yard.folder.is_dir()
    if REAL:
        (await run(("podman", "volume", "inspect", VOLUME), seconds=30)).checked()


async def test_what_is_gone_is_stopped_and_changed_without_a_word_and_not_started(yard: Yard) -> None:
    gone = "0" * 64
    await yard.podman.stop(gone, grace=1)
    await yard.podman.set_restart(gone, "no")
    await yard.podman.discard((gone,))
    with pytest.raises(CommandFailed):
        await yard.podman.start(gone, seconds=60, slice_=SLICE)
