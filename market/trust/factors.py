"""The score: six factors, one table, whole points that add up.

Guarantees: unknown stays at the prior, few or weightless voices move it little, each factor's points lie between 0 and
its `of` (reports: between `-of` and 0), and the points of the factors sum to the score exactly.
Refuses to know gates: what fails those is refused at any score.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from market.model import Attestation, AttestKind, Listing
from market.trust.circle import Circle
from market.trust.signer import Continuity, Signer
from market.trust.votes import REPORTS


class FactorKey(StrEnum):
    PUBLISHER = "publisher"
    REVIEWS = "reviews"
    REBUILDS = "rebuilds"
    CONTINUITY = "continuity"
    FRESHNESS = "freshness"
    REPORTS = "reports"


@dataclass(frozen=True, slots=True)
class Term:
    """One row of the table: `of` is lambda in points, `prior` what is assumed of the unknown, `half` is W0."""

    key: FactorKey
    letter: str
    name: str
    of: int
    prior: float
    half: float
    why: str


TERMS: Final[tuple[Term, ...]] = (
    Term(
        FactorKey.PUBLISHER, "A", "Publisher's standing", 40, 0.2, 0.02,
        "The most: whoever signs can ship anything. W0 is small because one follow is shared with all one follows.",
    ),
    Term(
        FactorKey.REVIEWS, "B", "Reviewed or run by people you know", 30, 0.5, 0.5,
        "Next: those who looked at this very release. One anchor's word moves it three quarters of the way.",
    ),
    Term(
        FactorKey.REBUILDS, "C", "Rebuilt from source", 10, 0.5, 0.5,
        "The same digest from the source excludes a poisoned build, but says nothing about the source.",
    ),
    Term(
        FactorKey.CONTINUITY, "D", "Same signer as before", 10, 0.5, 0.5,
        "A signer this node already runs is no stranger; worth little, because sleepers are patient.",
    ),
    Term(
        FactorKey.FRESHNESS, "E", "Publisher still there", 10, 0.5, 0.5,
        "A head in force means that somebody would revoke a bad release; that is all it means.",
    ),
    Term(
        FactorKey.REPORTS, "R", "Reports", -100, 0.0, 0.5,
        "Taken off: one pinned person's report outweighs everything that a crowd can say in favour.",
    ),
)  # fmt: skip
"""The lambdas, in the order in which they are shown. The positive ones sum to 100."""

NEUTRAL: Final = 43
"""Points of a fresh app about which nobody in the circle has said anything: the sum of `of` x prior, freshness at 1."""

MAX_CONTRIBUTORS: Final = 5
"""Contributors named per factor: what a person reads; the rest is summed up in the text."""

MAX_REPORTERS: Final = 16
"""Reporters whose paths are walked, heaviest first: each walk is a few passes over the graph."""

OLDER_RELEASE: Final = 0.5
"""What praise for another release of the same app is worth here. Reports keep their full weight."""


@dataclass(frozen=True, slots=True)
class Contributor:
    """Somebody who moved a factor: what they say, their percentage of the factor's weight, how they are known."""

    person: str
    label: str
    says: str
    share: int
    path: tuple[str, ...]
    note: str = ""

    def to_json(self) -> dict[str, object]:
        return {
            "person": self.person, "label": self.label, "says": self.says, "share": self.share,
            "path": list(self.path), "note": self.note,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reading:
    """A factor before it is turned into whole points: `average` of voices that weigh `weight` direct follows."""

    term: Term
    average: float
    weight: float
    text: str
    contributors: tuple[Contributor, ...] = ()
    voices: int = 0

    @property
    def value(self) -> float:
        """f = p + (average - p) x (1 - 2^(-W/W0)), in 0..1."""
        return self.term.prior + (self.average - self.term.prior) * (1.0 - math.exp2(-self.weight / self.term.half))


@dataclass(frozen=True, slots=True)
class Factor:
    """A factor as it is shown: `points` of `of`, whether it is only the prior, and who moved it."""

    key: FactorKey
    letter: str
    name: str
    points: int
    of: int
    neutral: bool
    text: str
    why: str
    voices: int
    contributors: tuple[Contributor, ...]

    def to_json(self) -> dict[str, object]:
        return {
            "key": self.key.value, "letter": self.letter, "name": self.name, "points": self.points, "of": self.of,
            "neutral": self.neutral, "text": self.text, "why": self.why, "voices": self.voices,
            "contributors": [contributor.to_json() for contributor in self.contributors],
        }  # fmt: skip


def read_all(circle: Circle, listing: Listing, signer: Signer, *, now: int) -> tuple[Reading, ...]:
    """The six readings of one app, in the table's order."""
    subject = listing.release.digest if listing.release else None
    votes = circle.votes.about(listing.app, subject)
    terms = {term.key: term for term in TERMS}
    return (
        _standing(terms[FactorKey.PUBLISHER], circle, listing.app.publisher),
        _voices(terms[FactorKey.REVIEWS], circle, _kinds(votes, AttestKind.REVIEWED, AttestKind.RAN), listing),
        _voices(terms[FactorKey.REBUILDS], circle, _kinds(votes, AttestKind.REBUILT), listing),
        _continuity(terms[FactorKey.CONTINUITY], signer),
        _freshness(terms[FactorKey.FRESHNESS], listing, now),
        _reports(terms[FactorKey.REPORTS], circle, _kinds(votes, *REPORTS)),
    )


def to_points(readings: Sequence[Reading]) -> tuple[int, tuple[Factor, ...]]:
    """The score 0..100 and factors whose points sum to it exactly (largest remainder; ties go to the first row)."""
    raw = [reading.term.of * reading.value for reading in readings]
    total = math.fsum(raw)
    if total < 0:
        # Reports take away what is there and no more, so that the sum stays visible.
        praise = math.fsum(value for value in raw if value > 0)
        raw = [value if value > 0 else -praise * value / (total - praise) for value in raw]
        total = 0.0
    points = math.floor(total + 0.5)
    return points, tuple(
        Factor(
            reading.term.key, reading.term.letter, reading.term.name, share, reading.term.of,
            reading.weight == 0, reading.text, reading.term.why, reading.voices, reading.contributors,
        )
        for reading, share in zip(readings, round_to(raw, points), strict=True)
    )  # fmt: skip


def round_to(raw: Sequence[float], total: int) -> tuple[int, ...]:
    """Whole numbers next to `raw` that sum to `total`, which must be within 1/2 of their sum (largest remainder)."""
    whole = [math.floor(value) for value in raw]
    missing = total - sum(whole)
    by_remainder = sorted(range(len(raw)), key=lambda index: (whole[index] - raw[index], index))
    for index in by_remainder[:missing]:
        whole[index] += 1
    return tuple(whole)


def _standing(term: Term, circle: Circle, publisher: str) -> Reading:
    supporters = circle.supporters(publisher)
    weight = circle.weight(publisher)
    anchors = sum(circle.is_anchor(person) for person, _ in supporters)
    if circle.is_anchor(publisher):
        text = "You pinned this publisher."
    elif anchors:
        text = f"{_count(anchors, 'of your anchors follows', 'of your anchors follow')} the publisher."
    elif weight > 0:
        text = f"Known through {_count(len(circle.path(publisher)) - 1, 'step', 'steps')} from your anchors."
    else:
        text = "Nobody you know follows the publisher; this is the neutral start."
    flows = tuple((person, flow, "follows or vouches for the publisher", "") for person, flow in supporters)
    if circle.is_anchor(publisher):
        # What does not come from follows starts here, because the operator said so.
        flows += ((publisher, weight - math.fsum(flow for _, flow in supporters), "you pinned the publisher", ""),)
    return Reading(term, 1.0, weight, text, _contributors(circle, flows, to=publisher), len(flows))


def _voices(term: Term, circle: Circle, votes: Iterable[Attestation], listing: Listing) -> Reading:
    subject = listing.release.digest if listing.release else None
    heard = [
        (vote, circle.weight(vote.voter) * (1.0 if vote.subject == subject else OLDER_RELEASE))
        for vote in votes
        if circle.weight(vote.voter) > 0
    ]
    weight = math.fsum(w for _, w in heard)
    if not heard:
        return Reading(term, term.prior, 0.0, "Nobody you know has said anything; this is the neutral start.")
    average = math.fsum(w * (vote.value + 100) / 200 for vote, w in heard) / weight
    good = sum(vote.value > 0 for vote, _ in heard)
    bad = sum(vote.value < 0 for vote, _ in heard)
    voiced = [_count(good, "person vouches", "people vouch")] if good else []
    voiced += [_count(bad, "person objects", "people object")] if bad else []
    text = f"{', '.join(voiced) or 'Some spoke, neither for nor against'}."
    flows = tuple((vote.voter, w, _says(vote, subject == vote.subject), vote.note) for vote, w in heard)
    return Reading(term, average, weight, text, _contributors(circle, flows), len(heard))


def _reports(term: Term, circle: Circle, votes: Iterable[Attestation]) -> Reading:
    known = sorted(
        (vote for vote in votes if circle.weight(vote.voter) > 0),
        key=lambda vote: (not circle.is_anchor(vote.voter), -circle.weight(vote.voter), vote.voter),
    )
    heard = [
        vote
        for place, vote in enumerate(known)
        # An anchor's own report bites alone; a brigade behind one edge has no second path (R-TR2).
        if circle.is_anchor(vote.voter) or (place < MAX_REPORTERS and circle.stands_on_two_paths(vote.voter))
    ]
    left_out = len(known) - len(heard)
    aside = (
        f" {_count(left_out, 'more is', 'more are')} shown only: no two separate paths lead there." if left_out else ""
    )
    if not heard:
        return Reading(term, 0.0, 0.0, f"No report that counts.{aside}")
    weights = [circle.weight(vote.voter) for vote in heard]
    blame = math.fsum(w * -vote.value / 100 for vote, w in zip(heard, weights, strict=True)) / math.fsum(weights)
    flows = tuple((vote.voter, w, _says(vote, True), vote.note) for vote, w in zip(heard, weights, strict=True))
    text = f"{_count(len(heard), 'person reports', 'people report')} this app.{aside}"
    return Reading(term, blame, math.fsum(weights), text, _contributors(circle, flows), len(heard))


def _continuity(term: Term, signer: Signer) -> Reading:
    value, text = {
        Continuity.FIRST_SEEN: (term.prior, "This node has not run this app before; this is the neutral start."),
        Continuity.SAME: (1.0, "The same publisher and key as what this node runs."),
        Continuity.ROTATED: (0.8, "The publisher rotated the key as announced beforehand."),
        Continuity.CHANGED: (0.0, "Another signer than what this node runs under this name."),
    }[signer.continuity]
    return _fact(term, value, signer.text or text, known=signer.continuity is not Continuity.FIRST_SEEN)


def _freshness(term: Term, listing: Listing, now: int) -> Reading:
    if listing.head_expires is None:
        return _fact(term, 0.0, "The publisher's word on what is newest was not found.")
    if listing.head_expires <= now:
        return _fact(term, 0.0, "The publisher's word on what is newest has expired.")
    days = max(1, (listing.head_expires - now) // 86_400)
    return _fact(
        term, 1.0, f"The publisher's word on what is newest holds for {_count(days, 'more day', 'more days')}."
    )


def _fact(term: Term, value: float, text: str, *, known: bool = True) -> Reading:
    """What the node knows by itself weighs as much as can be: no voices are counted."""
    return Reading(term, value, math.inf if known else 0.0, text)


def _contributors(
    circle: Circle, flows: tuple[tuple[str, float, str, str], ...], *, to: str | None = None
) -> tuple[Contributor, ...]:
    total = math.fsum(flow[1] for flow in flows)
    heaviest = sorted(flows, key=lambda flow: (-flow[1], flow[0]))[:MAX_CONTRIBUTORS]
    return tuple(
        Contributor(
            person=person,
            label=circle.labels.get(person, ""),
            says=says,
            share=math.floor(100 * weight / total),
            path=circle.path(person) + ((to,) if to and to != person else ()),
            note=note,
        )
        for person, weight, says, note in heaviest
    )


def _kinds(votes: Iterable[Attestation], *kinds: AttestKind) -> tuple[Attestation, ...]:
    return tuple(vote for vote in votes if vote.kind in kinds)


def _says(vote: Attestation, this_release: bool) -> str:
    word = {
        AttestKind.REVIEWED: "reviewed it", AttestKind.RAN: "ran it", AttestKind.REBUILT: "rebuilt it",
        AttestKind.MALWARE: "reports malware", AttestKind.IMPERSONATION: "reports impersonation",
    }[vote.kind]  # fmt: skip
    return f"{word} ({vote.value:+d}{'' if this_release else ', another release'})"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
