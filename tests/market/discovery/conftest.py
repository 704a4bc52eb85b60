"""An index with a clock that stands still, and publishers with real keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from market.discovery import Index, open_index
from tests.market.discovery.publishers import NOW, Publisher
from tests.market.relays import running_relay


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.time = float(NOW)

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def index(tmp_path: Path, clock: Clock) -> Iterator[Index]:
    with open_index(tmp_path / "market.db", now=clock) as opened:
        yield opened


@pytest.fixture
def alice(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path, "alice")


@pytest.fixture
def mallory(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path, "mallory")


@pytest.fixture(scope="module")
def real_relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real relay in a process of its own."""
    with running_relay(tmp_path_factory.mktemp("relay")) as url:
        yield url
