"""Whatever users, crashes, reboots and a failing machine do: the invariants of the design hold (on the fakes)."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from apps.names import AppName
from apps.problems import Problem
from orchestrator.bundle import Bundle
from tests.fakes.podman_machine import Crash
from tests.orchestrator.bundles import app_name, container, make_bundle
from tests.orchestrator.nodes import Node, run

APPS = (app_name("hello"), app_name("hello", "did:key:zMallory"), app_name("world"))
PORTS = {APPS[0]: 18080, APPS[1]: 18081, APPS[2]: 18080}
"""The first and the last want the same port."""

apps = st.sampled_from(APPS)
versions = st.sampled_from(["1", "2", "3"])


class OrchestratorMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="archy-stateful-"))
        self.node = Node(self.folder / "node")
        self.made: dict[tuple[AppName, str], Bundle] = {}
        self.stopped: set[AppName] = set()
        self.kept: dict[str, tuple[str, str]] = {}
        self.values: dict[str, bytes] = {}

    def teardown(self) -> None:
        self.node.state.close()
        shutil.rmtree(self.folder)

    def release(self, app: AppName, version: str) -> Bundle:
        if (app, version) not in self.made:
            containers = {"web": container(PORTS[app])}
            self.made[app, version] = make_bundle(self.folder, version, name=app, containers=containers)
        return self.made[app, version]

    def do(self, work: Callable[[], Awaitable[Any]]) -> bool:
        """True when it succeeded; a crash is followed by a new process."""

        async def guarded() -> bool:
            try:
                await work()
            except Problem:
                return False
            except (Crash, BaseExceptionGroup):
                assert self.node.world.crashed
                return False
            return True

        done = run(guarded)
        self.node.world.crash_at = None
        if self.node.world.crashed:
            self.node.boot()
        return done

    @rule(app=apps, version=versions, ill=st.booleans(), crash_at=st.none() | st.integers(0, 40))
    def install(self, app: AppName, version: str, ill: bool, crash_at: int | None) -> None:
        bundle = self.release(app, version)
        config = bundle.manifest.containers["web"].image.platforms[0].config  # type: ignore[union-attr]
        current = {name for name, at, _ in self.node.orchestrator.installed() if at == version}
        if ill and app not in current:
            self.node.world.ill.add(config)
        self.node.world.crash_at = crash_at
        if self.do(lambda: self.node.orchestrator.install(bundle)):
            self.stopped.discard(app)
        elif crash_at is not None:
            self.settle()
            if any(name == app and at == version for name, at, _ in self.node.orchestrator.installed()):
                self.follow(app)
        self.node.world.ill.discard(config)

    def follow(self, app: AppName) -> None:
        """After a crash either outcome is right; take the one that the database tells."""
        record = self.node.state.app(app)
        (self.stopped.add if record and record.desired == "stopped" else self.stopped.discard)(app)

    @rule(app=apps)
    def start(self, app: AppName) -> None:
        if self.do(lambda: self.node.orchestrator.start(app)):
            self.stopped.discard(app)

    @rule(app=apps)
    def stop(self, app: AppName) -> None:
        if self.do(lambda: self.node.orchestrator.stop(app)):
            self.stopped.add(app)

    @rule(app=apps, purge=st.booleans(), crash_at=st.none() | st.integers(0, 25))
    def uninstall(self, app: AppName, purge: bool, crash_at: int | None) -> None:
        if purge:
            self.kept.pop(f"archy-{app.slug}-data", None)
            self.values.pop(app.slug, None)
        self.node.world.crash_at = crash_at
        self.do(lambda: self.node.orchestrator.uninstall(app, purge=purge))
        self.settle()

    @rule()
    def restart_process(self) -> None:
        before = dict(self.node.world.containers)
        self.node.restart()
        self.settle()
        assert self.node.world.containers == before  # invariant 11

    @rule()
    def reboot(self) -> None:
        self.node.world.reboot()
        self.settle()

    @rule(side=st.sampled_from(["systemd", "podman"]))
    def machine_does_not_answer(self, side: str) -> None:
        self.node.world.broken = {side}
        before = self.node.changes()
        self.do(self.node.tick)
        assert self.node.changes() == before  # invariant 9
        self.node.world.broken = set()

    @precondition(lambda self: self.node.units())
    @rule(data=st.data())
    def lose_a_unit_file(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.node.units()))
        (self.node.settings.unit_dir / name).unlink()
        self.settle()

    @precondition(lambda self: self.node.world.containers)
    @rule(data=st.data())
    def lose_a_container(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.node.world.containers)))
        self.node.world.stop(f"{name}.service")
        self.settle()

    def settle(self) -> None:
        assert self.do(self.node.settle)  # invariant 1: converges, then nothing is left to do

    @invariant()
    def what_the_user_stopped_is_down(self) -> None:  # invariant 3
        for app in self.stopped:
            assert f"archy-{app.slug}-web" not in self.node.world.containers

    @invariant()
    def only_signed_images_run(self) -> None:  # invariant 6
        signed = {
            c.image.platforms[0].config for b in self.made.values() for c in b.manifest.containers.values() if c.image
        }
        assert {box.image_id for box in self.node.world.containers.values()} <= signed

    @invariant()
    def a_port_has_one_owner(self) -> None:  # invariant 7
        ports = [port for box in self.node.world.containers.values() for port in box.ports]
        assert len(ports) == len(set(ports))

    @invariant()
    def kept_data_stays(self) -> None:  # invariant 4
        for name, content in self.kept.items():
            assert self.node.world.volumes.get(name) == content
        for slug, value in self.values.items():
            assert (self.node.settings.data_dir / "secrets" / slug / "password").read_bytes() == value
        for app, _, _ in self.node.orchestrator.installed():
            name = f"archy-{app.slug}-data"
            if name in self.node.world.volumes:
                self.kept[name] = self.node.world.volumes[name]
            path = self.node.settings.data_dir / "secrets" / app.slug / "password"
            if path.exists():
                self.values[app.slug] = path.read_bytes()

    @invariant()
    def installed_and_wanted_runs(self) -> None:  # invariant 5
        for app, version, _ in self.node.orchestrator.installed():
            record = self.node.state.app(app)
            if record is not None and record.desired == "running" and not self.node.state.open_operations():
                image = self.release(app, version).manifest.containers["web"].image
                assert image is not None
                box = self.node.world.containers.get(f"archy-{app.slug}-web")
                assert box is None or box.image_id == image.platforms[0].config

    @invariant()
    def secrets_are_in_no_unit(self) -> None:  # invariant 12
        for unit in self.node.units():
            text = (self.node.settings.unit_dir / unit).read_bytes()
            assert not any(value in text for value in self.values.values())


OrchestratorMachine.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestOrchestrator = OrchestratorMachine.TestCase
