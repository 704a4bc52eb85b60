"""A relay in a process of its own, shared by the tests of a module."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from market.discovery import relay_command


@pytest.fixture(scope="module")
def relay_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real relay."""
    argv = relay_command("127.0.0.1:0", tmp_path_factory.mktemp("relay"))
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
            assert process.wait(20) == 0
