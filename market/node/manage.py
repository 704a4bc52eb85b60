"""Installed apps: what runs, start, stop, uninstall, logs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from market.errors import Refused, UsageProblem
from market.model import AppName
from market.node.node import Node
from market.node.requests import Request
from market.node.running import Report


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

    lines: int = Field(100, ge=1, le=10_000)


async def ps(node: Node, request: Request, report: Report) -> Mapping[str, Any]:
    """Every installed app as it is now."""
    return {"schema": "archy/ps/1", "apps": [status.to_json() for status in await node.orchestrator.status()]}


async def start(node: Node, request: OneApp, report: Report) -> Mapping[str, Any]:
    """Start what its user stopped."""
    name = installed_app(node, request.app)
    async with node.lock_of(name):
        status = await node.orchestrator.start(name)
    return {"schema": "archy/app/1", "status": status.to_json()}


async def stop(node: Node, request: OneApp, report: Report) -> Mapping[str, Any]:
    """Stop it until its user starts it again (R-ST2)."""
    name = installed_app(node, request.app)
    async with node.lock_of(name):
        status = await node.orchestrator.stop(name)
    return {"schema": "archy/app/1", "status": status.to_json()}


async def restart(node: Node, request: OneApp, report: Report) -> Mapping[str, Any]:
    """Stop it and start it again, unless its user stopped it."""
    name = installed_app(node, request.app)
    async with node.lock_of(name):
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
    """The end of the app's journal."""
    name = installed_app(node, request.app)
    return {
        "schema": "archy/logs/1",
        "app": str(name),
        "lines": await node.orchestrator.logs(name, lines=request.lines),
    }


def installed_app(node: Node, word: str) -> AppName:
    """The installed app that `word` means. Raises UsageProblem when none does, Refused when two do."""
    found = [name for name, _, _ in node.orchestrator.installed() if word in (name.id, str(name))]
    if not found:
        raise UsageProblem(f"{word!r} is not installed", remedy="`archy ps` lists what is")
    if len(found) > 1:
        raise Refused(f"two installed apps are called {word!r}", remedy=f"name one of: {', '.join(map(str, found))}")
    return found[0]
