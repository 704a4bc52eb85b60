"""What the package offers, and what it does not load before somebody asks for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import market.discovery


@pytest.mark.parametrize("name", market.discovery.__all__)
def test_every_name_that_is_offered_is_there(name: str) -> None:
    assert getattr(market.discovery, name) is not None


def test_a_name_that_is_not_offered_is_an_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        market.discovery.no_such_name  # type: ignore[attr-defined]  # that is the point  # noqa: B018


def test_a_verifier_loads_neither_database_nor_event_loop() -> None:
    asked = "import sys, market.discovery.verifier; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, timeout=60, check=True)
    assert not {"trio", "numpy", "sqlite3", "websockets", "ssl", "market.identity.keyring"} & set(done.stdout.split())
