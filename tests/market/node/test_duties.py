"""What a node says to relays while it runs: own heads before they expire, and what relays lost of the apps it runs."""

from __future__ import annotations

import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from market.discovery import PublishResult, to_events
from market.model import AppName
from market.node.node import Node
from market.node.publishers import give_back, refresh_own_heads
from tests.fakes import lying_relay as lies
from tests.fakes.blob_servers import BlobServer
from tests.market.node.operators import Operator
from tests.market.node.test_market import app_of
from tests.market.square import Publisher

DAY = 86_400.0


def doing(
    operator: Operator, duty: Callable[[Node], Awaitable[tuple[PublishResult, ...]]], *, later: float = 0.0
) -> tuple[PublishResult, ...]:
    """One round of a duty by the operator's node, so many seconds from now."""

    async def opened() -> tuple[PublishResult, ...]:
        async with operator.node(later=later) as node:
            return await duty(node)

    return trio.run(opened)


def newest_head(operator: Operator, publisher: Publisher, *, later: float = 0.0) -> tuple[int, int]:
    """Epoch and end of the publisher's head, as relays show it so many seconds from now."""

    async def opened() -> tuple[int, int]:
        async with operator.node(later=later) as node:
            await node.discovery.sync(30)
            listing = node.index.listing(AppName(publisher.did, "hello"))
            assert listing is not None
            assert listing.head_epoch is not None
            assert listing.head_expires is not None
            return listing.head_epoch, listing.head_expires

    return trio.run(opened)


def lend(publisher: Publisher, operator: Operator) -> None:
    """The operator is the publisher, from now on."""
    shutil.copytree(publisher.keyring.folder, operator.home.identity, dirs_exist_ok=True)


def test_own_heads_are_said_again_before_they_end_and_not_earlier(
    publisher: Publisher, origin: BlobServer, operator: Operator, tmp_path: Path
) -> None:
    publisher.bring("1.0.0", [origin.url])
    lend(publisher, operator)
    epoch, expires = newest_head(operator, publisher)
    assert doing(operator, refresh_own_heads) == ()
    [result] = doing(operator, refresh_own_heads, later=70 * DAY)
    assert (result.error, result.failed) == ("", {})
    newcomer = Operator(tmp_path / "newcomer", publisher.relay)
    again, until = newest_head(newcomer, publisher, later=70 * DAY)
    assert again > epoch
    assert until > expires + 60 * DAY


def test_without_an_online_key_nothing_is_said(publisher: Publisher, origin: BlobServer, operator: Operator) -> None:
    publisher.bring("1.0.0", [origin.url])
    lend(publisher, operator)
    (operator.home.identity / "online.key").unlink()
    assert doing(operator, refresh_own_heads, later=80 * DAY) == ()


def test_a_relay_that_lost_an_installed_app_gets_it_back(
    publisher: Publisher, origin: BlobServer, operator: Operator, another_relay: str, tmp_path: Path
) -> None:
    publisher.bring("1.0.0", [origin.url])
    operator.trust(publisher)
    operator.do(("relays.add", {"url": another_relay}))
    operator.install(app_of(publisher))
    results = {result.relay: result for result in doing(operator, give_back)}
    assert results[another_relay].failed == {}
    assert len(results[another_relay].accepted) >= 4  # identity, manifest, release, head
    newcomer = Operator(tmp_path / "newcomer", another_relay)
    assert newest_head(newcomer, publisher) == newest_head(operator, publisher)


def test_a_relay_for_members_is_read_with_the_operators_own_key(
    publisher: Publisher, origin: BlobServer, operator: Operator
) -> None:
    signed = publisher.sign(publisher.pack("1.0.0"), [origin.url])
    events = to_events(publisher.keyring, signed.documents, time.time())

    async def read() -> list[str]:
        async with lies.lying_relay(lies.walled(events)) as members, operator.node() as node:
            node.discovery.set_relays([members])
            await node.discovery.sync(20)
            return [listing.app.publisher for listing in node.index.candidates("hello")]

    assert trio.run(read) == []
    lend(publisher, operator)
    assert trio.run(read) == [publisher.did]
