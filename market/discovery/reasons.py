"""Why something from a relay was not taken: one closed list, so that every refusal can be counted and explained.

The order of the first list is the order of the checks. A refusal is a value here, never an exception.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum

import msgspec


class Reason(StrEnum):
    """One word for machines; `EXPLAINED` has the sentence for people."""

    OVERSIZE = "oversize"
    MALFORMED = "malformed"
    UNMATCHED = "unmatched"
    FORGED_ID = "forged-id"
    BAD_SIGNATURE = "bad-signature"
    NOT_CANONICAL = "not-canonical"
    BAD_DOCUMENT = "bad-document"
    BAD_PROOF = "bad-proof"
    NO_ROLE = "no-role"
    WRONG_ADDRESS = "wrong-address"
    UNBOUND = "unbound"
    BROKEN_HISTORY = "broken-history"
    REVOKED = "revoked"
    ROLLBACK = "rollback"
    EQUIVOCATION = "equivocation"
    FORK = "fork"
    BROKEN_CHAIN = "broken-chain"
    EXPIRED = "expired"
    NO_PROOF = "no-proof"
    TOO_MANY = "too-many"
    # Set aside, not refused:
    UNKNOWN_IDENTITY = "unknown-identity"
    AWAITS_BINDING = "awaits-binding"
    FUTURE = "future"


EXPLAINED: dict[Reason, str] = {
    Reason.OVERSIZE: "larger than an event or a document may be",
    Reason.MALFORMED: "not a Nostr message",
    Reason.UNMATCHED: "nothing that was asked for",
    Reason.FORGED_ID: "the id is not the hash of the event",
    Reason.BAD_SIGNATURE: "the Nostr signature does not verify",
    Reason.NOT_CANONICAL: "the document is not in its canonical form",
    Reason.BAD_DOCUMENT: "the document has the wrong members",
    Reason.BAD_PROOF: "the document's proof does not verify",
    Reason.NO_ROLE: "signed by a key without the role",
    Reason.WRONG_ADDRESS: "the event's address or tags differ from the signed document",
    Reason.UNBOUND: "published by a Nostr key that the publisher's identity does not name",
    Reason.BROKEN_HISTORY: "an identity entry that does not continue the history",
    Reason.REVOKED: "revoked by its publisher",
    Reason.ROLLBACK: "older than what was seen before",
    Reason.EQUIVOCATION: "a second, different document for one sequence number",
    Reason.FORK: "a second, different identity entry for one sequence number",
    Reason.BROKEN_CHAIN: "a release that says it follows one which is not older",
    Reason.EXPIRED: "its time is over (NIP-40)",
    Reason.NO_PROOF: "two documents that do not contradict each other",
    Reason.TOO_MANY: "more of one publisher, or of all, than this node keeps",
    Reason.UNKNOWN_IDENTITY: "waits for the identity it was signed under",
    Reason.AWAITS_BINDING: "waits for its Nostr key to claim the publisher's identity",
    Reason.FUTURE: "dated more than 15 minutes ahead",
}


class Fate(Enum):
    """What became of one event."""

    ACCEPTED = "accepted"
    KNOWN = "known"
    ASIDE = "aside"
    REFUSED = "refused"


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """The fate of one event, with the reason and a detail when it was not accepted."""

    fate: Fate
    reason: Reason | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A failed check."""

    reason: Reason
    detail: str = ""

    @property
    def outcome(self) -> Outcome:
        return Outcome(Fate.REFUSED, self.reason, self.detail)


@dataclass(frozen=True, slots=True)
class SetAside:
    """Not decidable yet. `wake` is the Unix time at which to look again, 0: when the identity moves."""

    reason: Reason
    wake: int = 0
