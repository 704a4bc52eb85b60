"""What the commands about installed apps print, from what the node says."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from click.testing import CliRunner

from market.cli.node import config, doctor, logs, ps
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
    assert "should run and does not: did:key:zB/hello;" in done.stderr


def test_a_fix_that_did_not_work_is_not_told_as_fixed(tmp_path: Path) -> None:
    finding = {"name": "linger", "ok": False, "detail": "apps stop", "remedy": "loginctl enable-linger op"}
    said = {"ok": False, "findings": [finding], "fixed": ["linger: loginctl enable-linger op: Access denied"]}
    done = CliRunner().invoke(doctor, ["--fix"], obj=told(tmp_path, said), standalone_mode=False)
    assert done.stdout.splitlines()[0] == "tried linger: loginctl enable-linger op: Access denied"


def test_an_app_that_said_nothing_is_told_so(tmp_path: Path) -> None:
    done = CliRunner().invoke(logs, ["hello"], obj=told(tmp_path, {"lines": []}), standalone_mode=False)
    assert done.stdout == "hello has written nothing.\n"


def test_a_changed_setting_is_shown_with_its_default(tmp_path: Path) -> None:
    setting = {"name": "greeting", "value": "Ahoy", "default": "Hello", "type": "text", "title": "What it says"}
    done = CliRunner().invoke(config, ["hello"], obj=told(tmp_path, {"settings": [setting]}), standalone_mode=False)
    assert done.stdout.splitlines()[1].split() == ["greeting=Ahoy", "text", "default", "Hello", "What", "it", "says"]
