"""Commands that make the node a service of the user's systemd. They speak to systemd, not to the node."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from market.cli.options import Group, json_option
from market.cli.session import Session
from market.cli.text import safe
from market.errors import NotRunning

if TYPE_CHECKING:
    from orchestrator import NodeService


@click.group(cls=Group)
def service() -> None:
    """The node as a service that starts at boot and is watched over."""


@service.command("install")
@click.option("--no-start", is_flag=True, help="Only write and enable it.")
@json_option
@click.pass_obj
def install(session: Session, no_start: bool) -> None:
    """Write the node's unit, enable it and start it. Doing it again brings the unit up to date."""
    import trio

    session.home.create()
    unit = _service(session)
    trio.run(lambda: unit.install(start=not no_start))
    session.show(_state(unit), _text)


@service.command("uninstall")
@json_option
@click.pass_obj
def uninstall(session: Session) -> None:
    """Stop the node and remove its unit. Apps go on; nothing but the unit is removed."""
    import trio

    unit = _service(session)
    removed = trio.run(unit.uninstall)
    session.show(
        {"schema": "archy/service/1", "unit": unit.unit, "removed": removed},
        lambda r: f"{r['unit']} is removed; apps go on." if removed else f"{r['unit']} was not installed.",
    )


@service.command("status")
@json_option
@click.pass_context
def status(context: click.Context) -> None:
    """Whether the service is installed and runs. Exit code 5 if not."""
    session: Session = context.obj
    found = _state(_service(session))
    session.show(found, _text)
    context.exit(0 if found["active"] == "active" else NotRunning.exit_code)


def _service(session: Session) -> NodeService:
    from market.node.config import load_config
    from orchestrator import NodeService, default_service_dir

    # The same interpreter and the same modules as this very command, wherever they are installed.
    argv = (sys.executable, "-m", "market.cli", "--home", str(session.home.root), "up")
    environment = {key: os.environ[key] for key in ("PYTHONPATH",) if os.environ.get(key)}
    prefix = load_config(session.home.config).unit_prefix
    return NodeService(prefix, argv, environment, default_service_dir())


def _state(unit: NodeService) -> dict[str, Any]:
    import trio

    from orchestrator import linger

    found = trio.run(unit.state)
    lingers = linger(getpass.getuser())
    return {
        "schema": "archy/service/1",
        "unit": unit.unit,
        "path": str(unit.path),
        "installed": bool(found),
        "enabled": found.get("UnitFileState") == "enabled",
        "active": found.get("ActiveState", "inactive"),
        "pid": int(found.get("MainPID", 0)),
        "restarts": int(found.get("NRestarts", 0)),
        "since": found.get("ActiveEnterTimestamp", ""),
        "linger": lingers.ok,
        "remedy": lingers.remedy,
    }


def _text(found: Mapping[str, Any]) -> str:
    if not found["installed"]:
        return f"{found['unit']} is not installed.\n  -> archy service install"
    lines = [f"{found['unit']} is {found['active']}" + (f" since {safe(found['since'])}" if found["since"] else "")]
    if found["pid"]:
        lines[0] += f" (process {found['pid']}, {found['restarts']} restarts)"
    if not found["linger"]:
        lines.append("It ends with your last session, and so do the apps.")
        lines.append(f"  -> {safe(found['remedy'])}")
    return "\n".join(lines)
