"""What hostile bytes meet first, as functions that may only return: anything they raise, and any hang, is a defect.

The fast tests try them on bytes from hypothesis. By hand, guided by coverage and for as long as wanted:

    pip install atheris
    python -m tests.fuzz.parsers -max_total_time=300 -timeout=5 -rss_limit_mb=768 -max_len=4096
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from websockets.exceptions import WebSocketException
from websockets.http11 import Request
from websockets.server import ServerProtocol

from apps.containerfile import parse as parse_containerfile
from market.discovery.checks import check_document
from market.discovery.contradictions import check_contradiction
from market.discovery.documents import TYPES, parse_document
from market.discovery.events import DOCUMENT_KIND, Event, decode_event, list_name, verify
from market.discovery.frames import parse_frame, quick_event
from market.discovery.negentropy import BadMessage, Reconciler
from market.discovery.questions import document_questions
from market.discovery.reasons import Refusal
from market.discovery.session import Session
from market.discovery.websocket import WebSocket
from market.errors import Refused
from market.identity.canonical import parse_canonical
from market.identity.proofs import verify_proof

BASE: Final = f"sha256:{'a' * 64}"
INSTRUCTIONS: Final = frozenset(
    ("FROM", "COPY", "RUN", "ENV", "LABEL", "WORKDIR", "USER", "EXPOSE", "VOLUME", "STOPSIGNAL", "ENTRYPOINT", "CMD")
)
SHAPE: Final[dict[str, Any]] = {
    "id": "0" * 64, "pubkey": "1" * 64, "created_at": 1, "kind": DOCUMENT_KIND, "tags": (("d", "x"),), "content": "",
    "sig": "2" * 128,
}  # fmt: skip


def frame(data: bytes) -> None:
    quick_event(data)
    parse_frame(data)


def conversation(data: bytes) -> None:
    """Every line is a message of one relay."""
    session = Session(document_questions(), (), reconcile=bool(data[:1] > b"\x7f"))
    session.opened()
    for message in data.split(b"\n"):
        session.received(message)
        session.gathered([])


def stream(data: bytes) -> None:
    """What comes through a socket after the upgrade."""
    client, server = WebSocket("ws://relay.test"), ServerProtocol()
    server.receive_data(client.take())
    for request in server.events_received():
        if isinstance(request, Request):
            server.send_response(server.accept(request))
    client.receive(b"".join(server.data_to_send()))
    half = len(data) // 2
    client.receive(data[:half] or b"\x89\x00")
    client.receive(data[half:] or b"\x89\x00")
    client.take()


def upgrade(data: bytes) -> None:
    try:
        WebSocket("ws://relay.test").receive(data or b"H")
    except WebSocketException:
        return


def event(data: bytes) -> None:
    found = decode_event(data)
    if not isinstance(found, Refusal):
        verify(found)
        list_name(found)
        check_document(found)


def document(data: bytes) -> None:
    """The content of an event, past its signature."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    carried = Event(**{**SHAPE, "content": text})
    check_document(carried)
    check_contradiction(carried)
    try:
        body = parse_canonical(data)
        for kind in TYPES:
            _members({**body, "type": kind})
        verify_proof(body)
    except Refused:
        return


def _members(body: Mapping[str, Any]) -> None:
    try:
        parse_document(body)
    except Refused:
        return


def reconciliation(data: bytes) -> None:
    side = Reconciler.of([(number, bytes([number]) * 32) for number in range(64)])
    side.initiate()
    try:
        side.reconcile(data)
    except BadMessage:
        return


def containerfile(data: bytes) -> None:
    """What a publisher wants built: the builder's own parser gets what was understood, and nothing else."""
    try:
        found = parse_containerfile(data, context=("page",), bases=(BASE,), mounts=("/data",), where="")
    except Refused:
        return
    text = found.text({BASE: "base"})
    assert all(line.split()[0] in INSTRUCTIONS for line in text.splitlines())


TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {
    one.__name__: one for one in (frame, conversation, stream, upgrade, event, document, reconciliation, containerfile)
}


def seeds() -> list[bytes]:
    """Well-formed inputs, from which bytes are bent."""
    whole = msgspec.json.encode(SHAPE)
    return [
        whole,
        b'["EVENT","q1",' + whole + b"]",
        b'["EOSE","q1"]\n["CLOSED","q1","auth-required: x"]\n["AUTH","c"]\n["NEG-MSG","q1","6100"]\n["NOTICE","n"]',
        b'{"archy":1,"identity":"' + b"a" * 64 + b'","made":1,"name":"hello","proof":{},"seq":0}',
        b"\x81\x05hello\x89\x00\x01\x02ab\x80\x01c",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        bytes.fromhex("6100000200"),
        f'FROM x@{BASE} AS one\nCOPY --chmod=755 page /\nRUN ["/page"]\nENV a="b" \\\n c=d\nVOLUME /data\n'.encode(),
    ]


def main() -> None:
    atheris = importlib.import_module("atheris")  # installed by hand, see above

    def one(data: bytes) -> None:
        for target in TARGETS.values():
            target(data)

    atheris.instrument_all()
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
