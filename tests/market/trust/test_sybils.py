"""What a crowd of fakes can buy: each test states a bound on the final score, in which the crowd's size does not occur.

Every attack runs on a generated graph and, where the data is at hand, on Bitcoin-OTC's real who-trusts-whom graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import pytest

from market.model import Attestation, AttestKind
from market.trust import TERMS, Anchor, Anchors, Circle, FactorKey, Outcome, Verdict, judge, judge_in
from market.trust.rank import FOLLOWED
from tests.market.trust.crowds import Honest, bitcoin_otc, blame, clique, fakes, flips, generated, praise, star
from tests.market.trust.people import NOW, PUBLISHER, listing, vote
from tests.market.trust.test_rank import VECTORS

CROWDS: Final = (1, 10, 100, 1_000, 10_000, 100_000)
GRAPHS: Final = ("generated", "bitcoin-otc") if (VECTORS / "trust" / "bitcoin-otc.csv").exists() else ("generated",)

EDGE_WORTH: Final = 5
"""Points that one attack edge from an honest person who is no anchor may move the score by, whatever is behind it."""


@pytest.fixture(scope="module", params=GRAPHS)
def honest(request: pytest.FixtureRequest) -> Honest:
    return generated() if request.param == "generated" else bitcoin_otc(VECTORS / "trust" / "bitcoin-otc.csv")


@pytest.fixture(scope="module")
def victim(honest: Honest) -> int:
    """An honest person two steps away: somebody whom an anchor follows and who follows others."""
    followed = {b for a, b in honest.follows if a in honest.anchors and b not in honest.anchors}
    busy = [person for person, _ in honest.follows if person in followed]
    return max(set(busy), key=lambda person: (busy.count(person), person))


def judged(
    honest: Honest,
    crowd: int = 0,
    more: Iterable[tuple[int, int]] = (),
    votes: Sequence[Attestation] = (),
    anchors: Anchors | None = None,
) -> Verdict:
    return judge(listing(), honest.evidence(crowd, more, votes), anchors or honest.trusted, now=NOW)


@pytest.fixture(scope="module")
def weakest(honest: Honest) -> int:
    """The honest person whose one edge is worth the most: well known, and following hardly anybody else."""
    circle = Circle.of(honest.evidence(0, ()), honest.trusted, now=NOW)
    degree = Counter(person for person, _ in honest.follows)
    strangers = (number for number in range(len(honest.names)) if number not in honest.anchors)
    return max(strangers, key=lambda number: (circle.weight(honest.names[number]) / (degree[number] + 1), number))


def most_for(flow: float) -> float:
    """Points that a flow over attack edges can buy at the most, by the table: whatever stands behind the edges, its
    whole weight is below flow / 0.15, and no factor gets more than all of it (half a point is rounding)."""
    whole = flow / (1 - FOLLOWED)
    positive = [term for term in TERMS if term.key in (FactorKey.PUBLISHER, FactorKey.REVIEWS, FactorKey.REBUILDS)]
    return 0.5 + sum(term.of * (1 - term.prior) * (1 - 2 ** (-whole / term.half)) for term in positive)


@pytest.fixture(scope="module")
def praised(honest: Honest, victim: int) -> dict[int, int]:
    """Points by the size of the crowd behind one edge from the victim."""
    return {n: judged(honest, n, star(honest, n, [victim]), praise(n)).points for n in CROWDS}


def test_praise_by_any_number_of_fakes_is_worth_the_one_edge_that_leads_to_them(
    honest: Honest, praised: dict[int, int]
) -> None:  # R-TR2
    alone = judged(honest).points
    assert all(0 <= bought - alone <= EDGE_WORTH for bought in praised.values())
    assert abs(praised[100_000] - praised[100]) <= 1


@pytest.mark.parametrize("crowd", [1, 100, 10_000])
def test_the_best_edge_there_is_buys_no_more_than_the_table_gives_for_its_flow(
    honest: Honest, weakest: int, crowd: int
) -> None:  # R-TR2
    evidence = honest.evidence(crowd, star(honest, crowd, [weakest]), praise(crowd))
    circle = Circle.of(evidence, honest.trusted, now=NOW)
    followed = len({b for a, b in honest.follows if a == weakest}) + 1
    flow = FOLLOWED * circle.weight(honest.names[weakest]) / followed
    gained = judge_in(circle, listing(), now=NOW).points - judged(honest).points
    assert 0 <= gained <= most_for(flow)


@pytest.mark.parametrize("crowd", [2, 20, 300])
def test_a_clique_keeps_no_more_than_any_other_crowd(honest: Honest, victim: int, crowd: int) -> None:  # R-TR2
    bought = judged(honest, crowd, clique(honest, crowd, [victim]), praise(crowd)).points
    assert bought - judged(honest).points <= EDGE_WORTH


@pytest.mark.parametrize("crowd", [1, 100, 10_000])
def test_the_crowds_whole_weight_is_bounded_by_the_flow_over_the_attack_edge(
    honest: Honest, victim: int, crowd: int
) -> None:  # R-TR2
    circle = Circle.of(honest.evidence(crowd, star(honest, crowd, [victim])), honest.trusted, now=NOW)
    followed = len({b for a, b in honest.follows if a == victim}) + 1
    flow = FOLLOWED * circle.weight(honest.names[victim]) / followed
    inside = sum(circle.weight(name) for name in fakes(crowd)) + circle.weight(PUBLISHER)
    assert inside <= flow / 0.15 + 1e-9


def test_infiltrating_slowly_costs_an_honest_persons_trust_for_every_step(honest: Honest, victim: int) -> None:
    # R-TR2: each further edge is worth what an edge is worth; a thousand fakes more are worth nothing.
    followed = sorted({b for a, b in honest.follows if a in honest.anchors and b not in honest.anchors})
    alone = judged(honest).points
    for edges in (1, 3, 10):
        victims = [victim, *(person for person in followed if person != victim)][:edges]
        few, many = (judged(honest, n, star(honest, n, victims), praise(n)).points for n in (10, 1_000))
        assert many - alone <= EDGE_WORTH * edges
        assert abs(many - few) <= 2


@pytest.mark.parametrize("crowd", [1, 100, 100_000])
def test_a_brigade_behind_one_edge_can_not_report_an_app_away(honest: Honest, victim: int, crowd: int) -> None:
    # R-TR2: all of its paths share the one edge, so that none of its reports has two separate paths.
    pinned = Anchors(tuple(sorted((*honest.trusted.entries, Anchor(PUBLISHER)))))
    edges = [(a, b) for a, b in star(honest, crowd, [victim]) if b != honest.publisher(crowd)]
    before = judged(honest, anchors=pinned)
    found = judged(honest, crowd, edges, blame(crowd), pinned)
    reports = next(factor for factor in found.factors if factor.key is FactorKey.REPORTS)
    assert (found.outcome, found.points, reports.points) == (Outcome.ALLOW, before.points, 0)
    assert "shown only" in reports.text


def test_two_bought_edges_give_a_brigade_a_voice_and_no_more_than_the_weight_of_those_edges(
    honest: Honest, victim: int
) -> None:  # R-TR2
    followed = sorted({b for a, b in honest.follows if a in honest.anchors and b not in honest.anchors})
    victims = [victim, next(person for person in followed if person != victim)]
    pinned = Anchors(tuple(sorted((*honest.trusted.entries, Anchor(PUBLISHER)))))
    before = judged(honest, anchors=pinned).points
    for crowd in (1, 100, 10_000):
        edges = [(a, b) for a, b in star(honest, crowd, victims) if b != honest.publisher(crowd)]
        found = judged(honest, crowd, edges, blame(crowd), pinned)
        assert before - found.points <= 3 * EDGE_WORTH
        assert found.outcome is not Outcome.REFUSE


def test_flipping_votes_counts_the_last_word_once(honest: Honest, victim: int) -> None:  # R-TR5
    edges = star(honest, 50, [victim])
    last = [word for word in flips(50, 9) if word.made == NOW - 1]
    flipped, steady = judged(honest, 50, edges, flips(50, 9)), judged(honest, 50, edges, last)
    assert flipped.factors == steady.factors
    assert flipped.ignored["votes replaced by a later one"] == 50 * 8


def test_a_popular_anchor_turned_bad_makes_nothing_install_unasked_and_goes_when_removed(honest: Honest) -> None:
    # The price of naming somebody an anchor is stated here: alone he brings an unknown app no further than "ask".
    crowd, turned = 1_000, honest.anchors[0]
    edges = star(honest, crowd, [turned])
    votes = [*praise(crowd), vote(honest.names[turned])]
    found = judged(honest, crowd, edges, praise(crowd))
    assert found.outcome is Outcome.ASK
    rest = Anchors(tuple(one for one in honest.trusted.entries if one.person != honest.names[turned]))
    without = judged(honest, crowd, edges, votes, rest)
    distrusted = judged(honest, crowd, edges, votes, Anchors(rest.entries, distrusted=(honest.names[turned],)))
    assert without.points - judged(honest, anchors=rest).points <= EDGE_WORTH
    assert abs(distrusted.points - judged(honest, anchors=rest).points) <= 1


def test_fakes_that_nobody_follows_move_nothing_whomever_they_follow(honest: Honest, victim: int) -> None:  # R-TR2
    crowd = 1_000
    edges = star(honest, crowd, [])
    towards = [(honest.first_fake() + number, anchor) for number in range(crowd) for anchor in honest.anchors]
    assert judged(honest, crowd, [*edges, *towards], praise(crowd)).points == judged(honest).points


def test_a_mute_by_the_victim_takes_the_whole_crowd_away(honest: Honest, victim: int) -> None:
    crowd = 100
    whole = honest.evidence(crowd, star(honest, crowd, [victim]), praise(crowd))
    muted = type(whole)(whole.follows, whole.attestations, whole.bound, ((honest.names[victim], fakes(1)[0]),))
    found = judge(listing(), muted, honest.trusted, now=NOW)
    assert found.points == judged(honest).points
    assert found.ignored["follows taken back by a mute"] == 1


def test_plain_averaging_falls_to_the_crowd_that_this_score_withstands(honest: Honest, victim: int) -> None:
    # R-TR2
    crowd, judge_ = 10_000, honest.names[honest.anchors[0]]
    votes = [vote(judge_, value=-100), *praise(crowd)]
    assert sum(word.value for word in votes) / len(votes) > 99
    honest_word = judged(honest, votes=votes[:1]).points
    assert judged(honest, crowd, star(honest, crowd, [victim]), votes).points - honest_word <= EDGE_WORTH


def test_everything_at_once_is_bounded_by_the_edges_too(honest: Honest, victim: int) -> None:  # R-TR2
    # Praise, rebuilds and running by everybody at once: three factors and the publisher's standing.
    crowd = 1_000
    kinds = (AttestKind.REVIEWED, AttestKind.REBUILT, AttestKind.RAN)
    votes = [vote(name, kinds[place % 3]) for place, name in enumerate(fakes(crowd))]
    circle = Circle.of(honest.evidence(crowd, star(honest, crowd, [victim]), votes), honest.trusted, now=NOW)
    assert judge_in(circle, listing(), now=NOW).points - judged(honest).points <= EDGE_WORTH
