"""The relay conversation without a network: paging, budgets, and what is passed on. R-DS9, R-DS10."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.discovery import Reason
from market.discovery.events import Event, Filter
from market.discovery.questions import document_questions, live_questions
from market.discovery.relay import LONGEST_DELAY, next_delay
from market.discovery.session import (
    MAX_EXTRA_EVENTS,
    MAX_INVALID,
    MAX_UNWANTED,
    Action,
    Arrived,
    Caught,
    Counted,
    Drop,
    Said,
    Send,
    Session,
)
from tests.fakes.lying_relay import matching

QUESTION = Filter(kinds=(30078,), tags={"t": ("archy1-head",)})


def event(number: int, created_at: int = 1000, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"{number:064x}",
        "pubkey": "ab" * 32,
        "created_at": created_at,
        "kind": 30078,
        "tags": [["t", "archy1-head"]],
        "content": "",
        "sig": "cd" * 64,
        **changes,
    }


def asked(actions: list[Action]) -> list[list[Any]]:
    return [json.loads(action.text) for action in actions if isinstance(action, Send)]


def one(actions: list[Action], kind: type[Any]) -> Any:
    [found] = [action for action in actions if isinstance(action, kind)]
    return found


def in_session() -> tuple[Session, str]:
    session = Session([QUESTION], [])
    [[_, name, _]] = asked(session.opened())
    return session, name


def converse(session: Session, events: list[dict[str, Any]], cap: int) -> tuple[list[Event], int]:
    """Play an honest relay to the end: the events passed on, and the number of REQs."""
    arrived: list[Event] = []
    requests = 0
    todo = session.opened()
    while True:
        ended = any(isinstance(action, Caught) for action in todo)
        arrived += [action.event for action in todo if isinstance(action, Arrived)]
        questions = [frame for frame in asked(todo) if frame[0] == "REQ" and frame[1] != "live"]
        if ended:
            return arrived, requests
        assert len(questions) <= 1
        todo = []
        for _, name, *filters in questions:
            requests += 1
            for found in matching(events, filters, cap):
                todo += session.received(json.dumps(["EVENT", name, found]))
            todo += session.received(json.dumps(["EOSE", name]))


@given(st.lists(st.integers(1, 400), max_size=300), st.integers(30, 500))
@settings(max_examples=60, deadline=None)
def test_paging_finds_every_event_once_unless_one_second_holds_more_than_a_page(times: list[int], cap: int) -> None:
    events = [event(number, created_at) for number, created_at in enumerate(times)]
    arrived, requests = converse(Session([QUESTION], []), events, cap)
    ids = [found.id for found in arrived]
    if all(times.count(second) < cap for second in set(times)):
        assert sorted(ids) == sorted(stored["id"] for stored in events)
    assert len(ids) == len(set(ids))
    assert requests <= 2 + 2 * len(events)


def test_ties_at_the_edge_of_a_page_are_not_lost() -> None:
    events = [event(number, 1000 - number // 7) for number in range(400)]
    arrived, _ = converse(Session([QUESTION], []), events, cap=50)
    assert len({found.id for found in arrived}) == 400


def test_a_second_with_more_events_than_a_page_does_not_stop_the_paging() -> None:
    events = [event(number, 1000) for number in range(90)] + [event(500, 10)]
    arrived, _ = converse(Session([QUESTION], []), events, cap=50)
    assert f"{500:064x}" in {found.id for found in arrived}


def test_questions_are_asked_in_the_order_in_which_documents_depend_on_each_other() -> None:
    session = Session(document_questions(), live_questions(["ab" * 32]))
    live, first = asked(session.opened())
    assert live[:2] == ["REQ", "live"]
    assert live[3] == {"kinds": [3, 10_000], "authors": ["ab" * 32], "limit": 1}
    seen = [first[2]["#t"][0]]
    name = first[1]
    while True:
        actions = session.received(json.dumps(["EOSE", name]))
        questions = [frame for frame in asked(actions) if frame[0] == "REQ"]
        if not questions:
            break
        seen.append(questions[0][2]["#t"][0])
        name = questions[0][1]
    kinds = ("identity", "revoke", "release", "manifest", "head", "attest", "proof", "provider")
    assert seen == [f"archy1-{kind}" for kind in kinds]
    assert one(actions, Caught).gave_up == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": 1}, Reason.UNMATCHED),
        ({"tags": [["t", "other"]]}, Reason.UNMATCHED),
        ({"id": "AB" * 32}, Reason.MALFORMED),
        ({"sig": "00"}, Reason.MALFORMED),
        ({"created_at": -1}, Reason.MALFORMED),
        ({"created_at": 1.5}, Reason.MALFORMED),
        ({"created_at": 10**30}, Reason.MALFORMED),
        ({"tags": [["t", 5]]}, Reason.MALFORMED),
        ({"id": "ab" * 32 + "\n"}, Reason.MALFORMED),
        ({"content": "x" * 70_000}, Reason.OVERSIZE),
    ],
)
def test_an_event_that_does_not_answer_the_question_is_counted_and_goes_no_further(
    changes: dict[str, Any], reason: Reason
) -> None:
    session, name = in_session()
    actions = session.received(json.dumps(["EVENT", name, event(1, **changes)]))
    assert one(actions, Counted).refusal.reason is reason


def test_an_event_for_a_question_nobody_asked_is_counted() -> None:
    session, _ = in_session()
    actions = session.received(json.dumps(["EVENT", "other", event(1)]))
    assert one(actions, Counted).refusal.reason is Reason.UNMATCHED


def test_too_many_events_nobody_asked_for_end_the_connection() -> None:
    session, _ = in_session()
    frame = json.dumps(["EVENT", "other", event(1)])
    dropped = [any(isinstance(action, Drop) for action in session.received(frame)) for _ in range(MAX_UNWANTED + 1)]
    assert dropped == [False] * MAX_UNWANTED + [True]


def test_too_many_malformed_messages_end_the_connection() -> None:
    session, _ = in_session()
    dropped = [any(isinstance(action, Drop) for action in session.received("{")) for _ in range(MAX_INVALID + 1)]
    assert dropped == [False] * MAX_INVALID + [True]


def test_a_page_without_end_ends_the_connection() -> None:
    session, name = in_session()
    for number in range(MAX_EXTRA_EVENTS):
        one(session.received(json.dumps(["EVENT", name, event(number)])), Arrived)
    assert one(session.received(json.dumps(["EVENT", name, event(number + 1)])), Drop)


def test_closed_and_auth_are_reasons_and_not_emptiness() -> None:
    session, name = in_session()
    assert one(session.received('["AUTH","c"]'), Said).kind == "auth"
    actions = session.received(json.dumps(["CLOSED", name, "auth-required: \x1b[2Jmembers"]))
    assert one(actions, Said).text == "auth-required:  [2Jmembers"
    assert one(actions, Caught).gave_up == 1


def test_a_relay_can_not_end_a_question_that_is_not_open() -> None:
    session, _ = in_session()
    assert session.received('["EOSE","other"]') == []
    assert session.received('["CLOSED","other",""]') == []
    assert not session.caught_up


def test_live_events_are_passed_on_after_the_questions_are_answered() -> None:
    session = Session([QUESTION], [QUESTION])
    _, [_, name, _] = asked(session.opened())
    session.received(json.dumps(["EOSE", name]))
    assert session.caught_up
    assert one(session.received(json.dumps(["EVENT", "live", event(9)])), Arrived).event.id == f"{9:064x}"
    assert asked(session.ask([QUESTION]))[0][0] == "REQ"
    assert not session.caught_up


FRAMES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
    | st.sampled_from(["EVENT", "EOSE", "OK", "NOTICE", "CLOSED", "AUTH", "live", "q1"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
)  # fmt: skip


@given(st.lists(FRAMES.map(json.dumps) | st.text(max_size=60) | st.binary(max_size=60), max_size=20))
@settings(max_examples=150, deadline=None)
def test_no_message_crashes_the_session(messages: list[str | bytes]) -> None:
    session = Session([QUESTION], [QUESTION])
    session.opened()
    for message in messages:
        assert isinstance(session.received(message), list)


@given(st.dictionaries(st.sampled_from([*event(1), "other"]), FRAMES, max_size=8))
@settings(max_examples=150, deadline=None)
def test_no_event_crashes_the_session(changes: dict[str, Any]) -> None:
    session, name = in_session()
    actions = session.received(json.dumps(["EVENT", name, {**event(1), **changes}]))
    assert all(isinstance(action, Arrived | Counted) for action in actions)


def test_reconnecting_doubles_to_five_minutes_and_only_a_stable_session_starts_anew() -> None:
    delays = [next_delay(0.0, stable=False)]
    for _ in range(10):
        delays.append(next_delay(delays[-1], stable=False))
    assert delays[:4] == [1, 2, 4, 8]
    assert delays[-1] == LONGEST_DELAY == 300
    assert next_delay(300, stable=True) == 1
