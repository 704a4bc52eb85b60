"""The key history: rotation by a committed key, forks, and who holds which role. R-DS5, R-DS7."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from nacl.signing import SigningKey

from market.identity import BadDocument, Folded, KeyHistory, Role, SignedEntry, add_proof, did_of
from market.identity.history import identity_body

NOW = 1_800_000_000


def public(key: SigningKey) -> bytes:
    return key.verify_key.encode()


@dataclass
class Publisher:
    inception: SigningKey = field(default_factory=SigningKey.generate)
    roots: list[SigningKey] = field(default_factory=lambda: [SigningKey.generate() for _ in range(5)])
    release: SigningKey = field(default_factory=SigningKey.generate)
    online: SigningKey = field(default_factory=SigningKey.generate)

    @property
    def did(self) -> str:
        return did_of(public(self.inception))

    def entry(
        self,
        prev: SignedEntry | None,
        *,
        signer: SigningKey | None = None,
        next_root: SigningKey | None = None,
        nostr: tuple[str, ...] = ("11" * 32,),
    ) -> SignedEntry:
        seq = 0 if prev is None else prev.entry.seq + 1
        signer = signer or (self.inception if prev is None else self.roots[seq - 1])
        body = identity_body(
            self.did,
            prev=prev,
            next_root=public(next_root or self.roots[seq]),
            release=(public(self.release),),
            online=(public(self.online),),
            nostr=nostr,
            relays=("wss://relay.example",),
            made=NOW + seq,
        )
        return SignedEntry.from_document(add_proof(body, signer.encode(), created=NOW))


def folded(did: str, *entries: SignedEntry) -> tuple[KeyHistory, list[Folded]]:
    history, outcomes = KeyHistory(did), []
    for entry in entries:
        history, outcome = history.fold(entry)
        outcomes.append(outcome)
    return history, outcomes


def test_a_history_grows_by_entries_that_the_committed_key_signed() -> None:  # R-DS7
    alice = Publisher()
    first = alice.entry(None)
    second = alice.entry(first)
    third = alice.entry(second)
    history, outcomes = folded(alice.did, first, second, third, second)
    assert outcomes == [Folded.ADDED, Folded.ADDED, Folded.ADDED, Folded.KNOWN]
    assert history.latest == third
    assert history.entry(second.digest) == second


def test_an_entry_that_comes_before_its_predecessor_is_early_and_changes_nothing() -> None:
    alice = Publisher()
    first = alice.entry(None)
    history, outcomes = folded(alice.did, alice.entry(first))
    assert (history.entries, outcomes) == ((), [Folded.EARLY])


def test_entry_zero_signed_by_anybody_else_is_refused() -> None:
    alice, mallory = Publisher(), Publisher()
    _, outcomes = folded(alice.did, alice.entry(None, signer=mallory.inception))
    assert outcomes == [Folded.WRONG_SIGNER]


@pytest.mark.parametrize("stolen", ["inception", "release", "online"])
def test_a_stolen_key_can_not_rotate(stolen: str) -> None:  # R-DS7
    alice = Publisher()
    first = alice.entry(None)
    history, outcomes = folded(alice.did, first, alice.entry(first, signer=getattr(alice, stolen)))
    assert outcomes == [Folded.ADDED, Folded.WRONG_SIGNER]
    assert history.latest == first


def test_an_entry_of_another_publisher_is_refused() -> None:
    alice, mallory = Publisher(), Publisher()
    _, outcomes = folded(alice.did, mallory.entry(None))
    assert outcomes == [Folded.WRONG_CHAIN]


def test_a_second_entry_zero_is_a_fork_and_the_first_one_seen_stays() -> None:  # R-DS5
    alice = Publisher()
    first, rival = alice.entry(None), alice.entry(None, nostr=("22" * 32,))
    history, outcomes = folded(alice.did, first, rival)
    assert outcomes == [Folded.ADDED, Folded.FORK]
    assert history.latest == first
    assert history.forks == (rival,)


def test_entries_after_a_fork_do_not_join_the_branch_that_is_not_in_force() -> None:
    alice = Publisher()
    first, rival = alice.entry(None), alice.entry(None, nostr=("22" * 32,))
    history, outcomes = folded(alice.did, first, rival, alice.entry(rival))
    assert outcomes[-1] is Folded.WRONG_CHAIN
    assert history.latest == first


def test_a_later_fork_needs_the_committed_key_and_is_kept_as_proof() -> None:
    alice = Publisher()
    first = alice.entry(None)
    second, rival = alice.entry(first), alice.entry(first, nostr=("22" * 32,))
    forged = alice.entry(first, signer=alice.release, nostr=("33" * 32,))
    history, outcomes = folded(alice.did, first, second, forged, rival)
    assert outcomes[2:] == [Folded.WRONG_SIGNER, Folded.FORK]
    assert history.forks == (rival,)


def test_every_role_is_held_by_its_own_key_and_the_inception_key_holds_none() -> None:
    alice = Publisher()
    history, _ = folded(alice.did, first := alice.entry(None))
    keys = {
        "inception": alice.inception,
        "root": alice.roots[0],
        "later root": alice.roots[1],
        "release": alice.release,
        "online": alice.online,
    }
    holding = {(name, role) for name, key in keys.items() for role in Role if history.holds(public(key), role, first)}
    assert holding == {("root", Role.ROOT), ("release", Role.RELEASE), ("online", Role.ONLINE)}


def test_an_entry_zero_that_claims_a_predecessor_is_refused() -> None:
    alice = Publisher()
    body = identity_body(
        alice.did, prev=None, next_root=bytes(32), release=(), online=(), nostr=(), relays=(), made=NOW
    )
    with pytest.raises(BadDocument):
        SignedEntry.from_document(add_proof({**body, "prev": "00" * 32}, alice.inception.encode(), created=NOW))
