"""Several questions at once: answers in order, one Problem as it is, and nobody left behind."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from apps.problems import Problem
from orchestrator.together import all_of


async def after(turns: int, answer: str) -> str:
    for _ in range(turns):
        await trio.lowlevel.checkpoint()
    return answer


async def test_answers_come_in_the_order_of_the_questions() -> None:
    assert await all_of(partial(after, 5, "slow"), partial(after, 0, "quick")) == ["slow", "quick"]
    assert await all_of() == []


async def test_the_first_problem_ends_the_others_and_is_raised_as_it_is() -> None:
    cancelled = trio.Event()

    async def for_ever() -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async def fails() -> None:
        await trio.lowlevel.checkpoint()
        raise Problem("podman is gone")

    with pytest.raises(Problem, match="podman is gone"):
        await all_of(for_ever, fails)
    assert cancelled.is_set()
