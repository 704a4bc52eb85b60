"""From verified events to rows: one batch, one transaction.

Guarantees the second half of the order of checks for every event of a batch, that an event and the high-water marks it
moves are stored together or not at all, and that events which arrived too early are looked at again when what they
waited for arrives. Refuses to know relays beyond their name, and the clock.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from apps.names import AppName, Digest
from market.discovery import bounds, circle_rows, event_rows, lists, rows
from market.discovery.checks import (
    MAX_AHEAD,
    Accept,
    AcceptIdentity,
    Claim,
    Mark,
    Proven,
    entry_of,
    expired,
    judge,
)
from market.discovery.contradictions import Contradiction, judge_contradiction
from market.discovery.documents import (
    HeadDocument,
    ManifestDocument,
    ProviderDocument,
    ReleaseDocument,
    RevokeDocument,
    number_of,
)
from market.discovery.events import AUTHOR_KINDS, DELETION_KIND, LIST_KINDS, Event, list_name
from market.discovery.examination import Candidate, Verified, open_claim
from market.discovery.newcomers import Newcomers
from market.discovery.reasons import Fate, Outcome, Reason, Refusal, SetAside
from market.discovery.rows import Publisher
from market.identity.forms import IdentityEntry
from market.identity.history import Folded, KeyHistory

MAX_FAULTS: Final = 64
"""Proofs kept against one publisher. One blocks; a hostile publisher could sign contradictions for ever."""

MAX_PUBLISHERS: Final = 4096
"""Remembered between batches, some 3 KiB each for publishers that have not rotated often."""

MAX_EVIDENCE: Final = 8
"""Documents for one number that are kept as its proof."""

MAX_REVISITED: Final = 500
"""Events looked at again in one transaction because their time has come; the rest waits for the next."""


class Publishers:
    """What is stored of publishers seen lately, so that a batch neither reads nor verifies it again."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Publisher] = OrderedDict()

    def get(self, db: sqlite3.Connection, did: str) -> Publisher:
        found = self._known.pop(did, None)
        if found is None:
            found = rows.load_publisher(db, did)
        self._known[did] = found
        while len(self._known) > MAX_PUBLISHERS:
            self._known.popitem(last=False)
        return found

    def forget(self, did: str) -> None:
        """It has changed."""
        self._known.pop(did, None)

    def clear(self) -> None:
        self._known.clear()


@dataclass(slots=True)
class Writing:
    """One transaction's work, with what it has read of publishers so far."""

    db: sqlite3.Connection
    now: float
    _publishers: Publishers
    room: bool = True
    """Whether publishers that are new may be stored."""
    _stored: set[str] = field(default_factory=set)
    """Ids of this transaction's events; any of them may be stored by now."""
    _moved: list[str] = field(default_factory=list)
    _marks: rows.Marks = field(init=False)
    _newcomers: Newcomers = field(init=False)
    _apps: dict[str, int] = field(default_factory=dict)
    """How many apps each publisher has, of those that were counted in this transaction."""

    def __post_init__(self) -> None:
        self._marks = rows.Marks(self.db)
        self._newcomers = Newcomers(self.db, self._apps)

    def apply(self, batch: Sequence[Verified]) -> list[Outcome]:
        """The outcome of each, in order; then whatever waited for them."""
        # Another relay may have brought some of them since they were prepared.
        event_rows.name_relays(self.db, {one.relay for one in batch})
        self._stored.update(event_rows.known_events(self.db, [one.event.id for one in batch]))
        outcomes = []
        self._marks.look_up(one.claim.document for one in batch if isinstance(one.claim, Claim))
        self._newcomers.meet(batch)
        for one in batch:
            if not self._newcomers.expects(one):
                self._newcomers.store()
                self._newcomers.forget(one)
            outcomes.append(self._apply(one))
            self._stored.add(one.event.id)
        self._newcomers.close()
        self.revisit()
        return outcomes

    def revisit(self) -> None:
        """Look again at events whose time has come, and at those that waited for an identity that has moved."""
        rows.drop_expired(self.db, self.now)
        self._again(event_rows.take_due(self.db, self.now, MAX_REVISITED))
        while self._moved:  # ends: each round needs a history or a binding that grew, and both are bounded
            self._again(event_rows.take_waiting(self.db, self._moved.pop()))

    def _again(self, waiting: Iterable[tuple[Event, str]]) -> None:
        for event, relay in waiting:
            self._apply(open_claim(Candidate(event, relay)))

    def _apply(self, one: Verified) -> Outcome:
        if not (one.new and one.event.id not in self._stored):
            number = event_rows.number_of_event(self.db, one.event.id)
            if number is not None:
                event_rows.note_relay(self.db, number, one.relay)
                rows.note_served_again(self.db, one.relay, number)
                return Outcome(Fate.KNOWN)
        if expired(one.event, self.now):
            return Refusal(Reason.EXPIRED).outcome
        if one.event.kind in LIST_KINDS:
            return self._people_list(one.event, one.relay)
        if one.event.kind in AUTHOR_KINDS:
            return self._authors_list(one.event, one.relay)
        claim = one.claim or open_claim(Candidate(one.event, one.relay)).claim  # it was known, and went since
        match claim:
            case Refusal():
                return claim.outcome
            case Contradiction():
                return self._contradiction(claim, one)
            case Claim():
                return self._document(claim, one)
            case None:
                return Refusal(Reason.UNMATCHED).outcome

    def _contradiction(self, proof: Contradiction, one: Verified) -> Outcome:
        did = proof.publisher
        verdict = judge_contradiction(proof, self._history(did))
        if isinstance(verdict, SetAside):
            event_rows.set_aside(self.db, one.event, one.relay, did, verdict.wake)
            return Outcome(Fate.ASIDE, verdict.reason)
        if isinstance(verdict, Refusal):
            return verdict.outcome
        if rows.count_faults(self.db, did) >= MAX_FAULTS:
            return Refusal(Reason.TOO_MANY, "proofs against one publisher").outcome
        first, second = proof.halves
        entry = None if isinstance(first.document, IdentityEntry) else Digest(first.document.identity)
        known = self._history(did).entry(entry) if entry else None
        number, _ = event_rows.store_event(self.db, one.event, one.relay)
        rows.store_proof(self.db, proof, number, known.entry.seq if known else 0)
        evidence = (first.digest.hex, second.digest.hex)
        rows.store_fault(self.db, did, verdict.value, first.document, number_of(first.document), evidence)
        self._publishers.forget(did)  # a fork is part of the history
        return Outcome(Fate.ACCEPTED)

    def _authors_list(self, event: Event, relay: str) -> Outcome:
        """Deletions (NIP-09) and write relays (NIP-65) of those who publish here."""
        if event.created_at > self.now + MAX_AHEAD:
            event_rows.set_aside(self.db, event, relay, f"nostr:{event.pubkey}", event.created_at - MAX_AHEAD)
            return Outcome(Fate.ASIDE, Reason.FUTURE)
        if not lists.is_bound(self.db, event.pubkey):
            return Refusal(Reason.UNBOUND, "the list of nobody who publishes here").outcome
        if event.kind == DELETION_KIND:
            lists.store_deletions(self.db, event)
        elif not lists.replace_write_relays(self.db, event):
            return Refusal(Reason.ROLLBACK, "an older list").outcome
        event_rows.store_event(self.db, event, relay)
        return Outcome(Fate.ACCEPTED)

    def _document(self, claim: Claim, one: Verified) -> Outcome:
        did = claim.document.publisher
        standing = rows.load_standing(self.db, claim, self._publishers.get(self.db, did), self._marks)
        decision = judge(claim, standing, self.now)
        match decision:
            case SetAside():
                event_rows.set_aside(self.db, one.event, one.relay, did, decision.wake)
                return Outcome(Fate.ASIDE, decision.reason)
            case Refusal():
                if decision.reason is Reason.ROLLBACK:
                    self._note_served(claim, one.relay)
                return decision.outcome
            case Proven():
                return self._keep_proof(claim, one, decision)
            case AcceptIdentity():
                if not (self.room or self._history(did).entries):
                    return Refusal(Reason.TOO_MANY, "the index is full").outcome
                return self._accept_identity(claim, one, decision)
            case Accept():
                if standing.mark is None and self._newcomers.take(one, decision.mark):
                    self._marks.remember(claim.document, decision.mark)
                    return Outcome(Fate.ACCEPTED)
                if not bounds.has_room(self.db, claim.document, self._apps):
                    return Refusal(Reason.TOO_MANY, f"{claim.document.type}s of one publisher").outcome
                return self._accept(claim, one, decision.mark, standing.mark)

    def _accept_identity(self, claim: Claim, one: Verified, decision: AcceptIdentity) -> Outcome:
        did, seq = claim.document.publisher, number_of(claim.document)
        new_binding = decision.spoken and rows.bind(self.db, did, one.event.pubkey, one.event.id)
        if decision.outcome is Folded.KNOWN and not new_binding:
            return Outcome(Fate.KNOWN)
        if not self._store(claim, one, Mark(seq, seq)):
            event_rows.store_event(self.db, one.event, one.relay)  # a known document, with another key's word for it
        self._publishers.forget(did)
        self._moved.append(did)
        return Outcome(Fate.ACCEPTED)

    def _keep_proof(self, claim: Claim, one: Verified, proven: Proven) -> Outcome:
        document, did = claim.document, claim.document.publisher
        if len(proven.against) > MAX_EVIDENCE or rows.count_faults(self.db, did) >= MAX_FAULTS:
            return proven.refusal.outcome  # it is blocked already, and well proven
        if proven.history is not None:
            self._publishers.forget(did)
        keys = number_of(document) if proven.history is not None else self._keys_of(claim)
        self._store(claim, one, Mark(keys, number_of(document)), proof_only=True)
        if isinstance(document, IdentityEntry) and one.event.pubkey in document.nostr:
            # It counts only if the operator decides for this branch; then the key has spoken already.
            rows.bind(self.db, did, one.event.pubkey, one.event.id)
        kind = proven.refusal.reason.value
        rows.store_fault(self.db, did, kind, document, number_of(document), proven.against)
        self._publishers.forget(did)  # it is faulty from here on
        return proven.refusal.outcome

    def _accept(self, claim: Claim, one: Verified, mark: Mark, before: Mark | None) -> Outcome:
        document, did = claim.document, claim.document.publisher
        if not self._store(claim, one, mark):
            return Outcome(Fate.KNOWN)  # the same document in another event; the first one is kept for broadcasting
        self._marks.lift(document, mark)
        if before is not None and not isinstance(document, ReleaseDocument | RevokeDocument):
            rows.prune_older(self.db, document, mark)
        match document:
            case RevokeDocument():
                rows.store_revocation(self.db, document, claim.digest)
                self._publishers.forget(did)
            case ManifestDocument():
                rows.list_manifest(self.db, AppName(did, document.name), document)
            case ReleaseDocument():
                bounds.prune_releases(self.db, did, document.name)
                rows.advance_offers(self.db, did, document.name)
                if before is None or mark >= before:
                    rows.list_release(self.db, AppName(did, document.name), document)
            case HeadDocument():
                rows.advance_offers(self.db, did, document.name)
                self._note_served(claim, one.relay)
                rows.ensure_listed(self.db, AppName(did, document.name))
            case ProviderDocument():
                rows.store_provided(self.db, document)
            case _:
                pass
        return Outcome(Fate.ACCEPTED)

    def _store(self, claim: Claim, one: Verified, mark: Mark, *, proof_only: bool = False) -> bool:
        """The document with the event that carried it, or neither when the document is known."""
        number, is_new = event_rows.store_event(self.db, one.event, one.relay, has_document=True)
        if rows.store_document(self.db, claim, number, mark, proof_only=proof_only):
            return True
        if is_new:
            event_rows.drop_event(self.db, number)
        return False

    def _people_list(self, event: Event, relay: str) -> Outcome:
        name = list_name(event)
        if name is None:
            return Outcome(Fate.REFUSED, Reason.UNMATCHED, "a set of people that was not asked for")
        if event.created_at > self.now + MAX_AHEAD:
            person = f"nostr:{event.pubkey}"
            event_rows.set_aside(self.db, event, relay, person, event.created_at - MAX_AHEAD)
            return Outcome(Fate.ASIDE, Reason.FUTURE)
        replaced = circle_rows.replace_list(self.db, event, name)
        if replaced is None:
            return Outcome(Fate.REFUSED, Reason.ROLLBACK, "an older list")
        event_rows.drop_event_of_id(self.db, replaced)
        event_rows.store_event(self.db, event, relay)
        return Outcome(Fate.ACCEPTED)

    def _history(self, did: str) -> KeyHistory:
        return self._publishers.get(self.db, did).history

    def _keys_of(self, claim: Claim) -> int:
        entry = entry_of(claim, self._history(claim.document.publisher))
        return entry.entry.seq if entry else 0

    def _note_served(self, claim: Claim, relay: str) -> None:
        if isinstance(claim.document, HeadDocument):
            mark = Mark(self._keys_of(claim), claim.document.epoch)
            rows.note_served(self.db, relay, claim.document.publisher, claim.document.name, mark)
