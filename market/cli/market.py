"""Commands of the market: search, show, install, update, and the operator's relays."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import click

from market.cli.options import Group, consent_of, json_option
from market.cli.session import Session
from market.cli.text import safe, shortened, size_text, table
from market.cli.trust import show_why
from market.errors import Refused

REASON: Final = 60
"""Characters of a reason in a list, so that the columns behind it stay in sight; `archy show` has all of it."""


def register(root: click.Group) -> None:
    """Add this module's commands."""
    for command in (search, show, install, update, relays):
        root.add_command(command)


@click.command(epilog="Example: archy search photos")
@click.argument("text", default="")
@click.option("--category", default="", help="Only apps of this category.")
@click.option("--publisher", default="", help="Only this publisher's apps: a DID, or how its key begins.")
@click.option("--arch", default="", help="Only apps that run there: amd64, arm64.")
@click.option("--without", multiple=True, metavar="PERMISSION", help="Only apps that do not ask for it; repeatable.")
@click.option("--min-score", default=0, type=click.IntRange(0, 100), help="Only apps with so many points.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 500))
@click.option("--offline", is_flag=True, help="Search what is known; ask no relay.")
@json_option
@click.pass_obj
def search(session: Session, /, text: str, without: tuple[str, ...], **options: Any) -> None:
    """Find apps by words in title, summary, category or publisher."""
    session.show(session.call("search", text=text, without=list(without), **options), _search_text)


def _search_text(result: Mapping[str, Any]) -> str:
    rows = [
        (
            r["id"],
            r["version"] or "-",
            _score_text(r["verdict"]),
            _day(r["confirmed"]),
            r["installed"] or "",
            r["publisher"].removeprefix("did:key:")[:16],
            shortened(next(iter(r["verdict"]["reasons"]), ""), REASON),
            r["summary"],
        )
        for r in result["results"]
    ]
    if not rows:
        return (
            "Nothing matches. `archy relays` says which relays were asked; `archy search` alone lists every app known."
        )
    return table(("APP", "VERSION", "SCORE", "CONFIRMED", "INSTALLED", "PUBLISHER", "REASON", "SUMMARY"), rows)


def _day(moment: int | None) -> str:
    return datetime.fromtimestamp(moment, UTC).date().isoformat() if moment is not None else "-"


def _score_text(verdict: Mapping[str, Any]) -> str:
    return "refused" if verdict["outcome"] == "refuse" else f"{verdict['points']}"


@click.command(epilog="Example: archy show hello")
@click.argument("app")
@click.option("--offline", is_flag=True, help="Show what is known; ask no relay.")
@click.option("--why", is_flag=True, help="Only why it has its score: the same as `archy trust explain`.")
@json_option
@click.pass_obj
def show(session: Session, app: str, offline: bool, why: bool) -> None:
    """One app: what it is, this node's verdict and why, its permissions and versions."""
    found = session.call("show", app=app, offline=offline)
    if why:
        show_why(session, found)
    else:
        session.show(found, _show_text)


def _show_text(app: Mapping[str, Any]) -> str:
    lines = [
        f"{safe(app['title'])}  {safe(app['version'] or 'no release')}",
        f"  {safe(app['summary'])}",
        f"  publisher    {safe(app['publisher'])}",
        *([f"  homepage     {safe(app['homepage'])}"] if app["homepage"] else []),
        f"  installed    {safe(app['installed'] or 'no')}",
        *verdict_lines(app["verdict"]),
        f"  permissions  {safe(', '.join(app['permissions']) or 'none')}",
        "  versions     " + safe(", ".join(v["version"] for v in app["versions"]) or "none"),
    ]
    return "\n".join(lines)


def verdict_lines(verdict: Mapping[str, Any]) -> list[str]:
    """The verdict for people: outcome, checks that do not hold, points and voices, what would change it."""
    lines = [f"  verdict      {verdict['outcome']}: {safe(verdict['band'])}, {verdict['points']} of 100 points"]
    held = [gate for gate in verdict["gates"] if gate["state"] == "ok"]
    lines.append(f"  checks       {len(held)} of {len(verdict['gates'])} hold")
    lines += [f"    {gate['state']:<7} {safe(gate['text'])}" for gate in verdict["gates"] if gate not in held]
    lines.append("  points")
    for factor in verdict["factors"]:
        lines.append(f"    {factor['points']:>3} of {factor['of']:<3} {safe(factor['name'])}: {safe(factor['text'])}")
        lines += [f"               {_voice_text(voice)}" for voice in factor["contributors"]]
    lines += [f"  would change it: {safe(text)}" for text in verdict["would_change"]]
    lines.append(f"  {safe(verdict['caveat'])}")
    return lines


def _voice_text(voice: Mapping[str, Any]) -> str:
    who = voice["label"] or voice["person"]
    return f"{safe(who)} {safe(voice['says'])} ({voice['share']} %), via {safe(' -> '.join(voice['path']))}"


@click.command(epilog="Examples: archy install hello, archy install did:key:z6Mk.../hello --yes")
@click.argument("app")
@click.option("--yes", is_flag=True, help="Do not ask. Crosses no gate and accepts no permission.")
@click.option("--allow", multiple=True, metavar="PERMISSION", help="Agree to a permission; may be repeated.")
@click.option("--offline", is_flag=True, help="Ask no relay for something newer.")
@json_option
@click.pass_obj
def install(session: Session, app: str, yes: bool, allow: tuple[str, ...], offline: bool) -> None:
    """Install the newest release of an app."""
    release = None
    consent = "yes"
    if not yes:
        planned = session.call("plan", app=app, offline=offline)
        if planned["verdict"]["outcome"] == "refuse":
            raise Refused(
                f"refused: {'; '.join(planned['verdict']['reasons'])}",
                where=planned["app"],
                remedy="`archy show --why` has the evidence and what would lift it",
            )
        click.echo(plan_text(planned), err=True)
        consent = consent_of(f"Install {safe(planned['title'])} {safe(planned['version'])}?", yes=False)
        release, app, offline = planned["release"], planned["app"], True
    result = session.call("install", app=app, consent=consent, release=release, allow=list(allow), offline=offline)
    session.show(result, installed_text)


def plan_text(plan: Mapping[str, Any]) -> str:
    """What an operator is shown of a release before a yes."""
    return "\n".join(
        [
            f"{safe(plan['title'])} {safe(plan['version'])} by {safe(plan['publisher'])}",
            *_signer_lines(plan["verdict"]["signer"]),
            *verdict_lines(plan["verdict"]),
            f"  permissions  {safe(', '.join(plan['permissions']) or 'none')}",
            *[f"  built here   {safe(name)}, without network" for name in plan["builds"]],
            *[f"  data         an uninstall asks whether {safe(name)} is to go" for name in plan["disposable"]],
            *[
                f"  here already {safe(name)}, left as it is; `archy adopt {safe(plan['id'])}` takes it over with data"
                for name in plan["adoptable"]
            ],
        ]
    )


def installed_text(result: Mapping[str, Any]) -> str:
    """One installed app: where it answers and where its bytes came from."""
    status = result["status"]
    lines = [f"{safe(result['title'])} {safe(status['version'])} is {safe(status['state'])}"]
    lines += [f"  open      {safe(url)}" for url in status["urls"]]
    lines += fetch_lines(result["fetch"])
    seconds = result["seconds"]
    lines.append(f"  took      {seconds['fetch']:.1f} s to fetch, {seconds['install']:.1f} s to start")
    return "\n".join(lines)


def fetch_lines(fetch: Mapping[str, Any]) -> list[str]:
    """Who served how much, what was here already, and who was banned."""
    sources = fetch["sources"]
    lines = [f"  fetched   {size_text(s['bytes'])} from {s['kind']} {safe(s['url'])}" for s in sources if s["bytes"]]
    if fetch["already_present"]:
        lines.append(f"  kept      {size_text(fetch['already_present'])} were already here")
    lines += [f"  banned    {safe(s['url'])}: {safe(s['banned'])}" for s in sources if s["banned"]]
    return lines


@click.command(epilog="Examples: archy update --check, archy update hello --yes")
@click.argument("app", required=False)
@click.option("--yes", is_flag=True, help="Do not ask. Crosses no gate and accepts no new permission.")
@click.option("--allow", multiple=True, metavar="PERMISSION", help="Agree to a new permission; may be repeated.")
@click.option("--check", is_flag=True, help="Only say what is offered.")
@click.option("--offline", is_flag=True, help="Ask no relay.")
@json_option
@click.pass_obj
def update(session: Session, app: str | None, yes: bool, allow: tuple[str, ...], check: bool, offline: bool) -> None:
    """Bring one app, or every app, to its newest release."""
    offered = session.call("update", app=app, check=True, offline=offline)
    if check or not offered["offers"]:
        session.show(offered, _offers_text)
        return
    if not yes:
        click.echo(_offers_text(offered), err=True)
    consent = consent_of("Update?", yes=yes)
    result = session.call("update", app=app, consent=consent, allow=list(allow), offline=True)
    session.show(result, lambda r: "\n".join(installed_text(one) for one in r["updated"]))


def _offers_text(result: Mapping[str, Any]) -> str:
    if not result["offers"]:
        return "Everything is up to date."
    lines = []
    for offer in result["offers"]:
        lines.append(f"{safe(offer['app'])}: {safe(offer['from'])} -> {safe(offer['to'])}")
        lines += _signer_lines(offer["signer"])
    return "\n".join(lines)


def _signer_lines(signer: Mapping[str, Any]) -> list[str]:
    """Who signs, before anything is downloaded: nothing to say of a name that was never here."""
    if signer["continuity"] == "first-seen":
        return []
    shout = "  SIGNER CHANGED  " if signer["continuity"] == "changed" else "  signer       "
    return [f"{shout}{safe(signer['text'])}"]


@click.group(cls=Group, invoke_without_command=True)
@json_option
@click.pass_context
def relays(context: click.Context) -> None:
    """The relays this node reads: how each does, add, remove."""
    if context.invoked_subcommand is None:
        _list_relays(context.obj)


def _list_relays(session: Session) -> None:
    session.show(session.call("relays"), _relays_text)


def _relays_text(result: Mapping[str, Any]) -> str:
    known: list[Mapping[str, Any]] = result["relays"]
    rows = [
        (
            r["url"],
            r["state"],
            f"{r['latency_ms']} ms" if r["latency_ms"] is not None else "",
            r["accepted"],
            sum(r["refused"].values()),
            r["lag"],
            r["score"],
            _said(r),
        )
        for r in known
    ]
    if not rows:
        return "No relays. `archy relays add wss://RELAY` adds one; `archy relay run` starts your own."
    lines = [table(("RELAY", "STATE", "LATENCY", "ACCEPTED", "REFUSED", "LAG", "SCORE", ""), rows)]
    for r in known:
        lines += [f"{safe(r['url'])} refused: {_refusals(r)}"] if r["refused"] else []
        lines += [f"{safe(r['url'])} shows an older state of: {_lagging(r)}"] if r["lag"] else []
    if all(r["state"] == "stopped" for r in known):
        lines.append("No node is running, so that nothing is read; `archy up` runs one.")
    return "\n".join(lines)


def _said(relay: Mapping[str, Any]) -> str:
    """What went wrong last, when it is tried again, and whose relay it is."""
    words = [relay["text"]] if relay["text"] else []
    words += [f"next try in {relay['retry_in']:.0f} s"] if relay["retry_in"] else []
    words += ["named by a publisher"] if relay["named_by_author"] else []
    return "; ".join(words)


def _refusals(relay: Mapping[str, Any]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(relay["refused"].items()))


def _lagging(relay: Mapping[str, Any]) -> str:
    more = relay["lag"] - len(relay["lagging"])
    return safe(", ".join(relay["lagging"])) + (f" and {more} more" if more > 0 else "")


@relays.command("list")
@json_option
@click.pass_obj
def relays_list(session: Session) -> None:
    """Every relay and how it does."""
    _list_relays(session)


@relays.command("add", epilog="Example: archy relays add wss://relay.example")
@click.argument("url")
@json_option
@click.pass_obj
def relays_add(session: Session, url: str) -> None:
    """Read another relay."""
    session.show(session.call("relays.add", url=url), _relays_text)


@relays.command("remove")
@click.argument("url")
@json_option
@click.pass_obj
def relays_remove(session: Session, url: str) -> None:
    """Read a relay no longer; what it served stays."""
    session.show(session.call("relays.remove", url=url), _relays_text)
