"""What an operator changes of an app, word by word: `archy` as a process, a running node, a pretended machine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from market.errors import Problem
from market.node.home import Home
from market.node.node import open_node
from market.node.operations import perform
from market.node.ports import OrchestratorPort
from market.service import running
from orchestrator import Finding
from tests.fakes.blob_servers import BlobServer
from tests.market.cli.archy import Answer, Archy
from tests.market.node.notes import NotesPublisher
from tests.market.node.operators import GOOD_MACHINE, Operator
from tests.market.node.test_market import app_of
from tests.market.square import Publisher
from tests.orchestrator.nodes import Node as Pretended

MANIFEST = """\
schema: 1
id: notes
version: "{version}"
title: Notes
containers:
  web:
    image: {{ref: "localhost/notes:{version}"}}
    ports: [{{name: web, container: 8080, host: auto}}]
    secrets: [{{name: password, file: /run/secrets/password}}]
generated_secrets:
  - {{name: password}}
  - {{name: token}}
settings:
  - {{name: greeting, default: Hello, env: {{web: GREETING}}}}
  - {{name: upload, type: size, default: 4GiB, env: {{web: MAX_UPLOAD}}}}
"""


class Configurable(NotesPublisher):
    """Packs an app with settings and secrets."""

    manifest = MANIFEST


@pytest.fixture
def publisher(tmp_path: Path, relay_url: str) -> Publisher:
    return Configurable(tmp_path / "publisher", relay_url)


@pytest.fixture
def installed(publisher: Publisher, origin: BlobServer, operator: Operator) -> Operator:
    publisher.bring("1.0.0", [origin.url])
    operator.trust(publisher)
    operator.install(app_of(publisher, "notes"))
    return operator


def with_node(operator: Operator, work: Callable[[Callable[..., Answer]], None]) -> None:
    """Run `work` in a thread beside a running node; what it is given is `archy`, a process for every call."""

    async def main() -> None:
        async with (
            open_node(operator.home, open_apps=_apps, preflight=_preflight) as node,
            running(node),
        ):
            await trio.to_thread.run_sync(work, Archy(operator.home.root))

    @asynccontextmanager
    async def _apps(home: Home, prefix: str) -> AsyncIterator[OrchestratorPort]:
        yield operator.machine.restart()

    async def _preflight() -> tuple[Finding, ...]:
        return GOOD_MACHINE

    trio.run(main)


def box(machine: Pretended) -> Any:
    (found,) = machine.world.containers.values()
    return found


def test_settings_are_shown_changed_and_given_back(installed: Operator) -> None:
    def work(archy: Callable[..., Answer]) -> None:
        shown = archy("config", "notes")
        assert (shown.code, shown.err) == (0, "")
        assert "greeting=Hello  text" in shown.out
        before = box(installed.machine).id
        changed = archy("config", "notes", "greeting=Good day", "upload=3MiB", "--json")
        assert changed.code == 0, changed
        assert changed.json["schema"] == "archy/app-settings/1"
        assert [(s["name"], s["value"]) for s in changed.json["settings"]] == [
            ("greeting", "Good day"),
            ("upload", "3MiB"),
        ]
        assert box(installed.machine).id != before
        unit = next(installed.machine.settings.unit_dir.glob("*-web.container")).read_text()
        assert 'Environment="GREETING=Good day"' in unit
        assert "Environment=MAX_UPLOAD=3145728" in unit
        back = archy("config", "notes", "--reset", "greeting")
        assert "greeting=Hello" in back.out

    with_node(installed, work)


WRONG = (
    (["config", "notes", "upload=much"], 2, "not a size"),
    (["config", "notes", "colour=red"], 2, "no setting 'colour'"),
    (["config", "nothing", "a=b"], 2, "not installed"),
    (["secrets", "show", "notes", "nothing"], 2, "its secrets: password, token"),
    (["secrets", "rotate", "notes", "nothing", "--yes"], 2, "its secrets: password, token"),
    (["secrets", "rotate", "notes", "password"], 2, "--yes"),
    (["adopt", "nothing", "--yes"], 2, "is not here without being known"),
)


def test_what_is_wrong_is_told_with_its_exit_code_and_changes_nothing(installed: Operator) -> None:
    def work(archy: Callable[..., Answer]) -> None:
        before = installed.machine.changes()
        for words, code, told in WRONG:
            answer = archy(*words)
            assert (answer.code, answer.out) == (code, ""), answer
            assert told in answer.err
            assert "Traceback" not in answer.err
        assert installed.machine.changes() == before

    with_node(installed, work)


def test_secrets_are_shown_and_rotated_by_command_and_never_told_by_the_way(installed: Operator) -> None:  # R-MF3
    def work(archy: Callable[..., Answer]) -> None:
        shown = archy("secrets", "show", "notes", "--json").json["secrets"]
        assert set(shown) == {"password", "token"}
        assert archy("secrets", "show", "notes", "password").out == shown["password"] + "\n"
        rotated = archy("--progress", "always", "secrets", "rotate", "notes", "password", "--yes")
        assert rotated.code == 0, rotated
        after = archy("secrets", "show", "notes", "--json").json["secrets"]
        assert after["password"] != shown["password"]
        assert after["token"] == shown["token"]
        assert list(box(installed.machine).secrets.values()) == [after["password"].encode()]
        assert not any(value in rotated.out + rotated.err for value in (*shown.values(), *after.values()))

    with_node(installed, work)


def test_a_rotation_that_the_app_does_not_survive_is_taken_back_with_its_own_exit_code(installed: Operator) -> None:
    def work(archy: Callable[..., Answer]) -> None:
        before = archy("secrets", "show", "notes", "--json").json["secrets"]
        installed.machine.world.crashing.add(box(installed.machine).image_id)
        answer = archy("secrets", "rotate", "notes", "password", "--yes")
        assert answer.code == 7, answer
        assert "the old one is back" in answer.err
        assert archy("secrets", "show", "notes", "--json").json["secrets"] == before

    with_node(installed, work)


def lose_database(operator: Operator) -> None:
    operator.machine.state.close()
    for path in operator.machine.settings.state_db.parent.glob("state.db*"):
        path.unlink()
    operator.machine.boot()


def test_an_app_whose_entry_was_lost_is_adopted_as_it_runs_and_updated_later(
    publisher: Publisher, origin: BlobServer, installed: Operator
) -> None:  # R-ST7
    publisher.bring("1.1.0", [origin.url])
    installed.do(("search", {}))
    before = dict(installed.machine.world.containers)
    lose_database(installed)

    def work(archy: Callable[..., Answer]) -> None:
        assert archy("ps").out.startswith("Nothing is installed")
        found = archy("adopt", "--check", "--json").json["apps"]
        assert [(one["id"], one["version"], one["running"]) for one in found] == [("notes", "1.0.0", True)]
        refused = archy("install", app_of(publisher, "notes"), "--yes")
        assert (refused.code, "archy adopt notes" in refused.err) == (3, True), refused
        adopted = archy("adopt", "--yes")
        assert (adopted.code, adopted.out) == (0, "notes 1.0.0 is running\n"), adopted
        assert installed.machine.world.containers == before
        assert archy("adopt").out == "Nothing runs here that is not known.\n"
        assert archy("update", "notes", "--yes").code == 0
        assert [row["version"] for row in archy("ps", "--json").json["apps"]] == ["1.1.0"]

    with_node(installed, work)


def test_an_app_of_nobody_who_is_known_is_left_and_told(installed: Operator) -> None:  # R-ST7
    lose_database(installed)
    units = installed.machine.settings.unit_dir
    (unit,) = units.glob("*-web.container")
    stranger = unit.read_text().replace("notes-", "other-")
    (units / unit.name.replace("notes-", "other-")).write_text(stranger)

    def work(archy: Callable[..., Answer]) -> None:
        answer = archy("adopt", "--yes", "--json").json
        assert [one["status"]["id"] for one in answer["adopted"]] == ["notes"]
        (left,) = answer["left"]
        assert "no publisher that is known here has such an app" in left["why"]
        assert archy("adopt", "--yes").code == 3

    with_node(installed, work)


def test_what_a_verdict_refuses_is_not_taken_back(publisher: Publisher, installed: Operator) -> None:
    lose_database(installed)
    installed.do(("anchors.remove", {"who": publisher.did}))

    async def check() -> None:
        async with open_node(installed.home, open_apps=installed._apps, preflight=installed._preflight) as node:
            with pytest.raises(Problem, match="no anchors"):
                await perform(node, "adopt", {}, lambda event: None)

    trio.run(check)
    assert installed.nothing_installed() is False


def test_a_machine_that_does_not_answer_keeps_no_lost_secret_from_the_doctor(
    installed: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:  # R-FM6, R-MF3
    monkeypatch.setattr("market.node.settings.CHECKUP_SECONDS", 0.1)
    installed.machine.world.silent = True
    for value in (installed.machine.settings.data_dir / "secrets").rglob("password*"):
        value.unlink()
    found = {finding["name"]: finding["detail"] for finding in installed.do(("doctor", {}))["findings"]}
    assert "does not answer within 0.1 s" in found["apps"]
    assert "password" in found["secrets"]
