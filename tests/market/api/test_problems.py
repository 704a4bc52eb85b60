"""A problem that crosses the control socket arrives as what it was."""

from __future__ import annotations

import pytest

from market.api.problems import problem_from_json, problem_to_json
from market.errors import EnvironmentLacks, Problem, Refused, RolledBack, UsageProblem


@pytest.mark.parametrize("kind", [Problem, UsageProblem, Refused, EnvironmentLacks, RolledBack])
def test_problem_survives_the_wire(kind: type[Problem]) -> None:
    sent = kind("what", where="where", remedy="remedy")
    got = problem_from_json(problem_to_json(sent))
    assert type(got) is kind
    assert (got.what, got.where, got.remedy, got.exit_code) == ("what", "where", "remedy", kind.exit_code)


def test_unknown_type_is_still_a_problem() -> None:
    assert problem_from_json({"type": "urn:x:y", "title": "t"}).what == "t"
