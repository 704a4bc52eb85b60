"""What the orchestrator relies on in systemd and Podman: one suite for the fakes and for the real ones.

Without ARCHY_CONTRACT it runs on the fakes. With ARCHY_CONTRACT=real, inside a lab node, it runs on the user's own
systemd and Podman (tests/system/test_orchestrator.py starts it there).
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from orchestrator import default_unit_dir
from orchestrator.bundle import Bundle
from orchestrator.faults import CommandFailed, CommandTimedOut
from orchestrator.images import check_layout, image_name, stage, write_index
from orchestrator.links import LinkNetwork
from orchestrator.names import Names, slice_name
from orchestrator.podman import Podman, RootlessPodman
from orchestrator.quadlet.render import Target, render
from orchestrator.quadlet.rendered import RenderedApp
from orchestrator.systemd import Systemd, UserSystemd
from orchestrator.unit_folder import UnitFolder
from tests.fakes.podman import FakePodman
from tests.fakes.podman_machine import Machine
from tests.fakes.systemd import FakeSystemd
from tests.orchestrator.bundles import app_name
from tests.orchestrator.driver import web_bundle, web_container

PREFIX = "contract"
REAL = os.environ.get("ARCHY_CONTRACT") == "real"
LINK = LinkNetwork("contract-link-0123456789ab", "provider-0123456789", "dependant-0123456789", "closed")
BUSYBOX = "/bin/busybox"
SUBNET = "10.254.77.64/26"


@dataclass
class World:
    """systemd and Podman, and one app that is rendered but not yet there."""

    systemd: Systemd
    podman: Podman
    folder: UnitFolder
    bundle: Bundle
    app: RenderedApp
    work: Path

    @property
    def service(self) -> str:
        return self.app.services[0]

    @property
    def container(self) -> str:
        return self.app.containers[0].name

    async def import_image(self) -> None:
        image = self.bundle.manifest.containers["web"].image
        assert image is not None
        layout = check_layout(self.bundle.layout("web"), image.platforms[0], where="test")
        name = image_name(self.app.names.image("web"), layout.manifest)
        staged = self.work / "staged"
        shutil.rmtree(staged, ignore_errors=True)
        write_index(stage(layout, staged), layout, name)
        await self.podman.import_image(staged, name)

    async def place(self) -> None:
        await self.podman.create_secret(self.app.names.secret("password"), b"s3cret", {})
        await self.import_image()
        self.folder.write({**self.app.files, **self.app.boot})
        await self.systemd.daemon_reload()

    async def up(self) -> None:
        await self.place()
        await self.systemd.start((self.service,), seconds=60)

    async def execute(self, *argv: str, seconds: float = 30) -> None:
        await self.podman.execute(self.container, (BUSYBOX, *argv), seconds=seconds, slice_=slice_name(PREFIX))

    async def networks(self) -> frozenset[str]:
        (seen,) = await self.podman.containers(PREFIX)
        return seen.networks

    async def state(self) -> str:
        return (await self.systemd.show(PREFIX, (self.service,)))[self.service].active


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    machine = Machine(tmp_path / "units")
    systemd: Systemd = UserSystemd() if REAL else FakeSystemd(machine)
    podman: Podman = RootlessPodman() if REAL else FakePodman(machine)
    folder = UnitFolder(default_unit_dir() if REAL else machine.unit_dir, PREFIX)
    name = app_name("contract")
    bundle = web_bundle(tmp_path, name, "1", containers={"web": web_container(18099)})
    target = Target(PREFIX, await podman.version(), "amd64", subnet=SUBNET)
    app = render(bundle.manifest, Names(PREFIX, name), target)
    made = World(systemd, podman, folder, bundle, app, tmp_path)
    yield made
    with trio.CancelScope(shield=True):
        await systemd.stop((*app.services, app.names.network_service, app.names.volume_service("data")), seconds=60)
        folder.remove(folder.read())
        await systemd.daemon_reload()
        await systemd.reset_failed(app.services)
        await podman.remove_containers([c.name for c in app.containers])
        await podman.remove_network(LINK.name)
        await podman.remove_network(app.network)
        await podman.remove_volume(app.volumes[0])
        await podman.remove_secrets([app.names.secret("password")])
        for image in (await podman.inventory(PREFIX)).images:
            await podman.remove_image(f"{image.name}:{image.tag}")


async def test_podman_tells_a_version_that_is_new_enough(world: World) -> None:
    assert await world.podman.version() >= (5, 0, 0)


async def test_a_service_nobody_knows_is_not_found_and_inactive(world: World) -> None:
    state = (await world.systemd.show(PREFIX, ("contract-nobody.service",)))["contract-nobody.service"]
    assert (state.load, state.active) == ("not-found", "inactive")


async def test_a_unit_is_loaded_by_a_reload_and_not_before(world: World) -> None:
    world.folder.write(world.app.files)
    assert (await world.systemd.show(PREFIX, (world.service,)))[world.service].load == "not-found"
    await world.systemd.daemon_reload()
    assert (await world.systemd.show(PREFIX, (world.service,)))[world.service].load == "loaded"


async def test_a_changed_unit_asks_for_a_reload(world: World) -> None:
    await world.place()
    assert not (await world.systemd.show(PREFIX, (world.service,)))[world.service].needs_reload
    await trio.sleep(1.1 if REAL else 0)  # systemd compares times of whole files
    unit = world.app.containers[0].unit
    world.folder.write({unit: world.app.files[unit].replace("StopTimeout=1\n", "StopTimeout=2\n")})
    assert (await world.systemd.show(PREFIX, (world.service,)))[world.service].needs_reload


async def test_a_started_app_is_seen_with_its_labels_and_the_signed_image(world: World) -> None:
    await world.up()
    assert await world.state() == "active"
    (seen,) = [c for c in await world.podman.containers(PREFIX) if c.name == world.container]
    rendered = world.app.containers[0]
    assert seen.image_id == rendered.config
    assert seen.labels["archy.spec"] == rendered.spec
    assert seen.labels["archy.app"] == world.app.names.slug
    inventory = await world.podman.inventory(PREFIX)
    assert inventory.networks[world.app.network] == world.app.network_spec
    assert inventory.volumes[world.app.volumes[0]] == world.app.names.slug
    assert world.app.names.secret("password") in inventory.secrets
    assert f"{inventory.images[0].name}@{inventory.images[0].digest}" == rendered.image
    assert inventory.images[0].id == rendered.config


async def test_a_service_is_known_to_run_since_it_was_started(world: World) -> None:
    before = time.time()
    await world.up()
    state = (await world.systemd.show(PREFIX, (world.service,)))[world.service]
    assert state.since is not None
    assert before - 2 <= state.since <= time.time() + 1
    assert state.ended == ""


async def test_every_service_of_the_node_is_seen_in_one_look(world: World) -> None:
    await world.up()
    seen = await world.systemd.show(PREFIX, ())
    assert {world.service, world.app.names.network_service} <= set(seen)


async def test_a_brief_look_tells_the_same_of_who_runs_and_all_of_who_does_not(world: World) -> None:
    nobody = "contract-nobody.service"
    await world.up()
    asked = (world.service, nobody)
    full, brief = await world.systemd.show(PREFIX, asked), await world.systemd.show(PREFIX, asked, brief=True)
    assert set(full) == set(brief)
    for name, state in full.items():
        seen = brief[name]
        assert (state.load, state.active, state.sub) == (seen.load, seen.active, seen.sub)
    await world.systemd.stop((world.service,), seconds=60)
    brief = await world.systemd.show(PREFIX, asked, brief=True)
    assert brief[world.service].load == "loaded"
    assert brief[world.service].active in ("inactive", "failed")
    assert brief[nobody].load == "not-found"


@contextmanager
def no_bus(folder: Path) -> Iterator[None]:
    """A folder for this user's runtime files in which systemd is, and no bus of its own."""
    folder.mkdir()
    if REAL:
        (folder / "systemd").symlink_to(Path(os.environ["XDG_RUNTIME_DIR"], "systemd"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        yield


async def test_without_a_bus_systemd_does_and_tells_the_same(world: World) -> None:  # R-ST13
    await world.place()
    with no_bus(world.work / "runtime"):
        await world.systemd.daemon_reload()
        await world.systemd.start((world.service,), seconds=60)
        told = await world.systemd.show(PREFIX, (), brief=True)
        await world.systemd.restart((world.service,), seconds=60)
        with pytest.raises(CommandFailed):
            await world.systemd.start(("contract-nobody.service",), seconds=30)
    assert told == await world.systemd.show(PREFIX, (), brief=True)
    assert told[world.service].active == "active"


async def test_a_stopped_service_takes_its_container_along_and_leaves_the_volume(world: World) -> None:
    await world.up()
    await world.systemd.stop((world.service,), seconds=60)
    assert await world.state() in ("inactive", "failed")
    assert not await world.podman.containers(PREFIX)
    assert world.app.volumes[0] in (await world.podman.inventory(PREFIX)).volumes


async def test_a_restart_makes_a_new_container_from_the_new_unit(world: World) -> None:
    await world.up()
    unit = world.app.containers[0].unit
    text = world.app.files[unit].replace(world.app.containers[0].spec, "0" * 32)
    world.folder.write({unit: text})
    await world.systemd.daemon_reload()
    (before,) = await world.podman.containers(PREFIX)
    assert before.labels["archy.spec"] == world.app.containers[0].spec
    await world.systemd.restart((world.service,), seconds=60)
    (after,) = await world.podman.containers(PREFIX)
    assert after.labels["archy.spec"] == "0" * 32


async def test_starting_what_nobody_knows_fails_and_stopping_it_does_not(world: World) -> None:
    with pytest.raises(CommandFailed) as caught:
        await world.systemd.start(("contract-nobody.service",), seconds=30)
    assert caught.value.code == 5
    await world.systemd.stop(("contract-nobody.service",), seconds=30)


async def test_an_image_that_is_not_there_is_not_pulled(world: World) -> None:  # R-MF11
    await world.place()
    for image in (await world.podman.inventory(PREFIX)).images:
        await world.podman.remove_image(f"{image.name}:{image.tag}")
    with pytest.raises(CommandFailed):
        await world.systemd.start((world.service,), seconds=60)
    assert await world.state() == "activating"
    assert not await world.podman.containers(PREFIX)


async def test_a_secret_that_is_not_there_prevents_the_start(world: World) -> None:
    await world.place()
    await world.podman.remove_secrets([world.app.names.secret("password")])
    with pytest.raises(CommandFailed):
        await world.systemd.start((world.service,), seconds=60)


async def test_a_network_removed_behind_its_service_is_not_made_again_by_itself(world: World) -> None:
    await world.up()
    await world.systemd.stop((world.service,), seconds=60)
    await world.podman.remove_network(world.app.network)
    with pytest.raises(CommandFailed):
        await world.systemd.start((world.service,), seconds=60)
    await world.systemd.stop((world.service, world.app.names.network_service), seconds=60)
    await world.systemd.start((world.service,), seconds=60)
    assert world.app.network in (await world.podman.inventory(PREFIX)).networks


async def test_removing_what_is_not_there_is_fine(world: World) -> None:
    await world.podman.remove_network("contract-nothing")
    await world.podman.remove_volume("contract-nothing")
    await world.podman.remove_secrets(["contract-nothing"])
    await world.podman.remove_containers(["contract-nothing"])
    await world.podman.remove_image("localhost/contract/nothing/web:0")


async def test_an_image_in_use_stays(world: World) -> None:
    await world.up()
    (image,) = (await world.podman.inventory(PREFIX)).images
    await world.podman.remove_image(f"{image.name}:{image.tag}")
    assert await world.podman.containers(PREFIX)


async def test_what_is_asked_at_hand_is_answered_as_it_is_otherwise(world: World) -> None:
    async def answers() -> list[object]:
        podman = world.podman
        seen = [await podman.version(), await podman.containers(PREFIX), await podman.inventory(PREFIX)]
        return [*seen, await podman.images(PREFIX), await podman.addresses([world.container, "contract-nobody"])]

    async with world.podman.at_hand():
        assert (await world.podman.containers(PREFIX), await world.podman.images(PREFIX)) == ((), ())
        await world.up()
        at_hand = await answers()
    assert at_hand == await answers()
    assert at_hand[3] == (await world.podman.inventory(PREFIX)).images


async def test_importing_twice_is_the_same_as_once(world: World) -> None:
    await world.import_image()
    once = (await world.podman.inventory(PREFIX)).images
    await world.import_image()
    assert (await world.podman.inventory(PREFIX)).images == once


async def test_a_secret_can_be_read_back_and_replaced_and_an_absent_one_is_none(world: World) -> None:  # R-MF3
    name = f"{world.app.names.secret('password')}.1"
    assert await world.podman.secret(name) is None
    try:
        for value in (b"one", b"other"):
            await world.podman.create_secret(name, value, {"archy.app": "x"})
            assert await world.podman.secret(name) == value
        assert name in (await world.podman.inventory(PREFIX)).secrets
    finally:
        await world.podman.remove_secrets([name])
    assert await world.podman.secret(name) is None


async def test_what_is_removed_from_podman_is_gone_for_the_container_at_its_next_start_only(world: World) -> None:
    await world.up()
    await world.podman.remove_secrets([world.app.names.secret("password")])
    await world.execute("test", "-f", "/run/secrets/password")
    with pytest.raises(CommandFailed):
        await world.systemd.restart((world.service,), seconds=60)


async def test_a_running_container_is_hung_up_and_another_is_not(world: World) -> None:
    with pytest.raises(CommandFailed):
        await world.podman.hang_up(world.container)
    await world.up()
    await world.podman.hang_up(world.container)


async def test_a_file_is_copied_into_a_running_container_over_what_is_there(world: World) -> None:  # R-MF4
    source = world.work / "seed"
    source.write_text("a seed")
    with pytest.raises(CommandFailed):
        await world.podman.copy_into(source, world.container, "/data/seed")
    await world.up()
    with pytest.raises(CommandFailed):
        await world.execute("test", "-f", "/data/seed")
    for _ in range(2):
        await world.podman.copy_into(source, world.container, "/data/seed")
    await world.execute("test", "-f", "/data/seed")


async def test_a_command_inside_tells_how_it_ended_and_has_a_deadline(world: World) -> None:  # R-MF4
    with pytest.raises(CommandFailed):
        await world.execute("true")
    await world.up()
    await world.execute("true")
    with pytest.raises(CommandFailed) as caught:
        await world.execute("false")
    assert caught.value.code == 1
    with pytest.raises(CommandTimedOut):
        await world.execute("sleep", "60", seconds=1)


async def test_a_shared_network_is_made_once_and_seen_as_what_it_is(world: World) -> None:  # R-MF13
    for _ in range(2):
        await world.podman.create_link(LINK, PREFIX)
    inventory = await world.podman.inventory(PREFIX)
    assert inventory.links == {LINK.name: LINK}
    assert LINK.name not in inventory.networks


async def test_a_running_container_joins_a_network_and_leaves_it_as_it_runs(world: World) -> None:  # R-MF13
    await world.up()
    with pytest.raises(CommandFailed):
        await world.podman.connect(LINK.name, world.container, ("rpc.contract",))
    await world.podman.create_link(LINK, PREFIX)
    (before,) = await world.podman.containers(PREFIX)
    for _ in range(2):
        await world.podman.connect(LINK.name, world.container, ("rpc.contract",))
    assert await world.networks() == {world.app.network, LINK.name}
    for _ in range(2):
        await world.podman.disconnect(LINK.name, world.container)
    assert await world.networks() == {world.app.network}
    (after,) = await world.podman.containers(PREFIX)
    assert after.id == before.id


async def test_a_chosen_subnet_is_the_networks_and_is_told_with_everybody_elses(world: World) -> None:  # R-FM4
    assert SUBNET not in (await world.podman.inventory(PREFIX)).subnets
    await world.up()
    assert SUBNET in (await world.podman.inventory(PREFIX)).subnets
    assert SUBNET in (await world.podman.inventory("nobody")).subnets


async def test_nobody_is_taken_out_of_a_network_by_removing_it(world: World) -> None:
    await world.up()
    await world.podman.create_link(LINK, PREFIX)
    await world.podman.connect(LINK.name, world.container, ())
    for network in (LINK.name, world.app.network):
        with pytest.raises(CommandFailed):
            await world.podman.remove_network(network)
    assert await world.networks() == {world.app.network, LINK.name}
    await world.podman.disconnect(LINK.name, world.container)
    await world.podman.remove_network(LINK.name)
    assert not (await world.podman.inventory(PREFIX)).links


async def test_taking_what_is_not_there_out_of_a_network_is_fine(world: World) -> None:
    await world.podman.disconnect(LINK.name, "contract-nobody")
    await world.podman.create_link(LINK, PREFIX)
    await world.podman.disconnect(LINK.name, "contract-nobody")


async def test_addresses_are_those_of_what_runs_and_the_rest_is_left_out(world: World) -> None:  # R-ST4
    assert await world.podman.addresses([world.container]) == {}
    assert await world.podman.addresses([]) == {}
    await world.up()
    found = await world.podman.addresses(["contract-nobody", world.container])
    assert list(found) == [world.container]
    assert found[world.container].count(".") == 3


async def test_a_container_that_is_removed_by_force_is_gone(world: World) -> None:
    await world.up()
    await world.podman.remove_containers([world.container, "contract-nobody"])
    assert not [box for box in await world.podman.containers(PREFIX) if box.state == "running"]


async def test_the_journal_has_what_containers_wrote_and_nothing_of_others(world: World) -> None:
    await world.up()
    assert await world.systemd.journal(["contract-nobody"], lines=5) == []
    await world.systemd.journal([world.container], lines=5)


async def test_a_failure_is_forgotten_on_demand(world: World) -> None:
    await world.systemd.reset_failed((world.service, "contract-nobody.service"))
    assert await world.state() == "inactive"


async def test_the_generator_accepts_what_we_render(world: World) -> None:  # R-MF9
    made = await world.systemd.dry_run(_folder(world, {**world.app.files, **world.app.boot}))
    assert made.services == {world.service, world.app.names.network_service, world.app.names.volume_service("data")}


async def test_one_unknown_key_drops_the_whole_unit_and_is_told(world: World) -> None:  # R-MF9
    unit = world.app.containers[0].unit
    bad = world.app.files[unit].replace("Pull=never", "Pull=never\nNoSuchKey=1")
    made = await world.systemd.dry_run(_folder(world, {**world.app.files, unit: bad}))
    assert world.service not in made.services
    assert any("NoSuchKey" in line for line in made.complaints)


def _folder(world: World, files: dict[str, str]) -> Path:
    folder = world.work / "dry"
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder
