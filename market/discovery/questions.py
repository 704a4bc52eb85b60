"""What a relay is asked: filters for documents, lists of people, and authors' own lists. Pure.

Guarantees that no filter grows beyond the message size that relays take.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from market.discovery.documents import TYPES
from market.discovery.events import (
    DELETION_KIND,
    DISTRUST_SETS,
    DOCUMENT_KIND,
    FOLLOW_KIND,
    MUTE_KIND,
    RELAY_LIST_KIND,
    SET_KIND,
    TRUST_SETS,
    Filter,
)

AUTHORS_PER_QUESTION: Final = 200
"""Keys in one filter: 13 KiB, below the message size that relays take."""


def document_questions() -> tuple[Filter, ...]:
    """One question for each type of document, in the order in which they depend on each other."""
    return tuple(Filter(kinds=(DOCUMENT_KIND,), tags={"t": (f"archy1-{type_}",)}) for type_ in TYPES)


def live_questions(people: Sequence[str]) -> tuple[Filter, ...]:
    """What to be told of as it is published: every document, and the follow lists of these hex keys."""
    documents = Filter(kinds=(DOCUMENT_KIND,), tags={"t": tuple(f"archy1-{type_}" for type_ in TYPES)})
    return (documents, *follow_questions(people))


def author_questions(authors: Sequence[str]) -> tuple[Filter, ...]:
    """What these hex keys, who publish documents, ask to hide (NIP-09), and where they write (NIP-65)."""
    return tuple(
        Filter(kinds=(DELETION_KIND, RELAY_LIST_KIND), authors=tuple(authors[start : start + AUTHORS_PER_QUESTION]))
        for start in range(0, len(authors), AUTHORS_PER_QUESTION)
    )


def own_questions(authors: Sequence[str]) -> tuple[Filter, ...]:
    """All documents that these hex keys published, for the relays they name."""
    return tuple(
        Filter(kinds=(DOCUMENT_KIND,), authors=tuple(authors[start : start + AUTHORS_PER_QUESTION]))
        for start in range(0, len(authors), AUTHORS_PER_QUESTION)
    )


def follow_questions(people: Sequence[str]) -> tuple[Filter, ...]:
    """The lists of people of these hex keys (NIP-02, NIP-51): whom they follow, trust, mute and distrust."""
    authors = [
        tuple(people[start : start + AUTHORS_PER_QUESTION]) for start in range(0, len(people), AUTHORS_PER_QUESTION)
    ]
    sets = {"d": (*TRUST_SETS, *DISTRUST_SETS)}
    return (
        *(Filter(kinds=(FOLLOW_KIND, MUTE_KIND), authors=some) for some in authors),
        *(Filter(kinds=(SET_KIND,), authors=some, tags=sets) for some in authors),
    )
