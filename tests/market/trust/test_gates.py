"""Gates: each fails closed at any score, names itself with its evidence, and `--yes` answers none (R-TR3)."""

from __future__ import annotations

import pytest

from market.model import Flag, FlagKind, Listing
from market.trust import Anchors, Continuity, GateState, Outcome, Permissions, Verdict, judge
from tests.market.trust.people import DAY, NOW, PUBLISHER, SUBJECT, evidence, listing

PINNED = Anchors.of([PUBLISHER])


def verdict(app: Listing, **more: object) -> Verdict:
    found: Verdict = judge(app, evidence(), PINNED, now=NOW, **more)  # type: ignore[arg-type]  # keywords by case
    return found


def failed(found: Verdict) -> list[tuple[str, str]]:
    return [(gate.kind.value, gate.state.value) for gate in found.gates if gate.state is not GateState.OK]


@pytest.mark.parametrize("kind", [FlagKind.REVOKED, FlagKind.EQUIVOCATION, FlagKind.FORK, FlagKind.UNBOUND])
def test_what_is_proven_against_a_publisher_refuses_at_any_score(kind: FlagKind) -> None:  # R-TR3, R-DS5, R-DS6
    found = verdict(listing(Flag(kind, "Two different documents were signed.", ("d1", "d2"))))
    assert found.outcome is Outcome.REFUSE
    assert not found.answerable
    assert failed(found) == [(kind.value, "refuse")]
    assert found.reasons == ("Two different documents were signed.",)
    gate = next(gate for gate in found.gates if gate.state is GateState.REFUSE)
    assert gate.evidence == ("d1", "d2")
    assert gate.lifted_by


def test_a_proof_of_an_unknown_kind_refuses() -> None:  # R-TR3
    flag = Flag("from the future", "Something new was proven.")  # type: ignore[arg-type]  # what a newer index may say
    found = verdict(listing(flag))
    assert found.outcome is Outcome.REFUSE
    assert failed(found) == [("other", "refuse")]


def test_a_revocation_that_no_relay_shows_refuses_until_one_does() -> None:  # R-TR3
    found = verdict(listing(Flag(FlagKind.WITHHELD, "Something was withdrawn.", ("d1",))))
    assert found.outcome is Outcome.REFUSE
    [gate] = [gate for gate in found.gates if gate.state is GateState.REFUSE]
    assert "archy relays add" in gate.lifted_by


def test_a_stale_head_asks_for_the_operators_word_and_names_the_silence() -> None:  # R-DS4
    found = verdict(listing(Flag(FlagKind.STALE, "stale"), head_expires=NOW - 12 * DAY))
    assert found.outcome is Outcome.ASK
    assert not found.answerable
    assert failed(found) == [("head", "ask")]
    assert "silent for 12 days" in found.reasons[0]


def test_a_head_that_expired_since_the_listing_was_made_asks_too() -> None:  # R-DS4
    assert verdict(listing(head_expires=NOW)).outcome is Outcome.ASK
    assert verdict(listing(head_expires=NOW + 1)).outcome is Outcome.ALLOW


def test_no_head_asks() -> None:
    found = verdict(listing(Flag(FlagKind.NO_HEAD, "No head was found."), head_epoch=None, head_expires=None))
    assert (found.outcome, found.answerable) == (Outcome.ASK, False)
    assert "No head was found." in found.reasons


def test_a_stale_flag_asks_even_if_the_times_look_sound() -> None:
    found = verdict(listing(Flag(FlagKind.STALE, "A newer epoch was seen.")))
    assert (found.outcome, found.answerable) == (Outcome.ASK, False)


def test_a_head_that_expires_after_the_calendar_ends_is_no_crash() -> None:
    assert verdict(listing(head_expires=2**53 - 1)).outcome is Outcome.ALLOW


def test_a_release_whose_bytes_did_not_match_is_refused() -> None:
    found = verdict(listing(), broken={SUBJECT: "A layer is not what the publisher signed."})
    assert failed(found) == [("digest", "refuse")]


def test_a_listing_without_a_release_is_refused_and_still_shown() -> None:  # R-TR4
    found = verdict(listing(with_release=False))
    assert failed(found) == [("release", "refuse")]
    assert len(found.factors) == 6


def test_new_permissions_ask_and_denied_ones_refuse() -> None:
    wanted = ("internet", "gpu")
    asked = verdict(listing(), permissions=Permissions(wanted))
    assert (asked.outcome, asked.answerable, failed(asked)) == (Outcome.ASK, False, [("permissions", "ask")])
    denied = verdict(listing(), permissions=Permissions(wanted, frozenset({"gpu"})))
    assert failed(denied) == [("permissions", "refuse")]
    assert "gpu" in denied.reasons[0]


def test_a_changed_signer_asks_and_a_known_one_helps() -> None:
    assert failed(verdict(listing(), continuity=Continuity.CHANGED)) == [("signer", "ask")]
    points = [
        verdict(listing(), continuity=c).points for c in (Continuity.FIRST_SEEN, Continuity.ROTATED, Continuity.SAME)
    ]
    assert points == sorted(points)
    assert len(set(points)) == 3


def test_several_failed_gates_are_all_named() -> None:
    both = listing(Flag(FlagKind.REVOKED, "Revoked."), Flag(FlagKind.FORK, "Forked."), head_expires=NOW - DAY)
    assert failed(verdict(both)) == [("revoked", "refuse"), ("fork", "refuse"), ("head", "ask")]
