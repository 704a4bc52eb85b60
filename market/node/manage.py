"""Installed apps: what runs, start, stop, uninstall, logs."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import trio
from pydantic import Field

from market.errors import Refused, UsageProblem
from market.model import AppName
from market.node.node import Node
from market.node.requests import Request
from market.node.running import Report
from orchestrator import AppStatus

PS_SECONDS: Final = 2.0
"""After so long without an answer about the apps, `ps` asks the machine who is silent."""
STALE_SECONDS: Final = 6.0
"""A running node that knows how its apps were says so after five (R-ST11), which is worth more than nothing."""
ANSWERING: Final = ("podman", "user systemd")
"""The findings about who is asked how apps are."""
MAX_LINES: Final = 5_000
"""Of a journal, in one answer: what the orchestrator fetches at most. Who wants more has journalctl."""


class OneApp(Request):
    """An installed app: `ID` or `PUBLISHER/ID`."""

    app: str = Field(max_length=200)


class Uninstall(OneApp):
    """`purge` removes the data too and has to repeat the app's id."""

    purge: str | None = Field(None, max_length=40)
    even_if_needed: bool = False
    """Also when other apps can not do without it."""
    drop: tuple[str, ...] = Field((), max_length=64)
    """Volumes to be removed, of those that the app's publisher would have go with it (R-ST10)."""
    check: bool = False
    """Only say which volumes these are."""


class Logs(OneApp):
    """The last `lines` lines."""

    lines: int = Field(100, ge=1, le=MAX_LINES)


async def ps(node: Node, request: Request, report: Report) -> Mapping[str, Any]:
    """Every installed app as it is now; `unknown`, and why, when the machine does not answer (R-ST11)."""
    known: tuple[AppStatus, ...] | None = None
    why = ""

    async def ask() -> None:
        nonlocal known
        known = await node.orchestrator.status()
        nursery.cancel_scope.cancel()

    async def give_up() -> None:
        nonlocal why
        begun = trio.current_time()
        await trio.sleep(PS_SECONDS)
        silent = [f for f in await node.preflight() if f.name in ANSWERING and not f.ok]
        if silent:  # else it is only slow
            await trio.sleep_until(begun + STALE_SECONDS)
            why = "; ".join(f"{finding.name}: {finding.detail}" for finding in silent)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        nursery.start_soon(give_up)
    if known is None:
        known = tuple(
            AppStatus(name, version, digest, "unknown", "unknown", (), (), (), f"not known: {why}")
            for name, version, digest in node.orchestrator.installed()
        )
    return {"schema": "archy/ps/1", "apps": [status.to_json() for status in known]}


async def start(node: Node, request: OneApp, report: Report) -> Mapping[str, Any]:
    """Start what its user stopped."""
    name = installed_app(node, request.app)
    async with node.lock_of(name):
        report({"phase": "start", "text": f"{name.id}, until it is healthy"})
        status = await node.orchestrator.start(name)
    return {"schema": "archy/app/1", "status": status.to_json()}


async def stop(node: Node, request: OneApp, report: Report) -> Mapping[str, Any]:
    """Stop it until its user starts it again (R-ST2)."""
    name = installed_app(node, request.app)
    async with node.lock_of(name):
        report({"phase": "stop", "text": f"{name.id}, each of its containers has its time to end"})
        status = await node.orchestrator.stop(name)
    return {"schema": "archy/app/1", "status": status.to_json()}


async def restart(node: Node, request: OneApp, report: Report) -> Mapping[str, Any]:
    """Stop it and start it again, unless its user stopped it."""
    name = installed_app(node, request.app)
    async with node.lock_of(name):
        report({"phase": "restart", "text": f"{name.id}, until it is healthy"})
        status = await node.orchestrator.restart(name)
    return {"schema": "archy/app/1", "status": status.to_json()}


async def uninstall(node: Node, request: Uninstall, report: Report) -> Mapping[str, Any]:
    """Remove the app and keep its data, unless the operator repeats the app's id to remove that too."""
    name = installed_app(node, request.app)
    if request.purge is not None and request.purge != name.id:
        raise UsageProblem(f"to remove the data of {name.id}, repeat its id", remedy=f"--purge {name.id}")
    if request.check:
        disposable = list(node.orchestrator.disposable(name))
        return {"schema": "archy/uninstall-check/1", "app": str(name), "disposable": disposable}
    adopted = node.orchestrator.adopted_data(name)
    async with node.lock_of(name):
        await node.orchestrator.uninstall(
            name, purge=request.purge is not None, needed=request.even_if_needed, drop=request.drop
        )
        node.look_at_shared()
    return {
        "schema": "archy/uninstall/1",
        "app": str(name),
        "data": "removed" if request.purge else "kept",
        "dropped": list(request.drop),
        "stays": list(adopted),
    }


async def logs(node: Node, request: Logs, report: Report) -> Mapping[str, Any]:
    """The end of the app's journal; `units` say why where there is none."""
    name = installed_app(node, request.app)
    lines = await node.orchestrator.logs(name, lines=request.lines)
    units = (
        [] if lines else [u for status in await node.orchestrator.status() if status.name == name for u in status.units]
    )
    return {"schema": "archy/logs/1", "app": str(name), "lines": lines, "units": units}


def installed_app(node: Node, word: str) -> AppName:
    """The installed app that `word` means. Raises UsageProblem when none does, Refused when two do."""
    installed = [name for name, _, _ in node.orchestrator.installed()]
    found = [name for name in installed if word in (name.id, str(name))]
    if not found:
        near = alike(word, [name.id for name in installed])
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        raise UsageProblem(f"{word[:80]!r} is not installed", remedy=f"{meant}`archy ps` lists what is")
    if len(found) > 1:
        raise Refused(f"two installed apps are called {word!r}", remedy=f"name one of: {', '.join(map(str, found))}")
    return found[0]


def alike(word: str, ids: Sequence[str]) -> list[str]:
    """At most three of `ids` that somebody may have meant: misspelled, or cut short. Pure."""
    wanted = word.lower()
    parts = [id_ for id_ in ids if wanted and len(wanted) > 1 and wanted in id_]
    return list(dict.fromkeys([*parts, *difflib.get_close_matches(wanted, ids, n=3)]))[:3]
