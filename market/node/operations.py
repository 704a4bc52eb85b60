"""Every operation a door can ask of a node: its name, its parameters, and the function that does it.

A door sends names and plain JSON; they are parsed here into frozen requests before anything happens.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from market.errors import UsageProblem, ungrouped
from market.node import adopting, app_settings, blobs, browse, install, manage, publishers, settings, trusting, vouching
from market.node.node import Node
from market.node.requests import DIGEST_TEXT, Request
from market.node.running import Report

Perform = Callable[[Node, Any, Report], Awaitable[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class _Operation:
    request: type[Request]
    perform: Perform


OPERATIONS: Final[Mapping[str, _Operation]] = {
    "search": _Operation(browse.Search, browse.search),
    "show": _Operation(browse.Show, browse.show),
    "plan": _Operation(install.Plan, install.plan),
    "install": _Operation(install.Install, install.install),
    "update": _Operation(install.Update, install.update),
    "ps": _Operation(Request, manage.ps),
    "start": _Operation(manage.OneApp, manage.start),
    "stop": _Operation(manage.OneApp, manage.stop),
    "restart": _Operation(manage.OneApp, manage.restart),
    "uninstall": _Operation(manage.Uninstall, manage.uninstall),
    "logs": _Operation(manage.Logs, manage.logs),
    "publisher": _Operation(publishers.OnePublisher, publishers.publisher),
    "publisher.decide": _Operation(publishers.Decide, publishers.decide_publisher),
    "relays": _Operation(Request, settings.relays),
    "relays.add": _Operation(settings.Relay, settings.add_relay),
    "relays.remove": _Operation(settings.Relay, settings.remove_relay),
    "anchors": _Operation(Request, trusting.anchors),
    "anchors.add": _Operation(trusting.AddAnchor, trusting.add_anchor),
    "anchors.remove": _Operation(trusting.RemoveAnchor, trusting.remove_anchor),
    "trust.distrust": _Operation(trusting.Distrust, trusting.distrust),
    "trust.import": _Operation(trusting.ImportFollows, trusting.import_follows),
    "trust.pin": _Operation(trusting.OfApp, trusting.pin),
    "trust.unpin": _Operation(trusting.OfApp, trusting.unpin),
    "attest": _Operation(vouching.Attest, vouching.attest),
    "adopt": _Operation(adopting.Adopt, adopting.adopt),
    "app.config": _Operation(app_settings.ConfigureApp, app_settings.configure),
    "app.secrets": _Operation(app_settings.ShowSecrets, app_settings.secrets),
    "app.secrets.rotate": _Operation(app_settings.RotateSecret, app_settings.rotate),
    "config": _Operation(settings.ChangeConfig, settings.change_config),
    "blobs": _Operation(Request, blobs.blobs),
    "blobs.add": _Operation(blobs.AddBlobs, blobs.add),
    "blobs.get": _Operation(blobs.GetBlob, blobs.get),
    "blobs.verify": _Operation(blobs.VerifyBlobs, blobs.verify),
    "blobs.pin": _Operation(blobs.OneBlob, blobs.pin),
    "blobs.unpin": _Operation(blobs.OneBlob, blobs.unpin),
    "blobs.gc": _Operation(blobs.Collect, blobs.collect),
    "blobs.peers": _Operation(blobs.OneBlob, blobs.peers),
    "doctor": _Operation(settings.Doctor, settings.doctor),
}


async def perform(node: Node, name: str, params: object, report: Report) -> Mapping[str, Any]:
    """Parse the request and do it here. Raises UsageProblem for an unknown name or a bad parameter."""
    operation, request = _parsed(name, params)
    return await _done(operation, node, request, report)


def start_operation(node: Node, name: str, params: object) -> str:
    """Parse the request, begin it in the node's nursery and return its id."""
    operation, request = _parsed(name, params)

    async def work(report: Report) -> Mapping[str, Any]:
        return await _done(operation, node, request, report)

    return node.operations.start(name, work)


async def _done(operation: _Operation, node: Node, request: Request, report: Report) -> Mapping[str, Any]:
    """A problem arrives as it is, also out of a nursery of the operation's."""
    with ungrouped():
        return await operation.perform(node, request, report)


def _parsed(name: str, params: object) -> tuple[_Operation, Request]:
    operation = OPERATIONS.get(name)
    if operation is None:
        raise UsageProblem(f"no operation {name[:40]!r}", remedy=f"one of: {', '.join(OPERATIONS)}")
    try:
        return operation, operation.request.model_validate(params)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'params'}: {_plainly(e)}" for e in error.errors())
        raise UsageProblem(told, where=name, remedy="see `archy --help`") from error


def _plainly(error: Mapping[str, Any]) -> str:
    if error.get("ctx", {}).get("pattern") == DIGEST_TEXT:
        return "a digest has 64 hexadecimal digits, in lower case"
    return str(error["msg"])
