"""Taken back and made anew on the real thing: apps after a lost database, secrets after damage and rotation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.orchestrator.driver import web_container
from tests.system.lab import SOURCE, Node
from tests.system.test_orchestrator import DEADLINE, DRIVER, STEM, drive, left_behind, page, prop, sh, volumes

BUSYBOX = "/bin/busybox"
CONF = "password={{ secrets.password }}\n"
SECRET = f"podman exec {STEM}-web {BUSYBOX} cat /run/secrets/password"


@pytest.fixture
def clean(node: Node) -> Iterator[Node]:
    yield node
    node.run([*DRIVER, "purge", "{}"], cwd=SOURCE, timeout=DEADLINE, check=False)


def order(**more: Any) -> dict[str, Any]:
    """An app with everything that a node chooses: a port, a setting, a secret in a file and in a derived one."""
    ports = [{"name": "web", "container": 8080, "host": "auto", "bind": "lan"}]
    web = web_container(None, ports=ports)
    settings = [{"name": "greeting", "default": "Hello", "env": {"web": "GREETING"}}]
    derived = {"template": "t", "dest": "app.conf", "into": {"web": "/run/conf"}, "mode": "0444"}
    manifest = {"settings": settings, "derived_files": [derived | more]}
    return {"version": "1.0.0", "containers": {"web": web}, "manifest": manifest, "files": {"t": CONF}}


def same(node: Node) -> tuple[str, str]:
    """Another value when the container was made anew or its process started again."""
    return sh(node, f"podman inspect -f '{{{{.Id}}}} {{{{.State.StartedAt}}}}' {STEM}-web"), prop(
        node, "ExecMainStartTimestampMonotonic"
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("lost", ["archy/state.db*", "archy/state.db* archy/data/secrets/*"])
def test_app_goes_on_as_it_is_through_the_loss_of_the_nodes_state(clean: Node, lost: str) -> None:  # R-ST7, R-MF3
    drive(clean, "install", **order())
    drive(clean, "configure", settings={"greeting": 'a "b" 100% $HOME'})
    sh(clean, f"podman exec {STEM}-web {BUSYBOX} sh -c 'echo kept > /data/note'")
    before, secrets = same(clean), drive(clean, "secrets")
    sh(clean, f"rm -r {lost}")
    assert drive(clean, "orphans") == [["hello", True]]
    status = drive(clean, "adopt", **order())
    assert (status["state"], status["desired"]) == ("running", "running")
    drive(clean, "settle")
    drive(clean, "settle")
    assert same(clean) == before
    assert page(clean, 20000) == "hello 1.0.0\n"
    assert drive(clean, "orphans") == []
    assert drive(clean, "secrets") == secrets
    assert 'GREETING=a "b" 100% $HOME\n' in sh(clean, f"podman exec {STEM}-web {BUSYBOX} env")
    assert drive(clean, "configure", settings={})[0]["value"] == 'a "b" 100% $HOME'
    assert sh(clean, f"podman exec {STEM}-web {BUSYBOX} cat /data/note") == "kept\n"
    drive(clean, "purge")
    assert (left_behind(clean), volumes(clean)) == ("", [])


def test_installing_over_a_lost_database_takes_back_and_stopped_stays_stopped(clean: Node) -> None:  # R-ST2, R-ST7
    drive(clean, "install", **order())
    before = same(clean)
    sh(clean, "rm archy/state.db*")
    problem = drive(clean, "install", **(order() | {"version": "2.0.0"}), code=3)
    assert "from another release" in problem["text"]
    assert same(clean) == before
    drive(clean, "install", **order())
    assert same(clean) == before
    drive(clean, "stop")
    sh(clean, "rm archy/state.db*")
    assert drive(clean, "orphans") == [["hello", False]]
    assert drive(clean, "adopt", **order())["state"] == "stopped"
    drive(clean, "settle")
    assert sh(clean, "podman ps -q") == ""
    assert drive(clean, "start")["state"] == "running"


@pytest.mark.timeout(300)
def test_rotated_secret_is_in_container_and_file_and_the_old_one_nowhere(clean: Node) -> None:  # R-MF3
    drive(clean, "install", **order())
    old, before = drive(clean, "secrets")["password"], same(clean)
    drive(clean, "rotate", secret="password")
    new = drive(clean, "secrets")["password"]
    assert new != old
    assert same(clean) != before
    assert sh(clean, SECRET) == new
    assert sh(clean, f"podman exec {STEM}-web {BUSYBOX} cat /run/conf/app.conf") == f"password={new}\n"
    assert sh(clean, "podman secret ls --noheading --format '{{.Name}}'") == f"{STEM}-password.1\n"
    everywhere = "grep -rl --exclude-dir=overlay -e {} archy .config /home/op/.local/share/containers/storage"
    assert sh(clean, everywhere.format(old), check=False) == ""
    for value in (old, new):
        assert value not in sh(clean, f"journalctl --user; systemctl --user cat 'archy-*'; podman inspect {STEM}-web")
    path = "$(ls archy/data/secrets/*/password.1)"
    for harm in (f"truncate -s 10 {path}", f"rm {path}", f"chmod 644 {path}"):
        sh(clean, harm)
        drive(clean, "settle")
        assert drive(clean, "secrets")["password"] == new
        assert sh(clean, f"stat -c %a {path}") == "600\n"
    begun = same(clean)
    drive(clean, "settle")
    assert same(clean) == begun
    drive(clean, "purge")
    assert (left_behind(clean), volumes(clean)) == ("", [])


def test_rotation_reloads_where_only_a_reloaded_file_has_the_secret(clean: Node) -> None:
    copy = f"{BUSYBOX} cat /run/conf/app.conf > /data/seen"
    wait = f"while true; do {BUSYBOX} sleep 1 & wait $!; done"
    script = f"trap '{copy}' HUP; {copy}; {BUSYBOX} httpd -p 8080 -h /www; {wait}"
    asked = order(on_change="reload")
    asked["containers"]["web"] |= {"secrets": [], "command": [BUSYBOX, "sh", "-c", script]}
    drive(clean, "install", **asked)
    before = same(clean)
    drive(clean, "rotate", secret="password")
    new = drive(clean, "secrets")["password"]
    seen = f"podman exec {STEM}-web {BUSYBOX} cat /data/seen | grep -q {json.dumps(new)}"
    clean.wait_until(["sh", "-c", seen], timeout=20)
    assert same(clean) == before
