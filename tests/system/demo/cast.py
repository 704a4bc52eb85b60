"""The main job with its whole cast, on this machine as this user: real relay, sockets, systemd and rootless Podman.

Run inside the lab's node (or directly, by an ordinary user with Podman >= 5 and a user systemd). Everything is done
through the command line, as people would; nothing is imported from the product. The story goes to stderr, the facts to
the result file.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.system.demo.processes import CastFailed, Member, archy_argv

SOURCE: Final = Path(__file__).resolve().parents[3]
APP: Final = SOURCE / "apps" / "hello"

ORIGIN_BYTES_PER_SECOND: Final = 20_000_000
"""The origin's cap: slow enough that a peer's help shows."""

PREFIX: Final = "archydemo"
COMMAND_SECONDS: Final = 300.0
OFFER_SECONDS: Final = 30.0


@dataclass
class Story:
    """What is told while it happens, and the facts that remain."""

    seconds: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def tell(self, text: str) -> None:
        print(f"    {text}", file=sys.stderr, flush=True)

    @contextmanager
    def phase(self, name: str, text: str) -> Iterator[None]:
        print(f"==> {text}", file=sys.stderr, flush=True)
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 3)


class Cast:
    """Homes and processes below one work folder."""

    def __init__(self, work: Path, story: Story, stack: ExitStack) -> None:
        self.work, self.story, self._stack = work, story, stack
        self.publisher, self.operator, self.good_peer, self.relay = (
            work / name for name in ("publisher", "operator", "peer", "relay")
        )
        self.www = work / "www"
        self.relay_address, self.origin, self.good, self.bad = free_addresses(4)
        self.operator_node: Member | None = None

    def archy(self, home: Path, *words: str, show: bool = False) -> dict[str, Any]:
        """One command with --json; with `show` its progress is seen. Raises CastFailed with what it printed."""
        argv = archy_argv(home, *(("--progress", "always") if show else ()), *words, "--json")
        if show:
            print(f"    $ archy {' '.join(words)}", file=sys.stderr, flush=True)
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=None if show else subprocess.PIPE,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise CastFailed(f"archy {' '.join(words)} ended with {done.returncode}\n{done.stdout}{done.stderr or ''}")
        return dict(json.loads(done.stdout))

    def archy_shown(self, home: Path, *words: str) -> None:
        """One command as a person runs it: its own output and progress, on stderr."""
        argv = archy_argv(home, *words)
        print(f"    $ archy {' '.join(words)}", file=sys.stderr, flush=True)
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=sys.stderr, timeout=COMMAND_SECONDS, check=False)
        if done.returncode != 0:
            raise CastFailed(f"archy {' '.join(words)} ended with {done.returncode}")

    def spawn(self, name: str, argv: Sequence[str], ready: str) -> Member:
        member = Member(name, argv, self.work / f"{name}.log")
        self._stack.callback(member.stop)
        member.wait_line(ready)
        return member

    def start_relay(self) -> None:
        self.spawn(
            "relay",
            archy_argv(self.relay, "relay", "run", "--listen", self.relay_address),
            f"ws://{self.relay_address}",
        )

    def start_blob_server(self, name: str, root: Path, listen: str, *options: str) -> None:
        argv = [sys.executable, "-m", "tests.fakes.blob_servers", "--root", str(root), "--listen", listen, *options]
        self.spawn(name, argv, listen)

    def start_operator(self) -> None:
        self.operator_node = self.spawn("operator", archy_argv(self.operator, "up"), "archy is up")


def main() -> int:
    """Play the whole story. Exit code 0 when the app answered and everything promised was seen."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--stay", action="store_true", help="keep everything running until SIGINT or SIGTERM")
    parser.add_argument("--disposable", action="store_true", help="the machine goes with the demo: clean up nothing")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if options.disposable else sys.exit(143))
    work = Path(tempfile.mkdtemp(prefix="archy-demo-"))
    story = Story()
    try:
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, work, ignore_errors=True)
            cast = Cast(work, story, stack)
            play(cast, stack)
            story.facts["seconds"] = story.seconds
            options.result.write_text(json.dumps(story.facts))
            if options.stay:
                print("ready", flush=True)
                signal.pause()
    except CastFailed as failure:
        print(f"demo: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def play(cast: Cast, stack: ExitStack) -> None:
    """publish -> discover -> verify -> score -> fetch -> install -> answer -> update."""
    story = cast.story
    with story.phase("cast", "the cast: a relay, a publisher, an operator"):
        cast.start_relay()
        story.tell(f"relay at ws://{cast.relay_address}, keeping its events on disk")
        publisher = cast.archy(cast.publisher, "id", "init")
        story.tell(f"publisher {publisher['did']}")
    with story.phase("build", "the publisher builds hello 1.0.0 from scratch, with one layer of 64 MiB"):
        build(cast, "1.0.0")
    with story.phase("publish", "the publisher packs, signs and publishes hello 1.0.0"):
        cast.start_blob_server("origin", cast.www, cast.origin, "--rate", str(ORIGIN_BYTES_PER_SECOND))
        publish(cast, "1.0.0")
    with story.phase("peers", "two peers already have the blobs; one corrupts its first piece"):
        start_peers(cast)
    with story.phase("operator", "an operator with one anchor starts a node"):
        start_operator(cast, str(publisher["did"]))
    stack.callback(leave_nothing, cast)
    with story.phase("discover", "the operator looks for hello"):
        shown = wait_version(cast, "1.0.0")
        cast.archy_shown(cast.operator, "search", "hello")
    with story.phase("score", "the node's verdict, and why"):
        cast.archy_shown(cast.operator, "trust", "explain", "hello")
    with story.phase("install", "one command installs it"):
        installed = cast.archy(cast.operator, "install", "hello", "--yes", show=True)
        tell_install(story, installed, "")
    url = installed["status"]["urls"][0]
    with story.phase("answer", f"does {url} answer?"):
        first = read_status(url)
        story.tell(f"HTTP {first['http']}: hello {first['version']}, counter {first['counter']}")
    check_first_install(cast, installed, first)
    with story.phase("crash", "the node service is killed with SIGKILL; the app goes on"):
        crash_and_return(cast, url)
    with story.phase("update", "the publisher brings 1.1.0; the operator updates"):
        updated = update(cast, url)
    second = read_status(url)
    story.tell(f"HTTP {second['http']}: hello {second['version']}, counter {second['counter']}")
    check_update(updated, first, second)
    story.facts |= {
        "app": "hello",
        "version": second["version"],
        "publisher": publisher["did"],
        "score": shown["verdict"]["points"],
        "bytes_by_source": {s["url"]: s["bytes"] for s in installed["fetch"]["sources"]},
        "banned": [s["url"] for s in installed["fetch"]["sources"] if s["banned"]],
        "update_bytes": sum(s["bytes"] for s in updated["fetch"]["sources"]),
        "update_already_here": updated["fetch"]["already_present"],
        "counter": [first["counter"], second["counter"]],
        "url": url,
        "http_status": second["http"],
        "units": updated["status"]["units"],
    }


def build(cast: Cast, version: str) -> None:
    """A folder with this version's manifest, and its image as an OCI layout."""
    folder = cast.work / f"hello-{version}"
    shutil.copytree(APP, folder)
    manifest = folder / "manifest.yml"
    manifest.write_text(
        re.sub(r"(?m)^version:.*$", f'version: "{version}"', manifest.read_text()).replace(
            "localhost/hello:1.0.0", f"localhost/hello:{version}"
        )
    )
    run(["sh", str(folder / "build.sh"), version, str(cast.work / f"image-{version}")])


def publish(cast: Cast, version: str) -> None:
    """pack, sign, publish; the origin is a plain folder of blobs."""
    dist = cast.work / f"dist-{version}"
    image = f"web={cast.work / f'image-{version}'}"
    packed = cast.archy(
        cast.publisher, "app", "pack", str(cast.work / f"hello-{version}"), "--image", image, "--out", str(dist)
    )
    cast.story.tell(f"packed {packed['blobs']} blobs, {packed['bytes']:,} bytes")
    shutil.copytree(dist / "blobs", cast.www / "blobs", dirs_exist_ok=True)
    signed = cast.archy(cast.publisher, "app", "sign", str(dist), "--origin", f"http://{cast.origin}")
    cast.story.tell(f"signed release {signed['digest']}")
    published = cast.archy(cast.publisher, "app", "publish", str(dist), "--relay", f"ws://{cast.relay_address}")
    for row in published["relays"]:
        cast.story.tell(f"{row['url']} accepted {row['accepted']} events")


def start_peers(cast: Cast) -> None:
    """One honest node that pinned every blob, and a hostile server that alters the first piece it is asked for."""
    blobs = sorted(str(path) for path in (cast.www / "blobs").iterdir())
    cast.archy(cast.good_peer, "blob", "add", *blobs)
    cast.archy(cast.good_peer, "config", f"listen={cast.good}", f"unit_prefix={PREFIX}peer")
    cast.spawn("peer", archy_argv(cast.good_peer, "up"), "archy is up")
    cast.story.tell(f"http://{cast.good} serves {len(blobs)} blobs honestly")
    hostile = cast.work / "hostile"
    shutil.copytree(cast.www, hostile)
    cast.start_blob_server("corrupt-peer", hostile, cast.bad, "--corrupt-first-asked")
    cast.story.tell(f"http://{cast.bad} corrupts its first piece")


def start_operator(cast: Cast, publisher: str) -> None:
    """Relay, anchor, peers; then the node."""
    peers = f"peers=http://{cast.good},http://{cast.bad}"
    cast.archy(cast.operator, "config", "allow_private_origins=true", peers, f"unit_prefix={PREFIX}")
    cast.archy(cast.operator, "relays", "add", f"ws://{cast.relay_address}")
    cast.archy_shown(cast.operator, "trust", "add", publisher, "--label", "hello's publisher")
    cast.start_operator()


def wait_version(cast: Cast, version: str) -> dict[str, Any]:
    """Wait until the node knows this version from the relay."""

    def look() -> dict[str, Any] | None:
        found = cast.archy(cast.operator, "search", "hello", "--offline")["results"]
        return cast.archy(cast.operator, "show", "hello", "--offline") if versions(found) else None

    def versions(found: list[dict[str, Any]]) -> bool:
        return any(row["version"] == version for row in found)

    return wait_for(look, f"hello {version} did not show up", OFFER_SECONDS)


def tell_install(story: Story, result: dict[str, Any], prefix: str) -> None:
    """Who served what, who was banned, and how long it took."""
    fetch = result["fetch"]
    for source in (source for source in fetch["sources"] if source["bytes"]):
        story.tell(f"{source['bytes']:>12,} bytes from {source['kind']} {source['url']}")
    if fetch["already_present"]:
        story.tell(f"{fetch['already_present']:>12,} bytes were already here")
    for source in fetch["sources"]:
        if source["banned"]:
            story.tell(f"banned {source['url']}: {source['banned']}")
    seconds = result["seconds"]
    units = ", ".join(result["status"]["units"])
    story.tell(f"{seconds['fetch']:.1f} s to fetch, {seconds['install']:.1f} s to start, as {units}")
    story.seconds |= {f"{prefix}fetch": seconds["fetch"], f"{prefix}start": seconds["install"]}


def check_first_install(cast: Cast, installed: dict[str, Any], first: dict[str, Any]) -> None:
    """What the demo promises of the first install."""
    fetch = installed["fetch"]
    served = {source["url"] for source in fetch["sources"] if source["bytes"]}
    expect(first["http"] == 200 and first["version"] == "1.0.0", f"the app answered {first}")
    expect(any(f"http://{cast.origin}" in url for url in served), f"the origin served nothing: {served}")
    expect(any(f"http://{cast.good}" in url for url in served), f"the honest peer served nothing: {served}")
    expect(
        any(cast.bad in s["url"] and s["banned"] for s in fetch["sources"]),
        f"the corrupting peer was not banned: {fetch}",
    )


def crash_and_return(cast: Cast, url: str) -> None:
    """R-FM3: killing the service touches no app; a new one takes over without a restart."""
    assert cast.operator_node is not None
    before = read_status(url)
    cast.operator_node.kill()
    after = read_status(url)
    expect(after["counter"] == before["counter"], f"the app restarted: {before} -> {after}")
    cast.story.tell("still answering; the node starts again")
    cast.start_operator()


def update(cast: Cast, url: str) -> dict[str, Any]:
    """1.1.0: built, published, offered, installed."""
    build(cast, "1.1.0")
    publish(cast, "1.1.0")
    wait_version(cast, "1.1.0")
    cast.archy_shown(cast.operator, "update", "--check")
    result: dict[str, Any] = cast.archy(cast.operator, "update", "hello", "--yes", show=True)["updated"][0]
    tell_install(cast.story, result, "update_")
    return result


def check_update(updated: dict[str, Any], first: dict[str, Any], second: dict[str, Any]) -> None:
    """Only what changed is fetched, and the data goes on."""
    fetched = sum(source["bytes"] for source in updated["fetch"]["sources"])
    expect(second["version"] == "1.1.0", f"the app answered {second}")
    expect(second["counter"] > first["counter"], f"the counter did not go on: {first} -> {second}")
    expect(fetched < 4 * 1024 * 1024, f"the update fetched {fetched} bytes")
    expect(updated["fetch"]["already_present"] >= 64 * 1024 * 1024, "the 64 MiB layer was not reused")


def leave_nothing(cast: Cast) -> None:
    """Remove the demo's app, data and images."""
    subprocess.run(
        archy_argv(cast.operator, "uninstall", "hello", "--purge", "hello"),
        capture_output=True,
        timeout=120,
        check=False,
    )
    images = ["localhost/hello:1.0.0", "localhost/hello:1.1.0"]
    subprocess.run(["podman", "rmi", "--force", "--ignore", *images], capture_output=True, timeout=120, check=False)


def read_status(url: str) -> dict[str, Any]:
    """What the app says of itself, over HTTP."""

    def ask() -> dict[str, Any] | None:
        try:
            with urllib.request.urlopen(f"{url.rstrip('/')}/cgi-bin/status", timeout=5) as answer:
                return {"http": answer.status, **json.loads(answer.read(4096))}
        except (OSError, ValueError):
            return None

    return wait_for(ask, f"{url} does not answer", 15.0)


def wait_for(look: Callable[[], dict[str, Any] | None], failure: str, seconds: float) -> dict[str, Any]:
    """Look until there is something to see. Raises CastFailed at the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        seen = look()
        if seen is not None:
            return seen
        if time.monotonic() > deadline:
            raise CastFailed(failure)
        time.sleep(0.2)


def free_addresses(count: int) -> list[str]:
    """Loopback addresses whose ports were free just now; all are held until the last is known."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]


def expect(true: bool, otherwise: str) -> None:
    if not true:
        raise CastFailed(otherwise)


def run(argv: Sequence[str]) -> None:
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=COMMAND_SECONDS, env=dict(os.environ), check=False
    )
    if done.returncode != 0:
        raise CastFailed(f"{' '.join(argv)} ended with {done.returncode}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    sys.exit(main())
