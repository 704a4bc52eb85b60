"""Votes as the index keeps them: one of each voter and release, and room that no crowd can take."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.names import AppName
from market.discovery import Fate, Index, Outcome, Reason, sign_attestation
from market.model import AttestKind
from tests.market.discovery.publishers import NOW, Publisher, from_relay
from tests.market.discovery.test_attacks import ACCEPTED, published


def test_the_latest_vote_of_a_voter_counts_and_an_older_one_is_refused(
    index: Index, alice: Publisher, mallory: Publisher
) -> None:  # R-TR5
    signed = alice.release()
    index.ingest(from_relay(*alice.events(*signed.documents)))
    published(index, mallory)
    app = AppName(alice.did, "hello")
    votes = [
        sign_attestation(mallory.keyring, app, signed.digest, kind=AttestKind.REVIEWED, value=value, now=NOW)
        for value in (10, -50)
    ]
    events = mallory.events(*votes)
    assert index.ingest(from_relay(events[1], events[0])) == [
        ACCEPTED,
        Outcome(Fate.REFUSED, Reason.ROLLBACK, "1 after 2"),
    ]
    [vote] = index.evidence().attestations
    assert (vote.voter, vote.app, vote.subject, vote.value) == (mallory.did, app, signed.digest, -50)


def test_a_crowd_of_voters_that_arrives_later_pushes_nobody_out(
    index: Index, alice: Publisher, mallory: Publisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # R-TR5
    signed = alice.release()
    index.ingest(from_relay(*alice.events(*signed.documents)))
    app = AppName(alice.did, "hello")

    def vote(voter: Publisher) -> None:
        word = sign_attestation(voter.keyring, app, signed.digest, kind=AttestKind.REVIEWED, value=80, now=NOW)
        index.ingest(from_relay(*voter.events(*voter.keyring.documents, word)))

    vote(mallory)
    crowd = [Publisher(tmp_path, f"fake{number}") for number in range(4)]
    for fake in crowd:
        vote(fake)
    assert {one.voter for one in index.evidence().attestations} == {mallory.did, *(fake.did for fake in crowd)}
    monkeypatch.setattr("market.discovery.reading.MAX_VOTES_READ", 2)
    evidence = index.evidence()
    assert [one.voter for one in evidence.attestations] == [mallory.did, crowd[0].did]
    assert 3 in evidence.ignored.values()
