"""The scheduler against every fault schedule that hypothesis finds, in a small simulated time. No I/O, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.model import PIECE_SIZE, Digest
from market.swarm.errors import FaultKind
from market.swarm.pieces import PieceTable
from market.swarm.quality import Quality
from market.swarm.schedule import MAX_OWNERS, PATIENCE_SECONDS, PEER_ERRORS, Schedule
from market.swarm.sources import SourceKind
from market.swarm.states import MAX_BUSY, Lease, Leave, Look, SourceState, Wait

MIB = 1024 * 1024.0


@dataclass(frozen=True)
class Deed:
    """What a source does with one lease: brings `good` bytes at its rate, then `fault`; None means it is good."""

    good: int
    fault: FaultKind | None
    silence: float = 0.0
    """Seconds between the last good byte and the fault, as a deadline would have it."""


@dataclass
class Actor:
    """A simulated source: its rate in bytes per second, and what it does with its first leases; then it is good."""

    kind: SourceKind
    rate: float
    deeds: list[Deed] = field(default_factory=list)
    always: Deed | None = None
    latency: float = 0.0
    lease: Lease | None = None
    deed: Deed | None = None
    credit: float = 0.0
    taken_at: float = 0.0
    failing_at: float | None = None
    gone: bool = False
    brought: int = 0
    have: bytes | None = None
    """What it has when it is first asked; None: all."""
    grows: float = 0.0
    """Pieces per second that it gets by itself, in order."""

    def shown(self, now: float) -> bytes | None:
        if self.have is None:
            return None
        more = int(now * self.grows)
        grown = bytearray(self.have)
        for index in range(len(grown)):
            if more and not grown[index]:
                grown[index] = 1
                more -= 1
        return bytes(grown)


class Simulation:
    """Runs a Schedule in steps of simulated time and checks its promises at each."""

    def __init__(
        self, pieces: int, actors: list[Actor], tail: int = PIECE_SIZE, step: float = 0.05, seed: int = 0
    ) -> None:
        self.step = step
        size = (pieces - 1) * PIECE_SIZE + tail
        self.table = PieceTable(Digest("0" * 64), size, bytes(32 * pieces))
        self.actors = actors
        self.states = [SourceState(actor.kind, Quality()) for actor in actors]
        self.schedule = Schedule(self.table, self.states, seed)
        for number, actor in enumerate(actors):
            if actor.have is not None:
                self.schedule.looked(number, actor.have, 0.0)
        self.verified: set[int] = set()
        self.order: list[int] = []
        """Pieces as they were verified."""
        self.now = 0.0
        self.duplicate_bytes = 0
        """Bytes of pieces that somebody else brought."""

    def run(self, limit: float) -> None:
        while not self.schedule.complete and not all(actor.gone for actor in self.actors):
            assert self.now < limit, "the schedule does not come to an end"
            self._ask_idle()
            self._check()
            self.now += self.step
            for number, actor in enumerate(self.actors):
                if actor.lease is not None:
                    self._work(number, actor, actor.lease)

    def _ask_idle(self) -> None:
        for number, actor in enumerate(self.actors):
            if actor.lease is None and not actor.gone:
                self._ask(number, actor)

    def _ask(self, number: int, actor: Actor) -> None:
        move = self.schedule.next(number, self.now)
        if isinstance(move, Leave):
            actor.gone = True
        elif isinstance(move, Wait):
            assert move.until > self.now
        elif isinstance(move, Look):
            self.schedule.looked(number, actor.shown(self.now), self.now)
        else:
            assert move.start < move.end
            assert not self.verified & set(range(move.start, move.end)), "a verified piece was assigned"
            shown = self.states[number].have
            assert shown is None or all(shown[move.start : move.end]), "a piece was asked of one who does not have it"
            actor.lease, actor.taken_at, actor.failing_at = move, self.now, None
            actor.deed = actor.always or (actor.deeds.pop(0) if actor.deeds else None)

    def _check(self) -> None:
        for index in range(self.table.count):
            owners = self.schedule.owners(index)
            assert len(owners) <= MAX_OWNERS
            assert len(set(owners)) == len(owners)
        origins = [n for n, actor in enumerate(self.actors) if actor.kind is SourceKind.ORIGIN and not actor.gone]
        ready = [n for n in origins if self.actors[n].lease is None and self.states[n].ready_at <= self.now]
        if ready and not self.schedule.complete:
            owning = {owner for index in range(self.table.count) for owner in self.schedule.owners(index)}
            assert owning & set(origins), "an origin stands idle while something is missing"

    def _work(self, number: int, actor: Actor, lease: Lease) -> None:
        if actor.failing_at is not None:
            if self.now >= actor.failing_at:
                assert actor.deed is not None
                assert actor.deed.fault is not None
                actor.lease = None
                self.schedule.failed(lease, actor.deed.fault, self.now)
            return
        if self.now - actor.taken_at < actor.latency:
            return
        actor.credit = actor.rate * self.step
        while actor.credit >= 1 and actor.lease is not None and actor.failing_at is None:
            if self.schedule.wants(actor.lease):
                self._bring(actor, actor.lease)
                continue
            self.duplicate_bytes += actor.lease.in_piece
            self.schedule.ended(actor.lease, self.now)
            actor.lease = None
            self._ask(number, actor)  # a real source is asked again at once, too

    def _bring(self, actor: Actor, lease: Lease) -> None:
        room = self.table.length(lease.next) - lease.in_piece
        good = actor.deed.good - lease.received if actor.deed is not None and actor.deed.fault else room
        if good <= 0:
            assert actor.deed is not None
            actor.failing_at = self.now + actor.deed.silence
            return
        take = int(min(actor.credit, room, good))
        actor.credit -= take
        if not self.schedule.received(lease, take, self.now):
            return
        if lease.in_piece == self.table.length(lease.next):
            index = lease.next
            first = self.schedule.verified(lease)
            assert first == (index not in self.verified)
            self.verified.add(index)
            if first:
                self.order.append(index)
            else:
                self.duplicate_bytes += self.table.length(index)
            actor.brought += self.table.length(index) if first else 0


deeds = st.lists(
    st.builds(
        Deed,
        good=st.integers(0, 3 * PIECE_SIZE),
        fault=st.sampled_from([None, FaultKind.TRANSPORT, FaultKind.LACKS, FaultKind.CORRUPT, FaultKind.BUSY]),
        silence=st.sampled_from([0.0, 1.0, 2.0, 5.0]),
    ),
    max_size=6,
)
rates = st.sampled_from([0.5 * MIB, 3 * MIB, 20 * MIB, 60 * MIB])
kinds = st.sampled_from(list(SourceKind))
actors = st.builds(Actor, kind=kinds, rate=rates, deeds=deeds, latency=st.sampled_from([0.0, 0.1]))
hopeless = st.builds(
    Actor,
    kind=kinds,
    rate=rates,
    always=st.builds(
        Deed,
        good=st.integers(0, PIECE_SIZE - 1),
        fault=st.sampled_from(list(FaultKind)),
        silence=st.sampled_from([0.0, 1.0, 5.0]),
    ),
)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 24), st.lists(actors, max_size=5), kinds, rates, st.integers(1, PIECE_SIZE))
def test_one_working_source_completes_the_blob_whatever_the_others_do(
    pieces: int, others: list[Actor], kind: SourceKind, rate: float, tail: int
) -> None:  # R-SW2
    sim = Simulation(pieces, [Actor(kind, rate), *others], tail)
    sim.run(limit=600.0)
    assert sim.schedule.complete
    assert sim.verified == set(range(pieces))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 64),
    st.lists(st.builds(Actor, kind=kinds, rate=rates, latency=st.sampled_from([0.0, 0.1])), min_size=1, max_size=6),
)
def test_little_is_fetched_twice_where_everybody_works(pieces: int, sources: list[Actor]) -> None:  # R-SW2
    sim = Simulation(pieces, sources)
    sim.run(limit=600.0)
    assert sim.schedule.complete
    assert sim.duplicate_bytes <= max(0.02 * sim.table.size, len(sources) * PIECE_SIZE)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 8), st.lists(hopeless, max_size=4))
def test_without_a_working_source_it_ends_and_says_so(pieces: int, sources: list[Actor]) -> None:
    sim = Simulation(pieces, sources, step=0.25)  # it is minutes of patience, mostly
    sim.run(limit=900.0)
    assert not sim.schedule.complete
    assert sim.schedule.stuck or not sources


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(2, 24), st.lists(actors, max_size=2), kinds, rates, st.integers(0, 100))
def test_peers_that_have_a_part_are_asked_only_for_it_and_never_hold_the_blob_up(
    data: st.DataObject, pieces: int, others: list[Actor], kind: SourceKind, rate: float, seed: int
) -> None:  # R-SW2
    flags = st.lists(st.integers(0, 1), min_size=pieces, max_size=pieces).map(bytes)
    partials = [
        Actor(SourceKind.PEER, 20 * MIB, have=data.draw(flags), grows=data.draw(st.sampled_from([0.0, 2.0])))
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    sim = Simulation(pieces, [Actor(kind, rate), *others, *partials], seed=seed)
    sim.run(limit=600.0)
    assert sim.schedule.complete


def test_peers_that_have_nothing_new_for_long_are_given_up() -> None:
    stuck = Actor(SourceKind.PEER, 20 * MIB, have=bytes([1, 1, 0, 0]))
    sim = Simulation(4, [stuck])
    sim.run(limit=2 * PATIENCE_SECONDS)
    assert sim.schedule.stuck
    assert sim.verified == {0, 1}


def test_a_peer_is_asked_for_the_rarest_of_its_pieces_first() -> None:
    table = PieceTable(Digest("0" * 64), 4 * PIECE_SIZE, bytes(128))
    states = [SourceState(SourceKind.PEER, Quality()) for _ in range(3)]
    schedule = Schedule(table, states)
    for number, have in enumerate([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]):
        schedule.looked(number, bytes(have), 0.0)
    first = schedule.next(0, 0.0)
    assert isinstance(first, Lease)
    assert (first.start, first.end) == (2, 3)
    second = schedule.next(1, 0.0)
    assert isinstance(second, Lease)
    assert (second.start, second.end) == (1, 2)


@pytest.mark.parametrize("seeds", [(5, 21), (5, 6), (0, 1)])
def test_nodes_that_see_each_other_take_pieces_in_different_orders(seeds: tuple[int, int]) -> None:
    table = PieceTable(Digest("0" * 64), 64 * PIECE_SIZE, bytes(64 * 32))
    taken = []
    for seed in seeds:
        states = [SourceState(SourceKind.ORIGIN, Quality(rate=MIB)), SourceState(SourceKind.PEER, Quality())]
        schedule = Schedule(table, states, seed)
        schedule.looked(1, bytes(64), 0.0)
        order = []
        for _ in range(16):
            lease = schedule.next(0, 0.0)
            assert isinstance(lease, Lease)
            order.append(lease.start)
            schedule.verified(lease)
            schedule.ended(lease, 0.0)
        taken.append(order)
    one, other = taken
    assert len(set(one) & set(other)) <= 8, "16 of 64 each: most of them would be the same side by side"


def test_a_peer_that_had_nothing_yet_is_dropped_no_sooner_than_others() -> None:
    peer = SourceState(SourceKind.PEER, Quality(rate=MIB))
    origin = SourceState(SourceKind.ORIGIN, Quality())
    schedule = Schedule(PieceTable(Digest("0" * 64), 8 * PIECE_SIZE, bytes(8 * 32)), [peer, origin])
    early = schedule.next(0, 0.0)
    assert isinstance(early, Lease)
    schedule.failed(early, FaultKind.LACKS, 0.0)
    assert isinstance(schedule.next(0, 2.0), Look)
    schedule.looked(0, bytes([1]) * 8, 2.0)
    assert peer.quality.rate == MIB, "it has done nothing wrong"
    for attempt in range(PEER_ERRORS):
        lease = schedule.next(0, 10.0 * (1 + attempt))
        while isinstance(lease, Look):
            schedule.looked(0, bytes([1]) * 8, 10.0 * (1 + attempt))
            lease = schedule.next(0, 10.0 * (1 + attempt))
        assert isinstance(lease, Lease), f"after {attempt} transport errors"
        schedule.failed(lease, FaultKind.TRANSPORT, 10.0 * (1 + attempt))
    assert isinstance(schedule.next(0, 100.0), Leave)


def seconds(pieces: int, actors: list[Actor]) -> float:
    sim = Simulation(pieces, actors, step=0.01)
    sim.run(limit=600.0)
    assert sim.schedule.complete
    return sim.now


def origin(rate: float = 20 * MIB) -> Actor:
    return Actor(SourceKind.ORIGIN, rate)


ALONE = 128 / 20


def test_a_straggler_costs_nothing() -> None:  # R-SW2
    assert seconds(128, [origin(), Actor(SourceKind.PEER, 0.5 * MIB)]) <= 1.05 * ALONE


def test_stalled_corrupt_dead_and_slow_peers_together_cost_nothing() -> None:  # R-SW2
    peers = [
        Actor(SourceKind.PEER, 20 * MIB, always=Deed(100_000, FaultKind.TRANSPORT, silence=1.0)),
        Actor(SourceKind.PEER, 20 * MIB, always=Deed(PIECE_SIZE // 2, FaultKind.CORRUPT)),
        Actor(SourceKind.PEER, 20 * MIB, always=Deed(0, FaultKind.TRANSPORT, silence=2.0)),
        Actor(SourceKind.PEER, 0.5 * MIB),
    ]
    assert seconds(128, [origin(), *peers]) <= 1.05 * ALONE


def test_good_sources_add_up() -> None:
    actors = [origin(), Actor(SourceKind.PEER, 20 * MIB), Actor(SourceKind.PEER, 10 * MIB)]
    assert seconds(256, actors) <= 256 / 50 / 0.97


def test_eight_peers_of_mixed_speed_add_up() -> None:
    rates = (2, 5, 5, 10, 10, 20, 20, 30)
    actors = [origin(60 * MIB), *(Actor(SourceKind.PEER, rate * MIB) for rate in rates)]
    assert seconds(256, actors) <= 256 / 162 / 0.97


@pytest.mark.parametrize(
    "slow",
    [
        pytest.param(Actor(SourceKind.PEER, 0.5 * MIB), id="a straggler"),
        pytest.param(Actor(SourceKind.PEER, 2 * MIB), id="a slow peer"),
        pytest.param(
            Actor(SourceKind.PEER, 20 * MIB, always=Deed(100_000, FaultKind.TRANSPORT, silence=60.0)), id="silent"
        ),
    ],
)
def test_no_hole_far_behind_the_others_is_left_for_the_end(slow: Actor) -> None:
    sim = Simulation(128, [origin(60 * MIB), Actor(SourceKind.PEER, 20 * MIB), replace(slow)], step=0.01)
    sim.run(limit=600.0)
    assert min(sim.order[-4:]) >= 128 - 16, "the whole digest would have to read all that lies behind it"


def test_a_rate_is_what_came_after_the_first_bytes_and_counts_by_how_long_it_was_seen() -> None:
    quality = Quality()
    schedule = Schedule(
        PieceTable(Digest("0" * 64), 64 * PIECE_SIZE, bytes(64 * 32)), [SourceState(SourceKind.ORIGIN, quality)]
    )
    lease = schedule.next(0, 0.0)
    assert isinstance(lease, Lease)
    schedule.received(lease, 900_000, 0.1)  # they lay in a buffer
    schedule.received(lease, 100_000, 0.2)
    schedule.ended(lease, 0.2)
    too_little = quality.rate
    assert too_little is None
    for begun, elapsed, rate in ((1.0, 0.5, 10e6), (2.0, 0.025, 100e6)):
        lease = schedule.next(0, begun)
        assert isinstance(lease, Lease)
        schedule.received(lease, 500_000, begun)
        schedule.received(lease, int(rate * elapsed), begun + elapsed)
        schedule.ended(lease, begun + elapsed)
    assert quality.rate is not None
    assert 10e6 < quality.rate < 20e6


def test_a_burst_at_the_start_is_soon_forgotten() -> None:
    """Buffers on the way make the first megabyte look fast: spans by that rate would be far too long."""
    quality = Quality()
    quality.saw_rate(60e6, 0.08)
    assert quality.rate == 60e6
    quality.saw_rate(20e6)
    assert 20e6 < quality.rate < 23e6
    for _ in range(10):
        quality.saw_rate(20e6)
    quality.saw_rate(30e6)
    assert 22e6 < quality.rate < 24e6, "and a rate that was seen for long moves slowly"
    known = Quality(rate=20e6)
    known.saw_rate(30e6)
    assert known.rate == 23e6


def test_a_source_that_was_seen_for_a_moment_gets_no_long_span() -> None:
    quality = Quality(latency=0.002)
    quality.saw_rate(60e6, 0.08)  # a piece within 20 ms
    states = [SourceState(SourceKind.ORIGIN, Quality(rate=60e6)), SourceState(SourceKind.PEER, quality)]
    schedule = Schedule(PieceTable(Digest("0" * 64), 256 * PIECE_SIZE, bytes(256 * 32)), states)
    assert isinstance(schedule.next(0, 0.0), Lease)
    span = schedule.next(1, 0.0)
    assert isinstance(span, Lease)
    assert 2 <= span.end - span.start <= 5, "if it lay in a buffer, the rest of a long span comes at the very end"
    schedule.ended(span, 0.0)
    quality.saw_rate(60e6)
    again = schedule.next(1, 0.1)
    assert isinstance(again, Lease)
    assert again.end - again.start == 14


def test_no_span_goes_on_after_everything_else_is_there() -> None:
    states = [SourceState(SourceKind.ORIGIN, Quality(rate=80e6)), SourceState(SourceKind.PEER, Quality(20e6, 0.1))]
    count = 48
    schedule = Schedule(PieceTable(Digest("0" * 64), count * PIECE_SIZE, bytes(count * 32)), states)
    assert isinstance(schedule.next(0, 0.0), Lease)
    far = schedule.next(1, 0.0)
    assert isinstance(far, Lease)
    everything = count * PIECE_SIZE / 100e6
    assert (far.end - far.start) * PIECE_SIZE / 20e6 <= everything


def test_a_lying_peer_is_out_at_its_first_bad_piece_and_an_origin_never_is() -> None:  # R-SW3
    schedule = Schedule(
        PieceTable(Digest("0" * 64), 4 * PIECE_SIZE, bytes(128)),
        [SourceState(SourceKind.ORIGIN, Quality()), SourceState(SourceKind.PEER, Quality())],
    )
    for number in (0, 1):
        lease = schedule.next(number, 0.0)
        assert isinstance(lease, Lease)
        schedule.failed(lease, FaultKind.CORRUPT, 0.0)
    assert isinstance(schedule.next(1, 100.0), Leave)
    assert isinstance(schedule.next(0, 0.0), Wait)
    assert isinstance(schedule.next(0, 100.0), Lease)


def test_a_busy_source_is_no_bad_one_and_is_asked_again_later() -> None:
    schedule = Schedule(
        PieceTable(Digest("0" * 64), 4 * PIECE_SIZE, bytes(128)), [SourceState(SourceKind.PEER, Quality(rate=MIB))]
    )
    now = 0.0
    for _ in range(MAX_BUSY - 1):
        lease = schedule.next(0, now)
        assert isinstance(lease, Lease)
        schedule.failed(lease, FaultKind.BUSY, now)
        now = schedule.sources[0].ready_at
    assert schedule.sources[0].quality.rate == MIB
    assert not schedule.stuck
    lease = schedule.next(0, now)
    assert isinstance(lease, Lease)
    schedule.failed(lease, FaultKind.BUSY, now)
    assert schedule.stuck


def test_a_small_blob_goes_to_the_origin_and_is_hedged_only_when_it_is_late() -> None:
    schedule = Schedule(
        PieceTable(Digest("0" * 64), 4096, bytes(32), 4096),
        [
            SourceState(SourceKind.ORIGIN, Quality(latency=0.05, deviation=0.01)),
            SourceState(SourceKind.PEER, Quality(latency=0.02, rate=20 * MIB)),
        ],
    )
    assert isinstance(schedule.next(0, 0.0), Lease)
    assert isinstance(schedule.next(1, 0.01), Wait)
    assert isinstance(schedule.next(1, 0.08), Lease)
    assert schedule.owners(0) == (0, 1)


def test_a_source_without_ranges_gets_all_that_is_free() -> None:
    schedule = Schedule(
        PieceTable(Digest("0" * 64), 100 * PIECE_SIZE, bytes(3200)),
        [SourceState(SourceKind.ORIGIN, Quality(rate=MIB), whole_only=True)],
    )
    lease = schedule.next(0, 0.0)
    assert isinstance(lease, Lease)
    assert (lease.start, lease.end) == (0, 100)


def test_an_origin_that_is_alone_gets_all_that_is_free_in_one_request() -> None:
    origin, peer = SourceState(SourceKind.ORIGIN, Quality(rate=8 * MIB)), SourceState(SourceKind.PEER, Quality())
    schedule = Schedule(PieceTable(Digest("0" * 64), 100 * PIECE_SIZE, bytes(3200)), [origin, peer])
    shared = schedule.next(0, 0.0)
    assert isinstance(shared, Lease)
    assert (shared.start, shared.end) == (0, 2)  # a quarter of a second: the peer may turn out to be good
    lie = schedule.next(1, 0.0)
    assert isinstance(lie, Lease)
    schedule.failed(lie, FaultKind.CORRUPT, 0.0)
    schedule.ended(shared, 0.0)
    alone = schedule.next(0, 0.0)
    assert isinstance(alone, Lease)
    assert (alone.start, alone.end) == (0, 100)


def test_a_peer_that_is_alone_goes_on_in_spans() -> None:  # the next one may be asked for with compression
    peer = SourceState(SourceKind.PEER, Quality(rate=8 * MIB))
    schedule = Schedule(PieceTable(Digest("0" * 64), 100 * PIECE_SIZE, bytes(3200)), [peer])
    lease = schedule.next(0, 0.0)
    assert isinstance(lease, Lease)
    assert (lease.start, lease.end) == (0, 2)


def test_a_peer_that_gets_the_blob_late_takes_the_end_of_what_the_origin_was_given_alone() -> None:
    origin, late = SourceState(SourceKind.ORIGIN, Quality(rate=MIB)), SourceState(SourceKind.PEER, Quality(rate=MIB))
    schedule = Schedule(PieceTable(Digest("0" * 64), 100 * PIECE_SIZE, bytes(3200)), [origin, late])
    lacks = schedule.next(1, 0.0)
    assert isinstance(lacks, Lease)
    schedule.failed(lacks, FaultKind.LACKS, 0.0)
    alone = schedule.next(0, 0.0)
    assert isinstance(alone, Lease)
    assert alone.end == 100
    assert isinstance(schedule.next(1, 2.0), Look)
    schedule.looked(1, bytes([1]) * 100, 2.0)
    helped = schedule.next(1, 2.0)
    assert isinstance(helped, Lease)
    assert (helped.end, alone.end) == (100, helped.start)
