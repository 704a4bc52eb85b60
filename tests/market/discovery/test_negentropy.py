"""Set reconciliation: both sides learn every difference, and no message from outside crashes it."""

from __future__ import annotations

import hashlib
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.discovery.negentropy import FRAME_LIMIT, BadMessage, Reconciler

Item = tuple[int, bytes]


def item(number: int, spread: int = 50) -> Item:
    digest = hashlib.sha256(str(number).encode()).digest()
    return digest[0] % spread, digest


def reconciled(ours: list[Item], theirs: list[Item]) -> tuple[set[bytes], set[bytes], int]:
    client, server = Reconciler.of(ours), Reconciler.of(theirs)
    message: bytes | None = client.initiate()
    rounds = 0
    while message is not None:
        answer = server.reconcile(message)
        assert answer is not None
        assert len(message) < FRAME_LIMIT + 2500
        message = client.reconcile(answer)
        rounds += 1
        assert rounds < 60
    assert len(client.have) == len(set(client.have))
    return set(client.have), set(client.need), rounds


@given(st.sets(st.integers(0, 400)), st.sets(st.integers(0, 400)), st.integers(1, 50))
@settings(max_examples=80, deadline=None)
def test_both_differences_are_found(ours: set[int], theirs: set[int], spread: int) -> None:
    have, need, _ = reconciled([item(n, spread) for n in ours], [item(n, spread) for n in theirs])
    assert have == {item(n)[1] for n in ours - theirs}
    assert need == {item(n)[1] for n in theirs - ours}


def test_a_second_with_thousands_of_events_loses_none() -> None:
    everything = [(1000, item(n)[1]) for n in range(5000)]
    have, need, rounds = reconciled(everything[:20], everything)
    assert (have, len(need)) == (set(), 4980)
    assert rounds < 10


def test_few_differences_among_many_cost_few_rounds_and_bytes() -> None:
    dice = random.Random(7)
    everything = [item(n, 250) for n in range(20_000)]
    ours = [one for one in everything if dice.random() > 0.0005]
    client, server = Reconciler.of(ours), Reconciler.of(everything)
    sent, message = 0, client.initiate()
    while message:
        answer = server.reconcile(message)
        assert answer is not None
        sent += len(message) + len(answer)
        message = client.reconcile(answer) or b""
    assert set(client.need) == {id_ for _, id_ in set(everything) - set(ours)}
    assert sent < 60_000


def test_attack_a_range_that_is_compared_again_and_again_is_refused() -> None:  # R-DS10
    items = [item(n) for n in range(1000)]
    side = Reconciler.of(items)
    side.initiate()
    last = side.items[-1]
    # Below the last item: no ids at all. From there on: a fingerprint that is never right, so that it goes on.
    below = _number(last[0] + 1) + _number(32) + last[1] + b"\x02\x00"
    message = b"\x61" + below + b"\x00\x00\x01" + b"\xff" * 16
    assert side.reconcile(message) is not None
    with pytest.raises(BadMessage):
        side.reconcile(message)


def _number(value: int) -> bytes:
    """Base 128, most significant group first, all but the last with the high bit set."""
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F | 0x80)
    return bytes(reversed(groups))


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_no_message_crashes_or_hangs(message: bytes) -> None:
    side = Reconciler.of([item(n) for n in range(100)])
    side.initiate()
    for data in (message, b"\x61" + message):
        try:
            side.reconcile(data)
        except BadMessage:
            continue


@pytest.mark.parametrize(
    "message",
    [b"", b"\x60", b"\x61\x00", b"\x61\x00\x00\x03", b"\x61\x00\x21", b"\x61\x00\x00\x02\xff\xff\xff\x7f",
     b"\x61" + b"\xff" * 12, b"\x61\x05\x01\xff\x00\x01\x00\x00"],
)  # fmt: skip
def test_what_is_no_message_is_refused(message: bytes) -> None:
    with pytest.raises(BadMessage):
        Reconciler.of([]).reconcile(message)


def test_items_are_sorted_by_time_then_id() -> None:
    items = Reconciler.of([item(n) for n in range(50)]).items
    assert all(a < b for a, b in pairwise(items))
