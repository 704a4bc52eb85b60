"""The explanation as a tree: what somebody who never saw one reads, and what a hostile text can not do to it."""

from __future__ import annotations

import json
import re

from market.cli.trust import explanation
from market.model import AttestKind, Flag, FlagKind
from market.trust import Anchor, Anchors, judge
from tests.market.trust.people import APP, NOW, PUBLISHER, did, evidence, listing, vote

ADA, BEN = did("ada"), did("ben")


def told(*flags: Flag, note: str = "") -> str:
    votes = [vote(BEN), vote(ADA, AttestKind.REBUILT)]
    noted = [type(one)(one.voter, one.app, one.subject, one.kind, one.value, one.made, None, note) for one in votes]
    found = judge(
        listing(*flags), evidence([(ADA, BEN), (BEN, PUBLISHER)], noted), Anchors((Anchor(ADA, "Ada"),)), now=NOW
    )
    return "\n".join(explanation(str(APP), "1.0.0", json.loads(json.dumps(found.to_json()))))


def test_the_tree_shows_the_sum_the_people_and_the_way_to_them() -> None:  # R-TR1
    text = told(note="Read all of it.")
    assert "not that it is without faults" in text
    summed = re.search(r"Points: (\d+(?: [+-] \d+)*) = (\d+)", text)
    assert summed is not None
    terms = re.findall(r"([+-])? ?(\d+)", summed[1])
    assert sum(-int(value) if sign == "-" else int(value) for sign, value in terms) == int(summed[2])
    assert "Ada rebuilt it (+100)" in text
    assert "“Read all of it.”" in text
    assert f"{ADA[:16]}...{ADA[-5:]} -> {BEN[:16]}...{BEN[-5:]}" in text


def test_a_check_that_does_not_hold_names_its_evidence_and_what_lifts_it() -> None:  # R-TR3
    text = told(Flag(FlagKind.EQUIVOCATION, "Two different documents were signed.", ("d1", "d2")))
    assert "is refused" in text
    assert "REFUSED  Two different documents were signed." in text
    assert "evidence: d1" in text
    assert "lifted by: your own decision" in text


def test_a_note_or_flag_can_not_drive_the_terminal() -> None:
    text = told(Flag(FlagKind.FORK, "\x1b[2J\u202e", ()), note="\x1b]0;title\x07")
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\u202e" not in text
