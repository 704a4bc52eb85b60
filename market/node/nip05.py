"""NIP-05: which key a name like ada@example.org has now, asked over HTTPS.

Guarantees that nothing but a public address is spoken to, that no redirect is followed (NIP-05: "MUST ignore any HTTP
redirects"), and that time and bytes are bounded. The answer is only a hint for people: what is trusted is the key.
Blocking: call it in a worker thread.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Final

import h11

from market.errors import Refused, Unreachable
from market.swarm import AddressPolicy
from market.trust import NotAPerson, person_id

MAX_ANSWER: Final = 64 * 1024
"""Bytes of a body: a name takes 100, and servers are asked for one name only."""

MAX_HEAD: Final = 16 * 1024
DEADLINE: Final = 10.0
"""Seconds for the whole exchange, slow drips included."""

INSTEAD: Final = "give the npub instead"

_ADDRESS = re.compile(r"([a-z0-9._-]{1,64})@((?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{1,62})")

Resolve = Callable[[str, int], Iterable[tuple[Any, ...]]]
"""Host and port to rows of getaddrinfo(3)."""


class UnknownName(Refused):
    """The domain answers, and does not say whose key that is."""

    kind: ClassVar[str] = "unknown-name"


def is_name(text: str) -> bool:
    """Whether the text looks like a NIP-05 name at all."""
    return "@" in text


def parse_name(text: str) -> tuple[str, str]:
    """(local part, domain), in lower case. Raises NotAPerson."""
    found = _ADDRESS.fullmatch(text.strip().lower())
    if found is None or len(found[2]) > 253:
        raise NotAPerson(f"not a name: {text[:80]!r}", remedy="give NAME@DOMAIN, an npub1... or a did:key:z6Mk...")
    return found[1], found[2]


def look_up(
    text: str,
    addresses: AddressPolicy,
    *,
    resolve: Resolve | None = None,
    tls: ssl.SSLContext | None = None,
    port: int = 443,
    deadline: float = DEADLINE,
) -> str:
    """`nostr:<hex>` of the name. Raises NotAPerson, Refused (address, redirect, size), UnknownName, Unreachable."""
    name, domain = parse_name(text)
    until = time.monotonic() + deadline
    try:
        rows = list((resolve or _resolve)(domain, port))
    except OSError as error:
        raise Unreachable(f"the domain has no address: {error}", where=domain, remedy=INSTEAD) from error
    allowed = [row for row in rows if addresses.permits(str(row[4][0]))]
    if not allowed:
        raise Refused("the domain leads to no public address", where=domain, remedy=INSTEAD)
    status, body = _ask(allowed, domain, name, tls or ssl.create_default_context(), until)
    if status != 200:
        followed = " (redirects are not followed)" if 300 <= status < 400 else ""
        raise UnknownName(f"answered with HTTP status {status}{followed}", where=domain, remedy=INSTEAD)
    return key_of(body, name, domain)


def key_of(body: bytes, name: str, domain: str) -> str:
    """Pure: the person whom the document names so. Raises UnknownName."""
    try:
        key = json.loads(body)["names"][name]
        return person_id(key) if isinstance(key, str) and re.fullmatch(r"[0-9a-f]{64}", key) else _no_key(name, domain)
    except (ValueError, KeyError, TypeError, RecursionError, NotAPerson) as error:
        raise UnknownName(f"does not say whose key {name!r} is", where=domain, remedy=INSTEAD) from error


def _no_key(name: str, domain: str) -> str:
    raise UnknownName(f"names no key in hex for {name!r}", where=domain, remedy=INSTEAD)


def _resolve(host: str, port: int) -> Iterable[tuple[Any, ...]]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


def _ask(
    rows: Sequence[tuple[Any, ...]], domain: str, name: str, tls: ssl.SSLContext, until: float
) -> tuple[int, bytes]:
    fault: OSError | None = None
    for family, _, _, _, address in rows:
        left = until - time.monotonic()
        if left <= 0:
            break
        try:
            with socket.socket(family, socket.SOCK_STREAM) as plain:
                plain.settimeout(left)
                # To the address that was checked, and not to the name again: it may resolve differently now.
                plain.connect(address)
                with tls.wrap_socket(plain, server_hostname=domain) as sock:
                    return _exchange(sock, domain, name, until)
        except OSError as error:
            fault = error
    raise Unreachable(
        f"no answer over HTTPS: {fault or 'too slow'}", where=domain, remedy="try again, or give the npub"
    ) from fault


def _exchange(sock: ssl.SSLSocket, domain: str, name: str, until: float) -> tuple[int, bytes]:
    client = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
    headers = {"Host": domain, "Accept": "application/json", "Accept-Encoding": "identity", "Connection": "close"}
    request = h11.Request(method="GET", target=f"/.well-known/nostr.json?name={name}", headers=list(headers.items()))
    sock.sendall((client.send(request) or b"") + (client.send(h11.EndOfMessage()) or b""))
    status, body = 0, bytearray()
    try:
        while True:
            event = client.next_event()
            if event is h11.NEED_DATA:
                left = until - time.monotonic()
                if left <= 0:
                    raise TimeoutError("too slow")
                sock.settimeout(left)
                client.receive_data(sock.recv(16 * 1024))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > MAX_ANSWER:
                    raise Refused(f"an answer of more than {MAX_ANSWER} bytes", where=domain, remedy="give the npub")
            elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                return status, bytes(body)
    except h11.RemoteProtocolError as error:
        raise Refused(f"not HTTP: {error}", where=domain, remedy=INSTEAD) from error
