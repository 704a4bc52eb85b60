"""A bad link between two nodes: delay, jitter, loss, reordering and partition, on any kernel with TUN.

What tc-netem(8) does, for kernels that are built without it: each node gets a TUN device and a route over it to the
other; a thread of this process carries the packets between the two, late, in another order, or not at all.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import threading
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.system.lab import LabFault, Node

_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x1001
_CLONE_NEWNET = 0x40000000
_MTU = 1400
_MAX_PACKET = 65536
_QUEUE = 2000
"""Packets on their way in one direction; more are dropped, as a router would."""


@dataclass(frozen=True)
class Weather:
    """One way: seconds of delay, give or take `jitter`; shares of packets that are lost, or overtake the others."""

    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    overtaking: float = 0.0


class BadLink:
    """While the block lasts, the two nodes reach each other's `address` over this link only."""

    def __init__(self, first: Node, second: Node, weather: Weather, seed: int = 1) -> None:
        self._nodes = (first, second)
        self._weather = weather
        self._random = random.Random(seed)
        self._stop, self._stopped = os.pipe()
        self.partitioned = threading.Event()
        self.lost = 0
        self.carried = 0
        self._device = f"bad{os.getpid() % 10000}x{id(self) % 1000}"

    def __enter__(self) -> Self:
        first, second = self._nodes
        self._fds = [_tun_in(node.first, self._device) for node in self._nodes]
        for node, other in ((first, second), (second, first)):
            for command in (
                ["ip", "link", "set", self._device, "mtu", str(_MTU), "up"],
                ["ip", "route", "replace", f"{other.address}/32", "dev", self._device, "src", node.address],
            ):
                node.run(command, user="root")
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        os.close(self._stopped)
        self._thread.join()
        for fd in (*self._fds, self._stop):
            os.close(fd)  # the devices and their routes go with them

    def _carry(self) -> None:
        waiting: list[tuple[float, int, int, bytes]] = []
        order = count()
        while True:
            now = time.monotonic()
            while waiting and waiting[0][0] <= now:
                _, _, target, packet = heapq.heappop(waiting)
                self._deliver(target, packet)
            pause = max(0.0, waiting[0][0] - now) if waiting else None
            readable, _, _ = select.select([*self._fds, self._stop], [], [], pause)
            if self._stop in readable:
                return
            for fd in readable:
                packet = os.read(fd, _MAX_PACKET)
                if self._is_lost() or len(waiting) >= 2 * _QUEUE:
                    self.lost += 1
                    continue
                target = self._fds[1] if fd == self._fds[0] else self._fds[0]
                heapq.heappush(waiting, (time.monotonic() + self._lateness(), next(order), target, packet))

    def _deliver(self, target: int, packet: bytes) -> None:
        if not self.partitioned.is_set():
            os.write(target, packet)
            self.carried += 1

    def _is_lost(self) -> bool:
        return self.partitioned.is_set() or self._random.random() < self._weather.loss

    def _lateness(self) -> float:
        weather = self._weather
        if self._random.random() < weather.overtaking:
            return max(0.0, weather.delay - weather.jitter) / 2
        return weather.delay + self._random.uniform(0.0, weather.jitter)


def _tun_in(process: int, name: str) -> int:
    """A TUN device in that process's network; it lives as long as the descriptor. setns(2), tun(4)"""
    found: list[int] = []

    def make() -> None:  # a namespace is a thread's, and this thread ends with it
        libc = ctypes.CDLL(None, use_errno=True)
        with Path(f"/proc/{process}/ns/net").open("rb") as namespace:
            if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                return
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN_NO_PI))
        found.append(fd)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if not found:
        raise LabFault("no TUN device could be made", where=f"the network of process {process}")
    return found[0]
