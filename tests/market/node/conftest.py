"""The cast of the node's tests: a publisher on a real relay, its origin, and an operator on a pretended machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.blob_servers import BlobServer
from tests.market.node.operators import Operator
from tests.market.square import Publisher, serving


@pytest.fixture
def publisher(tmp_path: Path, relay_url: str) -> Publisher:
    return Publisher(tmp_path / "publisher", relay_url)


@pytest.fixture
def origin(publisher: Publisher) -> Iterator[BlobServer]:
    publisher.www.mkdir(parents=True)
    with serving(publisher.www) as server:
        yield server


@pytest.fixture
def operator(tmp_path: Path, relay_url: str) -> Operator:
    return Operator(tmp_path / "operator", relay_url)
