"""One WebSocket to a relay on trio, with every wait bounded and every foreign exception translated.

Guarantees: messages above MAX_MESSAGE_SIZE end the connection, a redirect is never followed (a relay must not be able
to point this node at its own network), and whatever goes wrong is a RelayFault that names the relay.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio
from websockets.exceptions import InvalidURI, WebSocketException
from websockets.uri import WebSocketURI, parse_uri

from market.discovery.websocket import WebSocket
from market.errors import Problem

OPEN_SECONDS: Final = 10.0
CLOSE_SECONDS: Final = 2.0
"""A relay that does not answer the closing handshake is simply left."""
SEND_SECONDS: Final = 60.0
"""A relay that takes nothing for so long is gone."""
PING_SECONDS: Final = 20.0
"""Of silence before a ping, and once more until the relay counts as gone."""
RECEIVE_SIZE: Final = 64 * 1024
"""Bytes read at once, some sixty events; beyond that TCP holds the relay back."""


class RelayFault(Problem):
    """The relay can not be used now; `what` says why."""

    kind = "relay"


class BadAddress(RelayFault):
    """It never will be usable: the URL leads nowhere."""


class RelayConnection:
    """Text messages both ways. Waits have the deadline of the caller's cancel scope."""

    def __init__(self, url: str, stream: trio.abc.Stream) -> None:
        self.url = url
        self._stream = stream
        self._socket = WebSocket(url)
        self._sending = trio.Lock()

    async def send(self, text: str) -> None:
        """Raises RelayFault when the connection is gone."""
        if not self._socket.is_open:
            raise self._lost()
        self._socket.send(text)
        await self._flush()

    async def receive(self) -> bytes:
        """The next message. Raises RelayFault when the connection is gone or the message too large."""
        await self.wait()
        return self._socket.messages.popleft()

    async def wait(self) -> None:
        """Until there is a message, so that `arrived` is not None. Raises RelayFault as `receive` does."""
        while not self._socket.messages:
            if self._socket.is_ending:
                raise self._lost()
            self._socket.receive(await self._some_data())
            await self._flush()

    def arrived(self) -> bytes | None:
        """The next message, if it is here already."""
        return self._socket.messages.popleft() if self._socket.messages else None

    async def open(self) -> None:
        """The opening handshake (RFC 6455, section 4.1). Raises RelayFault."""
        try:
            await self._flush()
            while not self._socket.is_open:
                self._socket.receive(await self._read())
        except WebSocketException as error:
            raise RelayFault(f"is no relay: {_reason(error)}", where=self.url) from error

    async def close(self) -> None:
        """The closing handshake, as far as the relay takes part in it."""
        with trio.move_on_after(CLOSE_SECONDS):
            try:
                self._socket.close()
                await self._flush()
                while await self._stream.receive_some(RECEIVE_SIZE):
                    pass
            except (RelayFault, OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                return  # it is closed

    async def _some_data(self) -> bytes:
        """Whatever comes next; silence is answered with a ping, and silence after that ends the connection."""
        with trio.move_on_after(PING_SECONDS):
            return await self._read()
        self._socket.ping()
        await self._flush()
        with trio.move_on_after(PING_SECONDS):
            return await self._read()
        raise RelayFault("the connection was lost: it does not answer", where=self.url)

    async def _read(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some(RECEIVE_SIZE))
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise RelayFault(f"the connection was lost: {_reason(error)}", where=self.url) from error

    async def _flush(self) -> None:
        if not (data := self._socket.take()):
            return
        try:
            with trio.fail_after(SEND_SECONDS):
                async with self._sending:
                    await self._stream.send_all(data)
        except (OSError, trio.TooSlowError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise RelayFault(f"the connection was lost: {_reason(error)}", where=self.url) from error

    def _lost(self) -> RelayFault:
        return RelayFault(f"the connection was lost: {self._socket.fault}", where=self.url)


@asynccontextmanager
async def open_relay(url: str, *, public_only: bool = False) -> AsyncIterator[RelayConnection]:
    """A connection for as long as the context lasts. Raises RelayFault when it can not be made.

    `public_only`: refuse private and loopback addresses (the URL was named by a stranger).
    """
    stream = await open_stream(url, public_only=public_only)
    try:
        connection = RelayConnection(url, stream)
        with trio.move_on_after(OPEN_SECONDS) as patience:
            await connection.open()
        if patience.cancelled_caught:
            raise RelayFault(f"is no relay: no answer within {OPEN_SECONDS:.0f} s", where=url)
        try:
            yield connection
        finally:
            await connection.close()
    finally:
        await trio.aclose_forcefully(stream)


async def open_stream(url: str, *, public_only: bool = False) -> trio.abc.Stream:
    """A TCP stream to the relay's address, with TLS for wss://. Raises RelayFault."""
    address = relay_address(url)
    stream = await _tcp(url, address, public_only)
    if not address.secure:
        return stream
    return trio.SSLStream(stream, ssl.create_default_context(), server_hostname=address.host, https_compatible=True)


def relay_address(url: str) -> WebSocketURI:
    """Host, port and path of a relay's URL, which strangers may have written. Raises RelayFault."""
    try:
        return parse_uri(url)
    except (InvalidURI, ValueError) as error:  # urllib.parse: ValueError for a port or an IPv6 address that is none
        raise BadAddress("is not a relay's address", where=url) from error


async def _tcp(url: str, address: WebSocketURI, public_only: bool) -> trio.SocketStream:
    try:
        with trio.fail_after(OPEN_SECONDS):
            if not public_only:
                return await trio.open_tcp_stream(address.host, address.port)
            return await _public_tcp(url, address.host, address.port)
    except UnicodeError as error:  # the idna codec: a label of the name is empty or longer than 63 characters
        raise BadAddress("is not a relay's address", where=url) from error
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
    cause: BaseException = error.__cause__ or error
    while isinstance(cause, BaseExceptionGroup):  # one for each address of the name
        cause = cause.exceptions[0]
    if isinstance(cause, ssl.SSLError):
        return f"TLS: {cause.reason or cause}"
    if isinstance(cause, OSError) and cause.errno:
        # trio's own text has the address, which the relay's URL beside it says better
        told = str(cause.strerror) if isinstance(cause, socket.gaierror) else os.strerror(cause.errno)
        return told[:1].lower() + told[1:200]
    return str(error)[:200] or type(error).__name__
