"""Verdicts: outcomes by policy, points that add up, and an explanation that can be followed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.errors import UsageProblem
from market.model import Attestation, AttestKind
from market.trust import NEUTRAL, TERMS, Anchors, Circle, Continuity, FactorKey, Outcome, Policy, judge, judge_in
from tests.market.trust.people import NOW, OLDER, PUBLISHER, SUBJECT, did, evidence, listing, nostr, vote

ADA, BEN, EVE = did("ada"), did("ben"), did("eve")


def test_a_pinned_publisher_without_reviews_is_allowed() -> None:
    found = judge(listing(), evidence(), Anchors.of([PUBLISHER]), now=NOW)
    assert (found.outcome, found.band, found.asks) == (Outcome.ALLOW, "Pinned by you", ())
    assert found.points == 75


def test_a_pinned_publisher_is_allowed_whoever_else_is_pinned() -> None:
    many = [did(f"anchor {number}") for number in range(60)]
    found = judge(listing(), evidence(), Anchors.of([PUBLISHER, *many]), now=NOW)
    assert found.outcome is Outcome.ALLOW


def test_an_unknown_publisher_asks_is_not_hidden_and_says_so() -> None:  # R-TR4
    found = judge(listing(), evidence(), Anchors.of([ADA]), now=NOW)
    assert (found.outcome, found.points, found.band) == (Outcome.ASK, NEUTRAL, "Unknown in your circle")
    assert [(ask.reason, ask.answerable) for ask in found.asks] == [("score", True)]
    assert found.answerable
    assert any("neutral start" in text for text in found.would_change)


def test_without_anchors_every_install_asks_and_yes_does_not_answer() -> None:  # R-TR1
    found = judge(listing(), evidence([(ADA, PUBLISHER)], [vote(ADA)]), Anchors(), now=NOW)
    assert found.outcome is Outcome.ASK
    assert ("anchors", False) in [(ask.reason, ask.answerable) for ask in found.asks]
    assert not found.answerable


def test_few_follows_of_an_anchor_weigh_more_than_many() -> None:
    def outcome(others: int) -> Outcome:
        follows = [(ADA, PUBLISHER), *((ADA, did(f"friend {number}")) for number in range(others))]
        return judge(listing(), evidence(follows), Anchors.of([ADA]), now=NOW).outcome

    assert outcome(20) is Outcome.ALLOW
    assert outcome(1_000) is Outcome.ASK


def test_panned_by_all_is_far_below_unknown_and_a_report_below_that() -> None:
    def points(*votes: Attestation) -> int:
        return judge(listing(), evidence(votes=votes), Anchors.of([ADA, BEN]), now=NOW).points

    panned = points(vote(ADA, value=-100), vote(BEN, value=-100))
    reported = points(vote(ADA, AttestKind.MALWARE, -100))
    assert reported < panned < NEUTRAL - 10


def test_a_pinned_publisher_whom_everybody_pans_asks_again() -> None:
    circle = [ADA, BEN, EVE]
    votes = [vote(person, value=-100) for person in circle]
    found = judge(listing(), evidence(votes=votes), Anchors.of([PUBLISHER, *circle]), now=NOW)
    assert found.outcome is Outcome.ASK


def test_an_anchors_own_report_bites_alone_even_against_a_pinned_publisher() -> None:
    votes = [vote(ADA, AttestKind.MALWARE, -100)]
    found = judge(listing(), evidence(votes=votes), Anchors.of([PUBLISHER, ADA]), now=NOW)
    assert found.outcome is Outcome.REFUSE
    assert found.band == "Refused"
    assert not found.answerable


def test_a_report_by_one_path_is_shown_and_does_not_count_and_by_two_it_does() -> None:
    votes = [vote(EVE, AttestKind.MALWARE, -100)]

    def reports(*follows: tuple[str, str]) -> tuple[int, str]:
        found = judge(listing(), evidence(follows, votes), Anchors.of([ADA]), now=NOW)
        return next((f.points, f.text) for f in found.factors if f.key is FactorKey.REPORTS)

    one_way = (ADA, BEN), (BEN, EVE)
    points, text = reports(*one_way)
    assert points == 0
    assert "1 more is shown only" in text
    points, _ = reports(*one_way, (ADA, did("cleo")), (did("cleo"), EVE))
    assert points < 0


def test_the_explanation_names_who_contributes_and_how_they_are_known() -> None:  # R-TR1
    follows = [(ADA, BEN), (BEN, PUBLISHER), (ADA, EVE)]
    found = judge(listing(), evidence(follows, [vote(EVE, value=80)]), Anchors.of([ADA]), now=NOW)
    by_key = {factor.key: factor for factor in found.factors}
    # Eve's review is an edge to the publisher as well.
    assert {c.person: c.path for c in by_key[FactorKey.PUBLISHER].contributors} == {
        BEN: (ADA, BEN, PUBLISHER),
        EVE: (ADA, EVE, PUBLISHER),
    }
    (reviewer,) = by_key[FactorKey.REVIEWS].contributors
    assert (reviewer.person, reviewer.says, reviewer.path) == (EVE, "reviewed it (+80)", (ADA, EVE))
    assert set(found.paths) == {(ADA, BEN, PUBLISHER), (ADA, EVE, PUBLISHER), (ADA, EVE)}


def test_what_would_change_it_is_true() -> None:
    follows = [(ADA, PUBLISHER), *((ADA, did(f"friend {number}")) for number in range(150))]
    before = judge(listing(), evidence(follows), Anchors.of([ADA]), now=NOW)
    assert before.outcome is Outcome.ASK
    (advice,) = [text for text in before.would_change if "good review" in text]
    reviewers = [did(f"reviewer {number}") for number in range(int(advice.split()[0]))]
    reviewed = evidence(follows, [vote(person) for person in reviewers])
    after = judge(listing(), reviewed, Anchors.of([ADA, *reviewers]), now=NOW)
    assert after.outcome is Outcome.ALLOW


def test_the_neutral_score_is_the_sum_of_the_priors_with_a_fresh_head() -> None:
    priors = sum(term.of * (1 if term.key is FactorKey.FRESHNESS else term.prior) for term in TERMS)
    assert priors == NEUTRAL
    assert sum(term.of for term in TERMS if term.of > 0) == 100


@pytest.mark.parametrize(("refuse", "allow"), [(70, 60), (-1, 60), (10, 101)])
def test_thresholds_that_make_no_policy_are_refused(refuse: int, allow: int) -> None:
    with pytest.raises(UsageProblem, match="make no policy"):
        Policy(allow_at=allow, refuse_below=refuse)


PEOPLE = [ADA, BEN, EVE, PUBLISHER, *(nostr(str(number)) for number in range(6))]
VOTES = st.builds(
    vote,
    st.sampled_from(PEOPLE),
    st.sampled_from(AttestKind),
    st.integers(-120, 120),
    made=st.integers(NOW - 1000, NOW + 1000),
    expires=st.none() | st.integers(NOW - 10, NOW + 10),
    subject=st.sampled_from([SUBJECT, OLDER]),
)
FOLLOWS = st.lists(st.tuples(st.sampled_from(PEOPLE), st.sampled_from(PEOPLE)), max_size=40)


@given(
    follows=FOLLOWS,
    votes=st.lists(VOTES, max_size=20),
    anchors=st.sets(st.sampled_from([ADA, BEN, PUBLISHER])),
    continuity=st.sampled_from(Continuity),
)
@settings(max_examples=200, deadline=None)
def test_points_always_add_up_and_the_same_inputs_give_the_same_verdict(
    follows: list[tuple[str, str]], votes: list[Attestation], anchors: set[str], continuity: Continuity
) -> None:  # R-TR1
    found = judge(listing(), evidence(follows, votes), Anchors.of(anchors), now=NOW, continuity=continuity)
    assert 0 <= found.points <= 100
    assert sum(factor.points for factor in found.factors) == found.points
    assert all(min(0, f.of) <= f.points <= max(0, f.of) for f in found.factors)
    assert all(0 <= c.share <= 100 for f in found.factors for c in f.contributors)
    assert all(path[0] in anchors for path in found.paths)
    backwards = Circle.of(evidence(follows[::-1], votes[::-1]), Anchors.of(sorted(anchors)), now=NOW)
    again = judge_in(backwards, listing(), now=NOW, continuity=continuity)
    assert again == found
    assert json.loads(json.dumps(found.to_json()))["points"] == found.points
    assert "." not in json.dumps([[f["points"], f["of"]] for f in json.loads(json.dumps(found.to_json()))["factors"]])
