"""An embedded relay: nostr-sdk's LocalRelay with a persistent LMDB store, in a process of its own.

    python -m market.discovery.relay_server --listen HOST:PORT --data DIR

Guarantees: one line `ws://HOST:PORT` on standard output once it accepts connections, a message and exit code 1 when the
port is taken or the folder can not be used, and a clean end on SIGTERM and SIGINT. It is a process because its bindings
need asyncio and crash an interpreter that ends without `shutdown`.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import nostr_sdk

from market.errors import EnvironmentLacks, Problem, UsageProblem

NOTES_PER_MINUTE: Final = 60_000
"""The library's default of 60 is for strangers; this relay serves a machine or a LAN, and a release is a burst."""
MAX_REQUESTS: Final = 1000
"""Subscriptions open at once, by connection."""


async def serve(host: str, port: int, data: Path) -> None:
    """Run until SIGTERM or SIGINT. Raises Problem when it can not start."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    port = _free_port(host, port)
    nostr_sdk.uniffi_set_event_loop(loop)
    try:
        database = await nostr_sdk.NostrLmdb.open(str(data))
        limits = nostr_sdk.RateLimit(max_reqs=MAX_REQUESTS, notes_per_minute=NOTES_PER_MINUTE)
        builder = nostr_sdk.LocalRelayBuilder().addr(host).port(port).database(database).rate_limit(limits)
        relay = builder.build()
        await relay.run()
    except nostr_sdk.NostrSdkError as error:
        raise EnvironmentLacks(f"the relay did not start: {error}", where=str(data)) from error
    try:
        print(f"ws://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
        await stop.wait()
    finally:
        relay.shutdown()


def parse_listen(listen: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT` or `[HOST]:PORT`; the host is an IP address or localhost. Raises UsageProblem."""
    host, _, port = listen.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host.removeprefix("[").removesuffix("]")
    try:
        ipaddress.ip_address(host)
        number = int(port)
    except ValueError as error:
        raise UsageProblem(f"not an address to listen on: {listen!r}", remedy="use IP:PORT, 127.0.0.1:7447") from error
    if not 0 <= number <= 65_535:
        raise UsageProblem(f"not a port: {number}", remedy="0 to 65535; 0 picks a free one")
    return host, number


def _free_port(host: str, port: int) -> int:
    """The port, or a free one for 0. The library reports a taken port only as silence, so it is tried here first."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            what = "the port is taken" if taken else f"can not listen: {error.strerror}"
            raise Problem(what, where=f"{host}:{port}", remedy="choose another with --listen") from error
        return int(probe.getsockname()[1])


def _make_folder(data: Path) -> None:
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentLacks(f"can not be made: {error.strerror}", where=str(data), remedy="pass --data") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """The process's exit code."""
    parser = argparse.ArgumentParser(prog="market.discovery.relay_server")
    parser.add_argument("--listen", default="127.0.0.1:7447", metavar="HOST:PORT")
    parser.add_argument("--data", required=True, type=Path, metavar="DIR")
    parsed = parser.parse_args(arguments)
    try:
        host, port = parse_listen(parsed.listen)
        _make_folder(parsed.data)
        asyncio.run(serve(host, port, parsed.data))
    except Problem as problem:
        print(f"relay: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: the bindings' threads outlive `shutdown` by a moment, and call into an interpreter that is being
    # taken apart (a segmentation fault, now and then). Every event that was answered with OK is committed to disk.
    os._exit(code)
