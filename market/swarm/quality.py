"""What is known of each source, within one run and across runs: rate, latency, and what it did wrong. Pure.

Guarantees: what was remembered fades with age and never counts more than what is measured now; the book is bounded, and
a damaged one is an empty one. It refuses to know the clock (`now` is Unix seconds, given) and the file it lies in.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final

EWMA: Final = 0.3
HEDGE_SECONDS: Final = 0.3
"""How long a peer waits for an origin of unknown latency before it fetches the same single piece."""
GUESSED_RATE: Final = 1024 * 1024.0
"""Bytes per second of a source nobody has met, for estimates only."""
RATE_HALF_LIFE: Final = 86_400.0
"""Links change within days: a rate from yesterday counts half, and its source proves itself anew."""
BLAME_HALF_LIFE: Final = 7 * 86_400.0
BLAMED: Final = 1.5
"""Proven lies, faded, from which on a peer is not asked at all; one lie costs a piece, a habit costs the chance."""
FORGET_SECONDS: Final = 30 * 86_400.0
MAX_REMEMBERED: Final = 256
"""Sources in the book: more than one node meets in a month, and a file of some 20 KiB."""
MAX_BOOK_BYTES: Final = 256 * 1024


@dataclass(slots=True)
class Quality:
    """What is known of a source across blobs. Rates are bytes per second, latencies seconds; None is unknown."""

    rate: float | None = None
    latency: float | None = None
    deviation: float = 0.0
    evidence: float = field(init=False, default=0.0)
    """How much of an average over many full samples `rate` is, from 0 to 1: what came in the first hundredth of a
    second is a guess (buffers on the way send faster than the source), and the next full sample is worth more."""

    def __post_init__(self) -> None:
        self.evidence = 0.0 if self.rate is None else 1.0

    def saw_latency(self, seconds: float) -> None:
        if self.latency is None:
            self.latency, self.deviation = seconds, seconds / 2
        else:
            self.deviation += EWMA * (abs(seconds - self.latency) - self.deviation)
            self.latency += EWMA * (seconds - self.latency)

    def saw_rate(self, rate: float, weight: float = 1.0) -> None:
        """`weight` (above 0, to 1) says how much this sample counts beside the others."""
        share = EWMA * weight
        self.evidence += share * (1.0 - self.evidence)
        self.rate = rate if self.rate is None else self.rate + share / self.evidence * (rate - self.rate)

    def saw_fault(self) -> None:
        if self.rate is not None:
            self.rate /= 2

    @property
    def samples(self) -> float:
        """About how many full samples the rate rests on; no more than a few where there were many."""
        return self.evidence / EWMA

    @property
    def hedge_after(self) -> float:
        """About the 95th percentile of the time to first byte: the mean and two mean deviations."""
        return HEDGE_SECONDS if self.latency is None else self.latency + 2 * self.deviation

    def seconds_for(self, size: int) -> float:
        """Estimated time to bring `size` bytes, from the request on."""
        return (self.latency or 0.0) + size / (self.rate or GUESSED_RATE)


@dataclass(slots=True)
class Remembered:
    """One line of the book."""

    rate: float | None
    latency: float | None
    blame: float
    peer: bool
    brought: int
    """Verified bytes, all time."""
    seen: float
    """Unix seconds of the last fetch from it."""


class SourceBook:
    """Base URL -> what is remembered of it."""

    def __init__(self) -> None:
        self._known: dict[str, Remembered] = {}

    @classmethod
    def from_bytes(cls, raw: bytes) -> SourceBook:
        """Read a stored book; whatever is not one is an empty one, since nothing in it is more than a hint."""
        book = cls()
        try:
            rows = json.loads(raw) if len(raw) <= MAX_BOOK_BYTES else {}
            for url, row in list(rows.items())[:MAX_REMEMBERED]:
                book._known[str(url)] = _row(row)
        except (ValueError, TypeError, KeyError, AttributeError):
            return cls()
        return book

    def to_bytes(self) -> bytes:
        rows = {
            url: [known.rate, known.latency, known.blame, known.peer, known.brought, known.seen]
            for url, known in self._known.items()
        }
        return json.dumps(rows).encode()

    def quality(self, url: str, now: float) -> Quality:
        """A fresh estimate to start from; unknown for whom nobody remembers."""
        known = self._known.get(url)
        if known is None or now - known.seen > FORGET_SECONDS:
            return Quality()
        faded = float(0.5 ** (max(0.0, now - known.seen) / RATE_HALF_LIFE))
        rate = None if known.rate is None else max(known.rate * faded, GUESSED_RATE)
        return Quality(rate, known.latency, (known.latency or 0.0) / 2)

    def blame(self, url: str, now: float) -> float:
        """Proven lies, faded by age."""
        known = self._known.get(url)
        return 0.0 if known is None else _faded_blame(known, now)

    def is_blamed(self, url: str, now: float) -> bool:
        """Whether a peer has lied so often lately that it is not asked."""
        return self.blame(url, now) >= BLAMED

    def remember(self, url: str, quality: Quality, *, peer: bool, brought: int, lies: int, now: float) -> None:
        """After a fetch: what was measured, the verified bytes it brought, and the lies that were proven."""
        old = self._known.pop(url, None)
        self._known[url] = Remembered(
            quality.rate,
            quality.latency,
            (_faded_blame(old, now) if old else 0.0) + lies,
            peer,
            (old.brought if old else 0) + brought,
            now,
        )
        while len(self._known) > MAX_REMEMBERED:
            del self._known[min(self._known, key=lambda known: self._known[known].seen)]

    def good_peers(self, now: float, limit: int) -> tuple[str, ...]:
        """Peers that brought something lately and did not lie, those that brought most first."""
        good = [
            (known.brought, url)
            for url, known in self._known.items()
            if known.peer and known.brought and now - known.seen < FORGET_SECONDS and not self.is_blamed(url, now)
        ]
        return tuple(url for _, url in sorted(good, reverse=True)[:limit])

    def rows(self, now: float) -> tuple[tuple[str, Remembered], ...]:
        """Everything that is remembered, blame faded to `now`."""
        return tuple(
            (url, Remembered(k.rate, k.latency, _faded_blame(k, now), k.peer, k.brought, k.seen))
            for url, k in self._known.items()
        )


def _faded_blame(known: Remembered, now: float) -> float:
    return known.blame * float(0.5 ** (max(0.0, now - known.seen) / BLAME_HALF_LIFE))


def _row(row: Any) -> Remembered:
    rate, latency, blame, peer, brought, seen = row
    return Remembered(
        None if rate is None else max(1.0, float(rate)),
        None if latency is None else max(0.0, float(latency)),
        max(0.0, float(blame)),
        bool(peer),
        max(0, int(brought)),
        float(seen),
    )
