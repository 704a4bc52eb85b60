"""The circle through verdicts: mutes, distrust, an own follow list, an own voice, the hop limit, and bad input."""

from __future__ import annotations

import itertools
import json
from array import array
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.model import Edges, TrustEvidence
from market.trust import Anchor, Anchors, Circle, FactorKey, GateKind, GateState, Outcome, Policy, judge, judge_in
from market.trust.circle import MAX_HOPS, OPERATOR
from market.trust.gates import Permissions
from tests.market.trust.people import NOW, PUBLISHER, did, evidence, listing, nostr, vote

ADA, BEN, CLEO, EVE = did("ada"), did("ben"), did("cleo"), did("eve")


def circle(found: TrustEvidence, *people: str, **more: object) -> Circle:
    anchors = replace(Anchors.of(people), **more)  # type: ignore[arg-type]  # members of Anchors by case
    return Circle.of(found, anchors, now=NOW)


def with_mutes(follows: list[tuple[str, str]], mutes: list[tuple[str, str]]) -> TrustEvidence:
    return replace(evidence(follows), mutes=tuple(mutes))


def test_a_mute_takes_back_the_edge_between_the_two_and_nothing_else() -> None:  # R-TR1
    follows = [(ADA, BEN), (ADA, EVE), (BEN, EVE)]
    muted = circle(with_mutes(follows, [(ADA, EVE)]), ADA)
    assert muted.path(EVE) == (ADA, BEN, EVE)
    assert muted.weight(EVE) > 0
    assert muted.ignored["follows taken back by a mute"] == 1


def test_a_strangers_mute_takes_nothing_from_anybody() -> None:  # R-TR2
    follows = [(ADA, BEN), (ADA, CLEO)]
    before, after = circle(evidence(follows), ADA), circle(with_mutes(follows, [(EVE, BEN), (EVE, ADA)]), ADA)
    assert after.weight(BEN) == before.weight(BEN)
    assert after.weight(ADA) == before.weight(ADA)


def test_whom_the_operator_distrusts_passes_nothing_on_and_says_nothing() -> None:
    follows = [(ADA, EVE), (EVE, BEN), (ADA, CLEO)]
    found = evidence(follows, [vote(EVE, value=100)])
    gone = circle(found, ADA, distrusted=(EVE,))
    assert (gone.weight(EVE), gone.weight(BEN)) == (0, 0)
    assert gone.weight(CLEO) > circle(found, ADA).weight(CLEO)
    assert gone.ignored["votes of people you distrust"] == 1
    assert gone.ignored["follows of people you distrust"] == 2


def test_a_distrusted_publisher_is_refused_even_as_an_anchor() -> None:  # R-TR3
    anchors = Anchors((Anchor(PUBLISHER), Anchor(ADA)), distrusted=(PUBLISHER,))
    found = judge(listing(), evidence(), anchors, now=NOW)
    assert found.outcome is Outcome.REFUSE
    assert [gate.kind for gate in found.gates if gate.state is GateState.REFUSE] == [GateKind.DISTRUSTED]


def test_an_imported_follow_list_weighs_as_much_as_one_anchor_shared_by_its_people() -> None:
    friends = tuple(did(f"friend {number}") for number in range(10))
    known = circle(evidence(), follows=friends)
    assert known.named == 1
    assert known.path(friends[0]) == (OPERATOR, friends[0])
    assert sum(known.weight(friend) for friend in friends) < known.weight(OPERATOR)
    assert judge_in(known, listing(), now=NOW).gates[-1].state is GateState.OK


def test_an_own_identity_counts_once_somebody_else_is_trusted_and_is_no_anchor_by_itself() -> None:
    found = evidence(votes=[vote(ADA)])
    alone, beside = circle(found, own=ADA), circle(found, BEN, own=ADA)
    assert (alone.weight(ADA), alone.named) == (0, 0)
    assert beside.weight(ADA) > 0
    assert beside.labels[ADA] == "you"


def test_nobody_beyond_the_hop_limit_has_a_say_and_the_limit_is_shown() -> None:
    chain = [did(f"step {number}") for number in range(MAX_HOPS + 3)]
    follows = list(itertools.pairwise(chain))
    known = circle(evidence(follows), chain[0])
    assert known.weight(chain[MAX_HOPS]) > 0
    assert known.weight(chain[MAX_HOPS + 1]) == 0
    assert known.path(chain[MAX_HOPS + 1]) == ()
    assert known.to_json() == {"anchors": 1, "people": MAX_HOPS + 1, "follows": MAX_HOPS, "hops": MAX_HOPS}


def test_anchors_share_what_returns_by_their_weights() -> None:
    known = Circle.of(evidence([(ADA, CLEO), (BEN, CLEO)]), Anchors((Anchor(ADA, "", 3), Anchor(BEN))), now=NOW)
    assert known.weight(ADA) == pytest.approx(3 * known.weight(BEN))


def test_a_cycle_ends_and_an_anchor_that_does_not_exist_breaks_nothing() -> None:
    known = circle(evidence([(ADA, BEN), (BEN, CLEO), (CLEO, ADA)]), ADA, did("ghost"))
    assert known.weight(CLEO) > 0
    assert known.path(CLEO) == (ADA, BEN, CLEO)


def test_a_follow_list_of_100_000_entries_and_doubles_is_bounded_and_counted() -> None:
    many = [(ADA, nostr(f"p{number}")) for number in range(100_000)]
    known = circle(evidence([*many, (ADA, ADA)]), ADA)
    assert known.graph.edges == 10_000
    assert known.ignored == {"beyond the longest list": 90_000, "follows of oneself": 1}


def test_edges_as_integers_read_as_the_pairs_they_were_made_of() -> None:
    pairs = [(BEN, ADA), (ADA, BEN), (ADA, CLEO)]
    edges = Edges.of(pairs)
    assert edges == tuple(pairs)
    assert (edges[1], edges[:2], len(edges)) == ((ADA, BEN), tuple(pairs[:2]), 3)
    assert Edges.of(edges) is edges
    with pytest.raises(ValueError, match="one length"):
        Edges((ADA,), array("i", [0]), array("i"))


PEOPLE = [ADA, BEN, CLEO, EVE, PUBLISHER]
PAIRS = st.lists(st.tuples(st.sampled_from(PEOPLE), st.sampled_from(PEOPLE)), max_size=20)


@given(follows=PAIRS, mutes=PAIRS, distrusted=st.sets(st.sampled_from(PEOPLE), max_size=2))
@settings(max_examples=100, deadline=None)
def test_a_muted_edge_is_as_if_it_had_never_been_and_a_distrusted_person_too(
    follows: list[tuple[str, str]], mutes: list[tuple[str, str]], distrusted: set[str]
) -> None:  # R-TR1
    whole = circle(with_mutes(follows, mutes), ADA, BEN, distrusted=tuple(distrusted))
    left = [edge for edge in follows if edge not in mutes and not distrusted & set(edge)]
    bare = circle(evidence(left), *sorted({ADA, BEN} - distrusted))
    assert [whole.weight(person) for person in PEOPLE] == [bare.weight(person) for person in PEOPLE]


def test_what_reaches_the_machine_needs_more_points_than_what_does_not() -> None:
    def outcome(*words: str) -> Outcome:
        return judge(
            listing(), evidence(), Anchors.of([PUBLISHER]), now=NOW, permissions=Permissions(whole=words)
        ).outcome

    assert outcome() is outcome("internet", "writable-root") is Outcome.ALLOW
    for word in ("host-network", "device:/dev/dri", "capability:NET_ADMIN", "something-new"):
        assert outcome("internet", word) is Outcome.ASK
    assert Policy().needed(["internet"]) < Policy().needed(["host-network"])


def test_advice_in_terms_of_friends_is_true() -> None:
    follows = [(ADA, BEN), (ADA, CLEO), (BEN, PUBLISHER)]
    before = judge(listing(), evidence(follows), Anchors.of([ADA]), now=NOW, policy=Policy(80, 10, 90))
    (advice,) = [text for text in before.would_change if "your anchors follow" in text]
    assert advice.startswith("1 more good review")
    after = judge(listing(), evidence(follows, [vote(CLEO)]), Anchors.of([ADA]), now=NOW, policy=Policy(80, 10, 90))
    assert abs(after.points - int(advice.split()[-2])) <= 1


def test_the_explanations_form_is_stable_and_holds_integers_and_words_only() -> None:
    follows = [(ADA, BEN), (BEN, PUBLISHER)]
    found = judge(listing(), evidence(follows, [vote(BEN)]), Anchors.of([ADA]), now=NOW).to_json()
    assert set(found) >= {
        "schema", "outcome", "points", "band", "caveat", "answerable", "reasons", "asks", "gates", "factors", "paths",
        "would_change", "ignored", "signer", "circle", "thresholds",
    }  # fmt: skip
    assert found["schema"] == "archy/verdict/1"
    factors = json.loads(json.dumps(found))["factors"]
    assert {key for factor in factors for key in factor} == {
        "key", "letter", "name", "points", "of", "neutral", "text", "why", "voices", "contributors",
    }  # fmt: skip
    contributors = [one for factor in factors for one in factor["contributors"]]
    assert {key for one in contributors for key in one} == {"person", "label", "says", "share", "path", "note"}
    json.dumps(found, allow_nan=False)
    assert _floats(found) == []
    assert FactorKey.REVIEWS.value in {factor["key"] for factor in factors}


def _floats(value: object) -> list[float]:
    if isinstance(value, dict):
        return [one for inner in value.values() for one in _floats(inner)]
    if isinstance(value, list | tuple):
        return [one for inner in value for one in _floats(inner)]
    return [value] if isinstance(value, float) else []
