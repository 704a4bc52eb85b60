"""The lab keeps its promises: real systemd and Podman, nodes that reach each other, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system.lab import (
    PROJECT,
    Base,
    CommandFailed,
    CommandTimedOut,
    LabFault,
    Node,
    cached_base,
    lab_home,
    link,
    remove_stale_bases,
    sweep,
)

MakeNode = Callable[[str], Node]

SERVER = ["busybox", "httpd", "-f", "-p", "8000", "-h", "/etc"]
DEADLINE = 20.0


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not so after {DEADLINE} s: {what}"
        time.sleep(0.02)


# --- what a node is


def test_node_is_a_debian_with_its_own_systemd_and_nothing_failed(node: Node) -> None:
    assert node.run(["systemctl", "is-system-running"]).stdout.strip() == "running"
    assert node.run(["ps", "-o", "comm=", "-p", "1"]).stdout.strip() == "systemd"


def test_user_manager_of_op_runs_units_without_a_login(node: Node) -> None:
    assert node.run(["systemctl", "--user", "is-system-running"]).stdout.strip() == "running"
    done = node.run(["systemd-run", "--user", "--wait", "--pipe", "--quiet", "sh", "-c", "cat /proc/self/cgroup"])
    assert "/user.slice/user-1000.slice/user@1000.service/" in done.stdout


def test_podman_is_rootless_on_native_overlay_and_new_enough_for_quadlet(node: Node) -> None:
    info = json.loads(node.run(["podman", "info", "--format", "json"]).stdout)
    assert info["host"]["security"]["rootless"] is True
    assert int(info["version"]["Version"].split(".")[0]) >= 5
    assert info["store"]["graphDriverName"] == "overlay"
    assert info["host"]["networkBackend"] == "netavark"


def test_project_and_its_locked_dependencies_run_on_the_nodes_python(node: Node) -> None:
    script = "import sys, apps.names, numpy, trio, nostr_sdk, pytest_trio, hypothesis; print(sys.version_info[:2])"
    assert node.run(["archy-python", "-c", script]).stdout.strip() == "(3, 13)"


def test_network_target_is_reached_so_that_podmans_wait_does_not_wait(node: Node) -> None:
    assert node.run(["systemctl", "is-active", "network-online.target"]).stdout.strip() == "active"
    node.run(["systemctl", "--user", "start", "podman-user-wait-network-online.service"], timeout=5)


# --- commands


def test_failed_command_tells_its_code_and_what_it_said(node: Node) -> None:
    with pytest.raises(CommandFailed, match="it broke") as caught:
        node.run(["sh", "-c", "echo it broke >&2; exit 7"])
    assert caught.value.returncode == 7


def test_command_past_its_deadline_is_killed_with_all_that_it_started(node: Node) -> None:
    with pytest.raises(CommandTimedOut, match="begun"):
        node.run(["sh", "-c", "sleep 4711 & echo begun; sleep 4711"], timeout=1)
    assert node.run(["pgrep", "-f", "sleep 4711"], check=False).returncode == 1


def test_commands_see_a_login_and_nothing_of_the_callers_environment(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEAK", "yes")
    seen = dict(line.split("=", 1) for line in node.run(["env"], env={"GIVEN": "a b"}).stdout.splitlines())
    assert seen["GIVEN"] == "a b"
    assert seen["HOME"] == "/home/op"
    assert seen["XDG_RUNTIME_DIR"] == "/run/user/1000"
    assert "LEAK" not in seen


def test_long_running_command_is_watched_signalled_and_killed(node: Node) -> None:
    script = "trap 'echo asked; exit 5' TERM; echo up; while :; do sleep 0.05; done"
    polite = node.popen(["sh", "-c", script])
    polite.wait_output("^up$", DEADLINE)
    assert polite.terminate() == 5
    assert polite.output() == "up\nasked\n"
    stubborn = node.popen(["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done"])
    stubborn.wait_output("up", DEADLINE)
    assert stubborn.terminate(timeout=0.2) == 128 + signal.SIGKILL


def test_output_that_never_comes_is_told_at_once_when_the_command_ends(node: Node) -> None:
    with pytest.raises(CommandFailed, match="only this"):
        node.popen(["sh", "-c", "echo only this"]).wait_output("something else", DEADLINE)


def test_files_and_folders_go_in_and_come_out(node: Node, tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "bytes").write_bytes(bytes(range(256)))
    (tmp_path / "in" / "script").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / "in" / "script").chmod(0o755)
    node.push(tmp_path / "in", "/home/op/pushed")
    node.push(tmp_path / "in" / "script", "/home/op/single/script")
    assert node.run(["/home/op/pushed/script"]).stdout == node.run(["/home/op/single/script"]).stdout == "ran\n"
    assert node.read("/home/op/pushed/deep/bytes") == bytes(range(256))
    node.pull("/home/op/pushed", tmp_path / "out")
    assert (tmp_path / "out" / "deep" / "bytes").read_bytes() == bytes(range(256))


def test_symbolic_link_of_a_node_does_not_lead_out_of_it(node: Node, tmp_path: Path) -> None:
    secret = tmp_path / "host-only"
    secret.write_text("the host's")
    node.run(["ln", "-sf", str(secret), "/home/op/trap"])
    with pytest.raises(CommandFailed):
        node.read("/home/op/trap")


def test_journal_has_what_units_said(node: Node) -> None:
    node.run(["systemd-run", "--user", "--wait", "--quiet", "echo", "seen in the journal"])
    wait_for(lambda: "seen in the journal" in node.journal(), "the line is in the journal")


# --- networks


def test_host_reaches_a_node_at_its_address(node: Node) -> None:
    server = node.popen(SERVER)
    try:
        node.wait_until(["curl", "-fsS", "http://127.0.0.1:8000/hostname"], DEADLINE)
        with urllib.request.urlopen(f"http://{node.address}:8000/hostname", timeout=5) as answer:
            assert answer.read() == b"node\n"
    finally:
        server.terminate()


def test_two_nodes_booted_at_once_reach_each_other_over_their_link_and_over_reboots(make_node: MakeNode) -> None:
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(make_node, ("first", "second"))
    link(first, second)
    for here, there in ((first, second), (second, first)):
        there.popen(SERVER)
        assert here.wait_until(["curl", "-fsS", f"http://{there.address}:8000/hostname"], DEADLINE) == f"{there.name}\n"
    second.reboot()
    second.popen(SERVER)
    assert first.wait_until(["curl", "-fsS", f"http://{second.address}:8000/hostname"], DEADLINE) == "second\n"


# --- disks


def test_node_never_changes_its_base(make_node: MakeNode, lab_base: Base) -> None:
    curl = lab_base.rootfs / "usr/bin/curl"
    before = curl.read_bytes()
    first = make_node("first")
    first.run(["rm", "/usr/bin/curl"], user="root")
    first.run(["sh", "-c", "echo changed > /etc/lab-was-here; echo > /opt/archy/site/lab-was-here"], user="root")
    assert curl.read_bytes() == before
    assert not (lab_base.rootfs / "etc/lab-was-here").exists()
    assert not (lab_base.site / "opt/archy/site/lab-was-here").exists()
    second = make_node("second")
    second.run(["curl", "--version"])
    assert second.run(["cat", "/etc/lab-was-here"], check=False).returncode == 1


@pytest.mark.parametrize("hard", [False, True], ids=["in order", "plug pulled"])
def test_reboot_keeps_files_and_starts_enabled_units_of_op(make_node: MakeNode, hard: bool) -> None:
    node = make_node("node")
    first, boot = node.first, node.run(["cat", "/etc/machine-id"]).stdout
    node.write("/home/op/kept", b"in the home")
    node.write("/var/lib/kept", b"on the system's disk", user="root")
    unit = b"[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=default.target\n"
    node.write("/home/op/.config/systemd/user/app.service", unit)
    node.run(["systemctl", "--user", "enable", "app.service"])
    node.reboot(hard=hard)
    assert node.first != first
    assert node.read("/home/op/kept") == b"in the home"
    assert node.read("/var/lib/kept") == b"on the system's disk"
    assert node.run(["cat", "/etc/machine-id"]).stdout == boot
    node.run(["systemctl", "--user", "is-active", "app.service"])


# --- nothing is left behind

OWNER = """
import json, sys, signal
from tests.system.lab import Node, ensure_base
node = Node.boot(ensure_base(print), "owned")
node.run(["sh", "-c", "sleep infinity >/dev/null 2>&1 &"])
print(json.dumps([str(node.folder), node.device, node.first]), flush=True)
signal.pause()
"""


@dataclass(frozen=True)
class Traces:
    """What one node leaves on this host while it lives."""

    folder: Path
    device: str
    first: int

    def found(self) -> list[str]:
        name = self.folder.name
        found = [f"folder {path}" for path in (self.folder,) if path.exists()]
        found += [f"device {self.device}" for path in (Path("/sys/class/net") / self.device,) if path.exists()]
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended while we looked
                if name in (process / "cgroup").read_text() or name in (process / "cmdline").read_text():
                    found.append(f"process {process.name}: {(process / 'cmdline').read_text()!r}")
                if name in (process / "mountinfo").read_text():
                    found.append(f"mount seen by process {process.name}")
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            if " - cgroup2 " in line:
                found += [f"group {path}" for path in Path(line.split(" ")[4]).glob(f"archipelago-lab/{name}")]
        return found


@contextlib.contextmanager
def owner_process() -> Iterator[tuple[subprocess.Popen[str], Traces]]:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        folder, device, first = json.loads(owner.stdout.readline())
        traces = Traces(Path(folder), device, first)
        kinds = {line.split(" ")[0] for line in traces.found()}
        assert {"folder", "device", "process", "mount"} <= kinds, f"the test does not see what it looks for: {kinds}"
        yield owner, traces
    finally:
        owner.kill()
        owner.wait()


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_owner_that_is_killed_leaves_nothing_at_once(number: signal.Signals) -> None:
    with owner_process() as (owner, traces):
        owner.send_signal(number)
        owner.wait(DEADLINE)
        wait_for(lambda: not traces.found(), "nothing of the node is left")


def test_owner_and_keeper_killed_leave_nothing_that_runs_and_the_next_sweep_removes_the_rest() -> None:
    with owner_process() as (owner, traces):
        (keeper,) = children(owner.pid)
        os.kill(keeper, signal.SIGKILL)
        owner.kill()
        owner.wait(DEADLINE)
        wait_for(
            lambda: not [line for line in traces.found() if line.startswith(("process", "mount"))],
            "the kernel has ended all processes and mounts",
        )
        assert traces.folder.exists()
        sweep()  # returns nothing where another test's boot has swept in the meantime
        assert traces.found() == []


def test_sweep_leaves_living_nodes_alone(node: Node) -> None:
    assert node.folder.name not in sweep()
    node.run(["true"])


def test_stopped_node_says_so(make_node: MakeNode) -> None:
    node = make_node("node")
    node.stop()
    node.stop()
    assert not node.folder.exists()
    with pytest.raises(LabFault, match="not running"):
        node.run(["true"])


def test_builder_killed_in_the_middle_leaves_nothing_that_is_taken_for_a_base(tmp_path: Path) -> None:
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "tests.system.lab", "build"]
    home = tmp_path / "archipelago-market" / "lab"
    builder = subprocess.Popen(command, cwd=PROJECT, env=environment, stderr=subprocess.PIPE, text=True)
    assert builder.stderr is not None
    assert any("fetching packages" in line for line in builder.stderr)
    builder.kill()
    builder.wait()
    assert cached_base(home) is None
    wait_for(lambda: not processes_naming(str(tmp_path)), "its children are gone")
    assert list((home / "bases").glob("tmp-*"))
    remove_stale_bases(home=home)
    assert [path.name for path in (home / "bases").iterdir()] == ["build.lock"]


def processes_naming(text: str) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if text in (process / "cmdline").read_text():
                found.append(process.name)
    return found


def test_cache_of_this_user_is_where_the_base_is(lab_base: Base) -> None:
    assert lab_base.rootfs.is_relative_to(lab_home())
    assert cached_base() == lab_base


# --- machines that can not run it

WITHOUT_NAMESPACES = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")


@pytest.mark.parametrize(
    ("ci", "returncode", "outcome"),
    [("", 0, "SKIPPED [1]"), ("true", 1, "ERROR")],
    ids=["skipped with the reason", "under CI a failure"],
)
def test_machine_without_namespaces_is_told_why(ci: str, returncode: int, outcome: str) -> None:
    one = f"{Path(__file__).relative_to(PROJECT)}::test_cache_of_this_user_is_where_the_base_is"
    command = [*WITHOUT_NAMESPACES, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", one]
    done = subprocess.run(
        command,
        cwd=PROJECT,
        env=os.environ | {"CI": ci, "COLUMNS": "300"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == returncode, done.stdout
    assert outcome in done.stdout
    assert "namespaces are not available here: unshare" in done.stdout
