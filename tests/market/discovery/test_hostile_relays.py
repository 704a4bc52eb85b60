"""Every lie a relay can tell, told first, with one honest relay 0.7 s later. R-DS8, R-DS9, R-DS10.

The genuine release is taken, memory stays below MEMORY, and the report names the liar. trio's clock runs faster here,
so that a relay's silence costs no real waiting.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from market.discovery import Discovery, Index, Phase, RelayState, open_index, publish, to_events
from market.discovery.events import sign_event
from market.discovery.information import fetch_information
from market.discovery.questions import author_questions, document_questions
from market.discovery.relay import RelayLink
from market.discovery.verifiers import Verifiers
from market.model import AppName
from tests.fakes import lying_relay as lies
from tests.market.discovery.publishers import NOW, NostrKey, Publisher, carried
from tests.market.discovery.test_relays import now, offered, signed

MEMORY = 96 * 1024 * 1024
"""Bytes: the queue of one relay at its worst (32 MiB), with copies, and the liar itself, which is in this process."""

LATE = 0.7
SPEED = 6.0


@pytest.fixture
def quick_clock() -> MockClock:
    return MockClock(rate=SPEED)


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Index]:
    with open_index(tmp_path / "fresh.db", now=now) as index:
        yield index


@pytest.fixture
def quickest_clock() -> MockClock:
    return MockClock(rate=60)


Tell = Callable[[list[dict[str, Any]], Publisher, Publisher], lies.Answer]


def _endless(events: list[dict[str, Any]], alice: Publisher, mallory: Publisher) -> lies.Answer:
    genuine = carried(mallory.release().documents[1], mallory.keyring).to_json()
    return lies.endless(lambda number: {**genuine, "content": "x" * 50_000, "id": f"{number:064x}"})


def _ahead(events: list[dict[str, Any]], alice: Publisher, mallory: Publisher) -> lies.Answer:
    documents = mallory.release("9.9.9", now=NOW + 10**7).documents
    return lies.honest([carried(one, mallory.keyring).to_json() for one in documents])


LIES: dict[str, tuple[Tell, Callable[[RelayState], bool]]] = {
    "forged ids": (lambda e, a, m: lies.changed(e, id="00" * 32), lambda s: "forged-id" in s.refused),
    "bad signatures": (lambda e, a, m: lies.changed(e, sig="11" * 64), lambda s: "bad-signature" in s.refused),
    "same id, other content first": (
        lambda e, a, m: lies.changed(e, content='{"evil":1}'),
        lambda s: "forged-id" in s.refused,
    ),
    "garbage frames": (lambda e, a, m: lies.garbage, lambda s: "malformed" in s.text),
    "10 MB frames": (lambda e, a, m: lies.oversized, lambda s: "1009" in s.text),
    "non-matching events": (lambda e, a, m: lies.unasked(e), lambda s: "nobody asked for" in s.text),
    "no EOSE": (lambda e, a, m: lies.silent, lambda s: s.phase is not Phase.LIVE),
    "CLOSED": (lambda e, a, m: lies.closing, lambda s: "not for you" in s.text),
    "AUTH walls": (lambda e, a, m: lies.demanding, lambda s: "auth-required" in s.text),
    "slow drip": (lambda e, a, m: lies.dripping({**e[0], "sig": "11" * 64}, 4.0), lambda s: s.phase is not Phase.LIVE),
    "flood": (_endless, lambda s: s.phase is not Phase.LIVE),
    "stale replaceables": (lambda e, a, m: lies.honest(e[:4]), lambda s: s.lag > 0 and bool(s.lagging)),
    "future dates": (_ahead, lambda s: s.aside > 0),
    "disconnect in mid-frame": (lambda e, a, m: lies.cut_off, lambda s: "connection was lost" in s.text),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_liar_that_is_first_delays_nothing_and_is_named(
    lie: str, alice: Publisher, mallory: Publisher, fresh: Index, quick_clock: MockClock
) -> None:  # R-DS9, R-DS10
    events = [*signed(alice, "1.0.0"), *signed(alice, "2.0.0")]
    tell, shown = LIES[lie]
    tracemalloc.start()
    try:
        async with (
            lies.lying_relay(tell(events, alice, mallory)) as liar,
            lies.lying_relay(lies.late(lies.honest(events), LATE)) as truthful,
            trio.open_nursery() as nursery,
        ):
            discovery = Discovery(fresh, [liar, truthful], now)
            await nursery.start(discovery.run)
            with trio.fail_after(60 * SPEED):
                # A liar's state is counted, and tells nobody.
                while offered(fresh, alice) != "2.0.0" or not shown(_state(discovery, liar)):  # noqa: ASYNC110
                    await trio.sleep(0.2)
            assert _state(discovery, truthful).lag == 0
            nursery.cancel_scope.cancel()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MEMORY


def _state(discovery: Discovery, url: str) -> RelayState:
    return next(state for state in discovery.relay_states() if state.url == url)


async def test_a_relay_that_lets_events_drip_loses_its_connection(
    alice: Publisher, fresh: Index, quickest_clock: MockClock
) -> None:
    from market.discovery.relay import IDLE_SECONDS, PAGE_SECONDS

    assert IDLE_SECONDS < PAGE_SECONDS
    events = signed(alice, "1.0.0")
    async with lies.lying_relay(lies.dripping(events[0], IDLE_SECONDS / 2)) as liar:
        report = await Discovery(fresh, [liar], now).sync(4 * PAGE_SECONDS)
    assert report.unanswered == (liar,)
    assert "in time" in report.relays[0].text


async def test_a_relay_that_answers_no_more_when_it_is_asked_again_loses_its_connection(
    alice: Publisher, fresh: Index, quickest_clock: MockClock
) -> None:  # R-DS9
    questions = len(document_questions()) + len(author_questions([alice.keyring.nostr_pubkey])) + 1  # one is live
    verifiers = Verifiers()
    async with (
        lies.lying_relay(lies.falling_silent(signed(alice, "1.0.0"), questions)) as mute,
        verifiers.working(),
        trio.open_nursery() as nursery,
    ):
        link = RelayLink(mute, fresh, tuple, verifiers, ask_again=60)
        nursery.start_soon(link.run)
        with trio.fail_after(1800):
            # A link's state tells nobody.
            while link.state().phase is not Phase.LIVE:  # noqa: ASYNC110
                await trio.sleep(1)
            while link.state().phase is Phase.LIVE:  # noqa: ASYNC110
                await trio.sleep(1)
            while link.text != "did not answer in time":  # noqa: ASYNC110  # it is silent whenever it is tried again
                await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert offered(fresh, alice) == "1.0.0"


# NIP-42


async def test_a_relay_for_members_is_read_by_who_says_who_they_are(alice: Publisher, fresh: Index) -> None:
    events = signed(alice, "1.0.0")
    async with lies.lying_relay(lies.walled(events)) as members:
        alone = await Discovery(fresh, [members], now).sync(20)
        assert (alone.unanswered, offered(fresh, alice)) == ((members,), None)
        report = await Discovery(fresh, [members], now, signer=NostrKey).sync(20)
        assert report.answered == (members,)
    assert offered(fresh, alice) == "1.0.0"


async def test_publishing_answers_a_relay_that_asks_who_writes(alice: Publisher) -> None:
    events = signed(alice, "1.0.0")
    async with lies.lying_relay(lies.silent) as members:
        [refused] = await publish(events, [members], timeout=5)
        assert refused.accepted == ()
        assert "auth-required" in refused.to_json()["error"]
        [taken] = await publish(events, [members], timeout=5, signer=alice.keyring)
        assert len(taken.accepted) == len(events)


# NIP-11


async def test_what_a_relay_says_of_itself_is_a_hint(alice: Publisher, fresh: Index) -> None:
    events = signed(alice, "1.0.0")
    about = {"name": "x", "supported_nips": [1, 11, 77], "limitation": {"max_limit": 100}, "other": {"a": [1]}}
    async with lies.lying_relay(lies.honest(events), information=about) as boaster:
        found = await fetch_information(boaster)
        assert found is not None
        assert (found.offers(77), found.limitation.max_limit) == (True, 100)
        report = await Discovery(fresh, [boaster], now).sync(20)  # it can not reconcile after all
        assert report.answered == (boaster,)
    assert offered(fresh, alice) == "1.0.0"


@pytest.mark.parametrize("about", [[], {"supported_nips": 5}, {"name": "x" * 100_000}])
async def test_a_wrong_or_endless_information_document_is_none(about: Any) -> None:
    async with lies.lying_relay(lies.silent, information=about) as url:
        assert await fetch_information(url) is None
    assert await fetch_information("ws://127.0.0.1:1") is None


# NIP-65


async def test_a_publishers_own_relay_is_asked_and_private_addresses_only_if_allowed(
    tmp_path: Path, alice: Publisher, fresh: Index
) -> None:
    events = signed(alice, "1.0.0")
    async with lies.lying_relay(lies.honest(events)) as own:
        tags = [["r", own, "write"]]
        listed = sign_event(alice.keyring, created_at=NOW, kind=10002, tags=tags, content="").to_json()
        async with lies.lying_relay(lies.honest([*events[:1], listed])) as public:
            first = Discovery(fresh, [public], now, publishers=lambda: [alice.did])
            await first.sync(20)
            assert offered(fresh, alice) is None
            careful = await first.sync(20)
            [state] = [one for one in careful.relays if one.url == own]
            assert "private address" in state.text
            willing = Discovery(fresh, [public], now, publishers=lambda: [alice.did], allow_private=True)
            report = await willing.sync(20)
    assert set(report.answered) == {public, own}
    assert report.independent == 1
    assert offered(fresh, alice) == "1.0.0"


@pytest.mark.parametrize(
    "address",
    [
        "ws://a..b",
        f"wss://{'a' * 64}.example",
        "ws://.x",
        "ws://relay.example:99999",
        "ws://[::1",
        "ws://[]",
        "ws://h:x",
    ],
)
async def test_attack_a_write_relay_whose_address_is_none_ends_no_node(
    alice: Publisher, fresh: Index, address: str
) -> None:  # R-DS9
    events = signed(alice, "1.0.0")
    listed = sign_event(alice.keyring, created_at=NOW, kind=10002, tags=[["r", address]], content="").to_json()
    async with lies.lying_relay(lies.honest([*events, listed])) as public:
        discovery = Discovery(fresh, [public], now, publishers=lambda: [alice.did], allow_private=True)
        await discovery.sync(20)
        report = await discovery.sync(20)
    assert (report.answered, report.unanswered) == ((public,), (address,))
    assert [state.text for state in report.relays] == ["", "is not a relay's address"]
    assert offered(fresh, alice) == "1.0.0"


async def test_a_relay_that_the_operator_removed_is_a_strangers_from_then_on(alice: Publisher, fresh: Index) -> None:
    events = signed(alice, "1.0.0")
    async with lies.lying_relay(lies.honest(events)) as own:
        listed = sign_event(alice.keyring, created_at=NOW, kind=10002, tags=[["r", own]], content="").to_json()
        async with lies.lying_relay(lies.honest([*events, listed])) as public:
            discovery = Discovery(fresh, [public, own], now, publishers=lambda: [alice.did])
            assert (await discovery.sync(20)).unanswered == ()
            discovery.set_relays([public])
            [state] = [one for one in (await discovery.sync(20)).relays if one.url == own]
    assert state.named_by_author
    assert "private address" in state.text


# NIP-77, against a real relay


async def test_a_second_with_more_events_than_a_page_loses_none(real_relay: str, tmp_path: Path, fresh: Index) -> None:
    bob = Publisher(tmp_path, "bob")
    documents = bob.release("1.0.0").documents
    many = [
        carried(bob.resigned(documents[1], name=f"app{number}", made=NOW), bob.keyring).to_json()
        for number in range(700)
    ]
    [result] = await publish([*to_events(bob.keyring, documents, now()), *many], [real_relay], timeout=60)
    assert len(result.accepted) == 704
    await Discovery(fresh, [real_relay], now).sync(60)
    with fresh.reading() as db:
        (found,) = db.execute("SELECT count(*) FROM listings WHERE did = ?", (bob.did,)).fetchone()
    assert found == 701


async def test_what_both_have_is_not_sent_again_and_what_the_relay_lost_is_given_back(
    real_relay: str, tmp_path: Path, alice: Publisher, fresh: Index
) -> None:
    carol = Publisher(tmp_path, "carol")
    await publish(signed(carol, "1.0.0"), [real_relay], timeout=10)
    async with lies.lying_relay(lies.honest(signed(alice, "1.0.0"))) as other:
        await Discovery(fresh, [other], now).sync(20)
    discovery = Discovery(fresh, [real_relay], now)
    await discovery.sync(20)
    [again] = (await discovery.sync(20)).relays
    assert again.known == 0
    results = await discovery.rebroadcast([AppName(alice.did, "hello")], timeout=10)
    assert sum(len(one.accepted) for one in results) == 4
    with open_index(tmp_path / "second.db", now=now) as second:
        await Discovery(second, [real_relay], now).sync(20)
        assert offered(second, alice) == "1.0.0"
