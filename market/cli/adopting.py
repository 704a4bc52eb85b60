"""`archy adopt`: apps that go on running although this node does not know them any more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from market.cli.options import consent_of, json_option
from market.cli.session import Session
from market.cli.text import safe, table


def register(root: click.Group) -> None:
    """Add this module's command."""
    root.add_command(adopt)


@click.command(epilog="Examples: archy adopt --check, archy adopt, archy adopt hello --yes")
@click.argument("app", required=False)
@click.option("--yes", is_flag=True, help="Do not ask. Crosses no gate.")
@click.option("--check", is_flag=True, help="Only say what could be taken back.")
@click.option("--offline", is_flag=True, help="Ask no relay which releases there are.")
@json_option
@click.pass_obj
def adopt(session: Session, app: str | None, yes: bool, check: bool, offline: bool) -> None:
    """Take back apps whose entry was lost with this node's database.

    Their containers go on as they are, nothing is restarted, and an app that you had stopped stays stopped.
    """
    found = session.call("adopt", app=app, check=True, offline=offline)
    if check or not found["apps"]:
        session.show(found, _found_text)
        return
    if not yes:
        click.echo(_found_text(found), err=True)
    consent = consent_of("Take them back?", yes=yes)
    session.show(session.call("adopt", app=app, consent=consent, offline=True), _adopted_text)


def _found_text(result: Mapping[str, Any]) -> str:
    rows = [
        (
            one["app"] or one["slug"],
            one["version"] or "-",
            "running" if one["running"] else "not running",
            one["why_not"],
        )
        for one in result["apps"]
    ]
    return table(("APP", "VERSION", "STATE", ""), rows) if rows else "Nothing runs here that is not known."


def _adopted_text(result: Mapping[str, Any]) -> str:
    lines = [
        f"{safe(one['status']['id'])} {safe(one['status']['version'])} is {safe(one['status']['state'])}"
        for one in result["adopted"]
    ]
    return "\n".join([*lines, *(f"left as it is: {safe(one['app'])}: {safe(one['why'])}" for one in result["left"])])
