"""The main job on real parts: systemd, rootless Podman, a relay, an origin, through the command line."""

from __future__ import annotations

import json
import re
import signal
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.system.lab import SOURCE, Base, Node, NodeProcess

RELAY = "127.0.0.1:7447"
ORIGIN = "127.0.0.1:8480"
SLOW_BYTES = 8_000_000
"""So slow that a fetch of 66 MiB can be killed in its middle."""


class Square:
    """A node with a relay, a publisher of hello and an origin in it; `op` is the operator's home."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.servers: list[NodeProcess] = []
        self.did = self.archy("pub", "id", "init")["did"]
        for version in ("1.0.0", "1.1.0"):
            self.build(version)
        self.serve(SLOW_BYTES)

    def serve(self, rate: int) -> None:
        """Relay and origin, started anew: a reboot ends them."""
        for server in self.servers:
            server.kill()
        relay = self.node.popen(["archy", "--home", "relay", "relay", "run", "--listen", RELAY])
        argv = ["archy-python", "-m", "tests.fakes.blob_servers", "--root", "www", "--listen", ORIGIN]
        origin = self.node.popen([*argv, "--rate", str(rate)])
        relay.wait_output("ws://", 60)
        origin.wait_output("http://", 60)
        self.servers = [relay, origin]

    def build(self, version: str) -> None:
        """The image and the folder of this version."""
        self.node.run(["sh", f"{SOURCE}/apps/hello/build.sh", version, f"image-{version}"], timeout=120)
        script = (
            f"cp -r {SOURCE}/apps/hello hello-{version} && sed -i 's/1\\.0\\.0/{version}/' hello-{version}/manifest.yml"
        )
        self.node.run(["sh", "-c", script])

    def publish(self, version: str) -> None:
        dist = f"dist-{version}"
        self.archy("pub", "app", "pack", f"hello-{version}", "--image", f"web=image-{version}", "--out", dist)
        self.node.run(["sh", "-c", f"mkdir -p www/blobs && cp -n {dist}/blobs/* www/blobs/"])
        self.archy("pub", "app", "sign", dist, "--origin", f"http://{ORIGIN}")
        self.archy("pub", "app", "publish", dist, "--relay", f"ws://{RELAY}")

    def archy(self, home: str, *words: str, code: int = 0) -> Any:
        """One command with --json in the node; its document."""
        done = self.node.run(["archy", "--home", home, *words, "--json"], timeout=120, check=False)
        assert done.returncode == code, f"archy {words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return json.loads(done.stdout)

    def settle_operator(self) -> None:
        self.archy("op", "relays", "add", f"ws://{RELAY}")
        self.archy("op", "trust", "add", self.did)
        self.archy("op", "config", "allow_private_origins=true")

    def service(self) -> None:
        """The node as a systemd user service."""
        argv = ["systemd-run", "--user", "--unit=archy-node", "--property=KillMode=mixed", "--property=Type=notify"]
        self.node.run([*argv, "archy", "--home", "op", "up"], timeout=60, cwd="/home/op")

    def status(self) -> dict[str, Any]:
        """What hello says of itself, asked from the host over the network."""
        with urllib.request.urlopen(f"http://{self.node.address}:18080/cgi-bin/status", timeout=10) as answer:
            assert answer.status == 200
            return dict(json.loads(answer.read()))

    def answers(self) -> bool:
        try:
            return bool(self.status())
        except OSError:
            return False


@pytest.fixture(scope="module")
def square(lab_base: Base) -> Iterator[Square]:
    with Node.boot(lab_base, "square") as node:
        made = Square(node)
        made.publish("1.0.0")
        made.settle_operator()
        yield made


def test_killed_in_mid_fetch_and_asked_again_it_resumes(square: Square) -> None:  # R-SW4, chaos 1
    first = square.node.popen(["archy", "--home", "op", "--progress", "always", "install", "hello", "--yes"])
    first.wait_output(r"^fetch +(1[6-9]|[2-9]\d)\.\d MiB", 60)
    first.kill()
    assert square.archy("op", "ps")["apps"] == []
    done = square.archy("op", "install", "hello", "--yes")
    fetched = sum(source["bytes"] for source in done["fetch"]["sources"])
    assert done["fetch"]["resumed"] >= 1024 * 1024
    assert fetched + done["fetch"]["resumed"] + done["fetch"]["already_here"] >= 65 * 1024 * 1024
    assert square.status()["version"] == "1.0.0"


def test_app_lives_outside_the_services_cgroup_and_outlives_it(square: Square) -> None:  # R-FM3, R-ST16
    square.service()
    unit = square.archy("op", "ps")["apps"][0]["units"][0]
    app = cgroup(square.node, unit)
    service = cgroup(square.node, "archy-node.service")
    assert app
    assert service
    assert not app.startswith(service)
    shown = square.node.run(["systemctl", "--user", "status", "--no-pager", unit], check=False).stdout
    assert "active (running)" in shown
    before = square.status()
    square.node.run(["systemctl", "--user", "kill", "--signal=SIGKILL", "--kill-whom=all", "archy-node.service"])
    assert square.status()["counter"] == before["counter"], "the app was restarted"
    square.node.run(["systemctl", "--user", "reset-failed", "archy-node.service"], check=False)
    square.service()
    assert square.archy("op", "ps")["apps"][0]["state"].startswith("running")
    assert square.status()["counter"] == before["counter"]


def test_update_fetches_only_what_changed_and_the_data_goes_on(square: Square) -> None:  # R-MF5
    before = square.status()
    square.publish("1.1.0")
    square.node.wait_until(["sh", "-c", "archy --home op update --check --json | grep -q 1.1.0"], 30)
    updated = square.archy("op", "update", "hello", "--yes")["updated"][0]
    assert sum(source["bytes"] for source in updated["fetch"]["sources"]) < 64 * 1024
    after = square.status()
    assert after["version"] == "1.1.0"
    assert after["counter"] == before["counter"] + 1
    assert after["secret_sha256"] == before["secret_sha256"]


def test_stopped_by_its_user_it_stays_stopped_over_a_reboot(square: Square) -> None:  # R-ST2
    square.archy("op", "stop", "hello")
    assert not square.answers()
    square.node.reboot()
    square.archy("op", "ps")
    assert not square.answers()
    square.archy("op", "start", "hello")
    assert square.status()["version"] == "1.1.0"


def test_reboot_brings_a_running_app_back(square: Square) -> None:
    counter = square.status()["counter"]
    square.node.reboot()
    deadline = time.monotonic() + 60
    while not square.answers() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert square.status()["counter"] == counter + 1


def test_uninstalled_it_leaves_no_orphan_and_keeps_its_data(square: Square) -> None:  # R-ST10
    square.archy("op", "uninstall", "hello")
    left = square.node.run(["sh", "-c", "podman ps -aq; podman secret ls -q; ls ~/.config/containers/systemd"]).stdout
    assert left.strip() == ""
    networks = square.node.run(["podman", "network", "ls", "--format", "{{.Name}}"]).stdout.split()
    assert networks == ["podman"]
    assert len(square.node.run(["podman", "volume", "ls", "-q"]).stdout.split()) == 1
    assert not square.answers()


def test_killed_in_mid_install_and_started_again_it_is_whole(square: Square, lab_base: Base) -> None:  # chaos 1, 3
    square.serve(500_000_000)
    for phase in ("import", "write", "start"):
        first = square.node.popen(["archy", "--home", "op", "--progress", "always", "install", "hello", "--yes"])
        first.wait_output(rf"^install +{phase}", 60)
        first.kill()
        assert square.node.run(["archy", "--home", "op", "ps"], check=False).returncode in (0, 5)
        square.archy("op", "install", "hello", "--yes")
        assert square.answers()
        square.archy("op", "uninstall", "hello")
        assert not square.answers()


def test_demo_plays_directly_for_an_ordinary_user(lab_base: Base) -> None:
    with Node.boot(lab_base, "direct") as node:
        done = node.run(["archy-python", "-m", "tests.system.demo", "--once", "--json"], timeout=240, cwd="/home/op")
        facts = json.loads(done.stdout.splitlines()[-1])
        assert facts["http_status"] == 200
        assert facts["version"] == "1.1.0"
        assert facts["banned"]
        left = node.run(["sh", "-c", "podman ps -aq; podman volume ls -q; ls ~/.config/containers/systemd"]).stdout
        assert left.strip() == "", "the demo left something behind"


def cgroup(node: Node, unit: str) -> str:
    shown = node.run(["systemctl", "--user", "show", "--property=ControlGroup", unit]).stdout
    found = re.search(r"ControlGroup=(\S*)", shown)
    return found[1] if found else ""


def test_read_only_home_is_told_and_nothing_is_changed(square: Square) -> None:
    node = square.node
    node.run(["mkdir", "-p", "/home/op/frozen"])
    node.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", "/home/op/frozen"], user="root")
    done = node.run(["archy", "--home", "/home/op/frozen/home", "ps"], check=False)
    assert done.returncode == 4
    assert "Read-only file system" in done.stderr
    assert "--home" in done.stderr
    assert "Traceback" not in done.stderr


def test_full_disk_is_told_before_anything_runs_and_nothing_is_left(square: Square) -> None:  # R-SW5
    node = square.node
    node.run(["mkdir", "-p", "/home/op/small"])
    node.run(["mount", "-t", "tmpfs", "-o", "size=24m,uid=1000,gid=1000", "tmpfs", "/home/op/small"], user="root")
    home = "/home/op/small/home"
    square.archy(home, "relays", "add", f"ws://{RELAY}")
    square.archy(home, "trust", "add", square.did)
    square.archy(home, "config", "allow_private_origins=true", "unit_prefix=small")
    problem = square.archy(home, "install", "hello", "--yes", code=4)
    assert "Not enough room" in problem["title"]
    assert square.archy(home, "ps")["apps"] == []
    assert "small" not in node.run(["sh", "-c", "ls ~/.config/containers/systemd"], check=False).stdout


def test_interrupted_command_detaches_and_the_operation_goes_on(square: Square) -> None:
    square.serve(SLOW_BYTES)
    square.archy("other", "relays", "add", f"ws://{RELAY}")
    square.archy("other", "trust", "add", square.did)
    square.archy("other", "config", "allow_private_origins=true", "unit_prefix=other")
    square.node.popen(["archy", "--home", "other", "up"]).wait_output("archy is up", 60)
    square.node.wait_until(["sh", "-c", "archy --home other show hello --json | grep -q 1.1.0"], 60)
    command = square.node.popen(["archy", "--home", "other", "--progress", "always", "install", "hello", "--yes"])
    command.wait_output(r"^fetch +\d+\.\d MiB", 60)
    command.send_signal(signal.SIGINT)
    assert command.wait(30) == 130
    operation = command.wait_output(r"(op-[0-9a-f]+) goes on", 10)[1]
    done = square.archy("other", "op", "wait", operation)
    assert done["status"]["version"] == "1.1.0"
    assert square.status()["version"] == "1.1.0"
    square.archy("other", "uninstall", "hello", "--purge", "hello")
