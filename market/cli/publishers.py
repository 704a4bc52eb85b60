"""Commands about publishers: what is known of one, what is proven against it, and the operator's decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from market.cli.options import Group, json_option
from market.cli.session import Session
from market.cli.text import safe


def register(root: click.Group) -> None:
    """Add this module's commands."""
    root.add_command(publisher)


@click.group(cls=Group)
def publisher() -> None:
    """Publishers: their key history, and contradictions that they signed."""


@publisher.command("show", epilog="Example: archy publisher show did:key:z6Mk...")
@click.argument("publisher")
@json_option
@click.pass_obj
def publisher_show(session: Session, publisher: str) -> None:
    """A publisher's keys by entry of its history, its apps, and every contradiction with its evidence."""
    session.show(session.call("publisher", publisher=publisher), _text)


@publisher.command("decide", epilog="Example: archy publisher decide did:key:z6Mk... --keep DIGEST")
@click.argument("publisher")
@click.option("--keep", required=True, metavar="DIGEST", help="The document that counts; `publisher show` lists them.")
@json_option
@click.pass_obj
def publisher_decide(session: Session, publisher: str, keep: str) -> None:
    """Say which of two contradicting documents counts. Ask the publisher first, by another way than a relay."""
    session.show(session.call("publisher.decide", publisher=publisher, keep=keep), _text)


def _text(result: Mapping[str, Any]) -> str:
    if not result["entries"]:
        return (
            f"{safe(result['publisher'])}\n  Nothing is known of it. `archy relays` says who was asked;"
            " the publisher can name a relay to add."
        )
    lines = [safe(result["publisher"]), f"  apps     {safe(', '.join(result['apps']) or 'none')}"]
    for entry in result["entries"]:
        lines.append(f"  entry {entry['seq']}  {entry['digest']}")
        lines.append(f"           release {' '.join(entry['release'])}")
        lines.append(f"           online  {' '.join(entry['online'])}")
    lines.append(f"  nostr    {' '.join(result['bound']) or 'no key speaks for it'}")
    for fault in result["faults"]:
        lines.append(f"  {fault['kind']}: {fault['type']} {safe(fault['name'])} number {fault['number']}")
        lines += [f"    {'*' if digest == fault['chosen'] else ' '} {digest}" for digest in fault["evidence"]]
        lines.append(
            "      decided by you" if fault["chosen"] else "      undecided: nothing of this publisher installs"
        )
    return "\n".join(lines)
