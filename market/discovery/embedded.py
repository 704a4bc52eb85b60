"""How to start the embedded relay: its argv, without loading the relay itself."""

from __future__ import annotations

import sys
from pathlib import Path


def relay_command(listen: str, data: Path) -> list[str]:
    """The argv of a relay process that listens on `HOST:PORT` and keeps its events in the folder `data`.

    It prints `ws://HOST:PORT` on one line once it accepts connections, and ends cleanly on SIGTERM.
    """
    return [sys.executable, "-m", "market.discovery.relay_server", "--listen", listen, "--data", str(data)]
