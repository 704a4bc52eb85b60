"""Days of running: only seen time counts, each milestone is said once. And follow lists from a file."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from market.trust import Ran
from market.trust.anchors import MAX_FOLLOW_LIST
from market.trust.follow_file import parse_follow_list
from market.trust.running import MAX_STEP, MILESTONES, milestone, seen_running
from tests.market.trust.people import did, nostr_hex

DIGEST, DAY = "ab" * 32, 86_400


@given(steps=st.lists(st.floats(allow_nan=False, min_value=-1e12, max_value=1e12), max_size=30))
def test_a_clock_that_leaps_adds_next_to_nothing(steps: list[float]) -> None:
    ran: dict[str, Ran] = {}
    for elapsed in steps:
        ran = seen_running(ran, [DIGEST], elapsed)
    assert 0 <= sum(one.seconds for one in ran.values()) <= MAX_STEP * len(steps)


def test_what_is_gone_is_forgotten_and_what_runs_goes_on() -> None:
    ran = seen_running({"cd" * 32: Ran(9), DIGEST: Ran(100, 7)}, [DIGEST], 3600)
    assert ran == {DIGEST: Ran(3700, 7)}


def test_each_milestone_is_due_once_and_the_highest_one_only() -> None:
    assert milestone(Ran(7 * DAY - 1)) is None
    assert milestone(Ran(7 * DAY)) == (7, MILESTONES[7])
    assert milestone(Ran(8 * DAY, attested=7)) is None
    assert milestone(Ran(400 * DAY, attested=7)) == (365, 100)


def test_a_list_is_read_line_by_line_and_what_names_nobody_is_counted() -> None:
    found = parse_follow_list(
        ["# people", did("ada"), f"  {nostr_hex('x')[:-1]} ", "", f"{did('ben')} Ben", did("ada")]
    )
    assert found.people == tuple(sorted([did("ada"), did("ben")]))
    assert found.ignored == {"entries that name nobody": 1, "entries that were there already": 1}


def test_a_list_without_an_end_is_cut_and_counted() -> None:
    found = parse_follow_list(did(str(number)) for number in range(MAX_FOLLOW_LIST + 3))
    assert len(found.people) == MAX_FOLLOW_LIST
    assert found.ignored == {"entries beyond the longest list": 3}
