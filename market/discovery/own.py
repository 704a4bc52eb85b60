"""A publisher's own standing, as relays show it: numbers that were used, heads that are due, what has to be said again.

Guarantees that a machine which lost its ledger signs no number that readers have seen, and starts from the newest head
they know. Refuses to know relays; it reads the index that they filled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from apps.names import AppName
from market.discovery import reading
from market.discovery.index import Index
from market.discovery.signing import refresh_head, sign_provider
from market.identity.keyring import Keyring
from market.identity.ledger import LedgerState

REFRESH_WITHIN: Final = 30 * 86_400
"""Seconds before a head's end at which it is said again: two failed months still leave a month of its ninety days."""


def never_behind(keyring: Keyring, index: Index) -> None:
    """Raise the ledger to what the index has of this publisher, and take over heads that are newer than its own."""
    with index.reading() as db:
        numbers = reading.numbers_of(db, keyring.did)
        ours = keyring.ledger.state()
        heads = {}
        for name, number in numbers.items():
            kind, _, app = name.partition("/")
            if kind == "head" and number > ours.numbers.get(name, 0):
                head = reading.head_of(db, AppName(keyring.did, app))
                if head is not None and head.epoch == number:
                    body = msgspec.to_builtins(head)
                    heads[app] = {part: body[part] for part in ("manifest", "releases", "revocations")}
    behind = {name: number for name, number in numbers.items() if number > ours.numbers.get(name, 0)}
    if behind:
        keyring.ledger.merge(LedgerState(numbers=behind, heads=heads), skip=0)


def due_heads(keyring: Keyring, index: Index, *, now: float, within: int | None = REFRESH_WITHIN) -> tuple[str, ...]:
    """Own apps whose newest head expires within so many seconds, or that relays do not show; None: all of them."""
    due = []
    for app in keyring.ledger.apps():
        with index.reading() as db:
            head = reading.head_of(db, AppName(keyring.did, app))
        under_newest = head is not None and head.identity == keyring.identity_digest.hex
        if within is None or head is None or not under_newest or head.expires <= now + within:
            due.append(app)
    return tuple(due)


def refreshed_heads(keyring: Keyring, index: Index, apps: Iterable[str], *, now: float) -> list[dict[str, Any]]:
    """The identity's history and a new head for each app, ready for `to_events`. Blocks for a few fsyncs."""
    never_behind(keyring, index)
    return [*keyring.documents, *(refresh_head(keyring, app, now=now) for app in apps)]


def announced(
    keyring: Keyring, endpoints: Iterable[str], capacity: int, apps: Iterable[AppName], *, now: float
) -> list[dict[str, Any]]:
    """The identity's history and this node's word that it serves these apps' blobs for the next hour."""
    return [*keyring.documents, sign_provider(keyring, endpoints, capacity, apps, now=now)]


def relays_of(keyring: Keyring) -> tuple[str, ...]:
    """Where this publisher says that it writes."""
    return keyring.current.entry.relays


def known_history(index: Index, did: str) -> Mapping[str, Any]:
    """The publisher as this node sees it, for a person: entries, who holds which role, Nostr keys, apps."""
    history = index.identity(did)
    with index.reading() as db:
        bound = reading.bound_keys(db, did)
        apps = [row[0] for row in db.execute("SELECT app FROM listings WHERE did = ? ORDER BY app", (did,))]
    entries = [
        {
            "seq": entry.entry.seq,
            "digest": entry.digest.hex,
            "made": entry.entry.made,
            "release": list(entry.entry.keys.release),
            "online": list(entry.entry.keys.online),
            "nostr": list(entry.entry.nostr),
            "relays": list(entry.entry.relays),
        }
        for entry in (history.entries if history else ())
    ]
    return {"publisher": did, "entries": entries, "bound": list(bound), "apps": apps}
