"""Real relays for tests: the bundled one, in a process of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from market.discovery import relay_command


@contextmanager
def running_relay(folder: Path) -> Iterator[str]:
    """Its URL, while the block lasts."""
    with subprocess.Popen(relay_command("127.0.0.1:0", folder), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
            assert process.wait(20) == 0
