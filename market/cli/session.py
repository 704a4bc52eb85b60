"""One call from the command line: to the running node over its socket, or in this process while none runs.

Ctrl-C leaves an operation of a running node going and says its id; without a node it ends the operation.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import click

from market.api.client import ControlClient
from market.api.problems import problem_to_json
from market.cli.progress import ProgressPrinter
from market.cli.text import safe
from market.errors import Problem
from market.node.home import Home


@dataclass(frozen=True, slots=True)
class Session:
    """What every command needs: the home, and how to print."""

    home: Home
    as_json: bool
    progress: str = "auto"
    """`auto` shows it unless the answer is JSON; `always` and `never` are the user's word."""

    @property
    def quiet(self) -> bool:
        return self.progress == "never" or (self.progress == "auto" and self.as_json)

    def call(self, name: str, **params: Any) -> dict[str, Any]:
        """Perform an operation and return its result. Raises the operation's Problem."""
        with ProgressPrinter(quiet=self.quiet) as progress:
            client = ControlClient(self.home.socket)
            if client.answers():
                return self._remote(client, name, params, progress.show)
            return _local(self.home, name, params, progress.show)

    def unit_prefix(self) -> str:
        """What the names of this node's units and containers begin with."""
        from market.node.config import load_config

        return load_config(self.home.config).unit_prefix

    def show(self, result: Mapping[str, Any], text: Callable[[Mapping[str, Any]], str]) -> None:
        """Print one JSON document, or what `text` makes of it."""
        click.echo(json.dumps(result) if self.as_json else text(result))

    def _remote(
        self, client: ControlClient, name: str, params: dict[str, Any], on_event: Callable[[Mapping[str, Any]], None]
    ) -> dict[str, Any]:
        id_ = client.start(name, params)
        try:
            return client.follow(id_, on_event)
        except KeyboardInterrupt:
            click.echo(f"\n{id_} goes on; `archy op wait {id_}` follows it, `archy op cancel {id_}` ends it", err=True)
            raise


def _local(
    home: Home, name: str, params: dict[str, Any], on_event: Callable[[Mapping[str, Any]], None]
) -> dict[str, Any]:
    import trio

    from market.cli.remarks import tell_remarks
    from market.node.node import open_node
    from market.node.operations import perform

    tell_remarks()

    async def run() -> dict[str, Any]:
        async with open_node(home) as node:
            return dict(await perform(node, name, params, on_event))

    return trio.run(run)


def fail(problem: Problem, *, as_json: bool) -> NoReturn:
    """Print the problem and leave with its exit code."""
    if as_json:
        click.echo(json.dumps(problem_to_json(problem)))
        sys.exit(problem.exit_code)
    errors = tuple(getattr(problem, "errors", ()))
    what = problem.what.splitlines()[0] if errors else problem.what
    click.echo("archy: " + ": ".join(safe(part) for part in (problem.where, what) if part), err=True)
    for path, message, remedy in errors:
        click.echo(f"  {safe(path)}: {safe(message)}" + (f" ({safe(remedy)})" if remedy else ""), err=True)
    if problem.remedy:
        click.echo(f"  -> {safe(problem.remedy)}", err=True)
    sys.exit(problem.exit_code)
