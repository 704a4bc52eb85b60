"""Range-based set reconciliation (Negentropy protocol version 1, which NIP-77 carries): which ids does each side lack?

Guarantees that two sides which follow the protocol learn every difference, and that a side which does not costs bounded
work: every message is parsed within its length, and one that makes no sense raises BadMessage. This node only ever
begins; the side that answers is here whole, but cuts no long list of ids. Refuses to know relays, events and time.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

VERSION: Final = 0x61
ID_SIZE: Final = 32
_FINGERPRINT_SIZE: Final = 16
_BUCKETS: Final = 16
_SKIP, _FINGERPRINT, _IDS = 0, 1, 2
_INFINITY: Final = 2**64 - 1
_MODULUS: Final = 2**256

FRAME_LIMIT: Final = 40_000
"""Bytes of a message, 80,000 as hex: below what relays take of one WebSocket message."""

MAX_IDS: Final = 100_000
"""Ids that the other side may name as new in one reconciliation; the rest is found the next time."""

Bound = tuple[int, bytes]
"""A timestamp and the beginning of an id: all items below it are in the range."""


class BadMessage(ValueError):
    """Not a Negentropy message of version 1, or one that a range can not have."""


@dataclass(slots=True)
class Reconciler:
    """One side. `initiate` begins, `reconcile` answers; the side that began collects `have` and `need`."""

    items: list[tuple[int, bytes]]
    """(Unix seconds, 32 bytes of id), sorted."""
    have: list[bytes] = field(default_factory=list)
    """Ids that only this side has."""
    need: list[bytes] = field(default_factory=list)
    """Ids that only the other side has."""
    _began: bool = False
    _sums: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, items: Iterable[tuple[int, bytes]]) -> Reconciler:
        made = cls(sorted(items))
        # Prefix sums make a range's fingerprint two look-ups, however often ranges are split.
        made._sums = [0, *accumulate(int.from_bytes(id_, "little") for _, id_ in made.items)]
        return made

    def initiate(self) -> bytes:
        """The first message."""
        self._began = True
        out = _Writer()
        self._split(out, 0, len(self.items), (_INFINITY, b""))
        return bytes(out.data)

    def reconcile(self, message: bytes) -> bytes | None:
        """The answer to a message, or None when the side that began knows all. Raises BadMessage."""
        read = _Reader(message)
        if read.byte() != VERSION:
            raise BadMessage("another version of the protocol")
        out, lower, previous, skipping = _Writer(), 0, (0, b""), False
        while read.left():
            bound = read.bound()
            if bound < previous:
                raise BadMessage("ranges out of order")
            upper = bisect_left(self.items, bound, lower)
            mode = read.number()
            answer = _Writer(out.timestamp)
            if mode == _FINGERPRINT:
                if read.take(_FINGERPRINT_SIZE) != self._fingerprint(lower, upper):
                    answer.skip(previous if skipping else None)
                    self._split(answer, lower, upper, bound)
            elif mode == _IDS:
                self._compare(read.ids(), lower, upper, bound, answer, previous if skipping else None)
            elif mode != _SKIP:
                raise BadMessage("an unknown kind of range")
            skipping = len(answer.data) == 1
            if not skipping:
                out.extend(answer)
            lower, previous = upper, bound
            if len(out.data) > FRAME_LIMIT:
                # What is left is summed up in one fingerprint, and taken up again in the next round.
                out.bound((_INFINITY, b""))
                out.number(_FINGERPRINT)
                out.data += self._fingerprint(upper, len(self.items))
                break
        if len(self.need) > MAX_IDS:
            raise BadMessage("more new ids than one reconciliation takes")
        if len(self.have) > len(self.items):
            raise BadMessage("it lacks more than there is")  # ranges that it compares again and again, for ever
        return None if self._began and len(out.data) == 1 else bytes(out.data)

    def _compare(
        self, theirs: set[bytes], lower: int, upper: int, bound: Bound, answer: _Writer, skipped: Bound | None
    ) -> None:
        ours = [id_ for _, id_ in self.items[lower:upper]]
        if self._began:
            self.have += [id_ for id_ in ours if id_ not in theirs]
            self.need += sorted(theirs.difference(ours))
            return
        answer.skip(skipped)
        answer.bound(bound)
        answer.id_list(ours)

    def _split(self, out: _Writer, lower: int, upper: int, bound: Bound) -> None:
        count = upper - lower
        if count < 2 * _BUCKETS:
            out.bound(bound)
            out.id_list([id_ for _, id_ in self.items[lower:upper]])
            return
        each, more = divmod(count, _BUCKETS)
        place = lower
        for bucket in range(_BUCKETS):
            end = place + each + (bucket < more)
            out.bound(bound if end == upper else _between(self.items[end - 1], self.items[end]))
            out.number(_FINGERPRINT)
            out.data += self._fingerprint(place, end)
            place = end

    def _fingerprint(self, lower: int, upper: int) -> bytes:
        total = (self._sums[upper] - self._sums[lower]) % _MODULUS
        return hashlib.sha256(total.to_bytes(32, "little") + _varint(upper - lower)).digest()[:_FINGERPRINT_SIZE]


def _between(before: tuple[int, bytes], after: tuple[int, bytes]) -> Bound:
    """The shortest bound that has the one item below it and the other not."""
    if before[0] != after[0]:
        return after[0], b""
    shared = next((place for place in range(ID_SIZE) if before[1][place] != after[1][place]), ID_SIZE - 1)
    return after[0], after[1][: shared + 1]


def _varint(number: int) -> bytes:
    """Base 128, most significant group first, all but the last with the high bit set."""
    groups = [number & 0x7F]
    while number := number >> 7:
        groups.append(number & 0x7F | 0x80)
    return bytes(reversed(groups))


class _Writer:
    def __init__(self, timestamp: int = 0) -> None:
        self.data = bytearray([VERSION])
        self.timestamp = timestamp

    def number(self, number: int) -> None:
        self.data += _varint(number)

    def bound(self, bound: Bound) -> None:
        timestamp, prefix = bound
        self.number(0 if timestamp == _INFINITY else timestamp - self.timestamp + 1)
        self.timestamp = timestamp
        self.number(len(prefix))
        self.data += prefix

    def skip(self, bound: Bound | None) -> None:
        if bound is not None:
            self.bound(bound)
            self.number(_SKIP)

    def id_list(self, ids: list[bytes]) -> None:
        self.number(_IDS)
        self.number(len(ids))
        self.data += b"".join(ids)

    def extend(self, other: _Writer) -> None:
        self.data += other.data[1:]
        self.timestamp = other.timestamp


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0
        self._timestamp = 0

    def left(self) -> int:
        return len(self._data) - self._place

    def take(self, size: int) -> bytes:
        if size > self.left():
            raise BadMessage("it ends too early")
        self._place += size
        return self._data[self._place - size : self._place]

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self) -> int:
        number = 0
        for _ in range(10):  # 70 bits hold every number of the protocol
            byte = self.byte()
            number = number << 7 | byte & 0x7F
            if not byte & 0x80:
                return number
        raise BadMessage("a number without end")

    def bound(self) -> Bound:
        delta = self.number()
        self._timestamp = _INFINITY if delta == 0 else min(self._timestamp + delta - 1, _INFINITY)
        size = self.number()
        if size > ID_SIZE:
            raise BadMessage("a bound longer than an id")
        return self._timestamp, self.take(size)

    def ids(self) -> set[bytes]:
        count = self.number()
        data = self.take(min(count * ID_SIZE, self.left() + 1))
        return {data[place : place + ID_SIZE] for place in range(0, len(data), ID_SIZE)}
