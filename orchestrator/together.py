"""Several questions at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from apps.problems import Problem


async def all_of(*asks: Callable[[], Awaitable[Any]]) -> list[Any]:
    """What each answers, in order. The first Problem ends the others, and is raised as it is and not in a group."""
    answers: list[Any] = [None] * len(asks)
    problems: list[Problem] = []
    async with trio.open_nursery() as nursery:

        async def one(place: int, ask: Callable[[], Awaitable[Any]]) -> None:
            try:
                answers[place] = await ask()
            except Problem as problem:
                problems.append(problem)
                nursery.cancel_scope.cancel()

        for place, ask in enumerate(asks):
            nursery.start_soon(one, place, ask)
    if problems:
        raise problems[0]
    return answers
