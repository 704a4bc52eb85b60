"""The operator's own settings: relays, anchors, node configuration, blobs kept for others, and the check-up."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import trio
from pydantic import Field

from market.errors import Problem, UsageProblem, only_problem
from market.identity.forms import is_relay_address
from market.node.config import changed_config, save_config
from market.node.node import Node
from market.node.requests import Request
from market.node.running import Report
from orchestrator import Finding, fix
from orchestrator.together import all_of

CHECKUP_SECONDS: Final = 7.0
"""How long the doctor waits for what is known of the apps: two or three answers of Podman's, tenths of a second."""


class Relay(Request):
    """A relay's WebSocket URL."""

    url: str = Field(max_length=300)


class ChangeConfig(Request):
    """`KEY=VALUE` words; none only shows the settings."""

    assignments: tuple[str, ...] = Field((), max_length=64)


async def relays(node: Node, request: Request, report: Report) -> Mapping[str, Any]:
    """Every relay and, while sessions are kept, how it does; the operator's own first."""
    states = {state.url: state.to_json() for state in node.discovery.relay_states()}
    own = [states.pop(url) for url in node.index.relays() if url in states]
    return {"schema": "archy/relays/1", "relays": [*own, *states.values()]}


async def add_relay(node: Node, request: Relay, report: Report) -> Mapping[str, Any]:
    """Remember a relay; a running node connects to it at once."""
    if not is_relay_address(request.url):
        raise UsageProblem("not a relay's address", where=request.url[:80], remedy="wss://HOST or ws://HOST:PORT")
    await trio.to_thread.run_sync(node.index.add_relay, request.url.rstrip("/"))  # a flood may be being stored
    node.discovery.set_relays(node.index.relays())
    return await relays(node, request, report)


async def remove_relay(node: Node, request: Relay, report: Report) -> Mapping[str, Any]:
    """Forget a relay; what it served stays in the index."""
    if request.url.rstrip("/") not in node.index.relays():
        raise UsageProblem(f"{request.url!r} is not among the relays", remedy="`archy relays` lists them")
    await trio.to_thread.run_sync(node.index.remove_relay, request.url.rstrip("/"))
    node.discovery.set_relays(node.index.relays())
    return await relays(node, request, report)


async def change_config(node: Node, request: ChangeConfig, report: Report) -> Mapping[str, Any]:
    """Show the settings, or change some of them. `listen` and `unit_prefix` take effect at the next start."""
    if request.assignments:
        node.config = changed_config(node.config, request.assignments)
        save_config(node.home.config, node.config)
        node.look_at_shared()
    return {"schema": "archy/config/1", "settings": node.config.model_dump(mode="json")}


class Doctor(Request):
    """`fix`: first mend what can be mended without taking anything away."""

    fix: bool = False


async def doctor(node: Node, request: Doctor, report: Report) -> Mapping[str, Any]:
    """Whether this machine can do what the node needs, each finding with its remedy."""
    fixed = await _mended(node, report) if request.fix else ()
    # Both at once: neither is held up by what the other waits for
    found: list[tuple[Finding, ...]] = await all_of(node.preflight, partial(_checkup, node))
    # What no app could be asked about, for the same reason, is told once
    findings = [f.to_json() for f in dict.fromkeys((*found[0], *found[1]))]
    known = node.index.relays()
    findings.append(
        {
            "name": "relays",
            "ok": bool(known),
            "detail": f"{len(known)} configured" if known else "none configured: nothing can be discovered",
            "remedy": "" if known else "archy relays add wss://RELAY",
        }
    )
    trusted = node.anchors.list()
    findings.append(
        {
            "name": "anchors",
            "ok": bool(trusted),
            "detail": f"{len(trusted)} configured" if trusted else "none: every install asks for your own word",
            "remedy": "" if trusted else "archy trust anchor add NPUB_OR_DID",
        }
    )
    return {
        "schema": "archy/doctor/1",
        "ok": all(f["ok"] for f in findings),
        "findings": findings,
        "fixed": list(fixed),
    }


async def _checkup(node: Node) -> tuple[Finding, ...]:
    """What the orchestrator knows of the apps: all that it can ask the machine about, or else what it knows itself."""
    with trio.move_on_after(CHECKUP_SECONDS):
        return await node.orchestrator.checkup()
    said = f"not known: Podman or systemd does not answer within {CHECKUP_SECONDS:g} s"
    silent = Finding("apps", False, said, "mend what else is told here; is the machine overloaded?")
    return (*node.orchestrator.findings(), silent)


async def _mended(node: Node, report: Report) -> tuple[str, ...]:
    """What was tried, a line each. What can not be mended is among the findings afterwards."""
    report({"phase": "mend", "text": "what can be mended without taking anything away"})
    done = await fix(await node.preflight())
    try:
        await node.orchestrator.reconcile()
    except* Problem as problems:
        done = (*done, f"apps: not looked at: {only_problem(problems)}")
    report({"phase": "check", "text": "how things are now"})
    return done
