"""The circle's keeper: one recompute for a flood, the operator's own change at once, and whole snapshots always."""

from __future__ import annotations

import threading

import pytest
import trio
from trio.testing import MockClock

from market.errors import Problem
from market.node.circles import LONGEST_PAUSE, MAX_AGE, PAUSE_SECONDS, CircleKeeper
from market.trust import Anchors, Circle
from tests.market.trust.people import NOW, did, evidence


class Builder:
    """Builds real circles, counts them, and tells which thread did it."""

    def __init__(self) -> None:
        self.anchors = Anchors.of([did("ada")])
        self.built: list[Circle] = []
        self.threads: set[int] = set()
        self.fault: Problem | None = None

    def __call__(self) -> Circle:
        self.threads.add(threading.get_ident())
        if self.fault is not None:
            raise self.fault
        self.built.append(Circle.of(evidence([(did("ada"), did("ben"))]), self.anchors, now=NOW))
        return self.built[-1]


@pytest.fixture
def build() -> Builder:
    return Builder()


async def test_without_a_running_node_every_change_is_in_the_next_answer(build: Builder) -> None:
    keeper = CircleKeeper(build, trio.current_time)
    first = await keeper.fresh()
    assert await keeper.fresh() is first
    keeper.changed()
    assert await keeper.fresh() is not first
    assert threading.get_ident() not in build.threads, "a recompute must not hold the event loop"


async def test_a_flood_of_events_costs_one_recompute_and_readers_go_on_with_the_last_snapshot(
    build: Builder, autojump_clock: MockClock
) -> None:
    keeper = CircleKeeper(build, trio.current_time)
    async with trio.open_nursery() as nursery:
        await nursery.start(keeper.run)
        first = await keeper.fresh()
        for _ in range(50):
            keeper.changed()
            assert await keeper.fresh() is first
            await trio.sleep(PAUSE_SECONDS / 100)
        for _ in range(10_000):  # the clock leaps ahead while the thread builds
            if await keeper.fresh() is not first:
                break
            await trio.sleep(PAUSE_SECONDS)
        await trio.sleep(10 * PAUSE_SECONDS)
        assert len(build.built) == 2
        nursery.cancel_scope.cancel()


async def test_changes_without_an_end_do_not_put_the_recompute_off_for_ever(
    build: Builder, autojump_clock: MockClock
) -> None:  # R-DS10
    keeper = CircleKeeper(build, trio.current_time)
    async with trio.open_nursery() as nursery:
        await nursery.start(keeper.run)
        await keeper.fresh()
        began = trio.current_time()
        while len(build.built) < 3:  # each of these is one that came to be while changes went on
            keeper.changed()
            await trio.sleep(PAUSE_SECONDS / 2)
        assert trio.current_time() - began >= LONGEST_PAUSE
        nursery.cancel_scope.cancel()


async def test_what_the_operator_changed_is_in_the_next_answer_of_a_running_node_too(
    build: Builder, autojump_clock: MockClock
) -> None:
    keeper = CircleKeeper(build, trio.current_time)
    async with trio.open_nursery() as nursery:
        await nursery.start(keeper.run)
        assert not (await keeper.fresh()).is_anchor(did("eve"))
        build.anchors = Anchors.of([did("eve")])
        keeper.changed_here()
        assert (await keeper.fresh()).is_anchor(did("eve"))
        nursery.cancel_scope.cancel()


async def test_many_readers_at_once_share_one_recompute_and_one_snapshot(build: Builder) -> None:
    keeper = CircleKeeper(build, trio.current_time)
    seen: list[Circle] = []

    async def read() -> None:
        seen.append(await keeper.fresh())

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(read)
    assert len(build.built) == 1
    assert {id(circle) for circle in seen} == {id(build.built[0])}


async def test_a_snapshot_grows_old_so_that_expired_votes_cease_to_count(
    build: Builder, autojump_clock: MockClock
) -> None:  # R-TR5
    keeper = CircleKeeper(build, trio.current_time)
    first = await keeper.fresh()
    await trio.sleep(MAX_AGE + 1)
    assert await keeper.fresh() is not first


async def test_a_damaged_file_is_the_askers_problem_and_the_keeper_goes_on(
    build: Builder, autojump_clock: MockClock
) -> None:
    keeper = CircleKeeper(build, trio.current_time)
    async with trio.open_nursery() as nursery:
        await nursery.start(keeper.run)
        first = await keeper.fresh()
        build.fault = Problem("damaged")
        keeper.changed()
        await trio.sleep(LONGEST_PAUSE)
        assert await keeper.fresh() is first
        keeper.changed_here()
        with pytest.raises(Problem, match="damaged"):
            await keeper.fresh()
        build.fault = None
        assert await keeper.fresh() is not first
        nursery.cancel_scope.cancel()
