"""`./run demo`: plays the cast where it can run, checks from outside that the app answers, and cleans up.

As root (or without Podman >= 5 and a user systemd) the cast plays inside a lab node; otherwise directly.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import urlsplit, urlunsplit

from tests.system.demo.direct import why_not_directly
from tests.system.lab import LabUnavailable, Node, ensure_base

CAST_SECONDS: Final = 900.0
RESULT_IN_NODE: Final = "/home/op/demo-result.json"


def main() -> int:
    """Exit code 0 when the app answered 200, 1 when something failed, 4 when this machine lacks what it takes."""
    parser = argparse.ArgumentParser(prog="./run demo", description="The main job, end to end, on real parts.")
    parser.add_argument("--once", action="store_true", help="check the answer, clean up and exit")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    try:
        reason = why_not_directly()
        if reason is None:
            return directly(options.once, options.json, began)
        tell(f"playing inside a lab node, since {reason}")
        return in_lab(options.once, options.json, began)
    except LabUnavailable as lack:
        print(f"demo: {lack}", file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        print("demo: stopped; everything is cleaned up", file=sys.stderr)
        return 130


def directly(once: bool, as_json: bool, began: float) -> int:
    """Play as this user, on this machine's own Podman and systemd."""
    with tempfile.TemporaryDirectory(prefix="archy-demo-") as folder:
        result = Path(folder) / "result.json"
        argv = [sys.executable, "-m", "tests.system.demo.cast", "--result", str(result), "--stay"]
        cast = subprocess.Popen(argv, stdout=subprocess.PIPE)
        try:
            return watch(cast, result.read_text, lambda url: url, once, as_json, began, 0.0)
        finally:
            cast.terminate()
            cast.wait(timeout=180)


def in_lab(once: bool, as_json: bool, began: float) -> int:
    """Build the lab's base if need be, boot a node and play as its ordinary user `op`."""
    base = ensure_base(tell)
    setup = time.monotonic()
    with Node.boot(base, "demo") as node:
        booted = time.monotonic()
        tell(f"a node is up in {booted - setup:.1f} s, at {node.address}")
        argv = ["archy-python", "-m", "tests.system.demo.cast", "--result", RESULT_IN_NODE, "--stay"]
        cast = node.popen([*argv, "--disposable"], user="op", stdout=subprocess.PIPE)
        try:
            return watch(
                cast.popen,
                lambda: node.read(RESULT_IN_NODE).decode(),
                lambda url: seen_from_outside(url, node.address),
                once,
                as_json,
                began,
                booted - began,
            )
        finally:
            cast.terminate()


def watch(
    cast: subprocess.Popen[bytes],
    read_result: Callable[[], str],
    outside: Callable[[str], str],
    once: bool,
    as_json: bool,
    began: float,
    setup_seconds: float,
) -> int:
    """Wait for the cast, ask the app from here, say where it is, and stay until Ctrl-C unless `once`."""
    assert cast.stdout is not None
    if not told_ready(cast.stdout):
        return cast.wait(timeout=60) or 1
    facts: dict[str, Any] = json.loads(read_result())
    facts["url"] = outside(facts["url"])
    with urllib.request.urlopen(facts["url"], timeout=10) as answer:
        facts["http_status"] = answer.status
        body = answer.read(64 * 1024).decode(errors="replace")
    facts["seconds"] = {
        "setup": round(setup_seconds, 3),
        **facts["seconds"],
        "total": round(time.monotonic() - began, 3),
    }
    summary(facts, body)
    if as_json:
        print(json.dumps(facts), flush=True)
    if not once:
        print(f"\n{facts['url']} answers; Ctrl-C ends it and cleans up", flush=True)
        signal.pause()
    return 0 if facts["http_status"] == 200 else 1


def told_ready(stream: IO[bytes]) -> bool:
    """True once the cast says that it is ready; False when it ends without."""
    return any(line.strip() == b"ready" for line in stream)


def summary(facts: dict[str, Any], body: str) -> None:
    """The end of the story, for people."""
    tell(f"{facts['app']} {facts['version']} answers {facts['http_status']} at {facts['url']} ({len(body)} characters)")
    tell("seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in facts["seconds"].items()))


def seen_from_outside(url: str, address: str) -> str:
    """The same port at the node's own address."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{address}:{parts.port}"))


def tell(text: str) -> None:
    print(f"==> {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
