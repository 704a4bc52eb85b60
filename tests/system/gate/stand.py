"""A node with everything around it that the gate needs: a relay, a publisher of apps, an origin, the node's service.

Everything is done through the command line, as people would.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

from tests.system.lab import SOURCE, Node, NodeProcess

RELAY: Final = "127.0.0.1:7447"
ORIGIN: Final = "127.0.0.1:8480"
WORK: Final = "/home/op/gate"
COMMAND_SECONDS: Final = 180.0
"""For one command on a machine that has much else to do; what takes long has deadlines of its own below it."""
WAIT_SECONDS: Final = 90.0


class GateFailure(Exception):
    """Something was not as the gate asks."""


@dataclass(frozen=True)
class GateApp:
    """An app that goes through the gate. Its `/cgi-bin/status` is JSON with a `counter` of its starts."""

    id: str
    port: int
    containers: tuple[str, ...]
    stop_seconds: tuple[float, float]
    """At least and at most what a stop takes, the command itself included."""
    needs: tuple[str, ...] = ()
    """Apps that it can not do without, which come before it here."""
    beside: str = ""
    """What its page reads of another container or app."""
    built: tuple[str, ...] = ()
    """Containers whose images the node builds."""


APPS: Final = (
    GateApp("hello", 18080, ("web",), (0.0, 60.0)),
    GateApp("stack", 18090, ("web", "db", "cache"), (0.0, 75.0), beside="warm"),
    GateApp("stubborn", 18091, ("web",), (2.0, 60.0)),
    GateApp("chain", 18092, ("web",), (0.0, 60.0)),
    GateApp("wallet", 18093, ("web",), (0.0, 60.0), needs=("chain",), beside="block 7"),
    GateApp("notes", 18094, ("server", "ui"), (0.0, 60.0), built=("ui",)),
)


def with_needs(ids: Collection[str]) -> tuple[GateApp, ...]:
    """The apps of these ids, and those that they can not do without."""
    wanted = set(ids)
    for app in reversed(APPS):
        if app.id in wanted:
            wanted.update(app.needs)
    return tuple(app for app in APPS if app.id in wanted)


class Stand:
    """The gate's surroundings on one node."""

    def __init__(self, node: Node, apps: tuple[GateApp, ...]) -> None:
        self.node = node
        self._servers: list[NodeProcess] = []
        node.run(["mkdir", "-p", WORK])
        self._built(apps)
        did = self.archy("id", "init", home="pub")["did"]
        self.serve()
        for app in apps:
            self.publish(app)
        self.archy("relays", "add", f"ws://{RELAY}")
        self.archy("trust", "add", did)
        self.archy("config", "allow_private_origins=true")
        self.archy("service", "install")
        for app in apps:
            self.wait(lambda app=app: self.offers(app), f"{app.id} is not offered")  # type: ignore[misc]

    def serve(self) -> None:
        """Relay and origin, started anew: a reboot ends them."""
        for server in self._servers:
            server.kill()
        relay = self.node.popen(["archy", "--home", "relay", "relay", "run", "--listen", RELAY], cwd=WORK)
        origin = self.node.popen(
            ["archy-python", "-m", "tests.fakes.blob_servers", "--root", "www", "--listen", ORIGIN], cwd=WORK
        )
        relay.wait_output("ws://", WAIT_SECONDS)
        origin.wait_output("http://", WAIT_SECONDS)
        self._servers = [relay, origin]

    def archy(self, *words: str, home: str = "op", codes: tuple[int, ...] = (0,)) -> Any:
        """One command with --json in the node; its document. Raises GateFailure for an unexpected exit code."""
        argv = ["archy", "--home", f"{WORK}/{home}", *words, "--json"]
        done = self.node.run(argv, cwd=WORK, timeout=COMMAND_SECONDS, check=False)
        if done.returncode not in codes:
            said = (done.stdout + done.stderr).strip()
            raise GateFailure(f"archy {' '.join(words)} ended with {done.returncode}: {said[-600:]}")
        return json.loads(done.stdout)

    def shell(self, script: str) -> str:
        """What a shell of `op` says, errors apart."""
        return self.node.run(["sh", "-c", script], timeout=COMMAND_SECONDS, check=False).stdout

    def state(self, app: GateApp) -> dict[str, Any] | None:
        """The app's row of `archy ps`; None when it is not installed."""
        rows = self.archy("ps", codes=(0, 5))["apps"]
        return next((row for row in rows if row["id"] == app.id), None)

    def page(self, app: GateApp) -> dict[str, Any]:
        """What the app says of itself, asked from outside. Raises GateFailure when it does not answer."""
        for path in ("/", "/cgi-bin/status"):
            try:
                with urllib.request.urlopen(f"http://{self.node.address}:{app.port}{path}", timeout=10) as answer:
                    body = answer.read(64 * 1024)
            except (OSError, urllib.error.URLError) as error:
                raise GateFailure(f"{path} of {app.id} does not answer: {error}") from error
        try:
            return dict(json.loads(body))
        except ValueError as error:
            raise GateFailure(f"{app.id} says {body[:80]!r}") from error

    def answers(self, app: GateApp) -> bool:
        try:
            return bool(self.page(app))
        except GateFailure:
            return False

    def offers(self, app: GateApp) -> bool:
        return any(row["id"] == app.id for row in self.archy("search", app.id)["results"])

    def started(self, app: GateApp) -> dict[str, str]:
        """When each container of the app was started, by its name."""
        listed = self.shell("podman ps --format '{{.Names}} {{.StartedAt}}'").splitlines()
        rows = [row.split() for row in listed]
        return {name: at for name, at in rows if any(name.endswith(f"-{c}") for c in app.containers) and app.id in name}

    def wait(self, so: Callable[[], bool], otherwise: str, seconds: float = WAIT_SECONDS) -> None:
        """Raises GateFailure when it is not so by then."""
        deadline = time.monotonic() + seconds
        while not so():
            if time.monotonic() > deadline:
                raise GateFailure(f"{otherwise} after {seconds:g} s")
            time.sleep(0.1)

    def _built(self, apps: tuple[GateApp, ...]) -> None:
        self.node.run(["archy-python", "-m", "tests.system.gate.scratch", "made"], cwd=WORK, timeout=COMMAND_SECONDS)
        if any(app.id == "hello" for app in apps):
            hello = f"{SOURCE}/apps/hello"
            self.node.run(["sh", f"{hello}/build.sh", "1.0.0", "made/hello-web"], cwd=WORK, timeout=COMMAND_SECONDS)
            self.node.run(["cp", "-r", hello, "made/hello"], cwd=WORK)

    def publish(self, app: GateApp) -> None:
        """Pack, sign and publish what lies in made/<app>."""
        given = [name for name in app.containers if name not in app.built]
        images = [word for name in given for word in ("--image", f"{name}=made/{app.id}-{name}")]
        dist = f"dist/{app.id}"
        self.archy("app", "pack", f"made/{app.id}", *images, "--out", dist, home="pub")
        self.node.run(["sh", "-c", f"mkdir -p www/blobs && cp -n {dist}/blobs/* www/blobs/"], cwd=WORK)
        self.archy("app", "sign", dist, "--origin", f"http://{ORIGIN}", home="pub")
        self.archy("app", "publish", dist, "--relay", f"ws://{RELAY}", home="pub")
