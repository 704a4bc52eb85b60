"""Containers that somebody started by hand, taken over on the real thing: untouched, then units, with their data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.orchestrator.driver import web_container
from tests.system.lab import SOURCE, Node
from tests.system.test_orchestrator import DEADLINE, SERVICE, STEM, drive, left_behind, page, prop, sh, volumes

BUSYBOX = "/bin/busybox"
IMAGE = "localhost/somebody/hello:1"
FOLDER = "/home/op/srv/100% hello"
SERVER = f"{IMAGE} {BUSYBOX} httpd -f -p 8080 -h /www"


@pytest.fixture
def clean(node: Node) -> Iterator[Node]:
    yield node
    for id_ in ("hello", "evil"):
        node.run(
            ["archy-python", "-m", "tests.orchestrator.driver", "purge", f'{{"id": "{id_}"}}'], cwd=SOURCE, check=False
        )
    sh(node, "podman rm -f -t 1 -i hello; podman volume rm -f hellodata; podman unshare rm -rf srv; rm -rf archy")


def order(version: str = "1.0.0", **more: Any) -> dict[str, Any]:
    """An app that offers to take over a container called hello."""
    ports = [{"name": "web", "container": 8080, "host": "auto", "bind": "lan"}]
    web = web_container(None, ports=ports, secrets=[]) | more
    manifest = {"adopt": {"container_names": ["hello"]}, "volumes": {"data": {}}, "generated_secrets": []}
    return {"version": version, "containers": {"web": web}, "manifest": manifest}


def by_hand(node: Node, mount: str, *, restart: str = "always") -> str:
    """`podman run`, as people do; its id and when it started."""
    drive(node, "load", image=IMAGE, **order())
    options = f"-d --name hello --restart={restart} -p 18088:8080 --user 1000:1000 --stop-timeout=1"
    sh(node, f"podman run {options} -v '{mount}:/data' {SERVER}")
    sh(
        node,
        f"podman exec --user 0 hello {BUSYBOX} sh -c 'echo from before > /data/note; {BUSYBOX} chown -R 1000 /data'",
    )
    assert page(node, 18088) == "hello 1.0.0\n"
    return same(node)


def same(node: Node, name: str = "hello") -> str:
    """Another value when the container was made anew or its process started again."""
    return sh(node, f"podman container inspect -f '{{{{.Id}}}} {{{{.State.StartedAt}}}} {{{{.State.Status}}}}' {name}")


def note(node: Node, container: str = f"{STEM}-web") -> str:
    return sh(node, f"podman exec {container} {BUSYBOX} cat /data/note")


@pytest.mark.timeout(300)
def test_strangers_keep_the_contract(node: Node) -> None:
    argv = [
        "archy-python",
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-q",
        "tests/orchestrator/test_contract_strangers.py",
    ]
    done = node.run(argv, cwd=SOURCE, env={"ARCHY_CONTRACT": "real"}, timeout=2 * DEADLINE, check=False)
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.mark.timeout(300)
def test_a_hand_made_container_runs_on_untouched_becomes_a_unit_and_leaves_its_data(clean: Node) -> None:
    sh(clean, f"mkdir -p '{FOLDER}'")  # R-ST7, R-ST10, invariant 11
    before = by_hand(clean, FOLDER)
    offer = drive(clean, "offer", **order())
    assert offer["data"] == [{"volume": "data", "source": FOLDER}]
    assert offer["changes"] == []
    status = drive(clean, "take over", **order())
    assert (status["state"], status["adopted"], status["urls"]) == ("running", True, [])
    drive(clean, "settle")
    drive(clean, "settle")
    assert same(clean) == before
    assert left_behind(clean) == ""
    assert drive(clean, "restart")["adopted"] is False
    assert prop(clean, "ActiveState") == "active"
    assert note(clean) == "from before\n"
    assert page(clean, 18088) == "hello 1.0.0\n"
    assert sh(clean, "podman ps --all --format '{{.Names}}'") == f"{STEM}-web\n"
    clean.reboot()
    clean.wait_until(["systemctl", "--user", "is-active", SERVICE], timeout=60)
    assert note(clean) == "from before\n"
    sh(clean, "rm archy/state.db*")  # and the database is lost on top
    unit = same(clean, f"{STEM}-web")
    assert drive(clean, "adopt", **order())["state"] == "running"
    drive(clean, "settle")
    assert same(clean, f"{STEM}-web") == unit
    drive(clean, "purge")
    assert (left_behind(clean), volumes(clean)) == ("", [])
    assert sh(clean, f"cat '{FOLDER}/note'") == "from before\n"


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_a_version_that_does_not_start_gives_way_to_the_hand_made_container_and_stop_is_honoured(clean: Node) -> None:
    before = by_hand(clean, "hellodata")  # R-ST2, R-ST7, R-FM5
    drive(clean, "take over", **order())
    bad = order("2.0.0", command=[BUSYBOX, "false"])
    problem = drive(clean, "install", code=7, **bad)
    assert problem["problem"] == "rolled-back"
    assert re.search(r"web is \w+, restarted \d times, exit code 1\b", problem["text"]), problem["text"]
    words = same(clean).split()
    assert (words[0], words[-1]) == (before.split()[0], "running")
    assert note(clean, "hello") == "from before\n"
    assert page(clean, 18088) == "hello 1.0.0\n"
    assert left_behind(clean) == ""
    assert sh(clean, "podman inspect -f '{{.HostConfig.RestartPolicy.Name}}' hello") == "always\n"
    slice_ = sh(clean, "systemctl --user show -p ControlGroup --value archy-apps.slice").strip()
    pids = sh(clean, f"cat /sys/fs/cgroup{slice_}/*/cgroup.procs").split()
    assert sh(clean, "podman inspect -f '{{.State.ConmonPid}}' hello").strip() in pids  # not in our own cgroup
    assert drive(clean, "stop")["state"] == "stopped"
    clean.reboot()
    drive(clean, "settle")
    assert sh(clean, "podman ps -q") == ""
    assert drive(clean, "start")["state"] == "running"
    assert note(clean) == "from before\n"
    drive(clean, "uninstall")
    assert (left_behind(clean), volumes(clean)) == ("", ["hellodata"])
    drive(clean, "install", **order())
    assert note(clean) == "from before\n"


@pytest.mark.timeout(300)
def test_a_container_that_dies_before_its_restart_becomes_a_unit(clean: Node) -> None:
    by_hand(clean, "hellodata", restart="no")  # R-ST7
    drive(clean, "take over", **order())
    sh(clean, "podman kill hello; podman wait hello")
    drive(clean, "settle")
    assert prop(clean, "ActiveState") == "active"
    assert note(clean) == "from before\n"
    assert sh(clean, "podman ps --all --format '{{.Names}}'") == f"{STEM}-web\n"


@pytest.mark.timeout(300)
def test_a_manifest_that_names_what_is_not_its_own_takes_nothing(clean: Node) -> None:  # R-MF14, R-MF11
    before = by_hand(clean, "hellodata")
    other = drive(clean, "offer", code=3, **order("9.9.9"))
    assert other["problem"] == "not-adoptable"
    assert "hello runs localhost/somebody/hello:1 (sha256:" in other["text"]
    drive(clean, "take over", **order())
    evil = order() | {"id": "evil", "publisher": "did:key:zMallory"}
    told = drive(clean, "take over", code=3, **evil)["text"]
    assert "hello belongs to the app hello-" in told
    drive(clean, "restart")
    evil["manifest"] = evil["manifest"] | {"adopt": {"container_names": [f"{STEM}-web"]}}
    unit = same(clean, f"{STEM}-web")
    told = drive(clean, "take over", code=3, **evil)["text"]
    assert f"{STEM}-web belongs to the app hello-" in told
    assert same(clean, f"{STEM}-web") == unit
    assert before.split()[0] not in unit
