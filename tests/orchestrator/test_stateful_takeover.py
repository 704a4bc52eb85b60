"""Whatever users, crashes and reboots do to an app that was taken over: one process has the data, which stays."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from apps.problems import Problem
from orchestrator.bundle import Bundle
from orchestrator.stranger import Stranger
from tests.fakes.podman_machine import Crash
from tests.orchestrator.nodes import Node, run
from tests.orchestrator.strangers import DATA, NOTES, WEB, by_hand, config_of, notes, take_over
from tests.orchestrator.test_adoption import lose_database

crashes = st.none() | st.integers(0, 40)


class TakeoverMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="archy-takeover-"))
        self.node = Node(self.folder / "node")
        self.world = self.node.world
        self.releases = {version: notes(self.folder, version) for version in ("1", "2")}

    def teardown(self) -> None:
        self.node.state.close()
        shutil.rmtree(self.folder)

    def do(self, work: Callable[[], Awaitable[Any]], crash_at: int | None = None) -> bool:
        """True when it succeeded; a crash is followed by a new process."""

        async def guarded() -> bool:
            try:
                await work()
            except Problem:
                return False
            except (Crash, BaseExceptionGroup):
                assert self.world.crashed
                return False
            return True

        self.world.crash_at = crash_at
        done = run(guarded)
        self.world.crash_at = None
        if self.world.crashed:
            self.node.boot()
        return done

    def settle(self) -> None:
        assert self.do(self.node.settle)  # it converges, and then nothing is left to do
        assert not self.node.state.open_operations()

    def installed(self) -> str:
        return next((version for name, version, _ in self.node.orchestrator.installed() if name == NOTES), "")

    def release(self) -> Bundle:
        return self.releases[self.installed()]

    def kept(self) -> list[Stranger]:
        ids = {box.id for box in self.node.state.kept.every(NOTES)}
        return [box for box in self.world.strangers.values() if box.id in ids]

    def desired(self) -> str:
        record = self.node.state.app(NOTES)
        return record.desired if record else ""

    def alive(self) -> list[str]:
        """Who works on the data."""
        return [box.id for box in self.world.strangers.values() if box.alive] + [
            box.id for box in self.world.containers.values()
        ]

    @precondition(lambda self: not self.installed() and not self.world.strangers)
    @rule(version=st.sampled_from(["1", "2"]), restart=st.sampled_from(["no", "always"]), runs=st.booleans())
    def somebody_starts_a_container(self, version: str, restart: str, runs: bool) -> None:
        by_hand(self.node, self.releases[version], restart=restart, state="running" if runs else "exited")

    @precondition(lambda self: self.world.strangers)
    @rule(version=st.sampled_from(["1", "2"]), crash_at=crashes)
    def adopt(self, version: str, crash_at: int | None) -> None:
        before, was = dict(self.world.strangers), self.installed()
        (config,) = {box.image_id for box in before.values()}
        done = self.do(lambda: take_over(self.node, self.releases[version]), crash_at)
        assert self.world.strangers == before  # R-ST7: not touched
        if done:
            assert not was
            assert config == config_of(self.releases[version])
        self.settle_untouched()

    def settle_untouched(self) -> None:
        """The containers that were taken over are as they were unless they were to change (invariant 11)."""
        kept = [box for box in self.kept() if box.alive and self.desired() == "running"]
        settled = not self.node.state.open_operations() and not self.node.units()
        self.settle()
        if settled:
            for box in kept:
                assert self.world.strangers[box.id] == box

    @precondition(lambda self: self.installed())
    @rule(
        what=st.sampled_from(["start", "stop", "restart", "rotate", "configure"]),
        ill=st.booleans(),
        crash_at=crashes,
    )
    def ask(self, what: str, ill: bool, crash_at: int | None) -> None:
        node = self.node
        work: dict[str, Callable[[], Awaitable[Any]]] = {
            "start": lambda: node.orchestrator.start(NOTES),
            "stop": lambda: node.orchestrator.stop(NOTES),
            "restart": lambda: node.orchestrator.restart(NOTES),
            "rotate": lambda: node.orchestrator.rotate(NOTES, "password"),
            "configure": lambda: node.orchestrator.configure(NOTES, {"upload": "1GiB"}),
        }
        self.with_illness(self.installed(), ill, work[what], crash_at)

    @precondition(lambda self: self.installed())
    @rule(version=st.sampled_from(["1", "2"]), ill=st.booleans(), crash_at=crashes)
    def install(self, version: str, ill: bool, crash_at: int | None) -> None:
        bundle = self.releases[version]
        self.with_illness(version, ill, lambda: self.node.orchestrator.install(bundle), crash_at)

    def with_illness(self, version: str, ill: bool, work: Callable[[], Awaitable[Any]], crash_at: int | None) -> None:
        config = config_of(self.releases[version])
        if ill:
            self.world.ill.add(config)
        self.do(work, crash_at)
        self.world.ill.discard(config)
        self.settle()

    @precondition(lambda self: self.installed())
    @rule(purge=st.booleans(), crash_at=crashes)
    def uninstall(self, purge: bool, crash_at: int | None) -> None:
        self.do(lambda: self.node.orchestrator.uninstall(NOTES, purge=purge), crash_at)
        self.settle()
        if not self.installed():
            assert not any((self.kept(), self.node.units(), self.world.containers))

    @rule()
    def reboot(self) -> None:
        self.world.reboot()
        self.settle()

    @rule()
    def restart_process(self) -> None:
        self.settle()
        before = self.alive()
        self.node.restart()
        self.settle_untouched()
        assert self.alive() == before

    @precondition(lambda self: self.kept())
    @rule(gone=st.booleans())
    def a_kept_container_dies(self, gone: bool) -> None:
        box = self.kept()[0]
        if gone:
            del self.world.strangers[box.id]
        else:
            self.world.strangers[box.id] = replace(box, state="exited")
        self.settle()
        if self.desired() == "running":
            assert list(self.world.containers) == [WEB]

    @precondition(lambda self: self.node.units() and not self.kept())
    @rule()
    def lose_the_database(self) -> None:
        """Of an app whose adopted container somebody removed while it was stopped there are no units, and nothing is
        left to be known by."""
        self.settle()
        bundle, before = self.release(), dict(self.world.containers)
        lose_database(self.node)
        assert self.do(lambda: self.node.orchestrator.adopt(bundle))
        self.settle()
        assert self.world.containers == before

    @rule()
    def podman_does_not_answer(self) -> None:
        self.world.broken = {"podman"}
        before = self.node.changes()
        self.do(self.node.tick)
        assert self.node.changes() == before  # R-ST18
        self.world.broken = set()

    @invariant()
    def one_process_has_the_data(self) -> None:  # R-ST9
        users = [box for box in self.world.strangers.values() if box.alive]
        users_of_units = [box for box in self.world.containers.values() if DATA in box.places.values()]
        assert len(users) + len(users_of_units) <= 1

    @invariant()
    def the_data_stays_where_it_is(self) -> None:  # R-ST10
        assert list(self.world.places) in ([], [DATA])
        assert all(content.startswith("data of notes") for content in self.world.places.values())

    @invariant()
    def units_mount_what_was_adopted(self) -> None:
        if DATA in self.node.orchestrator.adopted_data(NOTES):
            assert all(box.places == {"/data": DATA} for box in self.world.containers.values())

    @invariant()
    def what_the_user_stopped_is_down(self) -> None:  # R-ST2
        if self.desired() == "stopped" and not self.node.state.open_operations():
            assert not any(box.alive for box in self.kept())
            assert not self.world.containers


TakeoverMachine.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestTakeover = TakeoverMachine.TestCase
