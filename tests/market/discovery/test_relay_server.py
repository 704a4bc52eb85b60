"""The embedded relay as a process: its one line, its clean end, and what it says when it can not start."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from market.discovery import Discovery, open_index, publish, relay_command, to_events
from market.discovery.relay_server import parse_listen
from market.errors import UsageProblem
from tests.market.discovery.publishers import NOW, Publisher


def start(listen: str, data: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(relay_command(listen, data), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_events_are_there_after_a_clean_end_and_a_new_start(
    tmp_path: Path, alice: Publisher, number: signal.Signals
) -> None:
    process, url = start("127.0.0.1:0", tmp_path / "relay")
    with process:
        assert url.startswith("ws://127.0.0.1:")
        await publish(to_events(alice.keyring, alice.release().documents, NOW), [url], timeout=10)
        process.send_signal(number)
        assert process.wait(20) == 0
    process, again = start(url.removeprefix("ws://"), tmp_path / "relay")
    with process, open_index(tmp_path / "market.db", now=lambda: NOW) as index:
        assert again == url
        await Discovery(index, [url], lambda: NOW).sync(20)
        assert [listing.title for listing in index.search("hello")] == ["Hello"]
        process.terminate()
        assert process.wait(20) == 0


def test_a_taken_port_is_said_and_exits_1(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            relay_command(listen, tmp_path / "relay"), capture_output=True, text=True, timeout=30, check=False
        )
    assert done.returncode == 1
    assert done.stderr == f"relay: {listen}: the port is taken (choose another with --listen)\n"
    assert done.stdout == ""


def test_a_folder_that_can_not_be_made_is_said_and_exits_1(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    argv = relay_command("127.0.0.1:0", tmp_path / "file" / "relay")
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "can not be made" in done.stderr


@pytest.mark.parametrize("listen", ["", "7447", "example.org:80", "127.0.0.1:99999", "127.0.0.1:x"])
def test_what_is_no_address_to_listen_on_is_refused(listen: str) -> None:
    with pytest.raises(UsageProblem):
        parse_listen(listen)


def test_the_command_is_this_interpreter() -> None:
    assert relay_command("127.0.0.1:7447", Path("/data"))[0] == sys.executable
    assert parse_listen("[::1]:7447") == ("::1", 7447)
    assert parse_listen("localhost:0") == ("127.0.0.1", 0)
