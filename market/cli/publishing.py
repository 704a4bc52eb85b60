"""Handing signed documents to relays from the command line: which relays, how many must agree, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from market.cli.session import Session
from market.cli.text import counted, safe, table
from market.errors import UsageProblem
from market.identity.forms import is_relay_address
from market.node.home import Home

if TYPE_CHECKING:
    from market.discovery import Index
    from market.identity import Keyring

PUBLISH_SECONDS: Final = 20

F = TypeVar("F", bound=Callable[..., Any])


def publishing_options(command: F) -> F:
    """`--relay`, `--at-least`, `--wait` and `--dry-run`, for every command that publishes."""
    for option in (
        click.option("--dry-run", is_flag=True, help="Say what would be published, and contact no relay."),
        click.option("--wait", "seconds", default=PUBLISH_SECONDS, show_default=True, type=click.IntRange(1, 600),
                     metavar="SECONDS", help="For relays that can not be reached or do not answer."),
        click.option("--at-least", default=1, show_default=True, type=click.IntRange(1, 64), metavar="K",
                     help="Relays that must take every event; fewer is exit code 1."),
        click.option("--relay", "relays", multiple=True, metavar="URL",
                     help="By default the identity's write relays and the relays of this home."),
    ):  # fmt: skip
        command = option(command)
    return command


@contextmanager
def own_index(home: Home) -> Iterator[Index]:
    """What this home knows; a running node writes to the same file, which takes turns by itself."""
    from market.discovery import open_index

    home.create()
    with open_index(home.index) as index:
        yield index


def check_addresses(option: str, urls: Sequence[str]) -> None:
    """Raises UsageProblem for what is no relay."""
    for url in urls:
        if not is_relay_address(url):
            raise UsageProblem(
                "not a relay's address", where=f"{option} {url[:80]}", remedy="wss://HOST or ws://HOST:PORT"
            )


def chosen_relays(
    session: Session,
    keyring: Keyring,
    *,
    relays: Sequence[str],
    at_least: int,
    dry_run: bool,
    also: Sequence[str] = (),
    **_: object,
) -> tuple[str, ...]:
    """The relays to publish to: those named, else the identity's write relays, `also`, and the relays of this home.

    To be asked before anything is signed: raises UsageProblem for what is no relay, and when they are too few.
    """
    for url in relays:
        if not is_relay_address(url):
            raise UsageProblem(
                "not a relay's address", where=f"--relay {url[:80]}", remedy="wss://HOST or ws://HOST:PORT"
            )
    if relays:
        chosen = tuple(dict.fromkeys(relays))
    else:
        with own_index(session.home) as index:
            chosen = tuple(dict.fromkeys((*keyring.current.entry.relays, *also, *index.relays())))
    if dry_run:
        return chosen
    if not chosen:
        raise UsageProblem("no relay to publish to", remedy="--relay URL, or `archy relays add URL`")
    if at_least > len(chosen):
        raise UsageProblem(f"--at-least {at_least} of {len(chosen)} relays", remedy="name more relays with --relay")
    return chosen


def publish_documents(
    context: click.Context,
    keyring: Keyring,
    documents: Sequence[Mapping[str, Any]],
    urls: Sequence[str],
    *,
    at_least: int,
    seconds: int,
    dry_run: bool,
    extra: Mapping[str, Any] | None = None,
    again: str,
) -> None:
    """Offer the documents to relays and show each one's answer; exit code 1 when too few took all.

    `again` is the command that offers them once more.
    """
    import trio

    from market.discovery import publish, to_events

    session: Session = context.obj
    events = to_events(keyring, documents, now=int(time.time()))
    result: dict[str, Any] = {"schema": "archy/published/1", **(extra or {}), "events": len(events)}
    if dry_run:
        named = [{"type": document["type"], "name": document["name"]} for document in documents]
        session.show({**result, "dry_run": True, "would": named, "relays": [{"url": url} for url in urls]}, _plan_text)
        return
    if not session.quiet:
        click.echo(f"offering {counted(len(events), 'event')} to {counted(len(urls), 'relay')}", err=True)
    results = trio.run(lambda: publish(events, urls, timeout=seconds, enough=at_least, signer=keyring))
    rows = [one.to_json() for one in results]
    took_all = sum(row["accepted"] == len(events) for row in rows)
    session.show({**result, "relays": rows, "took_all": took_all, "at_least": at_least}, _result_text)
    if took_all < at_least:
        if not session.as_json:
            click.echo(f"archy: too few relays took everything: {took_all} of {at_least}\n  -> {again}", err=True)
        context.exit(1)


def _plan_text(result: Mapping[str, Any]) -> str:
    lines = [f"{counted(result['events'], 'event')} would be published:"]
    lines += [f"  {safe(one['type'])} {safe(one['name'])}" for one in result["would"]]
    lines += [f"to {safe(relay['url'])}" for relay in result["relays"]]
    if not result["relays"]:
        lines.append("to nobody: there is no relay to publish to. --relay URL, or `archy relays add URL`")
    return "\n".join(lines)


def _result_text(result: Mapping[str, Any]) -> str:
    rows = [
        (row["url"], f"{row['accepted']} of {result['events']}", f"{row['seconds']:.1f} s", row["error"])
        for row in result["relays"]
    ]
    return table(("RELAY", "ACCEPTED", "IN", ""), rows)
