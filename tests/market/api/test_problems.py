"""A problem that crosses the control socket arrives as what it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from market.api.problems import problem_from_json, problem_to_json
from market.errors import EnvironmentLacks, Problem, Refused, RolledBack, UsageProblem
from orchestrator.faults import PortTaken
from orchestrator.links import StillNeeded


def kinds(base: type[Problem]) -> Iterator[type[Problem]]:
    yield base
    for kind in base.__subclasses__():
        yield from kinds(kind)


@pytest.mark.parametrize("kind", [Problem, UsageProblem, Refused, EnvironmentLacks, RolledBack])
def test_problem_survives_the_wire(kind: type[Problem]) -> None:
    sent = kind("what", where="where", remedy="remedy")
    got = problem_from_json(problem_to_json(sent))
    assert type(got) is kind
    assert (got.what, got.where, got.remedy, got.exit_code) == ("what", "where", "remedy", kind.exit_code)


@pytest.mark.parametrize("kind", [StillNeeded, PortTaken])
def test_problem_of_one_part_only_keeps_its_name_and_exit_code(kind: type[Problem]) -> None:
    told = problem_to_json(kind("what", where="where", remedy="remedy"))
    got = problem_from_json(told)
    assert isinstance(got, Refused)
    assert problem_to_json(got) == told


def test_every_problem_there_is_ends_a_command_as_it_would_without_a_socket() -> None:
    for kind in kinds(Problem):
        body = {"type": f"urn:archy:problem:{kind.kind}", "title": "x", "exit_code": kind.exit_code}
        assert problem_from_json(body).exit_code == kind.exit_code, kind


def test_unknown_type_is_still_a_problem() -> None:
    assert problem_from_json({"type": "urn:x:y", "title": "t"}).what == "t"


@pytest.mark.parametrize("code", [None, "3", [3], 77])
def test_body_of_somebody_else_is_a_plain_problem(code: object) -> None:
    got = problem_from_json({"type": 7, "exit_code": code})
    assert (got.exit_code, got.what) == (1, "unknown problem")
