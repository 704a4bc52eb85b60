"""What makes the orchestrator look before its next tick, on real systemd and Podman; the tick is an hour away."""

from __future__ import annotations

import json

from tests.system.conftest import MakeNode
from tests.system.lab import SOURCE
from tests.system.test_orchestrator import DRIVER, SERVICE, STEM, UNITS, drive, page

SECONDS = 60.0


def test_lost_unit_and_a_stop_behind_its_back_are_mended_before_the_tick(make_node: MakeNode) -> None:  # R-ST15, R-ST6
    node = make_node("triggers")
    drive(node, "install", version="1.0.0")
    watch = node.popen([*DRIVER, "watch", json.dumps({"tick": 3600})], cwd=SOURCE)
    watch.wait_output("watching", SECONDS)
    unit = f"{UNITS}/{STEM}-web.container"
    node.run(["rm", unit])
    node.wait_until(["test", "-e", unit], SECONDS)
    node.wait_until(["pgrep", "-f", "podman events"], SECONDS)
    node.run(["systemctl", "--user", "stop", SERVICE], check=False)  # the orchestrator may be quicker and cancel it
    # An event may be lost, also that of the stop: any other of a thing with our name makes it look.
    event = "podman volume create -q archy-nothing >/dev/null; podman volume rm archy-nothing >/dev/null"
    node.wait_until(
        ["sh", "-c", f"busybox wget -qO- http://127.0.0.1:18080/ || {{ {event}; false; }}"], SECONDS, every=1
    )
    assert page(node) == "hello 1.0.0\n"
    watch.terminate()
