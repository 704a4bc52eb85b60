"""Handing signed documents to relays from the command line: which relays, how many must agree, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from market.cli.session import Session
from market.cli.text import safe
from market.errors import UsageProblem
from market.node.home import Home

if TYPE_CHECKING:
    from market.discovery import Index
    from market.identity import Keyring

PUBLISH_SECONDS: Final = 20.0

F = TypeVar("F", bound=Callable[..., Any])


def publishing_options(command: F) -> F:
    """`--relay`, `--at-least` and `--dry-run`, for every command that publishes."""
    for option in (
        click.option("--dry-run", is_flag=True, help="Say what would be published, and contact no relay."),
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


def publish_documents(
    context: click.Context,
    keyring: Keyring,
    documents: Sequence[Mapping[str, Any]],
    *,
    relays: tuple[str, ...],
    at_least: int,
    dry_run: bool,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Offer the documents to relays and show each one's answer; exit code 1 when too few took all."""
    import trio

    from market.discovery import publish, to_events

    session: Session = context.obj
    events = to_events(keyring, documents, now=int(time.time()))
    urls = _chosen(session, keyring, relays)
    result: dict[str, Any] = {"schema": "archy/published/1", **(extra or {}), "events": len(events)}
    if dry_run:
        named = [{"type": document["type"], "name": document["name"]} for document in documents]
        session.show({**result, "dry_run": True, "would": named, "relays": [{"url": url} for url in urls]}, _plan_text)
        return
    if not urls:
        raise UsageProblem("no relay to publish to", remedy="--relay URL, or `archy relays add URL`")
    if at_least > len(urls):
        raise UsageProblem(f"--at-least {at_least} of {len(urls)} relays", remedy="name more relays with --relay")
    results = trio.run(lambda: publish(events, urls, timeout=PUBLISH_SECONDS, signer=keyring))
    rows = [one.to_json() for one in results]
    took_all = sum(row["accepted"] == len(events) for row in rows)
    session.show({**result, "relays": rows, "took_all": took_all, "at_least": at_least}, _result_text)
    if took_all < at_least:
        context.exit(1)


def _chosen(session: Session, keyring: Keyring, relays: tuple[str, ...]) -> tuple[str, ...]:
    if relays:
        return tuple(dict.fromkeys(relays))
    with own_index(session.home) as index:
        return tuple(dict.fromkeys((*keyring.current.entry.relays, *index.relays())))


def _plan_text(result: Mapping[str, Any]) -> str:
    lines = [f"{result['events']} events would be published:"]
    lines += [f"  {safe(one['type'])} {safe(one['name'])}" for one in result["would"]]
    lines += [f"to {safe(relay['url'])}" for relay in result["relays"]]
    return "\n".join(lines)


def _result_text(result: Mapping[str, Any]) -> str:
    lines = [
        f"{safe(row['url'])}: {row['accepted']} of {result['events']} accepted"
        + (f" ({safe(row['error'])})" if row["error"] else "")
        for row in result["relays"]
    ]
    if result["took_all"] < result["at_least"]:
        lines.append(f"{result['took_all']} relays took everything; {result['at_least']} were asked for")
    return "\n".join(lines)
