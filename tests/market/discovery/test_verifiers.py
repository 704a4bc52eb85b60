"""Who verifies is of no consequence: threads and processes give one answer, and a process that fails costs nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from market.discovery import Candidate, Event, Index
from market.discovery.events import DOCUMENT_KIND, sign_event
from market.discovery.examination import (
    Answer,
    answer_questions,
    examine,
    read_answers,
    settle,
    write_questions,
)
from market.discovery.verifiers import BATCH, FLOOD, Verifiers
from tests.market.discovery.publishers import NOW, Publisher, from_relay


def flood(publisher: Publisher) -> list[Candidate]:
    """A batch in which every verdict occurs."""
    good = publisher.events(*publisher.release().documents)
    bent = [
        msgspec.structs.replace(good[0], id="00" * 32),
        msgspec.structs.replace(good[0], sig="11" * 64),
        sign_event(
            publisher.keyring,
            created_at=NOW,
            kind=DOCUMENT_KIND,
            tags=good[-1].tags,
            content=good[-1].content.replace("hello", "hullo"),
        ),
    ]
    events = [*good, *bent]
    return list(from_relay(*(events[number % len(events)] for number in range(BATCH))))


async def busy(verifiers: Verifiers, index: Index, batch: list[Candidate]) -> None:
    """Verify until processes are at work."""
    with trio.fail_after(60):
        while not children():
            await verifiers.examine(index, batch)
        for _ in range(6):
            await verifiers.examine(index, batch)


def children() -> list[int]:
    """This process's verifiers (proc(5))."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"market.discovery.verifier" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
    return found


def here(index: Index, batch: list[Candidate]) -> tuple[list[bool], list[Answer]]:
    new = index.unstored(batch)
    return new, [examine(one.event, is_new=fresh) for one, fresh in zip(batch, new, strict=True)]


def test_answers_survive_the_way_between_processes_and_stand_for_the_whole_check(
    index: Index, alice: Publisher
) -> None:
    batch = flood(alice)[:16]
    new = [True] * len(batch)
    answers = read_answers(answer_questions(write_questions([one.event for one in batch], new)), len(batch))
    assert answers == [examine(one.event, is_new=True) for one in batch]
    assert {answer.forged for answer in answers} > {None}
    assert {answer.refused for answer in answers} > {None}
    settled = index.commit(batch, new, answers)
    with_own_eyes = [settle(one, examine(one.event, is_new=True), is_new=True) for one in batch]
    assert [settle(one, answer, is_new=True) for one, answer in zip(batch, answers, strict=True)] == with_own_eyes
    assert index.search("hello")
    assert len(settled) == len(batch)


async def test_processes_answer_a_flood_as_threads_do_and_none_outlives_it(index: Index, alice: Publisher) -> None:
    batch, verifiers = flood(alice), Verifiers()
    expected = here(index, batch)
    async with verifiers.working():
        await busy(verifiers, index, batch)
        results: list[object] = []

        async def one() -> None:
            results.append(await verifiers.examine(index, batch))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(one)
        assert results == [expected] * 5
        assert 1 <= len(children()) <= verifiers.processes
    assert children() == []


async def test_a_few_events_start_no_process(index: Index, alice: Publisher) -> None:
    batch, verifiers = flood(alice)[: FLOOD - 1], Verifiers()
    async with verifiers.working():
        assert await verifiers.examine(index, batch) == here(index, batch)
        await trio.testing.wait_all_tasks_blocked()
        assert children() == []


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM])
async def test_a_verifier_that_dies_costs_no_event(index: Index, alice: Publisher, blow: int) -> None:
    batch, verifiers = flood(alice), Verifiers(processes=1)
    async with verifiers.working():
        await busy(verifiers, index, batch)
        for process in children():
            os.kill(process, blow)
        for _ in range(3):
            assert await verifiers.examine(index, batch) == here(index, batch)
        await busy(verifiers, index, batch)  # and another one took its place


async def test_a_visit_that_is_cancelled_leaves_no_answer_for_the_next_one(index: Index, alice: Publisher) -> None:
    batch, verifiers = flood(alice), Verifiers(processes=1)
    async with verifiers.working():
        await busy(verifiers, index, batch)
        with trio.move_on_after(0.005):
            await verifiers.examine(index, batch)
        smaller = list(reversed(batch))[:FLOOD]
        assert await verifiers.examine(index, smaller) == here(index, smaller)
    assert children() == []


async def test_a_pass_that_ends_while_a_process_starts_takes_no_room_from_the_next_one(
    index: Index, alice: Publisher
) -> None:
    batch, verifiers = flood(alice), Verifiers(processes=1)
    for turns in range(1, 6):
        async with trio.open_nursery() as nursery, verifiers.working():
            nursery.start_soon(verifiers.examine, index, batch)
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
        assert children() == []
    async with verifiers.working():
        await busy(verifiers, index, batch)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda answers: answers[:-1], id="truncated"),
        pytest.param(lambda answers: msgspec.msgpack.encode([]), id="too few"),
        pytest.param(lambda answers: b"\xc1", id="no MessagePack"),
    ],
)
def test_nonsense_is_no_answer(alice: Publisher, spoil: Callable[[bytes], bytes]) -> None:
    events: list[Event] = alice.events(*alice.release().documents)
    answers = answer_questions(write_questions(events, [True] * len(events)))
    with pytest.raises((ValueError, msgspec.MsgspecError)):
        read_answers(spoil(answers), len(events))
