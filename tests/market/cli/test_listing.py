"""What the commands about installed apps print, from what the node says."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar

from click.testing import CliRunner

from market.cli.node import config, secrets, start
from market.cli.reading import doctor, logs, ps
from market.cli.session import Session
from market.node.home import Home


class Told(Session):
    """A session whose node says one thing."""

    said: ClassVar[dict[str, Any]]

    def call(self, name: str, **params: Any) -> dict[str, Any]:
        return self.said


def told(tmp_path: Path, said: dict[str, Any]) -> Session:
    Told.said = said
    return Told(Home(tmp_path), False)


def app(publisher: str, id_: str, state: str) -> dict[str, Any]:
    row: dict[str, Any] = {"publisher": publisher, "id": id_, "version": "1.0.0", "state": state, "desired": "running"}
    return row | {"containers": [], "urls": [], "detail": "", "adopted": False}


def test_two_apps_of_one_id_are_named_as_commands_take_them(tmp_path: Path) -> None:  # R-MF14
    rows = [
        app("did:key:zA", "hello", "running"),
        app("did:key:zB", "hello", "failed"),
        app("did:key:zA", "x", "running"),
    ]
    done = CliRunner().invoke(ps, obj=told(tmp_path, {"apps": rows}), standalone_mode=False)
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "APP",
        "did:key:zA/hello",
        "did:key:zB/hello",
        "x",
    ]
    assert done.stderr == "archy: should run and does not: did:key:zB/hello\n  -> archy logs did:key:zB/hello\n"


def box(name: str, **more: Any) -> dict[str, Any]:
    well = {"state": "running", "health": "healthy", "detail": "", "restarts": 0, "companion": False}
    return {"name": name} | well | more


def shown(tmp_path: Path, *rows: dict[str, Any]) -> tuple[list[str], str]:
    done = CliRunner().invoke(ps, obj=told(tmp_path, {"apps": list(rows)}), standalone_mode=False)
    return done.stdout.splitlines(), done.stderr


def test_a_container_that_is_not_well_is_named_with_what_is_the_matter(tmp_path: Path) -> None:  # R-ST5
    ill = app("did:key:zA", "ill", "unhealthy") | {"urls": ["http://127.0.0.1:1/"]}
    ill |= {"containers": [box("db"), box("web", health="unhealthy", detail="HTTP status 404")]}
    crashing = app("did:key:zA", "crashing", "restarting") | {"urls": ["http://127.0.0.1:2/"]}
    web = box("web", state="restarting", health="unknown", restarts=7, detail="exit code 3")
    crashing |= {"containers": [box("db"), web]}
    again = app("did:key:zA", "again", "running") | {"containers": [box("web", restarts=1)]}
    lines, err = shown(tmp_path, ill, crashing, again)
    assert [line.split()[2:] for line in lines[1:]] == [
        ["unhealthy", "2/2", "http://127.0.0.1:1/", "web:", "HTTP", "status", "404"],
        ["restarting", "1/2", "web:", "exit", "code", "3,", "restarted", "7", "times"],  # it opens nowhere
        ["running", "1/1", "web:", "restarted", "1", "time"],
    ]
    assert err == "archy: should run and does not: ill, crashing\n  -> archy logs APP\n"


def test_an_app_is_as_it_is_for_as_long_as_all_of_it_is(tmp_path: Path) -> None:
    moments = {"db": 7300, "web": 190, "aside": 5}
    boxes = [box(name, since=int(time.time()) - ago, companion=name == "aside") for name, ago in moments.items()]
    known = app("did:key:zA", "known", "running") | {"containers": boxes}
    stale = known | {"id": "stale", "detail": "stale: podman is silent"}
    unknown = known | {"id": "unknown", "containers": [box("db", since=None)]}
    lines, _ = shown(tmp_path, known, stale, unknown)
    assert [line.split()[3:6] for line in lines[1:]] == [["3", "min", "3/3"], ["3/3", "stale:", "podman"], ["1/1"]]


def test_what_keeps_every_app_unknown_is_told_once_and_leads_to_the_doctor(tmp_path: Path) -> None:  # R-ST11
    rows = [app("did:key:zA", id_, "unknown") | {"detail": "stale: podman is silent"} for id_ in ("a", "b")]
    lines, err = shown(tmp_path, *rows)
    assert [line.split() for line in lines[1:]] == [["a", "1.0.0", "unknown", "-"], ["b", "1.0.0", "unknown", "-"]]
    assert err == "archy: how these apps are is not known: podman is silent\n  -> archy doctor\n"


def test_a_node_without_apps_leads_to_the_market(tmp_path: Path) -> None:
    assert shown(tmp_path) == (["Nothing is installed; `archy search` shows what there is."], "")


def test_an_app_without_secrets_is_told_so(tmp_path: Path) -> None:
    said = {"app": "did:key:zA/hello", "secrets": {}}
    done = CliRunner().invoke(secrets, ["show", "hello"], obj=told(tmp_path, said), standalone_mode=False)
    assert done.stdout == "hello has no secrets.\n"


def test_an_app_that_is_started_is_told_with_where_it_opens(tmp_path: Path) -> None:
    said = {"status": app("did:key:zA", "hello", "running") | {"urls": ["http://127.0.0.1:18080/"]}}
    done = CliRunner().invoke(start, ["hello"], obj=told(tmp_path, said), standalone_mode=False)
    assert done.stdout == "hello 1.0.0 is running: http://127.0.0.1:18080/\n"


def test_a_fix_that_did_not_work_is_not_told_as_fixed(tmp_path: Path) -> None:
    finding = {"name": "linger", "ok": False, "detail": "apps stop", "remedy": "loginctl enable-linger op"}
    said = {"ok": False, "findings": [finding], "fixed": ["linger: loginctl enable-linger op: Access denied"]}
    done = CliRunner().invoke(doctor, ["--fix"], obj=told(tmp_path, said), standalone_mode=False)
    assert done.stdout.splitlines()[0] == "tried linger: loginctl enable-linger op: Access denied"


def test_an_app_that_said_nothing_is_told_so(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        logs,
        ["hello"],
        obj=told(tmp_path, {"lines": [], "units": ["archy-hello-1-web.service"]}),
        standalone_mode=False,
    )
    assert done.stdout == "hello has written nothing.\n  -> journalctl --user -u archy-hello-1-web.service\n"


def test_a_changed_setting_is_shown_with_its_default(tmp_path: Path) -> None:
    setting = {"name": "greeting", "value": "Ahoy", "default": "Hello", "type": "text", "title": "What it says"}
    done = CliRunner().invoke(config, ["hello"], obj=told(tmp_path, {"settings": [setting]}), standalone_mode=False)
    assert done.stdout.splitlines()[1].split() == ["greeting=Ahoy", "text", "default", "Hello", "What", "it", "says"]
