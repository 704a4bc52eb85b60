"""What the field does to a node, on real systemd and Podman: its process is killed in every state of the journal, an
app crashes without end beside a healthy one, Podman becomes slow.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.orchestrator.driver import web_container
from tests.system.conftest import MakeNode
from tests.system.lab import SOURCE, Node
from tests.system.test_app_features import slug
from tests.system.test_orchestrator import DEADLINE, DRIVER, STEM, drive, left_behind, page, sh, volumes
from tests.system.test_service import archy, started

pytestmark = pytest.mark.faults
BUSYBOX = "/bin/busybox"
BIN = "/home/op/bin"
PATH = f"{BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
JOURNAL = (
    "import sqlite3, sys;"
    "db = sqlite3.connect('file:/home/op/archy/state.db?mode=ro', uri=True);"
    "found = [state for (state,) in db.execute('SELECT state FROM operations WHERE open = 1')];"
    "sys.exit(found != sys.argv[1:])"
)
SECONDS = 60.0


@pytest.fixture
def clean(node: Node) -> Iterator[Node]:
    """The module's node; its apps are gone again afterwards, data included."""
    yield node
    for id_ in ("hello", "other"):
        node.run([*DRIVER, "purge", json.dumps({"id": id_})], cwd=SOURCE, timeout=DEADLINE, check=False)


def leisurely(*, ill: bool = False) -> dict[str, Any]:
    """Two containers that take two seconds to start and two to stop, so that each state of the journal lasts."""
    serve = f"{BUSYBOX} sleep 2; exec {BUSYBOX} httpd -f -p 8080 -h /www"
    slow = {"command": [BUSYBOX, "sh", "-c", serve], "stop_grace_secs": 2}
    ask = {"cmd": [BUSYBOX, "wget", "-qO-", "http://127.0.0.1:8080/"], "interval": 1, "timeout": 2, "start_period": 5}
    checks = {"http": {"port": "web", "path": "/nothing" if ill else "/"}, "interval": 1, "timeout": 1, "retries": 1}
    checks["start_period"] = 3 if ill else 15
    web = web_container(18080, needs=["db"], mounts=[], health=checks, **slow)
    return {"db": web_container(None, health=ask, **slow), "web": web}


def in_journal(node: Node, *states: str) -> bool:
    """Are these the states of the open operations?"""
    return node.run(["python3", "-c", JOURNAL, *states], check=False).returncode == 0


def killed_in(node: Node, state: str, verb: str, order: dict[str, Any]) -> None:
    """Begin an operation, and end its process with SIGKILL when the journal says that it has come so far."""
    node.write(f"{BIN}/podman", b'#!/bin/sh\n[ "$1" = pull ] && sleep 2\nexec /usr/bin/podman "$@"\n', mode=0o755)
    process = node.popen([*DRIVER, verb, json.dumps(order)], cwd=SOURCE, env={"PATH": PATH})
    node.wait_until(["python3", "-c", JOURNAL, state], SECONDS, every=0.05)
    process.kill()
    assert in_journal(node, state), f"it was not killed in {state}"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("state", ["staged", "switching", "verifying", "rolling-back"])
@pytest.mark.parametrize("verb", ["install", "update"])
def test_sigkill_in_any_state_of_the_journal_leaves_the_old_or_the_new_whole(
    clean: Node, verb: str, state: str
) -> None:  # R-ST17, R-FM5, chaos 1, 3
    if verb == "update":
        drive(clean, "install", version="1.0.0", containers=leisurely())
        sh(clean, f"podman exec {STEM}-db {BUSYBOX} sh -c 'echo kept > /data/note'")
    order = {"version": "1.1.0", "containers": leisurely(ill=state == "rolling-back")}
    killed_in(clean, state, "install", order)
    drive(clean, "settle")
    assert in_journal(clean), "something is still open"
    version = "1.1.0" if state == "verifying" else "1.0.0" if verb == "update" else ""
    if not version:
        assert drive(clean, "status") == []
        assert left_behind(clean) == ""
        assert volumes(clean) == []
        return
    clean.wait_until(["busybox", "wget", "-qO-", "http://127.0.0.1:18080/"], SECONDS)
    assert page(clean) == f"hello {version}\n"
    assert [row["version"] for row in drive(clean, "status")] == [version]
    if verb == "update":
        assert sh(clean, f"podman exec {STEM}-db {BUSYBOX} cat /data/note") == "kept\n"


@pytest.mark.timeout(300)
def test_sigkill_in_the_middle_of_a_removal_is_finished_and_keeps_the_data(clean: Node) -> None:  # R-ST10, chaos 1
    drive(clean, "install", version="1.0.0", containers=leisurely())
    killed_in(clean, "removing", "uninstall", {})
    drive(clean, "settle")
    assert in_journal(clean)
    assert left_behind(clean) == ""
    assert volumes(clean) == [f"{STEM}-data"]


@pytest.mark.timeout(300)
def test_an_app_that_crashes_without_end_delays_no_other(clean: Node) -> None:  # R-ST4
    serve = f"exec {BUSYBOX} httpd -f -p 8080 -h /www"
    sick = f"if test -e /data/ill; then {BUSYBOX} sleep 20; exit 1; fi; {serve}"
    ask = {"cmd": [BUSYBOX, "wget", "-qO-", "http://127.0.0.1:8080/"], "interval": 1, "timeout": 2, "start_period": 5}
    db = web_container(None, health=ask, command=[BUSYBOX, "sh", "-c", sick])
    drive(
        clean, "install", version="1.0.0", containers={"db": db, "web": web_container(18080, needs=["db"], mounts=[])}
    )
    drive(clean, "install", version="1.0.0", id="other", port=18081)
    watch = ["systemd-run", "--user", "--unit=archy-watch", f"--working-directory={SOURCE}"]
    clean.run([*watch, *DRIVER, "watch", json.dumps({"tick": 1})])
    well = f"archy-{slug('other')}-web"
    since = f"systemctl --user show -P ActiveEnterTimestampMonotonic {well}.service"

    def back() -> float:
        """Seconds until the healthy app is up again that was stopped behind the node's back."""
        # A stop in the middle of its start would cancel the start, which counts as a failure of its own
        calm = f"[ $(( $(cut -d. -f1 /proc/uptime) - $({since}) / 1000000 )) -ge 3 ]"
        clean.wait_until(["sh", "-c", calm], SECONDS)
        before = sh(clean, since).strip()
        began = time.monotonic()
        sh(clean, f"systemctl --user stop {well}.service", check=False)  # the orchestrator may be quicker and cancel it
        up = f"[ $({since}) != {before} ] && systemctl --user is-active -q {well}.service"
        clean.wait_until(["sh", "-c", f"{up} && busybox wget -qO- http://127.0.0.1:18081/"], SECONDS, every=0.1)
        return time.monotonic() - began

    try:
        clean.wait_until(["sh", "-c", "journalctl --user -u archy-watch | grep -q watching"], SECONDS)
        alone = back()
        sh(
            clean,
            f"podman exec {STEM}-db {BUSYBOX} touch /data/ill; systemctl --user stop {STEM}-db.service",
            check=False,
        )
        starting = f"systemctl --user show -P ActiveState {STEM}-db.service | grep -q activating"
        for _ in range(2):
            clean.wait_until(["sh", "-c", starting], SECONDS)
            beside = back()
            # One after the other, it would wait for a start that takes 20 seconds to fail
            assert beside < max(10.0, 3 * alone), f"{beside:.1f} s beside it, {alone:.1f} s alone"
        assert page(clean, 18081) == "other 1.0.0\n"
    finally:
        clean.run(["systemctl", "--user", "stop", "archy-watch.service"], check=False)


@pytest.mark.timeout(400)
def test_a_podman_that_has_become_slow_shows_what_was_known_and_nothing_is_stopped(
    make_node: MakeNode,
) -> None:  # R-ST11, R-ST18
    node = make_node("slow")
    script = b'#!/bin/sh\n[ -e /home/op/slow ] && sleep 300\nexec /usr/bin/podman "$@"\n'
    node.write(f"{BIN}/podman", script, mode=0o755)
    drive(node, "install", version="1.0.0", home="/home/op/archy-home")
    node.run(["sh", "-c", "cd archy-home && mkdir -p apps && cp -a data/. apps/"])
    archy(node, "service", "install")
    folder = "/home/op/.config/systemd/user/archy.service.d"
    node.write(f"{folder}/slow.conf", f"[Service]\nEnvironment=PATH={PATH}\n".encode())
    sh(node, "systemctl --user daemon-reload && systemctl --user restart archy.service")
    (row,) = archy(node, "ps")["apps"]
    assert (row["state"], row["detail"]) == ("running", "")
    before = started(node)

    sh(node, "touch /home/op/slow")
    (row,) = archy(node, "ps")["apps"]
    assert row["state"] == "running"
    assert row["detail"].startswith("stale: ")
    # A tick does not take silence for an absence
    failed = "journalctl --user -u archy.service | grep -q 'a look at the machine failed'"
    node.wait_until(["sh", "-c", failed], 120, every=1)
    assert page(node) == "hello 1.0.0\n"
    assert started(node) == before

    sh(node, "rm /home/op/slow")
    (row,) = archy(node, "ps")["apps"]
    assert (row["state"], row["detail"]) == ("running", "")
    assert started(node) == before
