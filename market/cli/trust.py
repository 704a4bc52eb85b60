"""Commands of trust: anchors, pins, distrust, a follow list, attest and report, and why an app has its score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from market.cli.options import Group, json_option
from market.cli.session import Session
from market.cli.text import safe, table


def register(root: click.Group) -> None:
    """Add this module's commands."""
    for command in (trust, attest, report):
        root.add_command(command)


@click.group(cls=Group)
def trust() -> None:
    """Who you trust: your anchors, whom you distrust, and why an app has the score it has."""


@trust.group(cls=Group)
def anchor() -> None:
    """The people and publishers your trust starts at: add, remove, list."""


@click.command("add", epilog="Examples: archy trust anchor add ada@example.org, archy trust anchor add did:key:z6Mk...")
@click.argument("who")
@click.option("--label", default="", help="A name for yourself.")
@click.option("--weight", default=1, show_default=True, type=click.IntRange(1, 100))
@json_option
@click.pass_obj
def anchor_add(session: Session, who: str, label: str, weight: int) -> None:
    """Trust a person (npub, hex key, NAME@DOMAIN) or a publisher (DID).

    A NAME@DOMAIN is looked up once, over HTTPS; the key it has now is what is trusted from then on.
    """
    session.show(session.call("anchors.add", who=who, label=label, weight=weight), _anchors_text)


@click.command("remove")
@click.argument("who")
@json_option
@click.pass_obj
def anchor_remove(session: Session, who: str) -> None:
    """Trust somebody no longer."""
    session.show(session.call("anchors.remove", who=who), _anchors_text)


@click.command("list")
@json_option
@click.pass_obj
def anchor_list(session: Session) -> None:
    """Your anchors, the size of your follow list, and whom you distrust."""
    session.show(session.call("anchors"), _anchors_text)


for _group in (anchor, trust):
    # `archy trust add` is what one types first; it means the same.
    for _command in (anchor_add, anchor_remove, anchor_list):
        _group.add_command(_command)


def _anchors_text(result: Mapping[str, Any]) -> str:
    lines = [table(("WHO", "LABEL", "WEIGHT"), [(a["who"], a["label"], a["weight"]) for a in result["anchors"]])]
    if not result["anchors"]:
        lines = ["No anchors: every install asks for your own word. `archy trust anchor add` adds one."]
    if result["follows"]:
        lines.append(f"Your follow list: {result['follows']} people.")
    lines += [f"Distrusted: {safe(person)}" for person in result["distrusted"]]
    return "\n".join(lines)


@trust.command("distrust", epilog="Example: archy trust distrust npub1...")
@click.argument("who", required=False)
@click.option("--undo", is_flag=True, help="Listen to them again.")
@json_option
@click.pass_obj
def trust_distrust(session: Session, who: str | None, undo: bool) -> None:
    """Listen to somebody no longer, whoever follows them; refuse what they publish. Without a name: list them."""
    session.show(session.call("trust.distrust", who=who, undo=undo), _anchors_text)


@trust.command("import", epilog="Examples: archy trust import follows.txt, archy trust import npub1...")
@click.argument("source")
@json_option
@click.pass_obj
def trust_import(session: Session, source: str) -> None:
    """Take a follow list as yours: a file (a person a line, or a signed list), or an npub whose list is known here.

    All of its people together have the weight of one anchor. It replaces the list before; an empty file ends it.
    """
    path = Path(source)
    result = session.call("trust.import", source=str(path.absolute()) if path.exists() else source)
    session.show(result, _import_text)


def _import_text(result: Mapping[str, Any]) -> str:
    left_out = "".join(f"; {count} {safe(reason)}" for reason, count in result["ignored"].items())
    return f"Your follow list has {result['imported']} people{left_out}."


@trust.command("pin", epilog="Example: archy trust pin hello")
@click.argument("app")
@json_option
@click.pass_obj
def trust_pin(session: Session, app: str) -> None:
    """Trust an app's publisher, and be told when anybody else signs an app of that name."""
    session.show(
        session.call("trust.pin", app=app),
        lambda r: f"Pinned {safe(r['app'])}: signed by {r['key']}, entry {r['entry']} of its key history.",
    )


@trust.command("unpin")
@click.argument("app")
@json_option
@click.pass_obj
def trust_unpin(session: Session, app: str) -> None:
    """Forget an app's signer, and trust its publisher no longer unless another of its apps is pinned."""
    session.show(session.call("trust.unpin", app=app), lambda r: f"{safe(r['app'])} is pinned no longer.")


@trust.command("explain", epilog="Example: archy trust explain hello")
@click.argument("app")
@click.option("--offline", is_flag=True, help="Explain what is known; ask no relay.")
@json_option
@click.pass_obj
def trust_explain(session: Session, app: str, offline: bool) -> None:
    """Why an app has its score: checks, points, who vouches and how you know them, and what would change it."""
    show_why(session, session.call("show", app=app, offline=offline))


def show_why(session: Session, result: Mapping[str, Any]) -> None:
    """Print the verdict of what the operation `show` answered, explained."""
    session.show(
        {"schema": "archy/verdict/1", "app": result["app"], "version": result["version"], "verdict": result["verdict"]},
        lambda r: "\n".join(explanation(r["app"], r["version"], r["verdict"])),
    )


_WORDS = {"allow": "installs without a question", "ask": "asks you first", "refuse": "is refused"}


def explanation(app: str, version: str | None, verdict: Mapping[str, Any]) -> Iterator[str]:
    """The verdict as a tree for somebody who has never seen one: what happens, checks, the sum, people, and advice."""
    yield f"{safe(app)} {safe(version or '(no release)')} {_WORDS.get(verdict['outcome'], safe(verdict['outcome']))}"
    yield f"{safe(verdict['band'])}: {verdict['points']} of 100 points."
    yield safe(verdict["caveat"])
    yield from _checks(verdict["gates"])
    yield from _points(verdict)
    yield from _advice(verdict)
    circle = verdict["circle"]
    people = "1 person" if circle["people"] == 1 else f"{circle['people']} people"
    yield (
        f"Your circle: anchors {circle['anchors']}, {people} within {circle['hops']} steps of them,"
        f" follows {circle['follows']}."
    )
    for reason, count in verdict["ignored"].items():
        yield f"  left out: {count} {safe(reason)}"


def _checks(gates: list[Mapping[str, Any]]) -> Iterator[str]:
    failed = [gate for gate in gates if gate["state"] != "ok"]
    yield f"Checks: {len(gates) - len(failed)} of {len(gates)} hold; no score opens one that does not"
    for gate in failed:
        yield f"├─ {'REFUSED' if gate['state'] == 'refuse' else 'ASKS YOU'}  {safe(gate['text'])}"
        yield f"│    lifted by: {safe(gate['lifted_by'])}"
        for digest in gate["evidence"]:
            yield f"│    evidence: {safe(digest)}"


def _points(verdict: Mapping[str, Any]) -> Iterator[str]:
    needed = verdict["thresholds"]["allow_at"]
    yield f"Points: {_sum_text(verdict['factors'])} = {verdict['points']}; from {needed} on nothing is asked"
    for place, factor in enumerate(verdict["factors"]):
        last = place == len(verdict["factors"]) - 1
        of = f"of {factor['of']}" if factor["of"] > 0 else "at worst " + str(factor["of"])
        yield f"{'└─' if last else '├─'} {factor['letter']} {factor['points']:>4} {of:<14} {safe(factor['name'])}"
        stem = "  " if last else "│ "
        yield f"{stem}      {safe(factor['text'])}"
        for voice in factor["contributors"]:
            yield from _voice(voice, stem)
        if factor["voices"] > len(factor["contributors"]):
            yield f"{stem}      and {factor['voices'] - len(factor['contributors'])} more"


def _sum_text(factors: list[Mapping[str, Any]]) -> str:
    shown = "".join(f" {'-' if f['points'] < 0 else '+'} {abs(f['points'])}" for f in factors)
    return shown.removeprefix(" + ").strip()


def _voice(voice: Mapping[str, Any], stem: str) -> Iterator[str]:
    who = safe(voice["label"]) or _short(voice["person"])
    yield f"{stem}      - {who} {safe(voice['says'])}, {voice['share']} % of this"
    if voice["note"]:
        yield f"{stem}        “{safe(voice['note'])}”"
    if len(voice["path"]) > 1:
        yield f"{stem}        known through {' -> '.join(_short(person) for person in voice['path'])}"


def _short(person: str) -> str:
    return safe(person if len(person) <= 24 else f"{person[:16]}...{person[-5:]}")


def _advice(verdict: Mapping[str, Any]) -> Iterator[str]:
    if verdict["would_change"]:
        yield "What would change it"
        yield from (f"  - {safe(text)}" for text in verdict["would_change"])


_NOTE = click.option("--note", default="", help="A sentence for people, at most 280 characters; it is public.")
_DAYS = click.option("--days", default=365, show_default=True, type=click.IntRange(1, 3650), help="Until it expires.")
_OFFLINE = click.option("--offline", is_flag=True, help="Ask no relay for something newer first.")


@click.command(epilog='Example: archy attest hello --reviewed --note "Read the manifest and the code."')
@click.argument("app")
@click.option("--reviewed", "kind", flag_value="reviewed", help="You looked at this release.")
@click.option("--rebuilt", "kind", flag_value="rebuilt", help="You built it from source and got the same digest.")
@click.option("--withdraw", "kind", flag_value="withdraw", help="Take back what you said about this release.")
@click.option("--value", default=100, show_default=True, type=click.IntRange(-100, 100), help="From bad to good.")
@_NOTE
@_DAYS
@_OFFLINE
@json_option
@click.pass_context
def attest(context: click.Context, app: str, kind: str | None, value: int, note: str, days: int, offline: bool) -> None:
    """Say publicly, signed by this home's identity, what you think of a release. Your latest word counts.

    It speaks about the installed release, else about the one on offer. Exit code 1 when no relay took it.
    """
    if kind is None:
        raise click.UsageError("say what you did: --reviewed, --rebuilt, or --withdraw")
    if kind == "withdraw":
        kind, value = "reviewed", 0
    _say(context, app=app, kind=kind, value=value, note=note, days=days, offline=offline)


@click.command(epilog='Example: archy report hello --malware --note "Sends /etc/passwd to 203.0.113.7."')
@click.argument("app")
@click.option("--malware", "kind", flag_value="malware", help="It does harm.")
@click.option("--impersonation", "kind", flag_value="impersonation", help="It poses as another's app.")
@_NOTE
@_DAYS
@_OFFLINE
@json_option
@click.pass_context
def report(context: click.Context, app: str, kind: str | None, note: str, days: int, offline: bool) -> None:
    """Warn others publicly, signed by this home's identity. `archy attest APP --withdraw` takes it back."""
    if kind is None:
        raise click.UsageError("say what it is: --malware or --impersonation")
    _say(context, app=app, kind=kind, value=-100, note=note, days=days, offline=offline)


def _say(context: click.Context, **word: Any) -> None:
    session: Session = context.obj
    result = session.call("attest", **word)
    session.show(result, _said_text)
    if not any(relay["accepted"] for relay in result["relays"]):
        context.exit(1)


def _said_text(result: Mapping[str, Any]) -> str:
    said = f"{result['kind']} ({result['value']:+d}), by {result['voter']}"
    lines = [f"{safe(result['app'])} {safe(result['version'])}: {said}"]
    lines += [
        f"  {safe(relay['url'])}: {'accepted' if relay['accepted'] else 'not accepted: ' + safe(relay['error'])}"
        for relay in result["relays"]
    ]
    if not result["relays"]:
        lines.append("  no relays: it counts here only. `archy relays add` adds one, then say it again.")
    return "\n".join(lines)
