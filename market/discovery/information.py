"""What a relay says about itself (NIP-11): one small HTTP answer at the address of its WebSocket.

Guarantees a bounded answer within a bounded time, no redirect followed, and None for everything that is not such a
document: a relay without one is still a relay. What it says is a hint, never a promise.
"""

from __future__ import annotations

from typing import Annotated, Final

import h11
import msgspec
import trio
from msgspec import Meta

from market.discovery.connection import RelayFault, open_stream, relay_address

MAX_INFORMATION: Final = 64 * 1024
"""Bytes; real documents have 1 to 4 KiB."""
INFORMATION_SECONDS: Final = 3.0


class Limitation(msgspec.Struct, frozen=True):
    """The limits that matter here; unknown members are dropped."""

    max_limit: Annotated[int, Meta(ge=1)] | None = None
    auth_required: bool = False


class RelayInformation(msgspec.Struct, frozen=True):
    """A relay's own words. `supported_nips` are numbers of NIPs."""

    name: str = ""
    software: str = ""
    supported_nips: tuple[int | str, ...] = ()
    limitation: Limitation = Limitation()

    def offers(self, nip: int) -> bool:
        return nip in self.supported_nips


_DECODER = msgspec.json.Decoder(RelayInformation)


async def fetch_information(url: str, *, public_only: bool = False) -> RelayInformation | None:
    """The relay's document, or None. Never raises because of the relay."""
    with trio.move_on_after(INFORMATION_SECONDS):
        try:
            async with await open_stream(url, public_only=public_only) as stream:
                return _parse(await _get(stream, url))
        except (RelayFault, OSError, trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError):
            return None
    return None


async def _get(stream: trio.abc.Stream, url: str) -> bytes | None:
    address = relay_address(url)
    host = f"[{address.host}]" if ":" in address.host else address.host
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=16 * 1024)
    request = h11.Request(
        method="GET",
        target=address.resource_name,
        headers=[
            ("Host", f"{host}:{address.port}"), ("Accept", "application/nostr+json"), ("Connection", "close"),
        ],
    )  # fmt: skip
    await stream.send_all((connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b""))
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(16 * 1024)))
        elif isinstance(event, h11.Response):
            if event.status_code != 200:
                return None
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_INFORMATION:
                return None
        elif isinstance(event, h11.EndOfMessage):
            return bytes(body)
        elif not isinstance(event, h11.InformationalResponse):
            return None


def _parse(body: bytes | None) -> RelayInformation | None:
    try:
        return _DECODER.decode(body) if body else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
