"""What a crowd of fakes can buy behind one attack edge: the bound is on the final score, and K is not in it (R-TR2)."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from market.model import Attestation, AttestKind
from market.trust import Anchors, Circle, FactorKey, Outcome, judge, judge_in
from tests.market.trust.people import NOW, PUBLISHER, did, evidence, listing, nostr, vote

HONEST = [nostr(f"honest {number}") for number in range(300)]
ANCHORS = Anchors.of([did("ada"), did("ben")])
CROWDS = (1, 10, 100, 1_000, 10_000)


def honest_follows() -> list[tuple[str, str]]:
    dice = random.Random(20)
    circle = [(anchor.person, person) for anchor in ANCHORS.entries for person in dice.sample(HONEST, 40)]
    return circle + [(person, friend) for person in HONEST for friend in dice.sample(HONEST, 30)]


def fakes(count: int) -> list[str]:
    return [nostr(f"fake {number}") for number in range(count)]


def ring_behind_one_edge(crowd: list[str], victim: str) -> list[tuple[str, str]]:
    """The crowd follows itself, its first member and the publisher; one honest person follows the first member."""
    hub = crowd[0]
    ring = [(a, b) for a, b in zip(crowd, crowd[1:] + crowd[:1], strict=True) if a != b]
    star = [(hub, fake) for fake in crowd[1:]] + [(fake, hub) for fake in crowd[1:]]
    return [(victim, hub), *ring, *star, *((fake, PUBLISHER) for fake in crowd)]


def score(follows: Iterable[tuple[str, str]], votes: Iterable[Attestation] = ()) -> int:
    return judge(listing(), evidence(follows, votes), ANCHORS, now=NOW).points


def test_praise_bought_with_any_number_of_fakes_is_bounded_by_the_one_edge() -> None:  # R-TR2
    base, victim = honest_follows(), HONEST[0]
    alone = score(base)
    bought = {}
    for count in CROWDS:
        crowd = fakes(count)
        votes = [vote(fake) for fake in crowd]
        bought[count] = score([*base, *ring_behind_one_edge(crowd, victim)], votes)
    # A publisher whom the victim follows directly is what one honest edge is worth; 1/(1 - 0.85) is the most that
    # circling inside the crowd can multiply it by.
    assert max(bought.values()) - alone <= 5
    assert abs(bought[10_000] - bought[100]) <= 1


@pytest.mark.parametrize("count", CROWDS)
def test_even_an_anchor_that_is_fooled_once_makes_no_crowd_install_unasked(count: int) -> None:  # R-TR2
    crowd, fooled = fakes(count), ANCHORS.entries[0].person
    follows = [*honest_follows(), *ring_behind_one_edge(crowd, fooled)]
    found = judge(listing(), evidence(follows, [vote(fake) for fake in crowd]), ANCHORS, now=NOW)
    assert found.outcome is Outcome.ASK


def test_the_crowds_whole_weight_is_bounded_by_the_flow_over_the_attack_edge() -> None:  # R-TR2
    base, victim = honest_follows(), HONEST[0]
    for count in CROWDS:
        crowd = fakes(count)
        circle = Circle.of(evidence([*base, *ring_behind_one_edge(crowd, victim)]), ANCHORS, now=NOW)
        followed = sum(1 for a, _ in base if a == victim) + 1
        flow = 0.85 * circle.weight(victim) / followed
        assert sum(circle.weight(fake) for fake in crowd) + circle.weight(PUBLISHER) <= flow / 0.15 + 1e-9


def test_plain_averaging_falls_to_the_crowd_that_this_score_withstands() -> None:  # R-TR2
    base, victim = honest_follows(), HONEST[0]
    crowd = fakes(10_000)
    votes = [vote(did("ada"), value=-100), *(vote(fake) for fake in crowd)]
    average = sum(v.value for v in votes) / len(votes)
    assert average > 99
    follows = [*base, *ring_behind_one_edge(crowd, victim)]
    honest_word, with_crowd = score(base, votes[:1]), score(follows, votes)
    assert with_crowd - honest_word <= 5


@pytest.mark.parametrize("count", CROWDS)
def test_a_brigade_behind_one_edge_can_not_report_an_app_away(count: int) -> None:  # R-TR2
    base, victim, crowd = honest_follows(), HONEST[0], fakes(count)
    votes = [vote(fake, AttestKind.MALWARE, -100) for fake in crowd]
    pinned = Anchors.of([PUBLISHER, *ANCHORS.entries])
    follows = [*base, *((a, b) for a, b in ring_behind_one_edge(crowd, victim) if b != PUBLISHER)]
    circle = Circle.of(evidence(follows, votes), pinned, now=NOW)
    found = judge_in(circle, listing(), now=NOW)
    reports = next(factor for factor in found.factors if factor.key is FactorKey.REPORTS)
    assert (found.outcome, reports.points) == (Outcome.ALLOW, 0)
    assert "shown only" in reports.text


def test_fakes_that_nobody_follows_move_nothing() -> None:  # R-TR2
    base, crowd = honest_follows(), fakes(1_000)
    detached = [edge for edge in ring_behind_one_edge(crowd, HONEST[0]) if edge[0] not in HONEST]
    votes = [vote(fake) for fake in crowd]
    assert score([*base, *detached], votes) == score(base)
    towards = [(fake, anchor.person) for fake in crowd for anchor in ANCHORS.entries]
    assert score([*base, *detached, *towards], votes) == score(base)


def test_infiltrating_slowly_gains_what_each_edge_is_worth_and_no_more() -> None:  # R-TR2
    base, crowd = honest_follows(), fakes(1_000)
    votes = [vote(fake) for fake in crowd]
    gains = [
        score([*base, *ring_behind_one_edge(crowd, HONEST[0]), *((h, crowd[0]) for h in HONEST[1:edges])], votes)
        for edges in (1, 5, 25)
    ]
    assert gains == sorted(gains)
    assert gains[0] - score(base) <= 5
