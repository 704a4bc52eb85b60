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

from apps.builds import build_of, built_containers, input_digest
from apps.names import AppName
from apps.problems import Problem
from orchestrator.bundle import Bundle
from orchestrator.secret_files import SecretFiles
from tests.fakes.podman_machine import Crash
from tests.orchestrator.bundles import app_name, container, files_entry, make_bundle, write_files
from tests.orchestrator.nodes import Node, run

HELLO, IMPOSTOR, WORLD, WALLET = APPS = (
    app_name("hello"),
    app_name("hello", "did:key:zMallory"),
    app_name("world"),
    app_name("wallet"),
)
PORTS = {HELLO: 18080, IMPOSTOR: 18081, WORLD: 18080, WALLET: 18082}
"""The first and the third want the same port."""
CONF = "/run/conf/app.conf"
FILES = {
    HELLO: {"t": "{{ secrets.password }} {{ settings.greeting }}", "seed": "a seed"},
    WALLET: {"t": "{{ dependencies.hello.rpc.secret }}"},
}
DERIVED = {"template": "t", "dest": "app.conf", "into": {"web": "/run/conf"}}
EXPORTS = {"exports": [{"name": "rpc", "port": "web", "secret": "password"}]}
MORE: dict[AppName, dict[str, Any]] = {
    HELLO: {
        "settings": [{"name": "greeting", "default": "Hi", "env": {"web": "GREETING"}}],
        "derived_files": [DERIVED],
        "hooks": {"post_install": [{"copy_from_host": {"src": "seed", "dest": "web:/data/seed"}}]},
        **EXPORTS,
    },
    IMPOSTOR: EXPORTS,
    WORLD: {"companions": {"ui": {"build": {"context": "b"}, "serves": "web"}}},
    WALLET: {"dependencies": [{"id": "hello"}], "derived_files": [DERIVED]},
}
"""Hello has all that a node derives, chooses and does once; world has a companion that is built, of another context in
each version; the wallet needs a hello, and Alice's comes first."""

apps = st.sampled_from(APPS)
versions = st.sampled_from(["1", "2", "3"])
crashes = st.none() | st.integers(0, 40)


class OrchestratorMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="archy-stateful-"))
        self.node = Node(self.folder / "node")
        self.made: dict[tuple[AppName, str], Bundle] = {}
        self.stopped: set[AppName] = set()
        self.kept: dict[str, tuple[str, str]] = {}
        self.values: dict[AppName, str] = {}
        self.hooks = 0

    def teardown(self) -> None:
        self.node.state.close()
        shutil.rmtree(self.folder)

    def release(self, app: AppName, version: str) -> Bundle:
        if (app, version) not in self.made:
            boxes, files = {"web": container(PORTS[app])}, FILES.get(app, {})
            if app == WORLD:
                files = {"b/Containerfile": "FROM scratch\nCOPY page /\n", "b/page": version}
            bundle = make_bundle(self.folder, version, name=app, containers=boxes, **MORE[app], **files_entry(files))
            write_files(bundle, files)
            self.made[app, version] = bundle
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

    def installed(self) -> dict[AppName, str]:
        return {name: version for name, version, _ in self.node.orchestrator.installed()}

    def hooks_ran(self) -> int:
        return sum(call == "copy_into" for call, _ in self.node.world.calls)

    def secret(self, app: AppName) -> str | None:
        return SecretFiles(self.node.settings.data_dir / "secrets").read(app).get("password")

    @rule(app=apps, version=versions, ill=st.booleans(), crash_at=crashes)
    def install(self, app: AppName, version: str, ill: bool, crash_at: int | None) -> None:
        bundle = self.release(app, version)
        config = bundle.manifest.containers["web"].image.platforms[0].config  # type: ignore[union-attr]
        before = self.installed()
        if ill and before.get(app) != version:
            self.node.world.ill.add(config)
        self.node.world.crash_at = crash_at
        if self.do(lambda: self.node.orchestrator.install(bundle)):
            self.stopped.discard(app)
        elif crash_at is not None:
            self.settle()
            if self.installed().get(app) == version:
                self.follow(app)
        self.node.world.ill.discard(config)
        if app not in before:  # R-MF4: hooks run in the first installation only
            self.hooks = self.hooks_ran()

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

    @rule(greeting=st.sampled_from(["Hi", "Good day", '100% "$HOME"']), crash_at=crashes)
    def configure(self, greeting: str, crash_at: int | None) -> None:
        self.node.world.crash_at = crash_at
        self.do(lambda: self.node.orchestrator.configure(HELLO, {"greeting": greeting}))
        self.settle()

    @rule(app=apps, crash_at=crashes)
    def rotate(self, app: AppName, crash_at: int | None) -> None:
        """After it, crashed or not, one value holds; the one before, if it is another, is nowhere."""
        before = self.values.pop(app, None)
        self.node.world.crash_at = crash_at
        done = self.do(lambda: self.node.orchestrator.rotate(app, "password"))
        self.settle()
        now = self.secret(app)
        assert not done or now != before
        if before is not None and now != before:
            assert before.encode() not in self.node.world.secrets.values()
            assert not any(before.encode() in path.read_bytes() for path in self.files())

    def files(self) -> list[Path]:
        return [path for path in self.node.settings.data_dir.rglob("*") if path.is_file()]

    @rule(app=apps, purge=st.booleans(), crash_at=st.none() | st.integers(0, 25))
    def uninstall(self, app: AppName, purge: bool, crash_at: int | None) -> None:
        if purge:
            self.kept.pop(f"archy-{app.slug}-data", None)
            self.values.pop(app, None)
        self.node.world.crash_at = crash_at
        self.do(lambda: self.node.orchestrator.uninstall(app, purge=purge))
        self.settle()

    @rule()
    def restart_process(self) -> None:
        self.settle()
        before = dict(self.node.world.containers)
        self.node.restart()
        self.settle()
        assert self.node.world.containers == before  # invariant 11

    @rule()
    def lose_the_database(self) -> None:  # R-ST7, invariant 11
        """What is installed goes on as it is, and is known again as it was: version, user's word, ports, settings."""
        self.settle()
        before, versions = self.alive(), self.installed()
        known = {app: self.node.orchestrator.settings(app) for app in versions}
        stopped = {app for app in versions if self.desired(app) == "stopped"}
        self.node.state.close()
        for path in self.node.home.glob("state.db*"):
            path.unlink()
        self.node.boot()
        assert {orphan.slug for orphan in run(self.node.orchestrator.orphans)} == {app.slug for app in versions}
        for app in sorted(versions, key=APPS.index):
            bundle = self.release(app, versions[app])
            assert self.do(lambda bundle=bundle: self.node.orchestrator.adopt(bundle)), app  # type: ignore[misc]
        self.settle()
        assert self.alive() == before
        assert self.installed() == versions
        assert {app for app in versions if self.desired(app) == "stopped"} == stopped
        assert {app: self.node.orchestrator.settings(app) for app in versions} == known

    def alive(self) -> dict[str, str]:
        return {name: box.id for name, box in self.node.world.containers.items()}

    def desired(self, app: AppName) -> str:
        record = self.node.state.app(app)
        return record.desired if record else ""

    @rule(other_bytes=st.booleans())
    def lose_the_images(self, other_bytes: bool) -> None:  # R-FM6
        """Podman's state was mended without them: they come back from the bundle, imported or built again."""
        self.node.world.images.clear()
        self.node.world.builds.salt = "x" if other_bytes else ""
        self.node.restart()
        self.settle()

    @precondition(lambda self: self.installed().get(WORLD))
    @rule(version=versions)
    def die_while_an_image_is_built(self, version: str) -> None:
        self.node.world.crash_in_build = True
        bundle = self.release(WORLD, version)
        if self.do(lambda: self.node.orchestrator.install(bundle)):
            self.stopped.discard(WORLD)
        self.node.world.crash_in_build = False
        self.settle()
        self.follow(WORLD)

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

    @precondition(lambda self: self.files())
    @rule(data=st.data(), edit=st.booleans())
    def harm_a_secret_or_derived_file(self, data: st.DataObject, edit: bool) -> None:  # R-FM2, R-MF3
        """Stopped apps' secrets may be nowhere else; those of running ones are at Podman."""
        running = {app for app in self.installed() if self.desired(app) == "running"}
        slugs = {app.slug for app in running}
        files = [path for path in self.files() if slugs & set(path.parts) and not path.name.startswith(".")]
        if files:
            path = data.draw(st.sampled_from(sorted(files)))
            self.settle()
            if path.exists():
                path.write_bytes(path.read_bytes()[:-1] + b"~") if edit else path.unlink()
            self.settle()

    def settle(self) -> None:
        assert self.do(self.node.settle)  # invariant 1: converges, then nothing is left to do
        assert not self.node.world.builds.remains
        assert not any(service.endswith("-build.service") for service in self.node.world.services)
        assert not [path for path in self.node.settings.data_dir.glob("builds/*/*") if path.is_dir()]  # R-ST10
        self.everybody_reads_what_holds()

    def everybody_reads_what_holds(self) -> None:  # R-FM2, R-MF8
        boxes = self.node.world.containers
        for app in set(self.installed()) - self.stopped:
            box, value = boxes.get(f"archy-{app.slug}-web"), self.secret(app)
            if box is None:
                continue
            assert [given.decode() for given in box.secrets.values()] == [value]
            if app == HELLO:
                greeting = self.node.orchestrator.settings(HELLO)[0].value
                assert box.read[CONF].decode() == f"{value} {greeting}"
            if app == WALLET:
                provider = self.node.state.choices.links(WALLET, self.generation(WALLET))["hello"]
                assert box.read[CONF].decode() == self.secret(provider)

    def generation(self, app: AppName) -> int:
        record = self.node.state.app(app)
        assert record is not None
        return record.generation or 0

    @invariant()
    def a_shared_network_holds_its_pair_alone(self) -> None:  # R-MF13
        for name, link in self.node.world.links.items():
            inside = {box.labels["archy.app"] for box in self.node.world.containers.values() if name in box.networks}
            assert inside <= {link.provider, link.dependant}

    @invariant()
    def nobody_takes_a_dependant_over(self) -> None:  # R-MF14
        wallet = self.node.state.app(WALLET)
        if wallet is not None and wallet.generation is not None:
            provider = self.node.state.choices.links(WALLET, wallet.generation)["hello"]
            assert provider in self.installed()

    @invariant()
    def hooks_run_in_the_first_installation_only(self) -> None:  # R-MF4
        assert self.hooks_ran() == self.hooks

    @invariant()
    def what_the_user_stopped_is_down(self) -> None:  # invariant 3
        for app in self.stopped:
            assert f"archy-{app.slug}-web" not in self.node.world.containers

    @invariant()
    def only_signed_images_run(self) -> None:  # invariant 6
        signed = {
            c.image.platforms[0].config for b in self.made.values() for c in b.manifest.containers.values() if c.image
        }
        inputs = {
            input_digest(b.manifest, build_of(box), "amd64")
            for b in self.made.values()
            for box in built_containers(b.manifest).values()
        }
        for box in self.node.world.containers.values():
            if box.image_id not in signed:  # then it was built of what was signed (R-MF12)
                assert self.node.world.builds.details[box.image_id][0]["archy.build"] in inputs
                assert box.labels["archy.build"] in inputs

    @invariant()
    def a_port_has_one_owner(self) -> None:  # invariant 7
        ports = [port for box in self.node.world.containers.values() for port in box.ports]
        assert len(ports) == len(set(ports))

    @invariant()
    def kept_data_stays(self) -> None:  # invariant 4
        for name, content in self.kept.items():
            assert self.node.world.volumes.get(name) == content
        for app, value in self.values.items():
            assert self.secret(app) == value
        for app in self.installed():
            name = f"archy-{app.slug}-data"
            if name in self.node.world.volumes:
                self.kept[name] = self.node.world.volumes[name]
            if (known := self.secret(app)) is not None:
                self.values[app] = known

    @invariant()
    def installed_and_wanted_runs(self) -> None:  # invariant 5
        for app, version in self.installed().items():
            if self.desired(app) == "running" and not self.node.state.open_operations():
                image = self.release(app, version).manifest.containers["web"].image
                assert image is not None
                box = self.node.world.containers.get(f"archy-{app.slug}-web")
                assert box is None or box.image_id == image.platforms[0].config

    @invariant()
    def secrets_are_in_no_unit(self) -> None:  # invariant 12
        for unit in self.node.units():
            text = (self.node.settings.unit_dir / unit).read_text()
            assert not any(value in text for value in self.values.values())


OrchestratorMachine.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestOrchestrator = OrchestratorMachine.TestCase
