"""What a batch of events costs the CPU: ids, signatures, forms and proofs, as pure functions for any process.

Guarantees that an answer holds nothing but verdicts: whoever asked keeps the events, and reads a document again from
the very text that was verified. Refuses to know processes, SQLite and relays.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from apps.names import Digest
from market.discovery.checks import Claim, check_document
from market.discovery.contradictions import Contradiction, check_contradiction, is_proof
from market.discovery.documents import reread_document
from market.discovery.events import AUTHOR_KINDS, DOCUMENT_KIND, LIST_KINDS, Event, verify
from market.discovery.reasons import Reason, Refusal


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """An event that passed `checks.check_frame`, and the relay that sent it."""

    event: Event
    relay: str


class Verified(msgspec.Struct, frozen=True, gc=False):
    """An event whose id and signature are genuine, with its claim or the refusal of its document."""

    event: Event
    relay: str
    claim: Claim | Contradiction | Refusal | None = None
    """None when no document was opened: a list, or an event that was stored already."""
    new: bool = False
    """Its id was not stored when the transaction began."""


class Question(Event, frozen=True, array_like=True, gc=False):
    """One event, whose fields had the right shapes before; `is_new` asks for its document too."""

    is_new: bool

    def __post_init__(self) -> None:
        """Nothing is looked at twice."""


class Answer(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """The verdict on one event. All members at their defaults: its id and signature are genuine."""

    forged: Reason | None = None
    refused: Reason | None = None
    detail: str = ""
    type: str = ""
    """Of a document that passed every check of `check_document`."""
    digest: bytes = b""
    """32 bytes, of that document."""
    signer: bytes = b""
    """32 bytes: the raw Ed25519 key that made its proof."""


_GENUINE = Answer()


def examine(event: Event, *, is_new: bool) -> Answer:
    """Id and Schnorr signature; of a new document also form, proof and address. CPU only."""
    if (forged := verify(event)) is not None:
        return Answer(forged=forged.reason, detail=forged.detail)
    if not is_new or event.kind != DOCUMENT_KIND or is_proof(event):
        return _GENUINE
    match check_document(event):
        case Refusal(reason, detail):
            return Answer(refused=reason, detail=detail)
        case claim:
            return Answer(type=claim.document.type, digest=claim.digest.raw, signer=claim.signer)


def settle(candidate: Candidate, answer: Answer, *, is_new: bool) -> Verified | Refusal:
    """What the answer says about the event, or the refusal of a forged one."""
    event = candidate.event
    if answer.forged is not None:
        return Refusal(answer.forged, answer.detail)
    if not is_new:
        return Verified(event, candidate.relay)
    if answer.refused is not None:
        return Verified(event, candidate.relay, Refusal(answer.refused, answer.detail), new=True)
    if not answer.type:
        return open_claim(candidate)
    document = reread_document(event.content.encode(), answer.type)
    claim = Claim(event, document, Digest(answer.digest.hex()), answer.signer)
    return Verified(event, candidate.relay, claim, new=True)


def open_claim(candidate: Candidate) -> Verified:
    """Canonical form, members and proof of an event that is genuine and new. CPU only."""
    event = candidate.event
    if event.kind in LIST_KINDS | AUTHOR_KINDS:
        return Verified(event, candidate.relay, new=True)
    claim = check_contradiction(event) if is_proof(event) else check_document(event)
    return Verified(event, candidate.relay, claim, new=True)


_QUESTIONS = msgspec.msgpack.Decoder(list[Question])
_ANSWERS = msgspec.msgpack.Decoder(list[Answer])
_ENCODER = msgspec.msgpack.Encoder()


def write_questions(events: Sequence[Event], new: Sequence[bool]) -> bytes:
    """A batch as it travels to another process."""
    return _ENCODER.encode([Question(*_fields(event), is_new) for event, is_new in zip(events, new, strict=True)])


def answer_questions(questions: bytes) -> bytes:
    """All of `examine` for a batch; what the other process does."""
    return _ENCODER.encode([examine(one, is_new=one.is_new) for one in _QUESTIONS.decode(questions)])


def _fields(one: Event) -> tuple[str, str, int, int, tuple[tuple[str, ...], ...], str, str]:
    return one.id, one.pubkey, one.created_at, one.kind, one.tags, one.content, one.sig


def read_answers(answers: bytes, count: int) -> list[Answer]:
    """Raises ValueError unless they are the answers to `count` questions."""
    found = _ANSWERS.decode(answers)
    if len(found) != count:
        raise ValueError(f"{len(found)} answers to {count} questions")
    return found
