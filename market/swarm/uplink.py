"""The way out of this node, shared fairly: bodies at the same time, and bytes per second.

Guarantees: with a rate set, no more than that leaves over any second or so, and peers that wait get turns one after the
other, so that neither many streams nor many requests bring one of them more. `Turns` is pure; `Uplink` lives on the
asyncio loop. It refuses to know blobs.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

MAX_STREAMS: Final = 64
"""Bodies sent at the same time, to everybody together: each holds a file and a socket."""
MAX_STREAMS_PER_PEER: Final = 16
"""... and to one address: MAX_SOURCES blobs of one fetching node."""
SEND_BYTES: Final = 1024 * 1024
"""Bytes per turn without a rate. asyncio loops over one sendfile call until it is done, and a fast reader would hold
the loop for a whole body."""
MIN_TURN_BYTES: Final = 16 * 1024
TURNS_PER_SECOND: Final = 20
"""With a rate a turn is a twentieth of a second of it: fine enough to share, coarse enough to cost nothing."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """What serving may take. `rate` is bytes per second to everybody together; None is unlimited."""

    rate: float | None = None
    streams: int = MAX_STREAMS
    streams_per_peer: int = MAX_STREAMS_PER_PEER


class Turns(Generic[_T]):
    """A queue in which peers take turns, whatever each of them has waiting. Pure."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[_T]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._waiting.values())

    def put(self, peer: str, item: _T) -> None:
        self._waiting.setdefault(peer, deque()).append(item)

    def take(self) -> _T:
        """The next item; its peer goes to the back. Raises KeyError when nobody waits."""
        peer, queue = self._waiting.popitem(last=False)
        item = queue.popleft()
        if queue:
            self._waiting[peer] = queue
        return item


class Uplink:
    """Who may send now. `limits` is asked at every turn, so that a changed setting counts at once."""

    def __init__(self, limits: Callable[[], UploadLimits]) -> None:
        self._limits = limits
        self._streams: Counter[str] = Counter()
        self._turns: Turns[tuple[int, asyncio.Future[None]]] = Turns()
        self._free_at = 0.0
        self._pump: asyncio.TimerHandle | None = None

    @contextmanager
    def stream(self, peer: str) -> Iterator[bool]:
        """True while there was room for one more body to `peer`."""
        limits = self._limits()
        if self._streams.total() >= limits.streams or self._streams[peer] >= limits.streams_per_peer:
            yield False
            return
        self._streams[peer] += 1
        try:
            yield True
        finally:
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]

    @property
    def turn_bytes(self) -> int:
        """How much to send per turn."""
        rate = self._limits().rate
        return SEND_BYTES if rate is None else max(MIN_TURN_BYTES, min(SEND_BYTES, int(rate / TURNS_PER_SECOND)))

    async def wait_turn(self, peer: str, size: int) -> None:
        """Wait until `size` bytes may go to `peer`."""
        if self._limits().rate is None and not self._turns:
            await asyncio.sleep(0)  # the loop's other requests get their turn
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns.put(peer, (size, turn))
        if self._pump is None:
            self._grant()
        await turn

    def _grant(self) -> None:
        """Let as many go as the rate allows now, and come back for the next."""
        loop = asyncio.get_running_loop()
        self._pump = None
        while self._turns:
            now = loop.time()
            if self._free_at > now:
                self._pump = loop.call_at(self._free_at, self._grant)
                return
            size, turn = self._turns.take()
            if turn.done():
                continue  # whoever waited has gone
            rate = self._limits().rate
            self._free_at = max(self._free_at, now - 1 / TURNS_PER_SECOND) + (size / rate if rate else 0.0)
            turn.set_result(None)
