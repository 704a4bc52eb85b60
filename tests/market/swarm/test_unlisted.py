"""A blob by its digest alone: verified as a whole, bounded, told about while it comes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from market.swarm import (
    AllSourcesFailed,
    Source,
    SourceKind,
    Store,
    UnlistedProgress,
    fetch_unlisted,
    open_store,
)
from market.swarm.report import Pace
from tests.fakes.blob_servers import BlobServer, Faults
from tests.market.swarm.published import LOOPBACK, publish, some_bytes

LIMIT = 10_000_000
DATA = some_bytes(2_000_000)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        yield opened


async def test_it_is_told_who_sends_how_fast_and_how_much_is_left(store: Store, tmp_path: Path) -> None:
    ref = publish(tmp_path / "published", DATA)
    seen: list[UnlistedProgress] = []
    with (
        BlobServer(tmp_path / "nothing") as empty,
        BlobServer(tmp_path / "published", Faults(rate=5e6)) as server,
    ):
        sources = [Source(empty.url, SourceKind.ORIGIN), Source(server.url, SourceKind.PEER)]
        got, who = await fetch_unlisted(
            store, ref.blake3, sources, addresses=LOOPBACK, limit=LIMIT, on_progress=seen.append
        )
    assert (got, who) == (ref, sources[1])
    assert store.holds(ref)
    assert all(progress.source == who and 0 <= progress.done <= progress.total for progress in seen)
    assert all(one.done <= other.done for one, other in pairwise(seen))
    assert any(0 < progress.done < ref.size and progress.rate > 0 for progress in seen)
    assert (seen[-1].done, seen[-1].total) == (ref.size, ref.size)


@pytest.mark.parametrize(
    ("faults", "limit", "told"),
    [
        pytest.param(Faults(corrupt_pieces=frozenset({1})), LIMIT, "does not hash", id="lies"),
        pytest.param(Faults(), 1_000_000, "more than the 1000000 that are allowed", id="too_large"),
        pytest.param(Faults(truncate_after=5000), LIMIT, "early", id="cut_off"),
        pytest.param(Faults(endless=True), LIMIT, "without a stated length", id="endless"),
    ],
)
async def test_who_does_not_bring_it_is_named_and_leaves_nothing(
    store: Store, tmp_path: Path, faults: Faults, limit: int, told: str
) -> None:  # R-SW1, R-SW5
    ref = publish(tmp_path / "published", DATA)
    with (
        BlobServer(tmp_path / "published", faults) as bad,
        pytest.raises(AllSourcesFailed, match=told) as failed,
    ):
        await fetch_unlisted(
            store, ref.blake3, [Source(bad.url, SourceKind.ORIGIN)], addresses=LOOPBACK, limit=limit, on_progress=print
        )
    assert failed.value.faults[0][0] == bad.url
    assert list(store.list()) == []
    assert list((tmp_path / "store" / "tmp").iterdir()) == []


async def test_cancelling_ends_it_at_once_and_leaves_nothing(store: Store, tmp_path: Path) -> None:
    ref = publish(tmp_path / "published", DATA)
    with BlobServer(tmp_path / "published", Faults(rate=200_000)) as slow, trio.CancelScope() as scope:
        await fetch_unlisted(
            store,
            ref.blake3,
            [Source(slow.url, SourceKind.ORIGIN)],
            addresses=LOOPBACK,
            limit=LIMIT,
            on_progress=lambda progress: scope.cancel(),
        )
    assert scope.cancelled_caught
    assert list((tmp_path / "store" / "tmp").iterdir()) == []


@given(st.lists(st.tuples(st.integers(0, 10**9), st.just(0.0) | st.floats(1e-6, 100)), max_size=20))
def test_the_rate_that_is_shown_lies_between_those_that_were_seen(steps: list[tuple[int, float]]) -> None:
    pace = Pace(0, 0.0)
    done, now, seen = 0, 0.0, [0.0]
    for size, seconds in steps:
        more = size if now + seconds > now else 0
        if more:
            seen.append(more / (now + seconds - now))
        done, now = done + more, now + seconds
        assert min(seen) <= pace.at(done, now) <= max(seen) * (1 + 1e-9)
