"""Commands of the node: up, installed apps, settings, blobs, operations, doctor."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from market.api.client import ControlClient
from market.cli.options import Group, consent_of, json_option
from market.cli.progress import ProgressPrinter
from market.cli.service import service
from market.cli.session import Session
from market.cli.text import safe, table
from market.errors import EnvironmentLacks, NotRunning, Unreachable, UsageProblem


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


@click.command()
@json_option
@click.pass_context
def ps(context: click.Context) -> None:
    """Installed apps, as they are now. Exit code 5 when one that should run does not."""
    session: Session = context.obj
    result = session.call("ps")
    session.show(result, _ps_text)
    names = _names(result["apps"])
    rows = zip(names, result["apps"], strict=True)
    down = [name for name, a in rows if a["desired"] == "running" and not a["state"].startswith("running")]
    if down and not session.as_json:
        click.echo(f"archy: should run and does not: {safe(', '.join(down))}; `archy logs APP` says why", err=True)
    context.exit(NotRunning.exit_code if down else 0)


def _ps_text(result: Mapping[str, Any]) -> str:
    rows = [
        (name, a["version"], _state(a), _up(a["containers"]), _doors(a), a["detail"])
        for name, a in zip(_names(result["apps"]), result["apps"], strict=True)
    ]
    return table(("APP", "VERSION", "STATE", "UP", "OPEN", ""), rows) if rows else "Nothing is installed."


def _names(apps: Sequence[Mapping[str, Any]]) -> list[str]:
    """As commands take them: the id alone, unless another publisher's app has it too (R-MF14)."""
    ids = [app["id"] for app in apps]
    return [app["id"] if ids.count(app["id"]) == 1 else f"{app['publisher']}/{app['id']}" for app in apps]


def _state(app: Mapping[str, Any]) -> str:
    return f"{app['state']} (adopted)" if app["adopted"] else str(app["state"])


def _up(containers: Sequence[Mapping[str, Any]]) -> str:
    """How many run, of how many."""
    return f"{sum(container['state'] == 'running' for container in containers)}/{len(containers)}"


def _doors(app: Mapping[str, Any]) -> str:
    """Where it opens; nowhere while it is stopped."""
    return "" if app["state"] == "stopped" else " ".join(app["urls"])


def _status_text(result: Mapping[str, Any]) -> str:
    status = result["status"]
    return f"{safe(status['id'])} {safe(status['version'])} is {safe(status['state'])}"


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
        lambda r: f"{safe(r['app'])} is removed; its data was {r['data']}{_without(r['dropped'])}{_stays(r)}.",
    )


def _given_up(session: Session, app: str) -> list[str]:
    """The volumes that the operator lets go, each by name (R-ST10)."""
    if not sys.stdin.isatty():
        return []
    offered = session.call("uninstall", app=app, check=True)["disposable"]
    return [name for name in offered if click.confirm(f"Remove its volume {safe(name)} with all data?", err=True)]


def _without(dropped: Sequence[str]) -> str:
    return f", without {safe(', '.join(dropped))}" if dropped else ""


def _stays(result: Mapping[str, Any]) -> str:
    """What was there before the app is nobody's to remove but its owner's."""
    places = safe(", ".join(result["stays"]))
    if not places:
        return ""
    return f" in {places}" if result["data"] == "kept" else f", but not {places}, which was there before it"


@click.command()
@click.argument("app")
@click.option("--lines", "-n", default=100, show_default=True, type=click.IntRange(1, 10_000))
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@json_option
@click.pass_obj
def logs(session: Session, app: str, lines: int, follow: bool) -> None:
    """The end of an app's journal."""
    if not follow:
        session.show(
            session.call("logs", app=app, lines=lines),
            lambda r: "\n".join(map(_log_line, r["lines"])) or f"{safe(app)} has written nothing.",
        )
        return
    name = session.call("logs", app=app, lines=1)["app"]
    rows = [row for row in session.call("ps")["apps"] if f"{row['publisher']}/{row['id']}" == name]
    containers = [container for row in rows for container in row["journal"]]
    if not containers:  # journalctl would follow everything
        said = next((row["detail"] for row in rows), "it was removed just now")
        raise NotRunning(f"its containers are not known: {said}", where=name, remedy="archy doctor")
    _follow(containers, lines, as_json=session.as_json)


def _follow(containers: Sequence[str], lines: int, *, as_json: bool) -> None:
    """The journal as it comes, a line each; with `as_json` a JSON string each (journalctl(1), conmon(8))."""
    names = [f"CONTAINER_NAME={name}" for name in containers]
    argv = ["journalctl", "--user", "--follow", "--quiet", "--no-hostname", "--output=short-iso", f"--lines={lines}"]
    try:
        with subprocess.Popen([*argv, *names], stdout=subprocess.PIPE, text=True, errors="replace") as journal:
            try:
                for line in journal.stdout or ():
                    click.echo(json.dumps(line.rstrip("\n")) if as_json else _log_line(line.rstrip("\n")))
            finally:
                journal.terminate()
    except FileNotFoundError as error:
        raise EnvironmentLacks("journalctl is not installed", remedy="apt-get install systemd") from error


_WRITER: Final = re.compile(r"(\S+) \S+-[0-9a-f]{10}-([a-z0-9-]+)\[\d+\]: ")
"""Time and writer, as journalctl's short-iso has them; ten digits of the publisher end an app's name."""


def _log_line(line: str) -> str:
    """`<time> <container>: <text>`: whose app it is was asked for, and stands in no line again."""
    return safe(_WRITER.sub(r"\1 \2: ", line, count=1) if _WRITER.match(line) else line)


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
    session.show(
        result,
        lambda r: (
            safe(r["secrets"][name]) if name else "\n".join(f"{safe(k)}={safe(v)}" for k, v in r["secrets"].items())
        ),
    )


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


@click.command()
@click.option("--fix", is_flag=True, help="First mend what can be mended without taking anything away.")
@json_option
@click.pass_context
def doctor(context: click.Context, fix: bool) -> None:
    """Check that this machine can do what the node needs; every finding comes with its remedy. Exit code 4 if not."""
    session: Session = context.obj
    result = session.call("doctor", fix=fix)
    session.show(result, _doctor_text)
    context.exit(0 if result["ok"] else 4)


def _doctor_text(result: Mapping[str, Any]) -> str:
    lines = [f"tried {safe(line)}" for line in result["fixed"]]
    width = max(len(finding["name"]) for finding in result["findings"])
    bad = [finding for finding in result["findings"] if not finding["ok"]]
    for finding in [*(f for f in result["findings"] if f["ok"]), *bad]:
        mark = "ok  " if finding["ok"] else "LACK"
        lines.append(f"{mark} {safe(finding['name']).ljust(width)}  {safe(finding['detail'])}")
        if not finding["ok"] and finding["remedy"]:
            lines.append(f"     {' ' * width}  -> {safe(finding['remedy'])}")
    lines.append(f"{len(bad)} to look at." if bad else "All is well.")
    return "\n".join(lines)


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
