"""A relay in a process of its own, shared by the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.market.relays import running_relay


@pytest.fixture(scope="module")
def relay_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real relay."""
    with running_relay(tmp_path_factory.mktemp("relay")) as url:
        yield url


@pytest.fixture
def another_relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a second one, which knows nothing yet."""
    with running_relay(tmp_path_factory.mktemp("relay")) as url:
        yield url
