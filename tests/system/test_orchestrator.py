"""The orchestrator on the real thing: systemd --user, Quadlet and rootless Podman in a node."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from apps.names import AppName
from tests.orchestrator.driver import web_container
from tests.system.conftest import MakeNode
from tests.system.lab import SOURCE, Node

DRIVER = ["archy-python", "-m", "tests.orchestrator.driver"]
HELLO = AppName("did:key:zAlice", "hello")
STEM = f"archy-{HELLO.slug}"
SERVICE = f"{STEM}-web.service"
UNITS = "/home/op/.config/containers/systemd"
DEADLINE = 110.0


def drive(node: Node, verb: str, *, env: dict[str, str] | None = None, code: int = 0, **order: Any) -> Any:
    """The driver's last line."""
    done = node.run([*DRIVER, verb, json.dumps(order)], cwd=SOURCE, env=env, timeout=DEADLINE, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def sh(node: Node, script: str, *, user: str = "op", check: bool = True) -> str:
    return node.run(["sh", "-c", script], user=user, timeout=60, check=check).stdout  # type: ignore[arg-type]


def left_behind(node: Node) -> str:
    """Everything of this orchestrator that Podman, systemd and the unit folder have, volumes and images apart."""
    return sh(
        node,
        f"ls {UNITS} 2>/dev/null | grep ^archy-; podman ps -aq --filter label=archy.prefix=archy;"
        " podman network ls -q --filter label=archy.prefix=archy; podman secret ls --noheading --format '{{.Name}}';"
        " systemctl --user list-units --all --plain --no-legend 'archy-*' | grep -v slice;"
        " podman images -q --filter reference='localhost/archy/*/*'",
        check=False,
    )


def volumes(node: Node) -> list[str]:
    return sh(node, "podman volume ls -q").split()


def page(node: Node, port: int = 18080) -> str:
    with urllib.request.urlopen(f"http://{node.address}:{port}/", timeout=10) as answer:
        return str(answer.read().decode())


def prop(node: Node, name: str, service: str = SERVICE) -> str:
    return node.run(["systemctl", "--user", "show", "--value", "-p", name, service]).stdout.strip()


@pytest.fixture
def clean(node: Node) -> Iterator[Node]:
    """The module's node; the app is gone again afterwards, data included."""
    yield node
    for id_ in ("hello", "other"):
        node.run([*DRIVER, "purge", json.dumps({"id": id_})], cwd=SOURCE, timeout=DEADLINE, check=False)


@pytest.mark.timeout(400)  # thirty apps, one after the other
def test_real_systemd_and_podman_keep_the_contract(node: Node) -> None:
    suites = ("tests/orchestrator/test_contract.py", "tests/orchestrator/test_contract_builds.py")
    argv = ["archy-python", "-m", "pytest", "-p", "no:cacheprovider", "-q", *suites]
    done = node.run(argv, cwd=SOURCE, env={"ARCHY_CONTRACT": "real"}, timeout=3 * DEADLINE, check=False)
    assert done.returncode == 0, done.stdout[-5000:]


def test_installed_app_answers_from_its_own_slice_and_confined(clean: Node) -> None:  # R-MF7, R-FM3
    status = drive(clean, "install", version="1.0.0")
    assert status["state"] == "running"
    assert page(clean) == "hello 1.0.0\n"
    group = prop(clean, "ControlGroup")
    assert "/archy-apps.slice/" in group
    assert SERVICE in group
    inspected = json.loads(sh(clean, f"podman inspect {STEM}-web"))[0]
    assert inspected["EffectiveCaps"] in ([], None)
    assert inspected["HostConfig"]["ReadonlyRootfs"]
    assert "no-new-privileges" in inspected["HostConfig"]["SecurityOpt"]
    shown = sh(clean, f"podman exec {STEM}-web /bin/busybox ls -ln /run/secrets/password")
    assert shown.startswith("-r--------")
    secret = sh(clean, f"cat archy/data/secrets/{HELLO.slug}/password")
    assert len(secret) == 64
    everywhere = (
        f"cat {UNITS}/archy-*.container; podman inspect {STEM}-web; systemctl --user cat {SERVICE}; journalctl --user"
    )
    assert secret not in sh(clean, everywhere)  # R-MF3


def test_killing_the_service_touches_no_app_and_it_mends_after_its_restart(clean: Node) -> None:  # R-FM3, R-ST16
    drive(clean, "install", version="1.0.0")
    started = prop(clean, "ExecMainStartTimestampMonotonic")
    order = json.dumps({"tick": 1})
    unit = ["systemd-run", "--user", "--unit=archy-node", "--property=Restart=always", f"--working-directory={SOURCE}"]
    clean.run([*unit, *DRIVER, "watch", order])
    try:
        clean.wait_until(["sh", "-c", "journalctl --user -u archy-node | grep -q watching"], timeout=20)
        assert prop(clean, "ControlGroup", "archy-node.service") not in prop(clean, "ControlGroup")
        for _ in range(3):
            clean.run(["systemctl", "--user", "kill", "--signal=KILL", "archy-node.service"], check=False)
            assert page(clean) == "hello 1.0.0\n"
        assert prop(clean, "ExecMainStartTimestampMonotonic") == started
        clean.run(["podman", "rm", "--force", "--time=0", f"{STEM}-web"])
        sh(clean, f"rm -r {UNITS}/{STEM}-web.container*")
        clean.run(["systemctl", "--user", "stop", SERVICE], check=False)
        clean.wait_until(["busybox", "wget", "-qO-", "http://127.0.0.1:18080/"], timeout=40)
    finally:
        clean.run(["systemctl", "--user", "stop", "archy-node.service"], check=False)


def test_update_keeps_the_volume_and_a_bad_one_is_rolled_back(clean: Node) -> None:  # R-FM5, R-MF5
    drive(clean, "install", version="1.0.0")
    sh(clean, f"podman exec {STEM}-web /bin/busybox sh -c 'echo kept > /data/note'")
    drive(clean, "install", version="1.1.0")
    assert page(clean) == "hello 1.1.0\n"
    ill = {"http": {"port": "web", "path": "/nothing"}, "interval": 1, "timeout": 1, "retries": 1, "start_period": 2}
    web = {"web": web_container(18080, health=ill)}
    problem = drive(clean, "install", version="1.2.0", containers=web, code=7)
    assert "version 1.1.0 is back" in problem["text"]
    assert "HTTP status 404" in problem["text"]
    assert page(clean) == "hello 1.1.0\n"
    assert sh(clean, f"podman exec {STEM}-web /bin/busybox cat /data/note") == "kept\n"


def test_stop_start_and_uninstall_leave_no_orphans_and_keep_the_data(clean: Node) -> None:  # R-ST10, R-ST1
    drive(clean, "install", version="1.0.0")
    sh(clean, f"podman exec {STEM}-web /bin/busybox sh -c 'echo kept > /data/note'")
    assert drive(clean, "stop")["state"] == "stopped"
    assert "18080" not in sh(clean, "ss -tlnH")
    assert drive(clean, "start")["state"] == "running"
    assert page(clean) == "hello 1.0.0\n"
    drive(clean, "uninstall")
    assert left_behind(clean) == ""
    assert volumes(clean) == [f"{STEM}-data"]
    drive(clean, "install", version="1.0.0")
    assert sh(clean, f"podman exec {STEM}-web /bin/busybox cat /data/note") == "kept\n"
    drive(clean, "purge")
    assert left_behind(clean) == ""
    assert volumes(clean) == []


def test_taken_host_port_is_told_with_its_owner_and_nothing_is_changed(clean: Node) -> None:  # R-ST9
    holder = clean.popen(["python3", "-m", "http.server", "18080"])
    try:
        clean.wait_until(["sh", "-c", "ss -tlnH | grep -q 18080"], timeout=20)
        problem = drive(clean, "install", version="1.0.0", code=3)
    finally:
        holder.kill()
    assert problem["problem"] == "port-taken"
    assert "host port 18080 of hello is held by process" in problem["text"]
    assert "python3" in problem["text"]
    assert left_behind(clean) == ""
    assert volumes(clean) == []
    drive(clean, "install", version="1.0.0")
    problem = drive(clean, "install", version="1.0.0", id="other", code=3)
    assert "host port 18080 of other is already hello's" in problem["text"]


def test_image_with_another_config_is_refused_before_anything_changes(clean: Node) -> None:  # R-MF11
    problem = drive(clean, "install", version="1.0.0", spoil="config", code=3)
    assert "was signed" in problem["text"]
    assert left_behind(clean) == ""


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"PATH": "/home/op/nothing"}, "podman is not installed"),
        ({"XDG_RUNTIME_DIR": "", "DBUS_SESSION_BUS_ADDRESS": ""}, "there is no systemd for this user"),
    ],
)
def test_missing_environment_is_told_with_the_command_that_mends_it(
    clean: Node, env: dict[str, str], says: str
) -> None:
    python = json.loads(sh(clean, "archy-python -c 'import json, sys; print(json.dumps([sys.executable, sys.path]))'"))
    argv = [python[0], "-m", "tests.orchestrator.driver", "install", json.dumps({"version": "1.0.0"})]
    env = {"PYTHONPATH": ":".join([SOURCE, *python[1]])} | env
    done = clean.run(argv, cwd=SOURCE, env=env, timeout=DEADLINE, check=False)
    problem = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 4, problem
    assert says in problem["text"]
    assert left_behind(clean) == ""


def test_preflight_finds_the_node_fit_and_names_what_its_kernel_lacks(node: Node) -> None:
    found = {finding["name"]: finding for finding in drive(node, "preflight")}
    for name in ("podman", "quadlet", "user systemd", "linger", "/etc/subuid", "pasta", "netavark", "aardvark-dns"):
        assert found[name]["ok"], found[name]
    assert found["cgroup v2"]["ok"] or "limits are not enforced" in found["cgroup v2"]["detail"]


def test_state_folder_that_is_read_only_or_full_is_told_and_nothing_is_changed(clean: Node) -> None:
    sh(clean, "mkdir -p readonly && chmod 500 readonly")
    problem = drive(clean, "install", version="1.0.0", home="/home/op/readonly", code=1)
    assert "/home/op/readonly" in problem["text"]
    assert "make the folder writable" in problem["text"]
    mount = "mkdir -p /home/op/full && mount -t tmpfs -o size=512k,uid=1000,mode=700 tmpfs /home/op/full"
    sh(clean, mount, user="root")
    try:
        sh(clean, "dd if=/dev/zero of=/home/op/full/ballast bs=1k count=2000", check=False)
        problem = drive(clean, "install", version="1.0.0", home="/home/op/full", code=1)
        assert "free space" in problem["text"]
        sh(clean, "truncate -s 480k /home/op/full/ballast")
        problem = drive(clean, "install", version="1.0.0", home="/home/op/full", code=1)
        assert "free space" in problem["text"]
    finally:
        sh(clean, "umount /home/op/full", user="root")
    assert left_behind(clean) == ""


def test_sigkill_in_the_middle_of_an_install_is_undone_or_finished_whole(clean: Node) -> None:
    for phase in ("import", "write", "start", "health"):
        order = json.dumps({"version": "1.0.0"})
        process = clean.popen([*DRIVER, "install", order], cwd=SOURCE)
        process.wait_output(f'"phase": "{phase}"', timeout=60)
        process.kill()
        installed = drive(clean, "settle")
        if installed:
            assert page(clean) == "hello 1.0.0\n"
            drive(clean, "purge")
        assert left_behind(clean) == "", f"killed at {phase}"
        assert volumes(clean) == []


def test_stack_starts_in_order_with_checks_of_every_kind_and_reads_what_was_written(clean: Node) -> None:  # R-ST14
    nasty = "a b\t%h $HOME ${HOME} \"q\" 'x' \\n %% $$ ü".replace("\t", " ")
    check = ["/bin/busybox", "sh", "-c", 'test "$PLAIN" = "100% of \\$5" && test -d /data']
    cmd = {"cmd": check, "interval": 1, "timeout": 2, "retries": 3, "start_period": 10}
    tcp = {"tcp": {"port": 8080}, "interval": 1, "timeout": 2, "retries": 3, "start_period": 10}
    db = web_container(
        None, health=cmd, environment={"NASTY": nasty, "PLAIN": "100% of $5"}, network_aliases=["database"]
    )
    cache = web_container(None, health=tcp, mounts=[])
    web = web_container(18080, needs=["db", "cache"], mounts=[])
    status = drive(clean, "install", version="1.0.0", containers={"web": web, "db": db, "cache": cache})
    assert {c["name"]: c["health"] for c in status["containers"]} == dict.fromkeys(("web", "db", "cache"), "healthy")
    environment = sh(clean, f"podman exec {STEM}-db /bin/busybox env")
    assert f"NASTY={nasty}\n" in environment
    order = [int(prop(clean, "ActiveEnterTimestampMonotonic", f"{STEM}-{name}.service")) for name in ("db", "web")]
    assert order == sorted(order)
    answer = sh(clean, f"podman exec {STEM}-web /bin/busybox wget -qO- http://database:8080/")
    assert answer == "hello 1.0.0\n"


def test_app_without_internet_reaches_its_host_by_name_and_nothing_else(clean: Node) -> None:  # R-MF13, R-FM4
    drive(clean, "install", version="1.0.0")
    drive(clean, "install", version="1.0.0", id="other", port=18081, manifest={"permissions": {"internet": "outbound"}})
    other = AppName("did:key:zAlice", "other")
    inspect = "podman inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}'"
    address = sh(clean, f"{inspect} archy-{other.slug}-web").strip()
    wget = f"podman exec {STEM}-web /bin/busybox wget -T 3 -qO-"
    # The first is the other app, the second the host by an address of the LAN, the third the internet
    for target in (f"http://{address}:8080/", f"http://{clean.address}:18081/", "http://192.0.2.1/"):
        done = clean.run(["sh", "-c", f"{wget} {target}"], check=False)
        assert done.returncode != 0, f"{target} answered"
    names = clean.run(["sh", "-c", f"podman exec {STEM}-web /bin/busybox nslookup example.org"], check=False)
    assert "Address: 1" not in names.stdout, names.stdout
    routes = sh(clean, f"podman exec {STEM}-web /bin/busybox ip route").splitlines()
    assert [route.split()[0] for route in routes if "via" in route] == ["169.254.1.2"]
    service = clean.popen(["busybox", "httpd", "-f", "-p", "18085", "-h", "/etc"])  # the host's own
    try:
        clean.wait_until(["sh", "-c", "ss -tlnH | grep -q 18085"], timeout=20)
        for box in (f"{STEM}-web", f"archy-{other.slug}-web"):
            ask = f"podman exec {box} /bin/busybox wget -T 3 -qO- http://host.archipelago:18085/hostname"
            assert sh(clean, ask) == sh(clean, "cat /etc/hostname")
    finally:
        service.kill()
    back = f"podman exec archy-{other.slug}-web /bin/busybox wget -T 3 -qO-"
    own = sh(clean, f"{inspect} {STEM}-web").strip()
    assert clean.run(["sh", "-c", f"{back} http://{own}:8080/"], check=False).returncode != 0
    assert sh(clean, f"{back} http://host.archipelago:18080/") == "hello 1.0.0\n"


def test_host_is_reached_where_the_operators_own_settings_put_it(make_node: MakeNode) -> None:  # R-FM4
    node = make_node("conf")
    conf = ".config/containers/containers.conf"
    lines = '[network]\npasta_options = ["--map-guest-addr", "169.254.7.7"]\n[engine]\nnum_locks = 1024\n'
    sh(node, f"mkdir -p .config/containers && printf '%s' '{lines}' > {conf}")
    before = sh(node, f"cat {conf}; stat -c '%Y %i' {conf}")
    service = node.popen(["busybox", "httpd", "-f", "-p", "18085", "-h", "/etc"])
    try:
        drive(node, "install", version="1.0.0")
        drive(node, "settle")
        drive(node, "settle")
        hosts = sh(node, f"podman exec {STEM}-web /bin/busybox cat /etc/hosts")
        assert "169.254.7.7\thost.archipelago" in hosts
        ask = f"podman exec {STEM}-web /bin/busybox wget -T 3 -qO- http://host.archipelago:18085/hostname"
        assert sh(node, ask) == sh(node, "cat /etc/hostname")
    finally:
        service.kill()
    assert sh(node, f"cat {conf}; stat -c '%Y %i' {conf}") == before


def test_user_stop_holds_and_running_apps_are_back_after_a_reboot(make_node: MakeNode) -> None:  # R-ST2
    node = make_node("reboots")
    drive(node, "install", version="1.0.0")
    drive(node, "install", version="1.0.0", id="other", port=18081)
    drive(node, "stop", id="other")
    node.reboot(hard=True)
    deadline = time.monotonic() + 40
    while True:
        try:
            assert page(node) == "hello 1.0.0\n"
            break
        except OSError:
            assert time.monotonic() < deadline, node.journal(60)
            time.sleep(0.2)
    statuses = {status["id"]: status["state"] for status in drive(node, "status")}
    assert statuses == {"hello": "running", "other": "stopped"}
    drive(node, "settle")
    assert {status["id"]: status["state"] for status in drive(node, "status")} == statuses
