"""What one connection brings is held back by number and by bytes, and stored in the order it came."""

from __future__ import annotations

import trio
import trio.testing

from market.discovery import Index, Outcome
from market.discovery.intake import BATCH_BYTES, QUEUED_BYTES, Intake
from market.discovery.reasons import Fate, Reason
from market.discovery.verifiers import Verifiers
from tests.market.discovery.publishers import RELAY, Publisher, carried


async def test_attack_large_events_are_not_read_ahead_by_the_hundred(index: Index, alice: Publisher) -> None:  # R-DS10
    [event] = [carried(alice.keyring.identity_document(), alice.keyring)]
    outcomes: list[Outcome] = []
    intake = Intake(RELAY, index, Verifiers(processes=0), outcomes.extend)
    held = 0

    async def bring() -> None:
        nonlocal held
        for _ in range(3 * QUEUED_BYTES // BATCH_BYTES):
            await intake.put(event, BATCH_BYTES)
            held += BATCH_BYTES

    async with trio.open_nursery() as nursery:
        nursery.start_soon(bring)
        await trio.testing.wait_all_tasks_blocked()
        assert held == QUEUED_BYTES  # nobody takes them: the connection waits
        nursery.start_soon(intake.run)
        while held < 3 * QUEUED_BYTES:
            await trio.testing.wait_all_tasks_blocked()
        await intake.settled()
        nursery.cancel_scope.cancel()
    assert [one.fate for one in outcomes] == [Fate.ACCEPTED] + [Fate.KNOWN] * (3 * QUEUED_BYTES // BATCH_BYTES - 1)


async def test_events_are_stored_in_the_order_they_came(index: Index, alice: Publisher, mallory: Publisher) -> None:
    first, other = (carried(one.keyring.identity_document(), one.keyring) for one in (alice, mallory))
    forged = type(first)(**{**first.to_json(), "tags": first.tags, "sig": "0" * 128})
    outcomes: list[Outcome] = []
    intake = Intake(RELAY, index, Verifiers(processes=0), outcomes.extend)
    brought = [first, forged, other, first] * 8
    async with trio.open_nursery() as nursery:
        nursery.start_soon(intake.run)
        for event in brought:
            await intake.put(event, QUEUED_BYTES)  # each is a batch of its own
        await intake.settled()
        nursery.cancel_scope.cancel()
    assert [one.fate for one in outcomes[:4]] == [Fate.ACCEPTED, Fate.REFUSED, Fate.ACCEPTED, Fate.KNOWN]
    assert [one.reason for one in outcomes[1::4]] == [Reason.BAD_SIGNATURE] * 8
    assert {one.fate for one in outcomes[4:]} == {Fate.KNOWN, Fate.REFUSED}
