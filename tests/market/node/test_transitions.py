"""What is being done to an app is told at once and stays told: no look at the machine takes it back (R-ST5)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from apps.names import AppName
from market.errors import Problem
from market.node.node import Node, open_node
from market.node.operations import perform, start_operation
from tests.fakes.blob_servers import BlobServer
from tests.fakes.podman import FakePodman
from tests.fakes.podman_machine import Machine
from tests.fakes.systemd import FakeSystemd
from tests.market.node.operators import Operator
from tests.market.node.test_market import app_of
from tests.market.square import Publisher

SECONDS = 30.0


class Held:
    """A call that does not end before it is let go."""

    def __init__(self) -> None:
        self.reached, self.free = trio.Event(), trio.Event()

    async def wait(self) -> None:
        self.reached.set()
        await self.free.wait()


class SlowPodman(FakePodman):
    """Imports images only when it is let go."""

    def __init__(self, machine: Machine, held: Held) -> None:
        super().__init__(machine)
        self._held = held

    async def import_image(self, layout: Path, name: str) -> None:
        await self._held.wait()
        await super().import_image(layout, name)


class SlowSystemd(FakeSystemd):
    """Stops only when it is let go."""

    def __init__(self, machine: Machine, held: Held) -> None:
        super().__init__(machine)
        self._held = held

    async def stop(self, services: Sequence[str], *, seconds: float) -> None:
        await self._held.wait()
        await super().stop(services, seconds=seconds)


@pytest.fixture
def known(publisher: Publisher, origin: BlobServer, operator: Operator) -> Operator:
    publisher.bring("1.0.0", [origin.url])
    operator.trust(publisher)
    operator.do(("search", {}))
    return operator


def with_node(operator: Operator, work: Callable[[Node], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(SECONDS):
            async with open_node(operator.home, open_apps=operator._apps, preflight=operator._preflight) as node:
                await work(node)

    trio.run(main)


async def states(node: Node) -> list[tuple[str, str]]:
    rows = (await perform(node, "ps", {}, lambda event: None))["apps"]
    return [(row["id"], row["state"]) for row in rows]


async def ended(node: Node, id_: str) -> Any:
    followed = await node.operations.wait_progress(id_, 0, SECONDS)
    while not followed.done:
        followed = await node.operations.wait_progress(id_, followed.next, SECONDS)
    return followed


async def told_throughout(node: Node, app: AppName, id_: str, held: Held, word: str) -> Any:
    """The id is there before anything has happened; looks and ticks leave the word as it is, and nobody else acts."""
    assert id_.startswith("op-")
    assert not held.reached.is_set()
    await held.reached.wait()
    for _ in range(3):
        await node.orchestrator.reconcile()
        assert await states(node) == [("hello", word)]
    with pytest.raises(Problem, match=f"hello is {word}"):
        await node.orchestrator.restart(app)
    held.free.set()
    return await ended(node, id_)


@pytest.mark.parametrize("word", ["installing", "updating"])
def test_an_install_or_update_under_way_is_told_from_its_first_moment_to_its_end(
    publisher: Publisher, origin: BlobServer, known: Operator, word: str
) -> None:  # R-ST5, R-ST20
    if word == "updating":
        known.install(app_of(publisher))
        publisher.bring("1.1.0", [origin.url])
        known.do(("search", {}))
    held = Held()
    known.machine.podman = SlowPodman(known.machine.world, held)

    async def work(node: Node) -> None:
        params = {"app": app_of(publisher), "consent": "yes", "offline": True}
        id_ = start_operation(node, "install", params)
        outcome = await told_throughout(node, AppName(publisher.did, "hello"), id_, held, word)
        assert outcome.problem is None
        assert await states(node) == [("hello", "running")]

    with_node(known, work)


def test_a_stop_under_way_is_told_and_no_tick_starts_the_app_meanwhile(
    publisher: Publisher, known: Operator
) -> None:  # R-ST5, R-ST2
    known.install(app_of(publisher))
    held = Held()
    known.machine.systemd = SlowSystemd(known.machine.world, held)

    async def work(node: Node) -> None:
        id_ = start_operation(node, "stop", {"app": "hello"})
        outcome = await told_throughout(node, AppName(publisher.did, "hello"), id_, held, "stopping")
        assert outcome.problem is None
        await node.orchestrator.reconcile()
        assert await states(node) == [("hello", "stopped")]

    with_node(known, work)
