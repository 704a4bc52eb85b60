"""The root of `archy`, and the one place where a fault becomes a message and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn, TextIO

import click

from market.cli.defects import recorded
from market.cli.options import Group
from market.cli.session import Session, fail
from market.errors import Problem, UsageProblem, only_problem
from market.node.home import Home


class AnswerLost(Problem):
    """Standard output took no more: a full disk."""

    kind = "answer-lost"

    def __init__(self, error: OSError) -> None:
        super().__init__(
            f"the answer could not be written: {error.strerror}", remedy="make room; what was asked for is done"
        )


EPILOG = """\b
Exit codes: 0 ok, 1 failed, 2 usage, 3 refused by verification or policy, 4 the machine lacks something,
5 not running, 6 node unreachable, 7 rolled back, 8 still running, 130 detached by Ctrl-C.

\b
Examples:
  archy relays add wss://relay.example
  archy trust anchor add did:key:z6Mk...
  archy search photos
  archy install immich
"""


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=EPILOG
)
@click.option("--home", type=click.Path(path_type=Path, file_okay=False), help="The node's home folder.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document instead of text.")
@click.option(
    "--progress",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Progress on stderr; auto: unless --json.",
)
@click.version_option(package_name="archipelago-market", prog_name="archy")
@click.pass_context
def archy(context: click.Context, home: Path | None, as_json: bool, progress: str) -> None:
    """A decentralized app market for your own machine: find, judge, install and run signed apps."""
    context.obj = Session(Home(home.absolute()) if home else Home.default(), as_json, progress)


def main() -> int:
    """Run the command line. Returns the exit code."""
    as_json = "--json" in sys.argv
    try:
        code = _run()
        _flush()
    except click.ClickException as error:
        return _misused(error, as_json)
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        _let_go_of_stdout()
        return 1
    except Problem as problem:
        _leave(problem, as_json)
    except BaseExceptionGroup as group:
        _fail_group(group, as_json)
    except OSError as fault:
        if not _was_printing(fault):
            _leave(recorded(fault), as_json)
        _let_go_of_stdout()
        _leave(AnswerLost(fault), False)
    except Exception as fault:  # noqa: BLE001  # the last border: whatever comes here is a defect, and is told as one
        _leave(recorded(fault), as_json)
    return code if isinstance(code, int) else 0


def _flush() -> None:
    """Before the interpreter does so, whose complaints about a full disk or a reader that went away are tracebacks."""
    stdout: TextIO | None = sys.stdout
    if stdout is not None:  # it is None when who started this program had closed it
        stdout.flush()


def _was_printing(fault: OSError) -> bool:
    """Was it standard output that failed, under what click writes by itself (help) or a command piece by piece?"""
    return any(frame.f_code is click.echo.__code__ for frame, _ in traceback.walk_tb(fault.__traceback__))


def _leave(problem: Problem, as_json: bool) -> NoReturn:
    try:
        fail(problem, as_json=as_json)
    except OSError:  # told nobody, for nobody can be told
        _let_go_of_stdout()
        sys.exit(problem.exit_code)


def _let_go_of_stdout() -> None:
    stdout: TextIO | None = sys.stdout
    if stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())


def _run() -> object:
    from market.cli import adopting, authoring, blob, identity, market, node, publishers, trust

    for module in (market, trust, node, adopting, authoring, identity, publishers, blob):
        module.register(archy)
    return archy.main(prog_name="archy", standalone_mode=False)


def _misused(error: click.ClickException, as_json: bool) -> int:
    """A wrong flag or argument, told as click tells it, or as every problem is told to programs."""
    if as_json and not isinstance(error, click.exceptions.NoArgsIsHelpError):
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "archy"
        _leave(UsageProblem(error.format_message(), where=command, remedy=f"{command} --help"), True)
    error.show()
    return UsageProblem.exit_code


def _fail_group(group: BaseExceptionGroup[BaseException], as_json: bool) -> None:
    if group.subgroup(KeyboardInterrupt) is not None:
        sys.exit(130)
    problem = only_problem(group)
    _leave(recorded(group) if problem is None else problem, as_json)
