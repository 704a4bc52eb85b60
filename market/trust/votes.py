"""Which votes count. Guarantees one live vote per voter and subject (R-TR5), and that a Nostr key speaks for a DID only
through the two-way binding (R-TR6). What does not count is counted by reason, never dropped silently (R-TR4).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from market.model import AppName, Attestation, AttestKind, Digest

REPORTS: Final = frozenset({AttestKind.MALWARE, AttestKind.IMPERSONATION})

MAX_VOTES: Final = 1_000
"""Releases that one person has a say on, the latest words first: nobody reviews more, and who writes more than that is
a machine."""

MAX_AHEAD: Final = 15 * 60
"""Seconds a vote may lie in the future: the margin that discovery gives to events."""

_PERSON = re.compile(r"nostr:[0-9a-f]{64}|did:key:z[1-9A-HJ-NP-Za-km-z]{40,60}")


def resolve(person: str, bound: Mapping[str, str]) -> str:
    """The DID behind a bound Nostr key; anybody else stays who they are (R-TR6)."""
    return bound.get(person.removeprefix("nostr:"), person) if person.startswith("nostr:") else person


def is_person(text: str) -> bool:
    return _PERSON.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class LiveVotes:
    """The votes that count, by app, in a fixed order, and how many do not, by reason."""

    by_app: Mapping[AppName, tuple[Attestation, ...]]
    ignored: Mapping[str, int]

    @classmethod
    def of(
        cls,
        attestations: Iterable[Attestation],
        bound: Mapping[str, str],
        *,
        now: int,
        distrusted: frozenset[str] = frozenset(),
    ) -> LiveVotes:
        """`distrusted` are people (resolved) whom the operator does not listen to."""
        ignored: Counter[str] = Counter()
        latest: dict[tuple[str, AppName, Digest], Attestation] = {}
        for raw in attestations:
            vote = replace(raw, voter=resolve(raw.voter, bound))
            if reason := "votes of people you distrust" if vote.voter in distrusted else _fault(vote, now):
                ignored[reason] += 1
                continue
            key = (vote.voter, vote.app, vote.subject)
            if key in latest:
                ignored["votes replaced by a later one"] += 1
            latest[key] = max(latest.get(key, vote), vote, key=_lateness)
        cast: Counter[str] = Counter()
        kept: list[Attestation] = []
        for vote in sorted(latest.values(), key=lambda vote: (vote.voter, _lateness(vote), vote.subject), reverse=True):
            cast[vote.voter] += 1
            if cast[vote.voter] <= MAX_VOTES:
                kept.append(vote)
            else:
                ignored["votes beyond the most that one person may cast"] += 1
        by_app: defaultdict[AppName, list[Attestation]] = defaultdict(list)
        for vote in sorted(kept, key=lambda vote: (vote.voter, vote.subject)):
            # After the choice of the latest: an expired vote must not bring an older one back to life.
            if vote.expires is not None and vote.expires <= now:
                ignored["votes that expired"] += 1
            elif vote.value == 0 and vote.kind not in REPORTS:
                ignored["votes withdrawn"] += 1
            else:
                by_app[vote.app].append(vote)
        return cls({app: tuple(votes) for app, votes in by_app.items()}, dict(ignored))

    def about(self, app: AppName, subject: Digest | None) -> tuple[Attestation, ...]:
        """One vote per voter about an app: on `subject` if there is one, else the latest on another release of it."""
        chosen: dict[str, Attestation] = {}
        for vote in self.by_app.get(app, ()):
            rival = chosen.get(vote.voter)
            if rival is None or _precedence(vote, subject) > _precedence(rival, subject):
                chosen[vote.voter] = vote
        return tuple(chosen[voter] for voter in sorted(chosen))


def _fault(vote: Attestation, now: int) -> str:
    if not is_person(vote.voter):
        return "votes of nobody"
    if vote.voter == vote.app.publisher:
        return "votes for oneself"
    if not -100 <= vote.value <= 100:
        return "votes out of range"
    if vote.kind in REPORTS and vote.value >= 0:
        return "reports that blame nothing"
    if vote.made > now + MAX_AHEAD:
        return "votes from the future"
    return ""


_Lateness = tuple[int, bool, int, str, bool, int]


def _lateness(vote: Attestation) -> _Lateness:
    """Of two votes of one second the more careful one counts, so that the order of arrival decides nothing."""
    careful = vote.kind in REPORTS, -vote.value, vote.kind.value, vote.expires is not None, -(vote.expires or 0)
    return vote.made, *careful


def _precedence(vote: Attestation, subject: Digest | None) -> tuple[bool, _Lateness]:
    return vote.subject == subject, _lateness(vote)
