"""Nodes for tests. Everything below this folder is marked `lab`; where the lab can not run, it is skipped with the
reason, except under CI (environment CI=true), where that is a failure. The base is built before the first test, since
it takes longer than a test may. A failed test's report ends with the journals of its nodes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from apps.problems import Problem
from tests.system.lab import Base, LabFault, LabUnavailable, Node, ensure_base, why_unavailable

_HERE = Path(__file__).resolve().parent
_JOURNAL_LINES = 150

_BASE: pytest.StashKey[Base | LabUnavailable | LabFault] = pytest.StashKey()
_NODES: pytest.StashKey[list[Node]] = pytest.StashKey()

MakeNode = Callable[[str], Node]


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.lab)


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.option.collectonly or not any(item.path.is_relative_to(_HERE) for item in session.items):
        return
    terminal = session.config.pluginmanager.getplugin("terminalreporter")

    def report(line: str) -> None:
        if isinstance(terminal, pytest.TerminalReporter):
            terminal.write_line(f"lab: {line}")
            terminal.flush()

    try:
        reason = why_unavailable()
        if reason is not None:
            raise LabUnavailable(reason)
        session.config.stash[_BASE] = ensure_base(report)
    except (LabUnavailable, LabFault) as problem:
        session.config.stash[_BASE] = problem


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    match item.config.stash[_BASE]:
        case LabFault() as fault:
            pytest.fail(str(fault), pytrace=False)
        case LabUnavailable() as lack if os.environ.get("CI", "").lower() == "true":
            pytest.fail(f"CI must run the lab: {lack}", pytrace=False)
        case LabUnavailable() as lack:
            pytest.skip(f"no lab: {lack}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for node in item.config.stash.get(_NODES, []):
            try:
                said = node.journal(_JOURNAL_LINES)
            except Problem as problem:
                said = f"no journal: {problem}\n{node.console()}"
            report.sections.append((f"journal of {node.name} ({node.address})", said))
    return report


@pytest.fixture(scope="session")
def lab_base(pytestconfig: pytest.Config) -> Base:
    """The cached base, already built."""
    base = pytestconfig.stash[_BASE]
    assert isinstance(base, Base)
    return base


@pytest.fixture(scope="module")
def node(pytestconfig: pytest.Config, lab_base: Base) -> Iterator[Node]:
    """One node for all tests of a module."""
    with _booted(pytestconfig, lab_base, "node") as booted:
        yield booted


@pytest.fixture
def make_node(pytestconfig: pytest.Config, lab_base: Base) -> Iterator[MakeNode]:
    """Boots nodes of given names for one test."""
    with contextlib.ExitStack() as stack:
        yield lambda name: stack.enter_context(_booted(pytestconfig, lab_base, name))


@contextlib.contextmanager
def _booted(config: pytest.Config, base: Base, name: str) -> Iterator[Node]:
    nodes = config.stash.setdefault(_NODES, [])
    with Node.boot(base, name) as booted:
        nodes.append(booted)
        try:
            yield booted
        finally:
            nodes.remove(booted)
