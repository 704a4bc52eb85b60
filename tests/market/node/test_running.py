"""Operations: progress for whoever follows, an outcome for whoever asks, and no operation takes the node down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import trio

from market.errors import Problem, Refused, UsageProblem
from market.node.running import MAX_FINISHED, MAX_PROGRESS, Operations, Report


async def test_follower_sees_progress_then_the_outcome(nursery: trio.Nursery) -> None:
    operations = Operations(nursery)
    go = trio.Event()

    async def work(report: Report) -> Mapping[str, Any]:
        report({"phase": "one"})
        await go.wait()
        report({"phase": "two"})
        return {"answer": 42}

    id_ = operations.start("work", work)
    first = await operations.wait_progress(id_, 0, 5)
    assert [e["phase"] for e in first.events] == ["one"]
    assert not first.done
    go.set()
    seen = []
    after = first.next
    while True:
        more = await operations.wait_progress(id_, after, 5)
        seen += [e["phase"] for e in more.events]
        after = more.next
        if more.done:
            break
    assert seen == ["two"]
    assert more.result == {"answer": 42}


async def test_refusal_is_the_outcome_and_a_defect_is_told_without_ending_the_node(nursery: trio.Nursery) -> None:
    operations = Operations(nursery)

    async def refuse(_: Report) -> Mapping[str, Any]:
        raise Refused("no", where="gate")

    async def defect(_: Report) -> Mapping[str, Any]:
        raise KeyError("missing")

    refused = await operations.wait_progress(operations.start("refuse", refuse), 0, 5)
    assert isinstance(refused.problem, Refused)
    broken = await operations.wait_progress(operations.start("defect", defect), 0, 5)
    assert isinstance(broken.problem, Problem)
    assert "KeyError" in broken.problem.what


async def test_cancelled_operation_says_so(nursery: trio.Nursery) -> None:
    operations = Operations(nursery)

    async def forever(_: Report) -> Mapping[str, Any]:
        await trio.Event().wait()
        return {}

    id_ = operations.start("forever", forever)
    operations.cancel(id_)
    ended = await operations.wait_progress(id_, 0, 5)
    assert ended.done
    assert ended.problem is not None
    assert "cancelled" in ended.problem.what


async def test_progress_and_memory_of_ended_operations_are_bounded(nursery: trio.Nursery) -> None:
    operations = Operations(nursery)

    async def chatty(report: Report) -> Mapping[str, Any]:
        for number in range(MAX_PROGRESS * 2):
            report({"phase": str(number)})
        return {}

    for _ in range(MAX_FINISHED + 10):
        last = operations.start("chatty", chatty)
        await operations.wait_progress(last, 10**9, 5)
    followed = await operations.wait_progress(last, 0, 5)
    assert len(followed.events) == MAX_PROGRESS
    assert followed.events[-1]["phase"] == str(MAX_PROGRESS * 2 - 1)
    assert len(operations.listed()) <= MAX_FINISHED + 1


async def test_unknown_operation_is_a_usage_problem(nursery: trio.Nursery) -> None:
    with pytest.raises(UsageProblem):
        await Operations(nursery).wait_progress("op-none", 0, 0)
