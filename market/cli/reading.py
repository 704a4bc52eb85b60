"""What an operator reads: how apps are, what they wrote, what the machine lacks. Nothing here changes anything but
`doctor --fix`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from market.cli import journal
from market.cli.options import json_option
from market.cli.session import Session
from market.cli.terminal import painted, width
from market.cli.text import counted, duration_text, safe, table
from market.errors import NotRunning, UsageProblem

MAX_LINES: Final = 5_000
"""What a node answers at most; who wants more has journalctl."""
HEADER: Final = ("APP", "VERSION", "STATE", "FOR", "UP", "OPEN")
COLOURS: Final = {
    "running": "green",
    "failed": "red",
    "unhealthy": "red",
    "restarting": "red",
    "unknown": "red",
    "stopped": "bright_black",
}
"""Of states; what goes on is yellow."""
CLOSED: Final = ("stopped", "stopping", "failed", "restarting", "unknown")
"""States in which nobody answers where the app would open."""


@click.command()
@json_option
@click.pass_context
def ps(context: click.Context) -> None:
    """Installed apps, as they are now. Exit code 5 when one that should run does not."""
    session: Session = context.obj
    result = session.call("ps")
    session.show(result, _ps_text)
    rows = zip(_names(result["apps"]), result["apps"], strict=True)
    down = {name: a for name, a in rows if a["desired"] != "stopped" and not a["state"].startswith("running")}
    if down and not session.as_json:
        what, remedy = _why(down)
        click.echo(f"archy: {safe(what)}\n  -> {safe(remedy)}", err=True)
    context.exit(NotRunning.exit_code if down else 0)


def _why(down: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """What is the matter, and the command that says more."""
    if all(app["state"] == "unknown" for app in down.values()):
        said = "; ".join(dict.fromkeys(_reason(app) for app in down.values()))
        return f"how these apps are is not known: {said}", "archy doctor"
    seen = [name for name, app in down.items() if app["state"] != "unknown"]
    return f"should run and does not: {', '.join(down)}", f"archy logs {seen[0] if len(seen) == 1 else 'APP'}"


def _reason(app: Mapping[str, Any]) -> str:
    """Why it is not known how an app is, without the word that marks it so."""
    return str(app["detail"]).removeprefix("stale: ").removeprefix("not known: ") or "nobody answers"


def _ps_text(result: Mapping[str, Any]) -> str:
    apps = result["apps"]
    if not apps:
        return "Nothing is installed; `archy search` shows what there is."
    unknown = all(app["state"] == "unknown" for app in apps)  # for one reason, which is told below
    notes = ["" if unknown else _note(app) for app in apps]
    opens = ["  ".join(filter(None, (" ".join(_doors(a)), note))) for a, note in zip(apps, notes, strict=True)]
    rows = [
        (name, a["version"], _state(a), _since(a), _up(a["containers"]), told)
        for name, a, told in zip(_names(apps), apps, opens, strict=True)
    ]
    wide = table(HEADER, rows, lambda column, cell: _coloured(cell) if column == 2 else cell)
    if max(map(len, table(HEADER, rows).splitlines())) <= width():
        return wide
    return "\n".join(_block(row, [*_doors(app), note]) for row, app, note in zip(rows, apps, notes, strict=True))


def _block(row: Sequence[str], below: Sequence[str]) -> str:
    """A row for a terminal that is too narrow for the table: lines that can be read, and addresses that stay whole."""
    name, version, state, since, up, _ = map(safe, row)
    head = "  ".join(filter(None, (f"{name} {version}", _coloured(state), since, up)))
    return "\n  ".join([head, *map(safe, filter(None, below))])


def _coloured(state: str) -> str:
    return painted(state, COLOURS.get(state.split()[0], "yellow")) if state else state


def _names(apps: Sequence[Mapping[str, Any]]) -> list[str]:
    """As commands take them: the id alone, unless another publisher's app has it too (R-MF14)."""
    ids = [app["id"] for app in apps]
    return [app["id"] if ids.count(app["id"]) == 1 else f"{app['publisher']}/{app['id']}" for app in apps]


def _state(app: Mapping[str, Any]) -> str:
    return f"{app['state']} (adopted)" if app["adopted"] else str(app["state"])


def _since(app: Mapping[str, Any]) -> str:
    """For how long all of it has been as it is; nothing where that is not known."""
    # A node that an older version of this program runs does not tell it
    moments = [c["since"] for c in app["containers"] if not c["companion"] and c.get("since") is not None]
    known = moments and not app["detail"].startswith("stale")
    return duration_text(time.time() - max(moments)) if known else ""


def _up(containers: Sequence[Mapping[str, Any]]) -> str:
    """How many run, of how many; a dash where that is not known."""
    return (
        f"{sum(container['state'] == 'running' for container in containers)}/{len(containers)}" if containers else "-"
    )


def _doors(app: Mapping[str, Any]) -> list[str]:
    """Where it opens, if it does."""
    return [] if app["state"] in CLOSED else list(app["urls"])


def _note(app: Mapping[str, Any]) -> str:
    """What is worth knowing beside the state: of the app, then of each container that is not as it should be."""
    told = [app["detail"]] if app["detail"] else []
    if app["desired"] == "stopped":
        return "; ".join(told)
    for container in app["containers"]:
        words = []
        if container["state"] not in ("running", app["state"]):
            words.append(container["state"])
        if container["state"] != "running":
            words += filter(None, [container["detail"]])
        elif container["health"] not in ("healthy", "none"):
            words.append(container["detail"] or f"health {container['health']}")
        if container["restarts"]:
            words.append(f"restarted {counted(container['restarts'], 'time')}")
        told += [f"{container['name']}: {', '.join(words)}"] if words else []
    return "; ".join(told)


@click.command(epilog="Examples: archy logs hello, archy logs hello -f -n 20")
@click.argument("app")
@click.option("--lines", "-n", default=100, show_default=True, type=click.IntRange(1, MAX_LINES))
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@json_option
@click.pass_obj
def logs(session: Session, app: str, lines: int, follow: bool) -> None:
    """The end of what an app wrote, also of one that was removed, for as long as the journal keeps it."""
    try:
        result = session.call("logs", app=app, lines=1 if follow else lines)
    except UsageProblem:
        if follow or not (found := journal.left_by(app, session.unit_prefix(), lines)):
            raise
        click.echo(f"archy: {safe(app)} is not installed any more; this is what it wrote", err=True)
        result = {"schema": "archy/logs/1", "app": app, "lines": found, "units": []}
    if not follow:
        session.show(result, lambda r: "\n".join(map(journal.told, r["lines"])) or _nothing_written(app, r["units"]))
        return
    rows = [row for row in session.call("ps")["apps"] if f"{row['publisher']}/{row['id']}" == result["app"]]
    containers = [container for row in rows for container in row["journal"]]
    if not containers:  # journalctl would follow everything
        said = next((row["detail"] for row in rows), "it was removed just now")
        raise NotRunning(f"its containers are not known: {said}", where=result["app"], remedy="archy doctor")
    for line in journal.following(containers, lines):
        click.echo(json.dumps(line) if session.as_json else journal.told(line))


def _nothing_written(app: str, units: Sequence[str]) -> str:
    said = f"{safe(app)} has written nothing."
    return f"{said}\n  -> journalctl --user {' '.join(f'-u {safe(unit)}' for unit in units)}" if units else said


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
    """What is well first, so that what is not stands where the eye is."""
    lines = [f"tried {safe(line)}" for line in result["fixed"]]
    names = max(len(finding["name"]) for finding in result["findings"])
    good = [finding for finding in result["findings"] if finding["ok"]]
    bad = [finding for finding in result["findings"] if not finding["ok"]]
    for finding in (*good, *bad):
        mark = painted("ok  ", "green") if finding["ok"] else painted("LACK", "red")
        lines.append(f"{mark} {safe(finding['name']).ljust(names)}  {safe(finding['detail'])}")
        if not finding["ok"] and finding["remedy"]:
            lines.append(f"     -> {safe(finding['remedy'])}")
    lines.append(f"{len(good)} ok, {len(bad)} to look at." if bad else "All is well.")
    return "\n".join(lines)
