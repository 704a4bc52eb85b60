"""Against nostr-relay (PyPI), a relay of another make that stores forged ids: what it serves is checked all the same.

Its dependencies pin versions of their own, so it lives in an environment in a cache folder that takes minutes to make:
set ARCHY_INTEROP=1 to have it made and this collected. Where it was made before, it is used. ARCHY_CACHE names the
folder.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from market.discovery import Discovery, Reason, open_index, publish, to_events
from market.model import AppName
from tests.fakes import lying_relay as lies
from tests.market.discovery.publishers import NOW, Publisher

CACHE = Path(os.environ.get("ARCHY_CACHE", Path.home() / ".cache" / "archy-tests")) / "nostr-relay"
VERSION = "1.14"

CONFIG = """\
DEBUG: false
relay_name: test
sysop: test@example.org
gunicorn: {{bind: 127.0.0.1:{port}, workers: 1, loglevel: error}}
storage: {{sqlalchemy.url: "sqlite+aiosqlite:///{folder}/nostr.sqlite3", validators: []}}
verification: {{nip05_verification: disabled}}
garbage_collector: {{collect_interval: 100000}}
"""


@pytest.fixture(scope="module")
def program() -> Path:
    """The relay's command."""
    command = CACHE / "bin" / "nostr-relay"
    if not (CACHE / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(CACHE)], check=True, timeout=100)
        pip = [str(CACHE / "bin" / "python"), "-m", "pip", "install", "--quiet", f"nostr-relay=={VERSION}"]
        if subprocess.run(pip, timeout=500, check=False).returncode != 0:
            pytest.skip("nostr-relay could not be installed")
        (CACHE / "ready").touch()
    return command


@pytest.fixture
def relay(program: Path, tmp_path: Path) -> Iterator[str]:
    """Its URL, once it accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(port=port, folder=tmp_path))
    log = (tmp_path / "log").open("w")
    argv = [str(program), "-c", str(config), "serve"]
    with log, subprocess.Popen(argv, cwd=tmp_path, stdout=log, stderr=log) as process:
        try:
            _wait_listening(port, process, tmp_path / "log")
            yield f"ws://127.0.0.1:{port}"
        finally:
            process.terminate()


def _wait_listening(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as attempt:
            attempt.settimeout(1)
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(log.read_text()[-2000:])


WANTED = bool(os.environ.get("ARCHY_INTEROP")) or (CACHE / "ready").exists()
pytestmark = pytest.mark.timeout(600)

if WANTED:

    async def test_a_relay_that_stores_forged_ids_is_read_and_named(relay: str, tmp_path: Path) -> None:  # R-DS2, R-DS9
        alice = Publisher(tmp_path)
        events = to_events(alice.keyring, alice.release("1.0.0").documents, NOW + 60)
        forged = [{**event, "id": f"{number:064x}"} for number, event in enumerate(events)]
        await publish([*forged, *events], [relay], timeout=20)
        with open_index(tmp_path / "market.db", now=lambda: NOW + 60.0) as index:
            async with lies.lying_relay(lies.honest(events)) as honest:
                report = await Discovery(index, [relay, honest], lambda: NOW + 60.0).sync(30)
            listing = index.listing(AppName(alice.did, "hello"))
            assert listing is not None
            assert listing.release is not None
            assert listing.release.version == "1.0.0"
            stored = {event["id"] for event in index.events_of(listing.app)}
        assert stored == {event["id"] for event in events}
        state = next(one for one in report.relays if one.url == relay)
        assert state.accepted + state.known > 0 or state.refused.get(Reason.FORGED_ID, 0) > 0
