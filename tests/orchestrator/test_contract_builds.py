"""What the orchestrator relies on where images are built: one suite for the fakes and for the real ones.

Like test_contract.py, it runs on the fakes unless ARCHY_CONTRACT=real.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from apps.manifest_parts import BlobEntry, Image
from orchestrator import default_unit_dir
from orchestrator.build_folder import BuildFolder
from orchestrator.building import SCRATCH
from orchestrator.faults import CommandFailed, CommandTimedOut
from orchestrator.images import check_layout, image_name, stage, write_empty, write_index
from orchestrator.names import Names
from orchestrator.podman import ImageDetail, Podman, RootlessPodman
from orchestrator.quadlet.build import RenderedBuild, build_unit
from orchestrator.systemd import Systemd, UserSystemd
from orchestrator.unit_folder import UnitFolder
from tests.fakes.podman import FakePodman
from tests.fakes.podman_machine import Machine
from tests.fakes.systemd import FakeSystemd
from tests.orchestrator.bundles import app_name, files_entry, tar_of, write_layout
from tests.orchestrator.driver import BUSYBOX

PREFIX = "contract"
REAL = os.environ.get("ARCHY_CONTRACT") == "real"
NAMES = Names(PREFIX, app_name("built"))
INPUTS = "0123456789abcdef" * 4
COPY = "COPY busybox /bin/busybox"
SH = '["/bin/busybox", "sh", "-c", "{}"]'


@dataclass
class World:
    """systemd, Podman and one build, of which nothing is there yet."""

    systemd: Systemd
    podman: Podman
    folder: UnitFolder
    builds: BuildFolder
    build: RenderedBuild
    work: Path

    @property
    def scratch(self) -> str:
        return f"{self.build.name}:{SCRATCH}"

    async def stage(self, *lines: str) -> None:
        program = BUSYBOX.read_bytes() if BUSYBOX.exists() else b"no program"
        (self.work / "busybox").write_bytes(program)
        (self.work / "page").write_text("hello")
        files = {"page": BlobEntry(**files_entry({"page": "hello"})["files"]["page"])}
        self.builds.begin(NAMES.app, "web")
        text = "\n".join((f"FROM {self.scratch} AS stage-0", COPY, *lines, ""))
        self.builds.stage(NAMES.app, "web", text, self.work, files)
        place = self.builds.folder / NAMES.slug / "web" / "context" / "busybox"
        place.write_bytes(program)
        place.chmod(0o755)
        empty = self.work / "empty"
        if not empty.exists():
            write_index(empty, write_empty(empty, "amd64", {"archy.app": NAMES.slug}), self.scratch)
        await self.podman.import_image(empty, self.scratch)
        unit = build_unit(NAMES, "web", self.build, str(self.builds.folder), PREFIX, await self.podman.version())
        self.folder.write({unit.name: unit.text()})
        await self.systemd.daemon_reload()

    async def run(self, *lines: str, seconds: float = 120) -> ImageDetail | None:
        await self.stage(*lines)
        await self.systemd.start((self.build.service,), seconds=seconds)
        return await self.podman.image(self.build.tag)

    async def names(self) -> list[str]:
        return sorted(f"{image.name}:{image.tag}" for image in await self.podman.images(PREFIX))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    machine = Machine(tmp_path / "units")
    systemd: Systemd = UserSystemd() if REAL else FakeSystemd(machine)
    podman: Podman = RootlessPodman() if REAL else FakePodman(machine)
    folder = UnitFolder(default_unit_dir() if REAL else machine.unit_dir, PREFIX)
    unit = f"{NAMES.container('web')}.build"
    build = RenderedBuild(unit, NAMES.build_service("web"), NAMES.image("web"), INPUTS)
    made = World(systemd, podman, folder, BuildFolder(tmp_path / "builds"), build, tmp_path)
    yield made
    with trio.CancelScope(shield=True):
        await systemd.stop((build.service,), seconds=120)
        await systemd.reset_failed((build.service,))
        folder.remove(folder.read())
        await systemd.daemon_reload()
        await podman.remove_remains(f"localhost/{PREFIX}/")
        for image in await podman.images(PREFIX):
            await podman.remove_image(f"{image.name}:{image.tag}")
        assert not await podman.images(PREFIX)


async def test_the_generator_makes_a_service_of_a_build(world: World) -> None:  # R-MF9
    await world.stage()
    made = await world.systemd.dry_run(world.folder.folder)
    assert world.build.service in made.services
    assert (await world.systemd.show(PREFIX, (world.build.service,)))[world.build.service].load == "loaded"


async def test_a_build_gives_an_image_that_says_of_what_it_was_built(world: World) -> None:  # R-MF11
    assert await world.podman.image(world.build.tag) is None
    found = await world.run("COPY page /page", 'VOLUME ["/data"]', 'LABEL org.example.a="b"')
    assert found is not None
    assert found.labels["archy.build"] == INPUTS
    assert found.volumes == ("/data",)
    (seen,) = [image for image in await world.podman.images(PREFIX) if image.tag == INPUTS[:16]]
    assert (seen.digest, seen.id, seen.name) == (found.digest, found.id, world.build.name)


async def test_the_same_inputs_give_the_same_image_another_time(world: World) -> None:  # R-ST19
    lines = ("RUN " + SH.format("echo made > /made"), "COPY page /srv/page", 'ENTRYPOINT ["/bin/busybox"]')
    once = await world.run(*lines)
    await world.podman.remove_image(world.build.tag)
    await trio.sleep(1.1 if REAL else 0)  # what goes by the second would be seen
    again = await world.run(*lines)
    assert once is not None
    assert once == again
    await world.podman.remove_image(world.build.tag)
    other = await world.run("COPY page /elsewhere")
    assert other is not None
    assert other.id != once.id


async def test_a_build_that_is_over_is_down_and_leaves_its_image_alone(world: World) -> None:
    await world.run("RUN " + SH.format("echo one"))
    state = (await world.systemd.show(PREFIX, (world.build.service,)))[world.build.service]
    assert state.active == "inactive"
    assert await world.names() == sorted((world.build.tag, world.scratch))
    await world.podman.remove_image(world.scratch)
    await world.podman.remove_image(world.build.tag)
    assert await world.names() == []


async def test_stages_of_a_build_are_in_no_image_afterwards(world: World) -> None:
    await world.run("RUN " + SH.format("echo one"), f"FROM {world.scratch} AS stage-1", "COPY --from=stage-0 /bin /bin")
    assert await world.names() == sorted((world.build.tag, world.scratch))


async def test_a_command_that_fails_fails_the_build_and_tells_so(world: World) -> None:
    with pytest.raises(CommandFailed):
        await world.run("RUN " + SH.format("/bin/busybox wget -T 3 -qO- http://192.0.2.1/"))
    said = await world.systemd.said(world.build.service, lines=20)
    assert any(line.startswith("Error:") and "wget" in line for line in said), said
    assert await world.podman.image(world.build.tag) is None
    state = (await world.systemd.show(PREFIX, (world.build.service,)))[world.build.service]
    assert state.active == "failed"
    await world.systemd.reset_failed((world.build.service,))
    await world.podman.remove_image(world.scratch)
    assert await world.names() == [], "a failed build holds on to what it began with"


async def test_a_base_that_is_not_there_is_not_pulled(world: World) -> None:  # R-MF11, R-MF12
    for base in (f"localhost/{PREFIX}/nobody/web@sha256:{'a' * 64}", "docker.io/library/alpine:3"):
        with pytest.raises(CommandFailed):
            await world.run(f"FROM {base} AS stage-1")
    assert await world.podman.image(world.build.tag) is None


async def test_an_imported_image_and_an_earlier_stage_are_what_builds_begin_with(world: World) -> None:  # R-MF12
    image = write_layout(world.work / "base", b"base", layer=tar_of({"etc/base": b"base"}))
    digest = image["platforms"][0]["manifest"]
    layout = check_layout(world.work / "base", Image.model_validate(image).platforms[0], where="test")
    name = image_name(NAMES.image("base"), digest)
    write_index(stage(layout, world.work / "staged"), layout, name)
    await world.podman.import_image(world.work / "staged", name)
    lines = (f"FROM {NAMES.image('base')}@{digest} AS stage-1", "FROM stage-1 AS stage-2", COPY)
    assert await world.run(*lines, "RUN " + SH.format("/bin/busybox test -f /etc/base")) is not None


async def test_commands_of_a_build_have_no_network_and_few_capabilities(world: World) -> None:  # R-MF7, R-MF12
    confined = (
        "/bin/busybox test $(/bin/busybox ip -o link | /bin/busybox wc -l) = 1",
        "/bin/busybox grep -q ^NoNewPrivs:.*1 /proc/self/status",
        "/bin/busybox grep -q ^CapBnd:.*00000000000000cb /proc/self/status",
        "! /bin/busybox test -e /etc/resolv.conf",
    )
    assert await world.run("RUN " + SH.format(" && ".join(confined))) is not None


async def test_what_a_killed_build_leaves_is_known_by_its_base_and_can_be_removed(world: World) -> None:  # R-ST10
    with pytest.raises(CommandTimedOut):
        await world.run("RUN " + SH.format("/bin/busybox sleep 300"), seconds=5)
    assert (await world.systemd.show(PREFIX, (world.build.service,)))[world.build.service].active == "activating"
    await world.systemd.stop((world.build.service,), seconds=120)
    await world.systemd.reset_failed((world.build.service,))
    await world.podman.remove_image(world.scratch)
    assert await world.names() == [world.scratch], "nothing was left to be removed"
    await world.podman.remove_remains("localhost/other/")
    await world.podman.remove_image(world.scratch)
    assert await world.names() == [world.scratch], "somebody else's remains were taken for ours"
    for _ in range(2):
        await world.podman.remove_remains(f"localhost/{PREFIX}/{NAMES.slug}/")
    await world.podman.remove_image(world.scratch)
    assert await world.names() == []
