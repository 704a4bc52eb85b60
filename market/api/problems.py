"""Problems on the wire: RFC 9457 problem+json, and back. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from market.errors import (
    EnvironmentLacks,
    NotRunning,
    Problem,
    Refused,
    RolledBack,
    StillRunning,
    Unreachable,
    UsageProblem,
)

_KINDS: dict[str, type[Problem]] = {
    kind.kind: kind
    for kind in (
        Problem,
        UsageProblem,
        Refused,
        EnvironmentLacks,
        NotRunning,
        Unreachable,
        RolledBack,
        StillRunning,
    )
}
_BY_CODE = {kind.exit_code: kind for kind in _KINDS.values()}
_STATUS = {2: 400, 3: 403, 4: 503, 5: 409, 6: 503}


def problem_to_json(problem: Problem) -> dict[str, Any]:
    """`type`, `title`, `detail`, `status` as RFC 9457 says; `where`, `remedy` and `exit_code` are this project's."""
    body = {
        "type": f"urn:archy:problem:{problem.kind}",
        "title": (problem.what.splitlines() or [""])[0],
        "status": _STATUS.get(problem.exit_code, 500),
        "detail": str(problem),
        "where": problem.where,
        "remedy": problem.remedy,
        "exit_code": problem.exit_code,
    }
    errors = getattr(problem, "errors", None)
    if errors:
        body["errors"] = [{"path": path, "message": message, "remedy": remedy} for path, message, remedy in errors]
    return body


def problem_from_json(body: Mapping[str, Any]) -> Problem:
    """The exception that `problem_to_json` told of.

    A type that is known only to the part it came from keeps its name, and becomes one of the shared kinds by its exit
    code: a script sees the same through a running node and without one.
    """
    kind = str(body.get("type", "")).rpartition(":")[2]
    made = (_KINDS.get(kind) or _special(kind, body.get("exit_code")))(
        str(body.get("title", "unknown problem")),
        where=str(body.get("where", "")),
        remedy=str(body.get("remedy", "")),
    )
    errors = body.get("errors")
    if isinstance(errors, list):
        made.errors = tuple((str(e["path"]), str(e["message"]), str(e["remedy"])) for e in errors)  # type: ignore[attr-defined]
    return made


def _special(kind: str, code: object) -> type[Problem]:
    base = _BY_CODE.get(code, Problem) if isinstance(code, int) else Problem
    return type(base.__name__, (base,), {"kind": kind}) if kind else base
