"""The node as a service of the user's systemd: watched, apart from its apps, gone without a trace when told so."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.system.conftest import MakeNode
from tests.system.lab import Node
from tests.system.test_orchestrator import drive, page, prop

UNIT = "archy.service"
SECONDS = 90.0


def archy(node: Node, *words: str, code: int = 0) -> Any:
    done = node.run(["archy", "--home", "/home/op/archy-home", *words, "--json"], timeout=SECONDS, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def pid(node: Node) -> str:
    return prop(node, "MainPID", UNIT)


def wait_other(node: Node, old: str) -> str:
    """Another process of the service that has said that it is ready."""
    script = f'[ "$(systemctl --user show -P MainPID {UNIT})" != {old} ] && systemctl --user is-active -q {UNIT}'
    node.wait_until(["sh", "-c", script], SECONDS)
    return pid(node)


def started(node: Node) -> str:
    """When each container was started, and how often systemd restarted what is in the apps' slice."""
    ps = node.run(["podman", "ps", "--format", "{{.Names}} {{.StartedAt}}"]).stdout
    counts = node.run(["systemctl", "--user", "show", "-P", "NRestarts", "archy-*-web.service"]).stdout
    return ps + counts


@pytest.mark.timeout(400)
def test_crash_loop_hang_and_removal_of_the_service_touch_no_app(make_node: MakeNode) -> None:  # R-FM3, R-ST16
    node = make_node("service")
    assert not archy(node, "service", "status", code=5)["installed"]
    drive(node, "install", version="1.0.0", home="/home/op/archy-home")
    node.run(["sh", "-c", "cd archy-home && mkdir -p apps && cp -a data/. apps/"])
    before = started(node)

    state = archy(node, "service", "install")
    assert (state["active"], state["enabled"], state["linger"]) == ("active", True, True)
    assert "/archy.slice/archy-node.slice/" in prop(node, "ControlGroup", UNIT)
    assert [row["state"] for row in archy(node, "ps")["apps"]] == ["running"]

    first = pid(node)
    assert archy(node, "service", "install")["pid"] == int(first), "installing again restarted it"

    last = first
    for _ in range(4):
        node.run(["systemctl", "--user", "kill", "--kill-whom=all", "--signal=KILL", UNIT])
        last = wait_other(node, last)
        assert page(node) == "hello 1.0.0\n"

    # A service that hangs says nothing to the watchdog; systemd ends it and starts another.
    folder = f"/home/op/.config/systemd/user/{UNIT}.d"
    node.write(f"{folder}/quick.conf", b"[Service]\nWatchdogSec=3\n")
    node.run(["systemctl", "--user", "daemon-reload"])
    node.run(["systemctl", "--user", "restart", UNIT], timeout=SECONDS)
    quick = pid(node)
    heard = prop(node, "WatchdogTimestampMonotonic", UNIT)
    for _ in range(4):  # the pings of more than three seconds
        said = f"systemctl --user show -P WatchdogTimestampMonotonic {UNIT}"
        node.wait_until(["sh", "-c", f"[ $({said}) != {heard} ]"], SECONDS)
        heard = prop(node, "WatchdogTimestampMonotonic", UNIT)
    assert pid(node) == quick
    node.run(["kill", "-STOP", quick])
    last = wait_other(node, quick)
    assert "watchdog" in node.run(["journalctl", "--user", "-u", UNIT, "--no-pager"]).stdout.lower()
    assert page(node) == "hello 1.0.0\n"

    assert [row["state"] for row in archy(node, "ps")["apps"]] == ["running"]
    assert archy(node, "service", "uninstall")["removed"]
    assert not archy(node, "service", "status", code=5)["installed"]
    assert page(node) == "hello 1.0.0\n"
    assert started(node) == before
    left = node.run(["find", "/home/op/.config/systemd/user", "-name", UNIT]).stdout
    assert left == "", "the unit or the link that starts it at boot is left"
