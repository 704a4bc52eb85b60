"""The verdict on one app: gates, then points, then what the operator is asked, with everything that explains it.

Guarantees that the same inputs give the same verdict, that the points of the factors sum to the score, that nothing is
hidden (R-TR4), and that an ASK says whether `--yes` may answer it. Refuses to know how it is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from market.model import Digest, Listing, TrustEvidence
from market.trust.anchors import Anchors
from market.trust.circle import Circle
from market.trust.factors import (
    NEUTRAL,
    Contributor,
    Factor,
    FactorKey,
    Reading,
    read_all,
    to_points,
)
from market.trust.gates import Gate, GateState, Permissions, check_all
from market.trust.policy import Policy
from market.trust.signer import Continuity, Signer

CAVEAT: Final = "This says how well your circle knows the app, not that it is without faults."

VOICES_ASKED: Final = range(1, 6)
"""How many more reviews "what would change it" considers: beyond that it is no advice."""


class Outcome(StrEnum):
    """What the policy lets happen."""

    ALLOW = "allow"
    ASK = "ask"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Ask:
    """One question to the operator. `answerable`: a `--yes` given beforehand answers it."""

    reason: str
    text: str
    answerable: bool

    def to_json(self) -> dict[str, object]:
        return {"reason": self.reason, "text": self.text, "answerable": self.answerable}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What this operator's node says about an app now. `points` is the sum of `factors`, 0..100."""

    outcome: Outcome
    points: int
    band: str
    reasons: tuple[str, ...]
    asks: tuple[Ask, ...]
    gates: tuple[Gate, ...]
    factors: tuple[Factor, ...]
    paths: tuple[tuple[str, ...], ...]
    """The shortest way from an anchor to every contributor named by a factor, each once."""
    would_change: tuple[str, ...]
    ignored: Mapping[str, int]
    """What the whole snapshot left out, counted by reason."""
    signer: Signer
    circle: Mapping[str, int]
    """How far the circle reaches: anchors, people, follows, hops."""
    thresholds: Mapping[str, int]
    """`refuse_below` and `allow_at`, as they hold for what this release may do."""

    @property
    def answerable(self) -> bool:
        """Whether a `--yes` given beforehand suffices: every question there is must allow it."""
        return self.outcome is not Outcome.REFUSE and all(ask.answerable for ask in self.asks)

    def to_json(self) -> dict[str, object]:
        """The stable form for doors: integers and strings only, so that nothing is rounded twice."""
        return {
            "schema": "archy/verdict/1",
            "outcome": self.outcome.value,
            "points": self.points,
            "band": self.band,
            "caveat": CAVEAT,
            "answerable": self.answerable,
            "reasons": list(self.reasons),
            "asks": [ask.to_json() for ask in self.asks],
            "gates": [gate.to_json() for gate in self.gates],
            "factors": [factor.to_json() for factor in self.factors],
            "paths": [list(path) for path in self.paths],
            "would_change": list(self.would_change),
            "ignored": dict(self.ignored),
            "signer": dict(self.signer.to_json()),
            "circle": dict(self.circle),
            "thresholds": dict(self.thresholds),
        }


def judge(
    listing: Listing,
    evidence: TrustEvidence,
    anchors: Anchors,
    *,
    now: int,
    policy: Policy | None = None,
    permissions: Permissions | None = None,
    continuity: Continuity = Continuity.FIRST_SEEN,
    signer: Signer | None = None,
    broken: Mapping[Digest, str] | None = None,
) -> Verdict:
    """The verdict on one app. `now` is Unix seconds. For many apps build one `Circle` and use `judge_in`."""
    circle = Circle.of(evidence, anchors, now=now)
    return judge_in(
        circle,
        listing,
        now=now,
        policy=policy,
        permissions=permissions,
        continuity=continuity,
        signer=signer,
        broken=broken,
    )


def judge_in(
    circle: Circle,
    listing: Listing,
    *,
    now: int,
    policy: Policy | None = None,
    permissions: Permissions | None = None,
    continuity: Continuity = Continuity.FIRST_SEEN,
    signer: Signer | None = None,
    broken: Mapping[Digest, str] | None = None,
) -> Verdict:
    """The verdict on one app within a snapshot that was built before. `signer` says more than `continuity` alone."""
    rules, asked = policy or Policy(), permissions or Permissions()
    signer = signer or Signer(continuity)
    needed = rules.needed((*asked.whole, *asked.wanted))
    gates = check_all(
        circle,
        listing,
        now=now,
        permissions=asked,
        signer=signer,
        broken=broken or {},
    )
    readings = read_all(circle, listing, signer, now=now)
    points, factors = to_points(readings)
    asks = _asks(gates, points, rules, needed)
    outcome = _outcome(gates, asks, points, rules)
    return Verdict(
        outcome=outcome,
        points=points,
        band=_band(circle, listing, outcome, points, rules, readings),
        reasons=_reasons(gates, asks, factors, outcome, points, rules),
        asks=asks,
        gates=gates,
        factors=factors,
        paths=_paths(factors),
        would_change=tuple(_would_change(circle, listing, gates, readings, points, needed)),
        ignored=circle.ignored,
        signer=signer,
        circle=circle.to_json(),
        thresholds={"refuse_below": rules.refuse_below, "allow_at": needed},
    )


def _asks(gates: Sequence[Gate], points: int, rules: Policy, needed: int) -> tuple[Ask, ...]:
    asks = [Ask(gate.kind.value, gate.text, answerable=False) for gate in gates if gate.state is GateState.ASK]
    if points < needed:
        why = ", because it may reach beyond its own containers" if needed > rules.allow_at else ""
        text = f"{points} of 100 points; from {needed} on it installs without a question{why}."
        asks.append(Ask("score", text, answerable=True))
    return tuple(asks)


def _outcome(gates: Sequence[Gate], asks: Sequence[Ask], points: int, rules: Policy) -> Outcome:
    if points < rules.refuse_below or any(gate.state is GateState.REFUSE for gate in gates):
        return Outcome.REFUSE
    return Outcome.ASK if asks else Outcome.ALLOW


def _band(
    circle: Circle, listing: Listing, outcome: Outcome, points: int, rules: Policy, readings: Sequence[Reading]
) -> str:
    by_key = {reading.term.key: reading for reading in readings}
    voices = (FactorKey.PUBLISHER, FactorKey.REVIEWS, FactorKey.REBUILDS, FactorKey.REPORTS)
    if outcome is Outcome.REFUSE:
        return "Refused"
    if not circle.named:
        return "Nobody to ask yet"
    if by_key[FactorKey.REPORTS].voices:
        return "Warned about in your circle"
    if circle.is_anchor(listing.app.publisher):
        return "Pinned by you"
    if points >= rules.allow_at:
        return "Known in your circle"
    if all(by_key[key].weight == 0 for key in voices):
        return "Unknown in your circle"
    return "Little known in your circle"


def _reasons(
    gates: Sequence[Gate],
    asks: Sequence[Ask],
    factors: Sequence[Factor],
    outcome: Outcome,
    points: int,
    rules: Policy,
) -> tuple[str, ...]:
    """Why it is so, the weightiest first: failed gates, questions, and the factors that are more than a prior."""
    refused = [gate.text for gate in gates if gate.state is GateState.REFUSE]
    if points < rules.refuse_below:
        refused.append(f"{points} of 100 points; below {rules.refuse_below} nothing is installed.")
    if outcome is Outcome.REFUSE:
        return tuple(refused)
    spoken = [factor.text for factor in factors if factor.contributors]
    return (*(ask.text for ask in asks), *spoken)


def _paths(factors: Sequence[Factor]) -> tuple[tuple[str, ...], ...]:
    named: dict[tuple[str, ...], None] = {}
    contributors: Iterator[Contributor] = (one for factor in factors for one in factor.contributors)
    for contributor in contributors:
        named.setdefault(contributor.path)
    return tuple(path for path in named if path)


def _would_change(
    circle: Circle, listing: Listing, gates: Sequence[Gate], readings: Sequence[Reading], points: int, needed: int
) -> Iterator[str]:
    for gate in gates:
        if gate.state is not GateState.OK:
            yield f"{gate.kind.value}: {gate.lifted_by}"
    if points >= needed:
        return
    if not circle.is_anchor(listing.app.publisher):
        pinned = _points_with(readings, FactorKey.PUBLISHER, 1)
        yield f"Pinning the publisher, if you know them, makes it {pinned} points."
    for who, weight in (("you pinned", 1.0), ("your anchors follow", circle.typical_friend)):
        if weight == 0:
            continue
        praised = ((voices, _points_with(readings, FactorKey.REVIEWS, voices * weight)) for voices in VOICES_ASKED)
        enough = next(((voices, found) for voices, found in praised if found >= needed), None)
        if enough:
            reviews = "1 more good review" if enough[0] == 1 else f"{enough[0]} more good reviews"
            yield f"{reviews} from people {who} would make it {enough[1]} points."
    if any(reading.voices for reading in readings if reading.term.key is FactorKey.REPORTS):
        yield "The reports count until those who made them withdraw them or let them expire."
    if points == NEUTRAL:
        yield f"{NEUTRAL} points are the neutral start: nobody you know has said anything yet."


def _points_with(readings: Sequence[Reading], key: FactorKey, extra: float) -> int:
    """The score if voices that weigh `extra` direct follows spoke well too."""

    def louder(reading: Reading) -> Reading:
        weight = reading.weight + extra
        return replace(reading, average=(reading.average * reading.weight + extra) / weight, weight=weight)

    return to_points([louder(r) if r.term.key is key else r for r in readings])[0]
