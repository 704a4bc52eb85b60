"""The control API: what the command line speaks to a running node, as HTTP over a 0600 Unix socket.

POST /v1/operations {name, params} -> 202 {operation}; GET /v1/operations/ID?after=N waits for progress and answers
{events, next, done, result | problem}; DELETE cancels. Every call crosses to the node once; no rule lives here.
"""

from __future__ import annotations

import json
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from market.api.problems import problem_to_json
from market.errors import Problem, UsageProblem
from market.node.node import Node
from market.node.operations import start_operation

MAX_REQUEST_BYTES: Final = 256 * 1024
"""Parameters are names, flags and at most one settings map."""

WAIT_SECONDS: Final = 20.0
"""How long one call waits for progress: well under any client's own timeout."""


def control_app(node: Node) -> web.Application:
    """The aiohttp application; it runs on the loop of the node's bridge and asks the node through it."""
    door = _Control(node)
    app = web.Application(client_max_size=MAX_REQUEST_BYTES, middlewares=[_problems])
    app.router.add_post("/v1/operations", door.start)
    app.router.add_get("/v1/operations", door.listed)
    app.router.add_get("/v1/operations/{id}", door.follow)
    app.router.add_delete("/v1/operations/{id}", door.cancel)
    return app


@web.middleware
async def _problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Problem as problem:
        body = problem_to_json(problem)
        return web.json_response(body, status=body["status"], content_type="application/problem+json")


class _Control:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._bridge = node.bridge

    async def start(self, request: web.Request) -> web.Response:
        try:
            body = await request.json()
            name, params = body["name"], body.get("params", {})
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise UsageProblem("the request is not {name, params} as JSON", where="POST /v1/operations") from error
        id_ = await self._bridge.in_trio(self._start, str(name), params)
        return web.json_response({"operation": id_}, status=202)

    async def _start(self, name: str, params: object) -> str:
        return start_operation(self._node, name, params)

    async def listed(self, _: web.Request) -> web.Response:
        rows = self._node.operations.listed()
        return web.json_response({"operations": [{"id": i, "name": n, "done": d} for i, n, d in rows]})

    async def follow(self, request: web.Request) -> web.Response:
        after = request.query.get("after", "0")
        if not after.isdigit():
            raise UsageProblem("`after` is not a number", where="GET /v1/operations/ID")
        followed = await self._bridge.in_trio(
            self._node.operations.wait_progress, request.match_info["id"], int(after), WAIT_SECONDS
        )
        return web.json_response(
            {
                "events": list(followed.events),
                "next": followed.next,
                "done": followed.done,
                "result": followed.result,
                "problem": problem_to_json(followed.problem) if followed.problem else None,
            }
        )

    async def cancel(self, request: web.Request) -> web.Response:
        await self._bridge.in_trio(self._cancel, request.match_info["id"])
        return web.json_response({})

    async def _cancel(self, id_: str) -> None:
        self._node.operations.cancel(id_)
