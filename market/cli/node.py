"""Commands that change how the node and its apps are: up, start, stop, settings, secrets, operations."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from market.api.client import ControlClient
from market.cli.options import Group, consent_of, json_option
from market.cli.progress import ProgressPrinter
from market.cli.reading import doctor, logs, ps
from market.cli.service import service
from market.cli.session import Session
from market.cli.text import safe, table
from market.errors import Unreachable, UsageProblem


def register(root: click.Group) -> None:
    """Add this module's commands."""
    for command in (up, ps, start, stop, restart, uninstall, logs, config, secrets, doctor, op):
        root.add_command(command)
    root.add_command(service)


@click.command()
@click.pass_obj
def up(session: Session) -> None:
    """Run the node: keep sessions with relays, keep apps true to what was asked, serve blobs to peers."""
    from market.service import serve_until_stopped

    serve_until_stopped(session.home, click.echo)


def _status_text(result: Mapping[str, Any]) -> str:
    status = result["status"]
    said = f"{safe(status['id'])} {safe(status['version'])} is {safe(status['state'])}"
    return f"{said}: {safe(' '.join(status['urls']))}" if status["state"] == "running" and status["urls"] else said


@click.command()
@click.argument("app")
@json_option
@click.pass_obj
def start(session: Session, app: str) -> None:
    """Start an app that was stopped."""
    session.show(session.call("start", app=app), _status_text)


@click.command()
@click.argument("app")
@json_option
@click.pass_obj
def stop(session: Session, app: str) -> None:
    """Stop an app; it stays stopped until you start it."""
    session.show(session.call("stop", app=app), _status_text)


@click.command()
@click.argument("app")
@json_option
@click.pass_obj
def restart(session: Session, app: str) -> None:
    """Stop an app and start it again. One that you stopped stays stopped."""
    session.show(session.call("restart", app=app), _status_text)


@click.command(epilog="Examples: archy uninstall hello, archy uninstall hello --purge hello")
@click.argument("app")
@click.option("--purge", metavar="ID", help="Remove the app's data too; repeat its id to say so.")
@click.option("--keep-data", is_flag=True, help="Ask for none of its volumes.")
@click.option("--even-if-needed", is_flag=True, help="Also when other apps can not do without it.")
@json_option
@click.pass_obj
def uninstall(session: Session, app: str, purge: str | None, keep_data: bool, even_if_needed: bool) -> None:
    """Remove an app. Its data stays unless --purge repeats the app's id. Exit code 3 when other apps need it.

    For volumes that its publisher holds to be of no use without it, a question is asked at a terminal; else they stay.
    """
    if keep_data and purge is not None:
        raise UsageProblem("--keep-data and --purge contradict each other", remedy="leave one of them away")
    drop = [] if keep_data or purge is not None else _given_up(session, app)
    session.show(
        session.call("uninstall", app=app, purge=purge, even_if_needed=even_if_needed, drop=drop),
        _uninstalled_text,
    )


def _given_up(session: Session, app: str) -> list[str]:
    """The volumes that the operator lets go, each by name (R-ST10)."""
    if not sys.stdin.isatty():
        return []
    offered = session.call("uninstall", app=app, check=True)["disposable"]
    return [name for name in offered if click.confirm(f"Remove its volume {safe(name)} with all data?", err=True)]


def _uninstalled_text(result: Mapping[str, Any]) -> str:
    app = safe(result["app"].rpartition("/")[2])
    return f"{app} is removed; its data was {result['data']}{_without(result['dropped'])}{_stays(result)}."


def _without(dropped: Sequence[str]) -> str:
    return f", without {safe(', '.join(dropped))}" if dropped else ""


def _stays(result: Mapping[str, Any]) -> str:
    """What was there before the app is nobody's to remove but its owner's."""
    places = safe(", ".join(result["stays"]))
    if not places:
        return ""
    return f" in {places}" if result["data"] == "kept" else f", but not {places}, which was there before it"


@click.command(epilog="Examples: archy config listen=0.0.0.0:8470, archy config hello greeting=Hi")
@click.argument("words", metavar="[APP] [KEY=VALUE]...", nargs=-1)
@click.option("--reset", "reset", multiple=True, metavar="KEY", help="Give an app's setting its default again.")
@json_option
@click.pass_obj
def config(session: Session, words: tuple[str, ...], reset: tuple[str, ...]) -> None:
    """Show or change settings: of an app when its name comes first, else of this node.

    A changed setting restarts what it reaches of the app; when the app does not get healthy with it, the old value is
    back. The node's own settings: listen, peers, allow_private_origins, share, channel, unit_prefix.
    """
    if words and "=" not in words[0]:
        result = session.call("app.config", app=words[0], assignments=list(words[1:]), reset=list(reset))
        session.show(result, _app_settings_text)
        return
    if reset:
        raise UsageProblem("--reset is for an app's settings", remedy="archy config APP --reset KEY")
    session.show(
        session.call("config", assignments=list(words)),
        lambda r: "\n".join(
            f"{key}={','.join(value) if isinstance(value, list) else value}" for key, value in r["settings"].items()
        ),
    )


def _app_settings_text(result: Mapping[str, Any]) -> str:
    rows = [
        (
            f"{s['name']}={s['value']}",
            s["type"],
            "" if s["value"] == s["default"] else f"default {s['default']}",
            s["title"],
        )
        for s in result["settings"]
    ]
    return table(("SETTING", "TYPE", "", ""), rows) if rows else f"{safe(result['id'])} has no settings."


@click.group(cls=Group)
def secrets() -> None:
    """The secrets that this node made for its apps."""


@secrets.command("show", epilog="Example: archy secrets show immich db-password")
@click.argument("app")
@click.argument("name", required=False)
@json_option
@click.pass_obj
def secrets_show(session: Session, app: str, name: str | None) -> None:
    """Print an app's secrets, or the one of that name alone."""
    result = session.call("app.secrets", app=app, secret=name)
    session.show(result, lambda r: safe(r["secrets"][name]) if name else _secrets_text(r))


def _secrets_text(result: Mapping[str, Any]) -> str:
    lines = [f"{safe(name)}={safe(value)}" for name, value in result["secrets"].items()]
    return "\n".join(lines) or f"{safe(result['app'].rpartition('/')[2])} has no secrets."


@secrets.command("rotate", epilog="Example: archy secrets rotate immich db-password")
@click.argument("app")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_obj
def secrets_rotate(session: Session, app: str, name: str, yes: bool) -> None:
    """Give an app's secret another value.

    What reads it restarts or reloads, and the old value is forgotten once the app is healthy with the new one; else the
    old one holds again (exit code 7). An app that keeps the secret in its own data too (a database's password) may need
    more than this: see what its publisher says.
    """
    consent_of(f"Make {safe(name)} of {safe(app)} anew? What reads it restarts.", yes=yes)
    session.show(
        session.call("app.secrets.rotate", app=app, secret=name),
        lambda r: f"{safe(r['secret'])} of {safe(r['id'])} is another one now; `archy secrets show` has it.",
    )


@click.group(cls=Group)
def op() -> None:
    """Operations of a running node: list, follow, cancel."""


def _client(session: Session) -> ControlClient:
    client = ControlClient(session.home.socket)
    if not client.answers():
        raise Unreachable("no node is running here", where=str(session.home.root), remedy="start one with `archy up`")
    return client


@op.command("ls")
@json_option
@click.pass_obj
def op_ls(session: Session) -> None:
    """Operations that go on, and those that ended lately."""
    rows = list(_client(session).listed())
    session.show(
        {"schema": "archy/operations/1", "operations": rows},
        lambda r: table(
            ("ID", "WHAT", "STATE"), [(o["id"], o["name"], "ended" if o["done"] else "goes on") for o in rows]
        ),
    )


@op.command("wait")
@click.argument("id_", metavar="ID")
@json_option
@click.pass_obj
def op_wait(session: Session, id_: str) -> None:
    """Follow an operation to its end."""
    with ProgressPrinter(quiet=session.quiet) as progress:
        result = _client(session).follow(id_, progress.show)
    session.show(result, lambda r: f"{safe(id_)} has ended well.")


@op.command("cancel")
@click.argument("id_", metavar="ID")
@click.pass_obj
def op_cancel(session: Session, id_: str) -> None:
    """Ask an operation to stop."""
    _client(session).cancel(id_)
