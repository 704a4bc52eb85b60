"""Answers http and tcp checks from where it runs. A program of its own, with nothing but the standard library.

The prober runs it under `podman unshare --rootless-netns`, where the addresses of containers answer, published or
not. Standard input: JSON list of {id, kind, address, port, path, seconds}. Standard output: JSON {id: ""} for a good
answer, {id: "what went wrong"} otherwise.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import Any

MAX_HEAD = 1024
"""Bytes in which a status line must appear."""
STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r\n]")


def request(address: str, port: int, path: str) -> bytes:
    """A GET that asks for one answer (RFC 9112)."""
    return f"GET {path} HTTP/1.1\r\nHost: {address}:{port}\r\nConnection: close\r\n\r\n".encode()


def judge_head(head: bytes) -> str:
    """Empty for a status of 200 to 399, else what is wrong with an answer's first bytes."""
    found = STATUS.match(head)
    if found is None:
        return "the answer is not HTTP" if head else "the connection was closed without an answer"
    return "" if 200 <= int(found[1]) < 400 else f"HTTP status {int(found[1])}"


async def answer(check: dict[str, Any]) -> str:
    """Empty for a good answer, else what went wrong."""
    try:
        async with asyncio.timeout(check["seconds"]):
            return await _ask(check)
    except TimeoutError:
        return f"no answer within {check['seconds']} s"
    except OSError as error:
        return f"no connection to port {check['port']}: {error.strerror or error}"


async def _ask(check: dict[str, Any]) -> str:
    reader, writer = await asyncio.open_connection(check["address"], check["port"], limit=4096)
    try:
        if check["kind"] == "tcp":
            return ""
        writer.write(request(check["address"], check["port"], check["path"]))
        head = b""
        while b"\n" not in head and len(head) < MAX_HEAD and (part := await reader.read(256)):
            head += part
        return judge_head(head)
    finally:
        writer.close()


async def answers(checks: list[dict[str, Any]]) -> dict[str, str]:
    """All checks at once."""
    return dict(zip([c["id"] for c in checks], await asyncio.gather(*map(answer, checks)), strict=True))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(answers(json.load(sys.stdin)))))
