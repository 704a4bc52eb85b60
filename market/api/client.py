"""The other end of the control socket: a small blocking client for the command line.

It trusts the socket's permissions and nothing else: answers are bounded and errors come back as the exceptions that
the node raised.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from market.api.problems import problem_from_json
from market.errors import Problem, Unreachable, UsageProblem

MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
"""A listing of every app a node knows stays well below."""

CALL_SECONDS: Final = 60.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("node", timeout=CALL_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class ControlClient:
    """Speaks to the node that listens on `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def answers(self) -> bool:
        """True if a node is listening. Never raises."""
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            probe.settimeout(5)
            probe.connect(str(self._path))
        except OSError:
            return False
        else:
            return True
        finally:
            probe.close()

    def start(self, name: str, params: Mapping[str, Any]) -> str:
        """Begin an operation and return its id."""
        body = self._call("POST", "/v1/operations", {"name": name, "params": dict(params)})
        return str(body["operation"])

    def follow(self, id_: str, on_event: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
        """Wait for an operation's outcome, handing every progress event to `on_event`. Raises its Problem."""
        after = 0
        while True:
            answer = self._call("GET", f"{_path(id_)}?after={after}")
            for event in answer["events"]:
                on_event(event)
            after = int(answer["next"])
            if answer["done"]:
                if answer["problem"]:
                    raise problem_from_json(answer["problem"])
                return dict(answer["result"])

    def cancel(self, id_: str) -> None:
        """Ask an operation to stop."""
        self._call("DELETE", _path(id_))

    def listed(self) -> Iterator[Mapping[str, Any]]:
        """The operations the node remembers."""
        yield from self._call("GET", "/v1/operations")["operations"]

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        connection = _UnixConnection(self._path)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            raw = answer.read(MAX_ANSWER_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(
                f"the node does not answer: {error}", where=str(self._path), remedy="is `archy up` still running?"
            ) from error
        finally:
            connection.close()
        if len(raw) > MAX_ANSWER_BYTES:
            raise Problem("the node's answer is too large", where=str(self._path))
        try:
            value = json.loads(raw)
        except ValueError as error:
            raise Unreachable(
                "what answers is no node of this version", where=str(self._path), remedy="restart `archy up`"
            ) from error
        if answer.status >= 400:
            raise problem_from_json(value)
        return dict(value)


def _path(id_: str) -> str:
    """Raises UsageProblem for a word that no operation has for its id: it must lead to no other path."""
    if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", id_):
        raise UsageProblem(f"no operation {id_[:40]!r}", remedy="`archy op ls` lists them")
    return f"/v1/operations/{id_}"
