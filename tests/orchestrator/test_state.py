"""The database: migrations, the journal, and faults told with a remedy."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from apps.names import AppName
from orchestrator.faults import Busy, StateProblem
from orchestrator.state import Operation, OpState, State
from orchestrator.state_schema import MIGRATIONS
from tests.orchestrator.bundles import app_name

HELLO = app_name()


def begin(state: State, version: str = "1", name: AppName = HELLO) -> Operation:
    return state.begin_install(
        name, version=version, digest="d", root=Path("/b"), manifest="{}", volumes=("v",), secrets=()
    )


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State.open(tmp_path / "home" / "state.db")


def test_opening_again_migrates_nothing_and_keeps_everything(tmp_path: Path) -> None:
    first = State.open(tmp_path / "state.db")
    first.commit(begin(first))
    first.close()
    again = State.open(tmp_path / "state.db")
    assert [record.generation for record in again.apps()] == [1]
    with sqlite3.connect(tmp_path / "state.db") as plain:
        assert plain.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert plain.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_database_of_a_newer_node_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "state.db") as plain:
        plain.execute("PRAGMA user_version = 99")
    with pytest.raises(StateProblem, match=r"newer version \(99\).*upgrade the node"):
        State.open(tmp_path / "state.db")


def test_what_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"not a database at all, but long enough to look at" * 100)
    with pytest.raises(StateProblem, match=r"restore state\.db from a backup"):
        State.open(tmp_path / "state.db")


def test_an_app_has_one_open_operation(state: State) -> None:  # R-ST20
    begin(state)
    with pytest.raises(Busy, match="another operation"):
        begin(state, "2")
    assert [g.number for g in state.generations(HELLO)] == [1]
    begin(state, "1", app_name("other"))


def test_a_generation_holds_only_from_its_commit_on(state: State) -> None:
    operation = begin(state)
    assert state.app(HELLO) is not None
    assert [record.generation for record in state.apps()] == [None]
    (found,) = state.open_operations()
    assert (found.state, found.volumes, found.kind) == (OpState.STAGED, ("v",), "install")
    state.commit(operation)
    assert [record.generation for record in state.apps()] == [1]
    assert not state.open_operations()


def test_undoing_a_first_install_forgets_the_app_and_undoing_an_update_does_not(state: State) -> None:
    state.undo(begin(state))
    assert state.apps() == ()
    state.commit(begin(state))
    state.want(HELLO, "stopped")
    update = begin(state, "2")
    assert update.kind == "update"
    state.undo(update)
    (record,) = state.apps()
    assert (record.generation, record.desired) == (1, "stopped")


def test_an_uninstall_wants_the_app_stopped_from_its_first_moment(state: State) -> None:
    state.commit(begin(state))
    operation = state.begin_uninstall(HELLO, purge=True)
    (record,) = state.apps()
    assert record.desired == "stopped"
    assert state.open_operations()[0].purge
    state.forget(operation)
    assert state.apps() == ()


def test_only_the_generation_to_return_to_is_kept(state: State) -> None:
    for version in ("1", "2", "3", "4"):
        state.commit(begin(state, version))
    assert [g.version for g in state.generations(HELLO)] == ["3", "4"]
