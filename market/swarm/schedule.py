"""Who fetches which piece of one blob next. Pure: sources' states and `now` in, assignments out.

Guarantees, whatever sources do: a verified piece is never assigned; a piece has at most two owners; while anything is
missing and an origin is ready, an origin owns something; one bad piece bans a peer, nothing bans an origin; if one
source works, the blob completes, and if none does, `stuck` says so after a bounded number of attempts.
It never asks what time it is, and knows nothing of bytes, sockets and threads. Seconds are monotonic.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from blake3 import blake3

from market.swarm.errors import FaultKind
from market.swarm.pieces import PieceTable
from market.swarm.quality import GUESSED_RATE
from market.swarm.sources import SourceKind
from market.swarm.states import MAX_BUSY, Lease, Leave, Look, SourceState, Wait

SPAN_SECONDS: Final = 0.25
"""A span is what its source brings in this time: long enough to hide a request, short enough to change one's mind. A
rate that was measured for less long counts less."""
SPAN_LATENCIES: Final = 10
"""... or in this many times its time to first byte, so that a far source is not idle between requests; at most what
is left."""
RAMP: Final = 4.0
"""... and at most in this many times the time for which its rate was seen: the first piece often lies in buffers. Half
of what a far source gets is for its latency, and not held to this."""
MAX_SPAN_BYTES: Final = 16 * 1024 * 1024
FIRST_ORIGIN_SPAN_BYTES: Final = 4 * 1024 * 1024
"""An origin of unknown rate starts with this; a peer of unknown rate with one piece, which is all it can spoil."""
TAKEOVER: Final = 0.8
"""An owner is joined by a source whose own estimate is under this share of the owner's."""
MAX_OWNERS: Final = 2
PEER_ERRORS: Final = 3
"""Transport errors after which a peer is dropped for this blob."""
ORIGIN_LACKS: Final = 3
"""An origin's "not found" counts as much as this many faults: it may be deploying, but it did answer."""
BACKOFF_SECONDS: Final = 0.25
BACKOFF_LIMIT: Final = 8.0
RECHECK_SECONDS: Final = 0.05
"""How soon an idle source looks again whether an owner has fallen behind."""
MEET_FROM: Final = 0.25
"""A source whose piece takes more than this share of the time that is left reads ahead of the others; below it, holes
are filled long before they matter, and whoever reads on in order makes fewer requests."""
MIN_SAMPLE_BYTES: Final = 256 * 1024
"""What a lease must have brought for its rate to mean anything: less than this fits into socket buffers."""
LOOK_SECONDS: Final = 1.0
"""How often a source that is fetching the blob itself is asked which pieces it has by now."""
PATIENCE_SECONDS: Final = 30.0
"""How long such a source may have nothing that is missing here before it is given up."""


_FREE, _OWNED, _VERIFIED = 0, 1, 2


@dataclass(slots=True)
class Schedule:
    """The state machine of one blob's fetch. Sources are numbered as given."""

    table: PieceTable
    sources: Sequence[SourceState]
    seed: int = 0
    """In which order pieces are taken that are equally rare, once others are seen to fetch the blob too: nodes with
    different orders have something to give each other. A different beginning is not enough: two that begin at
    neighbouring pieces and read on from there stay side by side to the end."""
    _order: list[bytes] = field(init=False, default_factory=list)
    """Of each piece, its place in that order; empty as long as nobody else is seen to fetch the blob."""
    _rarity: list[int] = field(init=False, default_factory=list)
    """Of each piece, the sources known to have it among those that have a part only; empty without any of these."""
    _state: bytearray = field(init=False)
    _owners: dict[int, list[Lease]] = field(init=False, default_factory=dict)
    _missing: int = field(init=False)

    def __post_init__(self) -> None:
        self._state = bytearray(self.table.count)
        self._missing = self.table.count

    # --- questions

    @property
    def complete(self) -> bool:
        return self._missing == 0

    @property
    def stuck(self) -> bool:
        """No source is left that could bring what is missing."""
        return not self.complete and all(source.hopeless for source in self.sources)

    def owners(self, index: int) -> tuple[int, ...]:
        return tuple(lease.source for lease in self._owners.get(index, ()))

    def wants(self, lease: Lease) -> bool:
        """Whether the piece `lease.next` is still this lease's to fetch."""
        return not lease.revoked and lease.next < lease.end and self._state[lease.next] != _VERIFIED

    # --- what happened

    def already(self, pieces: Iterable[int]) -> None:
        """Pieces that were verified before this fetch began."""
        for index in pieces:
            self._verify(index)

    def received(self, lease: Lease, size: int, now: float) -> bool:
        """Bytes came. False if the lease was taken away or its piece has come from elsewhere."""
        if lease.first_byte is None:
            lease.first_byte, lease.first_bytes = now, size
            self.sources[lease.source].quality.saw_latency(now - lease.begun)
        lease.last_byte = now
        lease.received += size
        lease.in_piece += size
        return not lease.revoked and self._state[lease.next] != _VERIFIED

    def verified(self, lease: Lease) -> bool:
        """The piece `lease.next` verified and is stored. False if it already was: these bytes were wasted."""
        source = self.sources[lease.source]
        source.busy = 0
        if source.kind is SourceKind.ORIGIN:
            source.errors = 0
        others = [other for other in self._owners.get(lease.next, ()) if other is not lease]
        first = self._verify(lease.next)
        for other in others:
            self._revoke(other)  # it may be stalled in this piece: what it holds beyond is free at once
        lease.next += 1
        lease.in_piece = 0
        return first

    def ended(self, lease: Lease, now: float) -> None:
        """The lease is over, in peace: what it did not bring is free again."""
        self._release(lease)
        source = self.sources[lease.source]
        sample = lease.received - lease.first_bytes
        if lease.first_byte is not None and sample >= MIN_SAMPLE_BYTES and now > lease.first_byte:
            elapsed = now - lease.first_byte
            source.quality.saw_rate(sample / elapsed, min(1.0, elapsed / SPAN_SECONDS))

    def failed(self, lease: Lease, fault: FaultKind, now: float) -> None:
        """The lease is over because its source failed."""
        self._release(lease)
        source = self.sources[lease.source]
        if fault is FaultKind.BUSY:
            source.busy += 1
            source.out = source.out or (source.kind is SourceKind.PEER and source.busy >= MAX_BUSY)
            source.ready_at = now + min(BACKOFF_LIMIT, BACKOFF_SECONDS * 2.0 ** min(source.busy, 16))
            return
        if source.kind is SourceKind.PEER and fault is FaultKind.LACKS:
            source.absent, source.look_at = True, now + LOOK_SECONDS  # no error: it may be about to fetch it, too
            return
        source.quality.saw_fault()
        source.errors += ORIGIN_LACKS if fault is FaultKind.LACKS else 1
        source.ready_at = now + min(BACKOFF_LIMIT, BACKOFF_SECONDS * 2.0 ** min(source.errors - 1, 16))
        if fault is FaultKind.CORRUPT:
            source.corrupt += 1
        if fault is FaultKind.REFUSED:
            source.out = True  # policy says the same the next time, also for an origin
        elif source.kind is SourceKind.PEER:
            source.out = fault is FaultKind.CORRUPT or source.errors >= PEER_ERRORS

    def looked(self, number: int, have: bytes | None, now: float) -> None:
        """What a source says it has; None: all. It is given up when for long that has been nothing of use."""
        source = self.sources[number]
        source.look_at = now + LOOK_SECONDS
        if have is None and source.absent:
            return
        source.have, source.absent = have, False
        partials = [other.have for other in self.sources if other.have is not None]
        self._rarity = [sum(column) for column in zip(*partials, strict=True)]
        if have is None or source.useful_at == 0.0 or self._is_useful(have):
            source.useful_at = now
        source.out = source.out or now - source.useful_at > PATIENCE_SECONDS
        if partials and not self._order:
            self._order = [blake3(b"%d %d" % (self.seed, index)).digest() for index in range(self.table.count)]

    def _is_useful(self, have: bytes) -> bool:
        """Whether anything of it is missing here."""
        return any(has and state != _VERIFIED for has, state in zip(have, self._state, strict=True))

    # --- what to do

    def next(self, number: int, now: float) -> Lease | Wait | Look | Leave:
        """What the source `number`, which is idle, does next."""
        source = self.sources[number]
        if self.complete or source.out or self.stuck:
            return Leave()
        if now < source.ready_at:
            return Wait(source.ready_at)
        if (source.have is not None or source.absent) and now >= source.look_at:
            return Look()
        if source.absent:
            return Wait(source.look_at)
        span = self._late_piece(source, now) or self._free_span(source)
        if span is None and (thief_span := self._split(source, now)) is not None:
            span = thief_span
        if span is None:
            span = self._join(source, now)
        if span is None:
            return Wait(now + RECHECK_SECONDS)
        return self._grant(number, span, now)

    def _free_span(self, source: SourceState) -> tuple[int, int] | None:
        start = self._first_free(source)
        if start is None:
            return None
        to_the_end = source.whole_only or self._is_alone(source)
        limit = self.table.count if to_the_end else start + self._span_pieces(source)
        end = start + 1
        while end < min(limit, self.table.count) and self._state[end] == _FREE and self._goes_on(source, start, end):
            end += 1
        return start, end

    def _is_alone(self, source: SourceState) -> bool:
        """Whether this is an origin and nobody else is there to share with: each request more would only cost time.

        A lone peer goes on in spans: how fast the first of them came tells whether to ask it to compress the rest.
        """
        return source.kind is SourceKind.ORIGIN and all(other is source or other.hopeless for other in self.sources)

    def _first_free(self, source: SourceState) -> int | None:
        """In order while every source has everything; else the rarest piece that the source has."""
        if not self._rarity or source.whole_only:
            start = self._state.find(_FREE)
            return self._meeting_place(source, start) if start >= 0 else None
        free = (index for index in range(self.table.count) if self._state[index] == _FREE and source.has(index))
        return min(free, key=lambda index: (self._rarity[index], self._order[index]), default=None)

    def _meeting_place(self, source: SourceState, start: int) -> int:
        """Where a slow source begins: there where the others will be when it is done with one piece.

        The whole digest is computed in order, and a hole far behind the others would have them wait at the end.
        """
        if self._rarity or source.whole_only or source.quality.rate is None or self._span_pieces(source) > 1:
            return start
        left = self._seconds_left(source)
        share = source.quality.seconds_for(self.table.piece_size) / left if left else math.inf
        if share < MEET_FROM:
            return start
        free = self._state.find(_FREE, start + int((self.table.count - start) * min(1.0, share)))
        return free if free >= 0 else self._state.rfind(_FREE)

    def _seconds_left(self, idle: SourceState | None = None) -> float:
        """Estimated time until all is there, by those who are at work and the one that is about to be."""
        rate, begun = 0.0, 0
        for source in self.sources:
            if source.lease is not None or source is idle:
                rate += source.quality.rate or 0.0
            if source.lease is not None:
                begun += source.lease.in_piece
        return max(0.0, self._missing * self.table.piece_size - begun) / rate if rate else math.inf

    def _late_piece(self, source: SourceState, now: float) -> tuple[int, int] | None:
        """A piece that its owner would bring after everything else: it would be fetched twice then, so it is now.

        Not before the owner has shown for SPAN_SECONDS what it can; and not among nodes that all fetch: there nothing
        comes in order, and everybody's uploads are what is short.
        """
        if self._rarity or source.quality.rate is None or source.whole_only:
            return None
        left = self._seconds_left()
        for lease in self._running():
            index = lease.next
            if lease.end - index > 1 or now - lease.begun < SPAN_SECONDS or not source.has(index):
                continue
            own = source.quality.seconds_for(self.table.length(index))
            if TAKEOVER * self._remaining(lease, now) > max(left, own) and len(self._owners[index]) < MAX_OWNERS:
                return index, index + 1
        return None

    def _goes_on(self, source: SourceState, start: int, index: int) -> bool:
        """Whether a span that begins at `start` may reach on to `index`."""
        if source.kind is SourceKind.ORIGIN or not self._rarity:
            return True
        return source.has(index) and self._rarity[index] <= self._rarity[start]

    def _span_pieces(self, source: SourceState) -> int:
        quality = source.quality
        if quality.rate is None:
            size = FIRST_ORIGIN_SPAN_BYTES if source.kind is SourceKind.ORIGIN else 1.0
        else:
            # Shorter ones towards the end, so that everybody is done at the same time and at the same place; and none
            # that would go on after it.
            left = self._seconds_left(source)
            far = SPAN_LATENCIES * (quality.latency or 0.0)
            known_for = max(RAMP * SPAN_SECONDS * quality.samples, far / 2)
            size = quality.rate * min(known_for, max(min(SPAN_SECONDS, left / 2), min(far, left)))
        return max(1, int(min(size, MAX_SPAN_BYTES)) // self.table.piece_size)

    def _split(self, source: SourceState, now: float) -> tuple[int, int] | None:
        """Take the tail of the span that would end last; its owner keeps at least the piece it is in."""
        candidates = [lease for lease in self._running() if lease.end - lease.next > 1 and source.has(lease.end - 1)]
        if not candidates:
            return None
        worst = max(candidates, key=lambda lease: self._remaining(lease, now))
        mine = source.quality.rate or GUESSED_RATE
        theirs = self._rate(worst, now)
        behind = 1
        while behind < worst.end - worst.next - 1 and source.has(worst.end - 1 - behind):
            behind += 1
        take = max(1, min(behind, round(behind * mine / (mine + theirs)), self._span_pieces(source)))
        start, end = worst.end - take, worst.end
        size = self.table.span_bytes(start, end)
        if source.quality.seconds_for(size) >= TAKEOVER * self._remaining(worst, now) and not self._must_own(source):
            return None
        worst.end = start
        for index in range(start, end):
            self._disown(worst, index)
        return start, end

    def _join(self, source: SourceState, now: float) -> tuple[int, int] | None:
        """Fetch a piece that somebody is fetching already, where this source would have it first."""
        must = self._must_own(source)
        running = sorted(self._running(), key=lambda lease: self._remaining(lease, now), reverse=True)
        for lease in running:
            index = lease.next
            if not source.has(index):
                continue
            own = source.quality.seconds_for(self.table.length(index))
            late = lease.first_byte is not None or now - lease.begun >= self._hedge_after(lease)
            if must or (late and own < TAKEOVER * self._remaining(lease, now)):
                owners = self._owners[index]
                if len(owners) >= MAX_OWNERS:
                    if not must:
                        continue
                    self._revoke(max(owners, key=lambda owner: self._remaining(owner, now)))
                return index, index + 1
        return None

    def _hedge_after(self, lease: Lease) -> float:
        return self.sources[lease.source].quality.hedge_after

    def _must_own(self, source: SourceState) -> bool:
        """Origin always wins: an idle origin never watches peers alone fetch what is missing."""
        return source.kind is SourceKind.ORIGIN and not any(
            self.sources[lease.source].kind is SourceKind.ORIGIN for lease in self._running()
        )

    def _running(self) -> list[Lease]:
        """Leases that own a missing piece."""
        return [source.lease for source in self.sources if source.lease is not None and self.wants(source.lease)]

    def _rate(self, lease: Lease, now: float) -> float:
        """Bytes per second, by this lease's own evidence once there is some."""
        known = self.sources[lease.source].quality.rate
        elapsed = now - lease.begun
        if known is None or elapsed > SPAN_SECONDS:
            return max(1.0, lease.received / elapsed) if elapsed > 0 else GUESSED_RATE
        return known

    def _remaining(self, lease: Lease, now: float) -> float:
        """Estimated seconds until the lease would be done."""
        left = self.table.span_bytes(lease.next, lease.end) - lease.in_piece
        if lease.first_byte is None:
            quality = self.sources[lease.source].quality
            waited = now - lease.begun
            return max(quality.seconds_for(left) - waited, 2 * waited)
        silent = now - lease.last_byte
        return left / self._rate(lease, now) + (silent if silent > RECHECK_SECONDS else 0.0)

    # --- ownership

    def _grant(self, number: int, span: tuple[int, int], now: float) -> Lease:
        lease = Lease(number, span[0], span[1], now, span[0])
        self.sources[number].lease = lease
        for index in range(*span):
            self._owners.setdefault(index, []).append(lease)
            self._state[index] = _OWNED
        return lease

    def _revoke(self, lease: Lease) -> None:
        lease.revoked = True
        for index in range(lease.next, lease.end):
            self._disown(lease, index)

    def _release(self, lease: Lease) -> None:
        self._revoke(lease)
        if self.sources[lease.source].lease is lease:
            self.sources[lease.source].lease = None

    def _disown(self, lease: Lease, index: int) -> None:
        owners = self._owners.get(index)
        if owners is None or lease not in owners:
            return
        owners.remove(lease)
        if not owners:
            del self._owners[index]
            if self._state[index] == _OWNED:
                self._state[index] = _FREE

    def _verify(self, index: int) -> bool:
        if self._state[index] == _VERIFIED:
            return False
        self._state[index] = _VERIFIED
        self._missing -= 1
        self._owners.pop(index, None)
        return True
