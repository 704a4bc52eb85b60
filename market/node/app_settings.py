"""What an operator may know and change of one installed app: its settings and its generated secrets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from market.errors import UsageProblem
from market.node.manage import OneApp, installed_app
from market.node.node import Node
from market.node.running import Report


class ConfigureApp(OneApp):
    """`KEY=VALUE` words to set, names to give their default again; neither only shows the settings."""

    assignments: tuple[str, ...] = Field((), max_length=128)
    reset: tuple[str, ...] = Field((), max_length=128)


class ShowSecrets(OneApp):
    """All secrets of an app, or the one of this name."""

    secret: str | None = Field(None, max_length=40)


class RotateSecret(OneApp):
    """The secret that is to get another value."""

    secret: str = Field(max_length=40)


async def configure(node: Node, request: ConfigureApp, report: Report) -> Mapping[str, Any]:
    """Show an app's settings, or change some and wait until the app is healthy with them."""
    name = installed_app(node, request.app)
    values: dict[str, str | None] = dict.fromkeys(request.reset)
    for word in request.assignments:
        key, equals, value = word.partition("=")
        if not equals:
            raise UsageProblem(f"{word!r} sets nothing", remedy="KEY=VALUE; `--reset KEY` gives the default again")
        values[key] = value
    settings = node.orchestrator.settings(name)
    if values:
        async with node.lock_of(name):
            settings = await node.orchestrator.configure(name, values)
    rows = [setting.to_json() for setting in settings]
    return {"schema": "archy/app-settings/1", "app": str(name), "id": name.id, "settings": rows}


async def secrets(node: Node, request: ShowSecrets, report: Report) -> Mapping[str, Any]:
    """An app's generated secrets, for its operator."""
    name = installed_app(node, request.app)
    known = node.orchestrator.secrets(name)
    if request.secret is not None and request.secret not in known:
        listed = ", ".join(sorted(known)) or "none"
        raise UsageProblem(f"{name.id} has no secret {request.secret!r}", remedy=f"its secrets: {listed}")
    shown = {key: value for key, value in sorted(known.items()) if request.secret in (None, key)}
    return {"schema": "archy/secrets/1", "app": str(name), "secrets": shown}


async def rotate(node: Node, request: RotateSecret, report: Report) -> Mapping[str, Any]:
    """Make a secret anew, and wait until the app is healthy with it. The value itself is not told."""
    name = installed_app(node, request.app)
    async with node.lock_of(name):
        report({"phase": "rotate", "text": f"{name.id} {request.secret}"})
        await node.orchestrator.rotate(name, request.secret)
    return {"schema": "archy/rotated/1", "app": str(name), "id": name.id, "secret": request.secret}
