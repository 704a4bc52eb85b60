"""One WebSocket to a relay on trio, with every wait bounded and every foreign exception translated.

Guarantees: messages above MAX_MESSAGE_SIZE end the connection, a redirect is never followed (a relay must not be able
to point this node at its own network), and whatever goes wrong is a RelayFault that names the relay.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio
from websockets.exceptions import ConnectionClosed, InvalidURI, WebSocketException
from websockets.trio.client import ClientConnection, connect
from websockets.uri import parse_uri

from market.discovery.frames import MAX_MESSAGE_SIZE
from market.errors import Problem

OPEN_SECONDS: Final = 10.0
CLOSE_SECONDS: Final = 2.0
"""A relay that does not answer the closing handshake is simply left."""
PING_SECONDS: Final = 20.0
QUEUED_MESSAGES: Final = 16
"""Messages read ahead of us: 2 MiB at worst; beyond that TCP holds the relay back."""


class RelayFault(Problem):
    """The relay can not be used now; `what` says why."""

    kind = "relay"


class RelayConnection:
    """Text messages both ways. Waits have the deadline of the caller's cancel scope."""

    def __init__(self, url: str, socket: ClientConnection) -> None:
        self.url = url
        self._socket = socket

    async def send(self, text: str) -> None:
        """Raises RelayFault when the connection is gone."""
        try:
            await self._socket.send(text)
        except (ConnectionClosed, OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise RelayFault(f"the connection was lost: {_reason(error)}", where=self.url) from error

    async def receive(self) -> bytes:
        """The next message. Raises RelayFault when the connection is gone or the message too large."""
        try:
            return await self._socket.recv(decode=False)
        except (ConnectionClosed, OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise RelayFault(f"the connection was lost: {_reason(error)}", where=self.url) from error


@asynccontextmanager
async def open_relay(url: str, *, public_only: bool = False) -> AsyncIterator[RelayConnection]:
    """A connection for as long as the context lasts. Raises RelayFault when it can not be made.

    `public_only`: refuse private and loopback addresses (the URL was named by a stranger).
    """
    stream = await _tcp(url, public_only)
    try:
        async with connect(
            url,
            stream=stream,
            proxy=None,
            compression=None,  # an event is small, and a compressed bomb is not
            open_timeout=OPEN_SECONDS,
            close_timeout=CLOSE_SECONDS,
            ping_interval=PING_SECONDS,
            ping_timeout=PING_SECONDS,
            max_size=MAX_MESSAGE_SIZE,
            max_queue=QUEUED_MESSAGES,
        ) as socket:
            yield RelayConnection(url, socket)
    except (WebSocketException, OSError, trio.BrokenResourceError, EOFError) as error:
        raise RelayFault(f"is no relay: {_reason(error)}", where=url) from error
    except ValueError as error:  # websockets says so of a redirect, since it was given the stream
        raise RelayFault(f"is no relay: {_reason(error)}", where=url) from error


async def open_stream(url: str, *, public_only: bool = False) -> trio.abc.Stream:
    """A TCP stream to the relay's address, with TLS for wss://. Raises RelayFault."""
    stream = await _tcp(url, public_only)
    address = parse_uri(url)
    if not address.secure:
        return stream
    return trio.SSLStream(stream, ssl.create_default_context(), server_hostname=address.host)


async def _tcp(url: str, public_only: bool) -> trio.SocketStream:
    try:
        address = parse_uri(url)
        with trio.fail_after(OPEN_SECONDS):
            if not public_only:
                return await trio.open_tcp_stream(address.host, address.port)
            return await _public_tcp(url, address.host, address.port)
    except InvalidURI as error:
        raise RelayFault("is not a relay's address", where=url) from error
    except trio.TooSlowError as error:
        raise RelayFault(f"does not answer within {OPEN_SECONDS:.0f} s", where=url) from error
    except OSError as error:
        raise RelayFault(f"can not be reached: {_reason(error)}", where=url) from error


async def _public_tcp(url: str, host: str, port: int) -> trio.SocketStream:
    """For addresses that strangers name: every address the name has is checked, and the checked one is connected to, so
    that a name which changes in between leads nowhere else."""
    found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    private = [address for address in addresses if not ipaddress.ip_address(address.partition("%")[0]).is_global]
    if private or not addresses:
        raise RelayFault(f"is at a private address ({', '.join(private)[:80]})", where=url)
    return await trio.open_tcp_stream(addresses[0], port)


def _reason(error: BaseException) -> str:
    if isinstance(error, ConnectionClosed):
        frame = error.rcvd or error.sent
        return f"closed with code {frame.code}" if frame else "closed without a word"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}"
    return str(error)[:200] or type(error).__name__
