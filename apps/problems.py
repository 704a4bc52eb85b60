"""Faults that a person can act on: what happened, where, and how to mend it.

Every exception that may reach a user derives from `Problem`; a door prints it and leaves with its exit code.
The exit codes are documented in docs/cli.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class Problem(Exception):
    """A fault told in three parts: what, where (file, key path, relay, peer) and remedy.

    `kind` is a stable slug for machines (problem+json's `type`, RFC 9457); `exit_code` is the process's.
    """

    kind: ClassVar[str] = "failed"
    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text} ({self.remedy})" if self.remedy else text


class UsageProblem(Problem):
    """The request itself is wrong: a flag, an argument, a missing answer without a terminal."""

    kind = "usage"
    exit_code = 2


class Refused(Problem):
    """Refused by verification or policy; nothing was changed."""

    kind = "refused"
    exit_code = 3


class EnvironmentLacks(Problem):
    """The machine lacks something; the remedy is the command that mends it."""

    kind = "environment"
    exit_code = 4


class NotRunning(Problem):
    """A state query about something that does not run."""

    kind = "not-running"
    exit_code = 5


class Unreachable(Problem):
    """The node can not be reached."""

    kind = "unreachable"
    exit_code = 6


class RolledBack(Problem):
    """The new state did not prove itself, and the old one is back."""

    kind = "rolled-back"
    exit_code = 7


class StillRunning(Problem):
    """The deadline of the wait passed; the operation goes on."""

    kind = "still-running"
    exit_code = 8


def only_problem(group: BaseExceptionGroup[BaseException]) -> Problem | None:
    """The first problem of a nursery's group, which is what a person needs; None where anything else is in it."""
    problems, rest = group.split(Problem)
    first: BaseException | None = problems if rest is None else None
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first if isinstance(first, Problem) else None


@contextmanager
def ungrouped() -> Iterator[None]:
    """A problem leaves this as it is, also out of nurseries within; a group with anything else in it stays one."""
    try:
        yield
    except BaseExceptionGroup as group:
        if (problem := only_problem(group)) is None:
            raise
        raise problem from group
