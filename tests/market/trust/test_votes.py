"""Which votes count, through the verdict: one per voter and subject, live, by somebody, for somebody else."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from market.model import AppName, Attestation, AttestKind
from market.trust import Anchors, FactorKey, Verdict, judge
from market.trust.votes import MAX_VOTES
from tests.market.trust.people import APP, DAY, NOW, OLDER, PUBLISHER, did, evidence, listing, nostr, nostr_hex, vote

ADA, BEN = did("ada"), did("ben")


def verdict(*votes: Attestation, bound: dict[str, str] | None = None, anchors: tuple[str, ...] = (ADA,)) -> Verdict:
    return judge(listing(), evidence(votes=votes, bound=bound), Anchors.of(anchors), now=NOW)


def points(found: Verdict, key: FactorKey) -> int:
    return next(factor.points for factor in found.factors if factor.key is key)


def test_only_the_latest_vote_per_voter_and_subject_counts() -> None:  # R-TR5
    praise, blame = vote(ADA, value=100, made=NOW - 2 * DAY), vote(ADA, value=-100, made=NOW - DAY)
    for order in itertools.permutations((praise, blame)):
        found = verdict(*order)
        assert points(found, FactorKey.REVIEWS) < 15
        assert found.ignored["votes replaced by a later one"] == 1


def test_an_expired_vote_counts_nothing_and_brings_no_older_one_back() -> None:  # R-TR5
    praise = vote(ADA, made=NOW - 3 * DAY)
    expired = vote(ADA, value=-100, made=NOW - 2 * DAY, expires=NOW)
    found = verdict(praise, expired)
    assert points(found, FactorKey.REVIEWS) == 15
    assert found.ignored["votes that expired"] == 1


def test_votes_of_one_second_count_the_same_in_any_order() -> None:
    votes = (vote(ADA, value=100), vote(ADA, value=-50), vote(ADA, AttestKind.MALWARE, -100))
    seen = {verdict(*order).points for order in itertools.permutations(votes)}
    assert len(seen) == 1
    assert points(verdict(*votes), FactorKey.REPORTS) < 0


def test_votes_of_one_second_that_differ_in_their_expiry_count_the_same_in_any_order() -> None:
    votes = (
        vote(ADA, AttestKind.REVIEWED, 50, made=NOW - 10),
        vote(ADA, AttestKind.REVIEWED, 50, made=NOW - 10, expires=NOW - 1),
    )
    assert verdict(*votes).to_json() == verdict(*votes[::-1]).to_json()


@pytest.mark.parametrize(
    ("hostile", "reason"),
    [
        (vote(PUBLISHER), "votes for oneself"),
        (vote(ADA, value=10**9), "votes out of range"),
        (vote(ADA, made=NOW + DAY), "votes from the future"),
        (vote("\x1b[2Jnobody"), "votes of nobody"),
        (vote(ADA, AttestKind.MALWARE, 100), "reports that blame nothing"),
    ],
)
def test_a_hostile_vote_changes_nothing_and_is_counted(hostile: Attestation, reason: str) -> None:
    anchors = (ADA, PUBLISHER)
    found, untouched = verdict(hostile, anchors=anchors), verdict(anchors=anchors)
    assert found.points == untouched.points
    assert found.factors == untouched.factors
    assert found.ignored[reason] == 1


def test_a_vote_for_an_unknown_app_changes_nothing() -> None:
    elsewhere = vote(ADA, app=AppName(did("other"), "hello"))
    assert verdict(elsewhere).points == verdict().points


def test_a_nostr_key_counts_for_a_did_only_where_the_binding_holds() -> None:  # R-TR6
    spoken = vote(nostr("ada"))
    assert points(verdict(spoken), FactorKey.REVIEWS) == 15
    assert points(verdict(spoken, bound={nostr_hex("ada"): ADA}), FactorKey.REVIEWS) > 25


def test_two_keys_bound_to_one_person_have_one_vote() -> None:  # R-TR5, R-TR6
    bound = {nostr_hex("ada"): ADA, nostr_hex("ada's phone"): ADA}
    once = verdict(vote(ADA), bound=bound)
    thrice = verdict(vote(ADA), vote(nostr("ada")), vote(nostr("ada's phone")), bound=bound)
    assert once.factors == thrice.factors


def test_an_anchor_named_by_npub_is_the_person_it_is_bound_to() -> None:  # R-TR6
    key = "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"
    follows = [(ADA, PUBLISHER)]
    loose = judge(listing(), evidence(follows), Anchors.of([key]), now=NOW)
    bound = judge(listing(), evidence(follows, bound={key: ADA}), Anchors.of([key]), now=NOW)
    assert points(loose, FactorKey.PUBLISHER) == 8
    assert points(bound, FactorKey.PUBLISHER) > 30


def test_praise_for_an_older_release_counts_for_less() -> None:
    here, before = vote(ADA), vote(ADA, subject=OLDER)
    assert 15 < points(verdict(before), FactorKey.REVIEWS) < points(verdict(here), FactorKey.REVIEWS)


def test_a_vote_on_this_release_stands_before_a_later_one_on_another() -> None:
    here, elsewhere = vote(ADA, made=NOW - 2 * DAY), vote(ADA, value=-100, subject=OLDER, made=NOW - DAY)
    assert verdict(elsewhere, here).factors == verdict(here).factors


def test_a_report_about_an_older_release_keeps_its_full_weight() -> None:
    here = points(verdict(vote(ADA, AttestKind.MALWARE, -100)), FactorKey.REPORTS)
    before = points(verdict(vote(ADA, AttestKind.MALWARE, -100, subject=OLDER)), FactorKey.REPORTS)
    assert here == before < 0


def test_a_follow_of_somebody_without_a_sound_name_is_ignored_and_counted() -> None:
    follows = [(ADA, "x" * 10_000), ("\u202e", PUBLISHER)]
    found = judge(listing(), evidence(follows), Anchors.of([ADA]), now=NOW)
    assert found.ignored == {"follows of nobody": 2}
    assert dataclasses.replace(found, ignored={}) == judge(listing(), evidence(), Anchors.of([ADA]), now=NOW)


def test_who_praises_an_app_lends_standing_to_its_publisher() -> None:
    assert points(verdict(vote(ADA, app=APP)), FactorKey.PUBLISHER) > points(verdict(), FactorKey.PUBLISHER)


def test_who_votes_without_an_end_is_heard_on_the_latest_and_the_rest_is_counted() -> None:
    others = [vote(ADA, app=AppName(PUBLISHER, f"app{n}"), made=NOW - 10_000 + n) for n in range(MAX_VOTES + 5)]
    late, early = vote(ADA, made=NOW), vote(ADA, made=NOW - 20_000)
    heard, unheard = verdict(*others, late), verdict(*others, early)
    assert points(heard, FactorKey.REVIEWS) > 15
    assert points(unheard, FactorKey.REVIEWS) == 15
    assert heard.ignored["votes beyond the most that one person may cast"] == 6


def test_a_withdrawn_vote_counts_nothing_and_brings_no_older_one_back() -> None:  # R-TR5
    found = verdict(vote(ADA, value=-100, made=NOW - 2 * DAY), vote(ADA, value=0, made=NOW - DAY))
    assert points(found, FactorKey.REVIEWS) == 15
    assert found.ignored["votes withdrawn"] == 1
