"""Podman's state broken in a node, and mended while the orchestrator watches: apps back, volumes intact."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.orchestrator.driver import web_container
from tests.system.lab import SOURCE, Base, Node
from tests.system.test_orchestrator import DRIVER, STEM, drive, page, sh, volumes

SECONDS = 110.0
STORAGE = "/home/op/.local/share/containers/storage"
NETWORKS = "/run/user/1000/containers/networks"
DB = web_container(None, network_aliases=["database"], health=None)
CONTAINERS = {"web": web_container(18080, needs=["db"], mounts=[]), "db": DB}


@pytest.fixture(scope="module")
def watched(lab_base: Base) -> Iterator[Node]:
    """A node with an app of two containers, one note in its volume, and a watch that ticks every second."""
    with Node.boot(lab_base, "repair") as node:
        drive(node, "install", version="1.0.0", containers=CONTAINERS)
        sh(node, f"podman exec {STEM}-db /bin/busybox sh -c 'echo kept > /data/note'")
        unit = ["systemd-run", "--user", "--unit=archy-node", f"--working-directory={SOURCE}"]
        node.run([*unit, *DRIVER, "watch", json.dumps({"tick": 1})])
        node.wait_until(["sh", "-c", "journalctl --user -u archy-node | grep -q watching"], SECONDS)
        yield node


def whole(node: Node) -> str:
    """Exits with 0 when Podman knows both containers as running, names resolve, and the data is there."""
    return (
        f"podman ps --filter status=running --format '{{{{.Names}}}}' | grep -c {STEM} | grep -qx 2"
        f" && podman exec {STEM}-web /bin/busybox wget -T 3 -qO- http://database:8080/ | grep -q hello"
        f" && podman exec {STEM}-db /bin/busybox cat /data/note | grep -qx kept"
        f" && busybox wget -T 3 -qO- http://{node.address}:18080/ | grep -q hello"
    )


def mended(node: Node) -> None:
    node.wait_until(["sh", "-c", whole(node)], SECONDS, every=0.5)
    assert page(node) == "hello 1.0.0\n"
    assert volumes(node) == [f"{STEM}-data"]
    labels = sh(node, f"podman volume inspect --format '{{{{.Labels}}}}' {STEM}-data")
    assert "archy.app:" in labels, "the volume has lost its labels"


@pytest.mark.faults
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "break_it",
    [
        pytest.param(f"rm {STORAGE}/db.sql*", id="database removed"),
        pytest.param(f"dd if=/dev/urandom of={STORAGE}/db.sql bs=4k count=8 conv=notrunc", id="database overwritten"),
        pytest.param("rm -rf /run/user/1000/containers /run/user/1000/libpod", id="runtime folder removed"),
        pytest.param(f"kill -9 $(cat {NETWORKS}/aardvark-dns/aardvark.pid)", id="name server killed"),
        pytest.param(f"kill -9 $(cat {NETWORKS}/rootless-netns/rootless-netns-conn.pid)", id="link killed"),
        pytest.param(
            f"podman unshare sh -c 'cd {NETWORKS} && umount -l rootless-netns/rootless-netns; rm -rf rootless-netns'",
            id="network namespace removed",
        ),
        pytest.param(
            "systemctl --user kill -s STOP archy-node;"  # before a tick sees it
            f"podman unshare sh -c 'cd {NETWORKS} && umount -l rootless-netns/rootless-netns; rm -rf rootless-netns';"
            f"systemctl --user restart {STEM}-web; systemctl --user kill -s CONT archy-node",
            id="network namespace removed and one container started in another",
        ),
    ],
)
def test_broken_podman_is_mended_and_volumes_are_intact(watched: Node, break_it: str) -> None:  # R-FM6, chaos 2, 7
    sh(watched, whole(watched))
    if "pid" in break_it:  # a quiet cure leaves the containers alone
        before = sh(watched, "podman ps --format '{{.Names}} {{.StartedAt}}'")
        dead = sh(watched, break_it.replace("kill -9", "echo"), check=True).strip()
        sh(watched, break_it)
        pid_file = break_it.rpartition(" ")[2].rstrip(")")
        watched.wait_until(["sh", "-c", f"p=$(cat {pid_file}) && [ $p != {dead} ] && [ -d /proc/$p ]"], SECONDS)
        mended(watched)
        assert sh(watched, "podman ps --format '{{.Names}} {{.StartedAt}}'") == before
    else:
        old = sh(watched, "podman ps --quiet").split()
        sh(watched, break_it)
        again = f"podman ps --quiet | grep -vE '{'|'.join(old)}' | grep -c . | grep -qx {len(old)}"
        watched.wait_until(["sh", "-c", again], SECONDS, every=0.5)  # what still runs in what is lost proves nothing
        mended(watched)
