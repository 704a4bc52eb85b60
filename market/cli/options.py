"""Options and questions that several commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import click

from market.cli.session import Session
from market.errors import Problem, UsageProblem

F = TypeVar("F", bound=Callable[..., Any])


def _set_json(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.obj = replace(context.find_object(Session), as_json=True)  # type: ignore[type-var]


def json_option(command: F) -> F:
    """`--json` after the command's name, as well as before it."""
    return click.option(
        "--json", is_flag=True, expose_value=False, callback=_set_json, help="One JSON document instead of text."
    )(command)


def consent_of(question: str, *, yes: bool) -> str:
    """`yes` for the flag, `person` for an answer at the terminal. Raises UsageProblem where nobody can answer.

    Raises Declined after a no, which ends the program with exit code 1, changing nothing.
    """
    if yes:
        return "yes"
    if not sys.stdin.isatty():
        raise UsageProblem("this needs a yes and there is no terminal to ask at", remedy="add --yes")
    if not click.confirm(question, err=True):
        raise Declined("nothing was changed, for you said no")
    return "person"


class Declined(Problem):
    """The answer to a question was no."""

    kind = "declined"


class Group(click.Group):
    """Commands with a first sentence each, whole: wrapped where click would cut it off."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        commands = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        rows = [(name, one.get_short_help_str(limit=200)) for name, one in commands if one is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
