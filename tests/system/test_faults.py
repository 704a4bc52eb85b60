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
from tests.system.test_orchestrator import DEADLINE, DRIVER, HELLO, STEM, drive, left_behind, page, sh, volumes
from tests.system.test_service import archy, started
from tests.system.test_takeover import same

pytestmark = pytest.mark.faults
BUSYBOX = "/bin/busybox"
BIN = "/home/op/bin"
PATH = f"{BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
JOURNAL = (
    "import sqlite3, sys;"
    "db = sqlite3.connect('file:/home/op/archy/state.db?mode=ro', uri=True);"
    'found = [state for (state,) in db.execute("SELECT state FROM operations WHERE open = 1 UNION ALL '
    "SELECT DISTINCT 'to remove' FROM kept k JOIN apps a ON a.slug = k.slug WHERE k.generation < a.generation\")];"
    "sys.exit(found != sys.argv[1:])"
)
"""Open operations by state, and `to remove` while adopted containers are left that units have taken the place of."""
SLOW = {"staged": "pull", "to remove": "rm"}
"""What of Podman takes its time, for states that do not last otherwise."""
SECONDS = 60.0


@pytest.fixture
def clean(node: Node) -> Iterator[Node]:
    """The module's node; its apps are gone again afterwards, data included."""
    yield node
    for id_ in ("hello", "other"):
        node.run([*DRIVER, "purge", json.dumps({"id": id_})], cwd=SOURCE, timeout=DEADLINE, check=False)


def leisurely(*, ill: bool = False, seconds: int = 2) -> dict[str, Any]:
    """Two containers that take some seconds to start and as many to stop, so that each state of the journal lasts."""
    serve = f"{BUSYBOX} sleep {seconds}; exec {BUSYBOX} httpd -f -p 8080 -h /www"
    slow = {"command": [BUSYBOX, "sh", "-c", serve], "stop_grace_secs": seconds}
    ask = {"cmd": [BUSYBOX, "wget", "-qO-", "http://127.0.0.1:8080/"], "interval": 1, "timeout": 2, "start_period": 5}
    checks = {"http": {"port": "web", "path": "/nothing" if ill else "/"}, "interval": 1, "timeout": 1, "retries": 1}
    checks["start_period"] = 3 if ill else 15
    web = web_container(18080, needs=["db"], mounts=[], health=checks, **slow)
    return {"db": web_container(None, health=ask, **slow), "web": web}


def in_journal(node: Node, *states: str) -> bool:
    """Are these the states of the open operations?"""
    return node.run(["python3", "-c", JOURNAL, *states], check=False).returncode == 0


def killed_in(node: Node, state: str, verb: str, order: dict[str, Any], *, once: str = "true") -> None:
    """Begin an operation, and end its process and all that it started with SIGKILL when the journal says that it has
    come so far, and `once` is so too."""
    script = f'#!/bin/sh\n[ "$1" = "{SLOW.get(state)}" ] && sleep 2\nexec /usr/bin/podman "$@"\n'
    node.write(f"{BIN}/podman", script.encode(), mode=0o755)
    process = node.popen([*DRIVER, verb, json.dumps(order)], cwd=SOURCE, env={"PATH": PATH})
    node.wait_until(["python3", "-c", JOURNAL, state], SECONDS, every=0.05)
    node.wait_until(["sh", "-c", once], SECONDS, every=0.05)
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


OWN = ("mine-db", "mine-web")
"""Containers that the operator made, of images that he pulled, with data in a volume and in a folder of his."""
FILES = "/home/op/srv/files"
OTHER_IMAGE = f"""
import json
from pathlib import Path
from tests.orchestrator.bundles import write_layout
from tests.orchestrator.driver import web_layer
folder = Path.home() / "bundles" / "{HELLO.slug}-1.0.0" / "images" / "db"
config = {{"architecture": "amd64", "os": "linux", "config": {{"Env": ["ROLE=db"]}}}}
print(json.dumps(write_layout(folder, b"", layer=web_layer("db"), config=config)))
"""


@pytest.fixture
def operator(node: Node) -> Iterator[Node]:
    """Where an operator keeps two containers by hand; they and their data are gone again afterwards."""
    yield node
    node.run([*DRIVER, "purge"], cwd=SOURCE, timeout=DEADLINE, check=False)
    sh(node, f"podman rm -f -t 0 -i {' '.join(OWN)}; podman volume rm -f mine; podman unshare rm -rf srv")


def adoptable(node: Node) -> dict[str, Any]:
    """Two leisurely containers that people may have by hand; as units they do badly where there is a file `ill`."""
    containers = leisurely(seconds=1)
    serve = f"{BUSYBOX} sleep 2; [ -e /files/ill ] && exec {BUSYBOX} sleep 60; exec {BUSYBOX} httpd -f -p 8080 -h /www"
    containers["web"] |= {"command": [BUSYBOX, "sh", "-c", serve], "mounts": [{"volume": "files", "path": "/files"}]}
    # One that ends when it is told to: systemd gives a start that it cancels 15 seconds longer
    serve = f"trap exit TERM; {BUSYBOX} sleep 1 & wait; {BUSYBOX} httpd -f -p 8080 -h /www & wait"
    containers["db"]["command"] = [BUSYBOX, "sh", "-c", serve]
    containers["db"]["image"] = json.loads(node.run(["archy-python", "-c", OTHER_IMAGE], cwd=SOURCE).stdout)
    manifest = {"adopt": {"container_names": list(OWN)}, "volumes": {"data": {}, "files": {}}}
    return {
        "version": "1.0.0",
        "containers": containers,
        "manifest": manifest | {"updates": {"health_window_secs": 10}},
    }


def run_by_hand(node: Node, order: dict[str, Any]) -> None:
    """`podman run`, as people do."""
    mounts = {"db": "-v mine:/data", "web": f"-v {FILES}:/files -p 18080:8080"}
    sh(node, f"mkdir -p {FILES}")
    for label, mount in mounts.items():
        image, body = f"localhost/somebody/{label}:1", order["containers"][label]
        if not sh(node, f"podman images -q {image}"):
            drive(node, "load", image=image, **order | {"containers": {label: body | {"needs": []}}})
        options = f"-d --name mine-{label} --restart=always --user 1000:1000 --stop-timeout=1 {mount}"
        sh(node, f"podman run {options} {image} {BUSYBOX} httpd -f -p 8080 -h /www")
    sh(node, f"podman exec -u 0 mine-db {BUSYBOX} sh -c 'echo kept > /data/note; {BUSYBOX} chown -R 1000:1000 /data'")
    sh(node, f"podman exec -u 0 mine-web {BUSYBOX} sh -c 'echo files > /files/note; {BUSYBOX} chown 1000 /files/note'")


def data(node: Node) -> str:
    """Every file of the operator's data: whose it is, since when it is so, and what is in it."""
    look = "find . -exec stat -c '%n %a %u %g %Y %Z' {} + | sort; cat note"
    volume = "$(podman volume inspect -f '{{.Mountpoint}}' mine)"
    return sh(node, f'podman unshare sh -c "cd {volume} && {look}; cd {FILES} && {look}"')


def together(node: Node) -> list[tuple[str, str]]:
    """Containers of the operator and of units that ever ran at one time, as Podman's events tell."""
    said = sh(node, "podman events --stream=false --since 5m --filter type=container --format json")
    events = sorted((json.loads(line) for line in said.splitlines()), key=lambda event: int(event["timeNano"]))
    alive: set[str] = set()
    found = []
    for event in events:
        if event["Status"] == "died":
            alive.discard(event["Name"])
        elif event["Status"] == "start":
            alive.add(event["Name"])
            found += [(one, two) for one in alive & set(OWN) for two in alive - set(OWN)]
    return found


def ids(node: Node) -> list[str]:
    """The operator's containers, all of which are to be there."""
    return [same(node, name).split()[0] for name in OWN]


@pytest.mark.timeout(300)
def test_sigkill_before_units_are_proven_lets_the_operators_containers_run_again_as_before(
    operator: Node,
) -> None:  # R-ST7, R-ST17, R-FM5, chaos 1
    order = adoptable(operator)
    run_by_hand(operator, order)
    drive(operator, "take over", **order)
    first, there = ids(operator), volumes(operator)
    begun = f"systemctl --user show -P ActiveState {STEM}-db.service | grep -q activating"
    policy = "podman inspect -f '{{.State.Status}} {{.HostConfig.RestartPolicy.Name}}' " + " ".join(OWN)
    for state, once in (("staged", "true"), ("switching", "true"), ("switching", begun), ("rolling-back", "true")):
        if state == "rolling-back":
            sh(operator, f"podman unshare touch {FILES}/ill")
        before, kept = [same(operator, name) for name in OWN], data(operator)
        killed_in(operator, state, "restart", {}, once=once)
        assert ids(operator) == first, "removed before the units proved themselves"
        drive(operator, "settle")
        assert in_journal(operator), "something is still open"
        assert ids(operator) == first
        assert sh(operator, policy) == "running always\nrunning always\n"
        assert state != "staged" or [same(operator, name) for name in OWN] == before, "there was no need to stop them"
        assert (left_behind(operator), volumes(operator)) == ("", there)
        assert data(operator) == kept
        assert page(operator) == "hello 1.0.0\n"
    after = [same(operator, name) for name in OWN]
    drive(operator, "settle")
    assert [same(operator, name) for name in OWN] == after, "they were not left alone"
    assert together(operator) == []


@pytest.mark.timeout(300)
def test_sigkill_of_units_being_proven_and_again_before_the_operators_containers_are_removed_leaves_the_units(
    operator: Node,
) -> None:  # R-ST7, R-ST10, R-ST17, chaos 1
    order = adoptable(operator)
    run_by_hand(operator, order)
    drive(operator, "take over", **order)
    first, there, kept = ids(operator), volumes(operator), data(operator)
    for state, verb in (("verifying", "restart"), ("to remove", "settle")):
        killed_in(operator, state, verb, {})
        assert ids(operator) == first, "removed before the units proved themselves"
    drive(operator, "settle")
    assert in_journal(operator), "something is still open"
    assert sh(operator, "podman ps --all --format '{{.Names}} {{.State}}' | sort") == (
        f"{STEM}-db running\n{STEM}-web running\n"
    )
    assert volumes(operator) == there
    assert data(operator) == kept
    assert sh(operator, f"podman exec {STEM}-db {BUSYBOX} cat /data/note") == "kept\n"
    assert sh(operator, f"podman exec {STEM}-web {BUSYBOX} cat /files/note") == "files\n"
    assert page(operator) == "hello 1.0.0\n"
    assert len(sh(operator, "podman images -q --filter reference='localhost/somebody/*'").split()) == 2
    assert together(operator) == []


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
