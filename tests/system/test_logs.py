"""What an operator reads: `archy logs`, `logs -f` (an app's words as they come, and nothing of others), `archy ps`."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator

import pytest

from tests.orchestrator.driver import web_container
from tests.system.lab import Base, Node, NodeProcess
from tests.system.test_orchestrator import SERVICE, drive, sh

HOME = "/home/op/archy-home"
SECONDS = 60.0
TALK = (
    "[ ! -e /data/bad ] || exit 3; "
    "/bin/busybox echo \"$0 begins\"; printf '\\033[31mred\\033[0m\\n'; exec /bin/busybox httpd -f -p 8080 -h /www"
)
SILENT_SECONDS = 20.0
"""It takes ten; a machine that is busy with other tests has as many again. Podman's own deadlines add up to minutes."""
NO_PS = '#!/bin/sh\n[ "$1" != ps ] || { echo "broken" >&2; exit 125; }\nexec /usr/bin/podman "$@"\n'


@pytest.fixture(scope="module")
def talking(lab_base: Base) -> Iterator[Node]:
    """Two apps whose first words are their names, and then something for the terminal."""
    with Node.boot(lab_base, "logs") as node:
        for id_, port in (("hello", 18080), ("other", 18081)):
            web = web_container(port, command=["/bin/busybox", "sh", "-c", TALK, id_])
            door = {"interfaces": [{"id": "ui", "type": "ui", "port": "web"}]}
            drive(node, "install", version="1.0.0", id=id_, containers={"web": web}, manifest=door, home=HOME)
        yield node


def logs(node: Node, *words: str, env: dict[str, str] | None = None) -> NodeProcess:
    return node.popen(["archy", "--home", HOME, "logs", *words], env=env)


def said(node: Node, *words: str) -> list[str]:
    return node.run(["archy", "--home", HOME, "logs", *words], timeout=SECONDS).stdout.splitlines()


def test_logs_end_with_the_newest_line_and_hold_only_this_apps(talking: Node) -> None:
    lines = said(talking, "hello")
    assert any(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:+]+ web: hello begins", line) for line in lines), lines
    assert not any("other begins" in line for line in lines)
    assert said(talking, "hello", "-n", "1") == lines[-1:]


def test_followed_logs_go_on_over_a_restart_and_end_with_ctrl_c(talking: Node) -> None:
    follow = logs(talking, "hello", "-f", "-n", "2")
    follow.wait_output("hello begins", SECONDS)
    talking.run(["systemctl", "--user", "restart", SERVICE])
    follow.wait_output(r"(?s)hello begins.*hello begins", SECONDS)
    assert "other begins" not in follow.output()
    follow.send_signal(signal.SIGINT)
    assert follow.wait(SECONDS) == 130
    assert "Traceback" not in follow.output()
    assert sh(talking, "pgrep -u op journalctl", check=False) == "", "journalctl was left behind"


def test_a_container_can_not_drive_the_terminal_of_who_reads_its_logs(talking: Node) -> None:
    follow = logs(talking, "hello", "-f")
    follow.wait_output("red", SECONDS)
    follow.kill()
    assert "\x1b" not in follow.output()


def test_followed_logs_are_a_json_string_a_line_for_programs(talking: Node) -> None:
    follow = logs(talking, "hello", "-f", "-n", "2", "--json")
    follow.wait_output("begins", SECONDS)
    follow.kill()
    lines = [json.loads(line) for line in follow.output().splitlines() if line.startswith('"')]
    assert any(str(line).endswith("hello begins") for line in lines)


def test_nobody_elses_journal_is_followed_when_podman_does_not_tell_containers(talking: Node) -> None:  # R-ST11
    talking.write("/home/op/broken/podman", NO_PS.encode(), mode=0o755)
    follow = logs(talking, "hello", "-f", env={"PATH": "/home/op/broken:/usr/local/bin:/usr/bin:/bin"})
    assert follow.wait(SECONDS) == 5
    assert "its containers are not known: stale" in follow.output()
    assert "begins" not in follow.output()


def test_logs_of_an_unknown_app_are_a_usage_error(talking: Node) -> None:
    follow = logs(talking, "nothing", "-f")
    assert follow.wait(SECONDS) == 2
    assert "archy ps" in follow.output()


def test_ps_says_how_many_containers_are_up_and_where_an_app_opens(talking: Node) -> None:  # R-ST3
    drive(talking, "stop", id="other", home=HOME)
    done = talking.run(["archy", "--home", HOME, "ps"], timeout=SECONDS)
    head, hello, other = done.stdout.splitlines()
    assert head.split() == ["APP", "VERSION", "STATE", "FOR", "UP", "OPEN"]
    assert re.fullmatch(r"hello +1\.0\.0 +running +\d+ (s|min) +1/1 +http://127\.0\.0\.1:18080/.*", hello), hello
    assert re.fullmatch(r"other +1\.0\.0 +stopped +(\d+ s)? +0/1", other), other
    talking.run(["systemctl", "--user", "stop", SERVICE])
    down = talking.run(["archy", "--home", HOME, "ps"], timeout=SECONDS, check=False)
    assert down.returncode == 5
    assert down.stderr.splitlines()[-2:] == ["archy: should run and does not: hello", "  -> archy logs hello"]


def test_a_silent_podman_holds_up_neither_ps_nor_the_doctor(talking: Node) -> None:  # R-ST11, R-FM6
    talking.write("/home/op/silent/podman", b"#!/bin/sh\nexec sleep 600\n", mode=0o755)
    env = {"PATH": "/home/op/silent:/usr/local/bin:/usr/bin:/bin"}
    for word, code in (("ps", 5), ("doctor", 4)):
        begun = time.monotonic()
        done = talking.run(["archy", "--home", HOME, word], env=env, timeout=SECONDS, check=False)
        assert time.monotonic() - begun < SILENT_SECONDS, word
        assert done.returncode == code, done
        if word == "ps":
            assert [line.split()[:3] for line in done.stdout.splitlines()[1:]] == [
                ["hello", "1.0.0", "unknown"],
                ["other", "1.0.0", "unknown"],
            ]
            assert done.stderr.splitlines()[-1] == "  -> archy doctor"
            assert "podman: does not answer within" in done.stderr
        else:
            told = dict(re.findall(r"^(?:ok  |LACK) (\S+(?: \S+)*?)  +(.+)$", done.stdout, re.MULTILINE))
            assert told["podman"].startswith("does not answer within")
            assert told["apps"].startswith("not known: ")
            assert told["user systemd"].split(";")[0] in ("running", "degraded")
            assert "disk" in told


def test_who_reads_no_more_ends_followed_logs_though_the_app_is_quiet(talking: Node) -> None:
    done = talking.run(["sh", "-c", f"archy --home {HOME} logs hello -f -n 2 | head -n 1"], timeout=SECONDS)
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert sh(talking, "pgrep -u op journalctl", check=False) == "", "journalctl was left behind"


def test_ps_tells_with_which_exit_code_an_app_ends_again_and_again(talking: Node) -> None:
    drive(talking, "start", id="other", home=HOME)
    container = sh(talking, "podman ps --format '{{.Names}}' --filter name=archy-other").strip()
    sh(talking, f"podman exec {container} /bin/busybox touch /data/bad && podman kill {container}")
    deadline = time.monotonic() + SECONDS
    while True:
        done = talking.run(["archy", "--home", HOME, "ps"], timeout=SECONDS, check=False)
        if "exit code 3" in done.stdout or time.monotonic() > deadline:
            break
        time.sleep(1)
    (other,) = (line for line in done.stdout.splitlines() if line.startswith("other"))
    assert re.search(r" (restarting|failed) +\d+ s +0/1  web: exit code 3(, restarted \d+ times?)?$", other), other
    assert done.returncode == 5


def test_what_a_removed_app_wrote_can_still_be_read(talking: Node) -> None:
    drive(talking, "uninstall", id="other", home=HOME)
    done = talking.run(["archy", "--home", HOME, "logs", "other"], timeout=SECONDS)
    assert any(line.endswith("web: other begins") for line in done.stdout.splitlines())
    assert "hello begins" not in done.stdout
    assert "not installed any more" in done.stderr
    assert all(line.startswith("archy: ") for line in done.stderr.splitlines()), done.stderr
    assert logs(talking, "other", "-f").wait(SECONDS) == 2
