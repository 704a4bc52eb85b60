"""`archy adopt`: apps that run here and that this node does not know, its own and what somebody else started."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from market.cli.market import plan_text
from market.cli.options import consent_of, json_option
from market.cli.session import Session
from market.cli.text import safe, table
from market.errors import Refused


def register(root: click.Group) -> None:
    """Add this module's command."""
    root.add_command(adopt)


@click.command(epilog="Examples: archy adopt --check, archy adopt, archy adopt hello --yes")
@click.argument("app", required=False)
@click.option("--yes", is_flag=True, help="Do not ask. Crosses no gate and accepts no permission.")
@click.option("--allow", multiple=True, metavar="PERMISSION", help="Agree to a permission; may be repeated.")
@click.option("--check", is_flag=True, help="Only say what could be taken back or over.")
@click.option("--offline", is_flag=True, help="Ask no relay which releases there are.")
@json_option
@click.pass_obj
def adopt(session: Session, app: str | None, yes: bool, allow: tuple[str, ...], check: bool, offline: bool) -> None:
    """Take back apps whose entry was lost with this node's database, or take over what you started by other means.

    Containers go on as they are, nothing is restarted, and what you had stopped stays stopped. Taking over is for an
    APP whose publisher names the containers that it replaces, and whose signed images these run; it becomes a service
    by the next restart. Exit code 3 with all reasons when that can not be.
    """
    found = session.call("adopt", app=app, check=True, offline=offline)
    if check or not (found["apps"] or found["offers"]):
        session.show(found, _found_text)
        return
    if found["offers"]:
        _take_over(session, found["offers"][0], yes=yes, allow=allow)
        return
    if not yes:
        click.echo(_found_text(found), err=True)
    consent = consent_of("Take them back?", yes=yes)
    session.show(session.call("adopt", app=app, consent=consent, offline=True), _adopted_text)


def _take_over(session: Session, offer: Mapping[str, Any], *, yes: bool, allow: tuple[str, ...]) -> None:
    app = offer["app"]
    if not yes:
        planned = session.call("plan", app=app, offline=True)
        if planned["verdict"]["outcome"] == "refuse":
            raise Refused(
                f"refused: {'; '.join(planned['verdict']['reasons'])}",
                where=app,
                remedy="`archy show --why` has the evidence and what would lift it",
            )
        click.echo(f"{plan_text(planned | {'adoptable': []})}\n{_offer_text(offer)}", err=True)
    consent = consent_of(f"Take over {', '.join(safe(box['name']) for box in offer['containers'])}?", yes=yes)
    agreed: dict[str, Any] = {"containers": offer["ids"], "release": offer["release"], "allow": list(allow)}
    session.show(session.call("adopt", app=app, consent=consent, offline=True, **agreed), _adopted_text)


def _found_text(result: Mapping[str, Any]) -> str:
    if result["offers"]:
        return "\n".join(f"{safe(o['app'])} {safe(o['version'])}\n{_offer_text(o)}" for o in result["offers"])
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


def _offer_text(offer: Mapping[str, Any]) -> str:
    """Which containers, what they run, where their data is, and what the units will change."""
    lines = []
    for box in offer["containers"]:
        lines.append(f"  takes over   {safe(box['name'])}, {safe(box['state'])}, as {safe(box['container'])}")
        lines.append(f"    image      {safe(box['image'])}, {safe(box['digest'][:19])} as signed")
        lines += [f"    port       {safe(port)}" for port in box["ports"]]
    lines += [f"  data         {safe(one['volume'])} stays in {safe(one['source'])}" for one in offer["data"]]
    lines.append("  now          nothing is restarted or changed")
    lines.append("  restarted    it is a service of this node, in the container's place; what the container wrote")
    lines.append("               outside its mounts goes with it")
    lines += [f"    changes    {safe(change)}" for change in offer["changes"]]
    return "\n".join(lines)


def _adopted_text(result: Mapping[str, Any]) -> str:
    lines = []
    for one in result["adopted"]:
        status = one["status"]
        lines.append(f"{safe(status['id'])} {safe(status['version'])} is {safe(status['state'])}")
        if status["adopted"]:
            verb = "start" if status["desired"] == "stopped" else "restart"
            lines.append(f"  adopted as it is; `archy {verb} {safe(status['id'])}` makes it a service")
    return "\n".join([*lines, *(f"left as it is: {safe(one['app'])}: {safe(one['why'])}" for one in result["left"])])
