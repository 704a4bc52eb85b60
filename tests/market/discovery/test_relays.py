"""Discovery against real and lying relays: what a lie costs, and that it costs only the liar. R-DS8, R-DS9, R-DS10."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from apps.names import AppName
from market.discovery import Discovery, Index, Phase, Reason, open_index, publish, to_events
from market.discovery.events import sign_event
from tests.fakes import lying_relay as lies
from tests.market.discovery.publishers import NOW, NostrKey, Publisher, carried

UNREACHABLE = "ws://127.0.0.1:1"


def now() -> float:
    return NOW + 60.0


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Index]:
    with open_index(tmp_path / "fresh.db", now=now) as index:
        yield index


def signed(publisher: Publisher, *versions: str) -> list[dict[str, Any]]:
    documents = [document for version in versions for document in publisher.release(version).documents]
    return to_events(publisher.keyring, documents, now())


def offered(index: Index, publisher: Publisher) -> str | None:
    listing = index.listing(AppName(publisher.did, "hello"))
    return listing.release.version if listing and listing.release else None


async def test_what_is_published_to_a_real_relay_is_found_by_another_node(
    real_relay: str, alice: Publisher, fresh: Index
) -> None:  # R-DS1
    events = signed(alice, "1.0.0")
    [result] = await publish(events, [real_relay], timeout=10)
    assert (len(result.accepted), dict(result.failed), result.error) == (4, {}, "")
    report = await Discovery(fresh, [real_relay], now).sync(20)
    assert report.answered == (real_relay,)
    assert offered(fresh, alice) == "1.0.0"
    listing = fresh.listing(AppName(alice.did, "hello"))
    assert listing is not None
    assert listing.relays == (real_relay,)


async def test_a_running_node_sees_a_new_release_without_asking(
    real_relay: str, alice: Publisher, fresh: Index
) -> None:
    discovery = Discovery(fresh, [real_relay], now)
    changed = trio.Event()

    def look() -> None:
        if offered(fresh, alice) == "2.0.0":
            changed.set()

    discovery.on_change = look
    await publish(signed(alice, "1.0.0"), [real_relay], timeout=10)
    async with trio.open_nursery() as nursery:
        await nursery.start(discovery.run)
        await publish(signed(alice, "2.0.0"), [real_relay], timeout=10)
        with trio.fail_after(20):
            await changed.wait()
        nursery.cancel_scope.cancel()
    assert discovery.relay_states()[0].phase is Phase.STOPPED


async def test_more_events_than_a_relay_gives_at_once_are_paged_to_the_end(
    real_relay: str, tmp_path: Path, fresh: Index
) -> None:
    bob = Publisher(tmp_path, "bob")
    documents = bob.release("1.0.0").documents
    many = [
        carried(bob.resigned(documents[2], name=f"app{number % 4}", version=f"2.{number}", seq=number + 2,
                             install={"id": f"app{number % 4}", "version": f"2.{number}"}, made=NOW - number),
                bob.keyring).to_json()
        for number in range(560)
    ]  # fmt: skip
    [result] = await publish([*to_events(bob.keyring, documents, now()), *many], [real_relay], timeout=30)
    assert len(result.accepted) == 564
    report = await Discovery(fresh, [real_relay], now).sync(30)
    assert report.answered == (real_relay,)
    assert sum(len(fresh.releases(AppName(bob.did, f"app{number}"))) for number in range(4)) == 560


async def test_follow_lists_of_the_anchors_and_of_whom_they_follow_are_read(real_relay: str, fresh: Index) -> None:
    anchor, friend, stranger = NostrKey(), NostrKey(), NostrKey()
    lists = [
        sign_event(who, created_at=NOW, kind=3, tags=[["p", whom.nostr_pubkey]], content="").to_json()
        for who, whom in ((anchor, friend), (friend, stranger), (stranger, anchor))
    ]
    await publish(lists, [real_relay], timeout=10)
    await Discovery(fresh, [real_relay], now, people=lambda: [anchor.nostr_pubkey]).sync(20)
    assert set(fresh.evidence().follows) == {
        (f"nostr:{anchor.nostr_pubkey}", f"nostr:{friend.nostr_pubkey}"),
        (f"nostr:{friend.nostr_pubkey}", f"nostr:{stranger.nostr_pubkey}"),
    }


def _lies(events: list[dict[str, Any]], flood: Publisher) -> dict[str, tuple[lies.Answer, Reason | None, str]]:
    """By name: the answer, the reason that is counted, and a word of what is said about the relay."""
    genuine = flood.release().documents[1]

    def another(number: int) -> dict[str, Any]:
        return {**carried(genuine, flood.keyring).to_json(), "id": f"{number:064x}"}

    return {
        "forged ids": (lies.changed(events, id="00" * 32), Reason.FORGED_ID, ""),
        "bad signatures": (lies.changed(events, sig="11" * 64), Reason.BAD_SIGNATURE, ""),
        "same id, other content": (lies.changed(events, content='{"evil":1}'), Reason.FORGED_ID, ""),
        "non-matching events": (lies.unasked(events), Reason.UNMATCHED, "nobody asked for"),
        "garbage frames": (lies.garbage, Reason.MALFORMED, "malformed"),
        "oversize": (lies.oversized, None, "1009"),
        "CLOSED": (lies.closing, None, "not for you"),
        "AUTH": (lies.demanding, None, "auth-required"),
        "disconnect in mid-frame": (lies.cut_off, None, "connection was lost"),
        "endless forgeries": (lies.endless(another), None, "forged|more events"),
    }


LIES = [
    "forged ids",
    "bad signatures",
    "same id, other content",
    "non-matching events",
    "garbage frames",
    "oversize",
    "CLOSED",
    "AUTH",
    "disconnect in mid-frame",
    "endless forgeries",
]


@pytest.mark.parametrize("lie", LIES)
async def test_a_lie_costs_the_liar_its_connection_and_the_genuine_event_is_still_accepted(
    lie: str, alice: Publisher, mallory: Publisher, fresh: Index
) -> None:  # R-DS2, R-DS9
    events = signed(alice, "1.0.0")
    answer, reason, word = _lies(events, mallory)[lie]
    async with AsyncExitStack() as stack:
        liar = await stack.enter_async_context(lies.lying_relay(answer))
        truthful = await stack.enter_async_context(lies.lying_relay(lies.honest(events)))
        alone = await Discovery(fresh, [liar], now).sync(20)
        assert offered(fresh, alice) is None
        report = await Discovery(fresh, [liar, truthful], now).sync(20)
    assert offered(fresh, alice) == "1.0.0"
    assert truthful in report.answered
    [state] = alone.relays
    assert state.url == liar
    assert reason is None or state.refused[reason] > 0
    assert any(part in state.text for part in word.split("|"))


async def test_a_relay_that_never_ends_its_answer_delays_no_other(alice: Publisher, fresh: Index) -> None:  # R-DS8
    events = signed(alice, "1.0.0")
    async with lies.lying_relay(lies.silent) as mute, lies.lying_relay(lies.honest(events)) as truthful:
        report = await Discovery(fresh, [mute, truthful, UNREACHABLE], now).sync(4)
    assert report.answered == (truthful,)
    assert set(report.unanswered) == {mute, UNREACHABLE}
    assert offered(fresh, alice) == "1.0.0"


async def test_a_stale_relay_is_shown_as_lagging(alice: Publisher, fresh: Index) -> None:  # R-DS8
    old, new = signed(alice, "1.0.0"), signed(alice, "2.0.0")
    async with lies.lying_relay(lies.honest(old)) as slow, lies.lying_relay(lies.honest(new)) as fast:
        report = await Discovery(fresh, [slow, fast], now).sync(20)
    assert {state.url: state.lag for state in report.relays} == {slow: 1, fast: 0}
    assert offered(fresh, alice) == "2.0.0"


async def test_memory_stays_bounded_while_a_relay_floods(mallory: Publisher, fresh: Index) -> None:  # R-DS10
    genuine = carried(mallory.release().documents[1], mallory.keyring).to_json()
    padded = {**genuine, "content": "x" * 60_000}

    def another(number: int) -> dict[str, Any]:
        return {**padded, "id": f"{number:064x}"}

    tracemalloc.start()
    try:
        async with lies.lying_relay(lies.endless(another)) as liar:
            await Discovery(fresh, [liar], now).sync(20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 128 * 1024 * 1024  # the queue's worst case of 32 MiB, its copies, and the sender in this process


async def test_relays_can_be_added_and_removed_while_running(alice: Publisher, fresh: Index) -> None:
    events = signed(alice, "1.0.0")
    found = trio.Event()
    async with lies.lying_relay(lies.honest(events)) as truthful:
        discovery = Discovery(fresh, [], now)
        discovery.on_change = found.set
        async with trio.open_nursery() as nursery:
            await nursery.start(discovery.run)
            discovery.set_relays([truthful])
            with trio.fail_after(20):
                await found.wait()
            discovery.set_relays([])
            assert discovery.relay_states() == ()
            nursery.cancel_scope.cancel()


async def test_publishing_says_of_each_relay_what_it_took(real_relay: str, alice: Publisher) -> None:
    events = signed(alice, "3.0.0")
    forged = {**events[0], "id": "00" * 32}
    results = await publish([*events, forged], [real_relay, UNREACHABLE], timeout=4)
    took, dead = results
    assert (took.relay, set(took.accepted)) == (real_relay, {event["id"] for event in events})
    assert set(took.failed) == {"00" * 32}
    assert (dead.accepted, set(dead.failed)) == ((), {*(event["id"] for event in events), "00" * 32})
    assert "can not be reached" in dead.error
    [again] = await publish(events, [real_relay], timeout=10)
    assert len(again.accepted) == 4


async def test_stored_events_are_given_again_to_a_relay_that_lost_them(
    real_relay: str, alice: Publisher, fresh: Index, tmp_path: Path
) -> None:
    async with lies.lying_relay(lies.honest(signed(alice, "1.0.0"))) as first:
        await Discovery(fresh, [first], now).sync(20)
    await publish(fresh.events_of(AppName(alice.did, "hello")), [real_relay], timeout=10)
    with open_index(tmp_path / "second.db", now=now) as second:
        await Discovery(second, [real_relay], now).sync(20)
        assert offered(second, alice) == "1.0.0"


def test_a_published_event_is_plain_json(alice: Publisher) -> None:
    [event, *_] = signed(alice, "1.0.0")
    assert msgspec.json.decode(msgspec.json.encode(event)) == event
