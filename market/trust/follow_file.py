"""A follow list in a file: lines of people. Pure. A list that relays keep is an event, and is verified elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from market.trust.anchors import MAX_FOLLOW_LIST, NotAPerson, person_id

MAX_LIST_FILE: Final = 2 * 1024 * 1024
"""Bytes: 10,000 people with a name each."""


@dataclass(frozen=True, slots=True)
class FollowFile:
    """The people, each once and sorted, and what was left out, counted by reason."""

    people: tuple[str, ...]
    ignored: Mapping[str, int]


def parse_follow_list(entries: Iterable[str]) -> FollowFile:
    """From npubs, hex keys or DIDs, one each; only the first word of an entry counts, and `#` begins a remark."""
    ignored: Counter[str] = Counter()
    people: dict[str, None] = {}
    for entry in entries:
        words = entry.partition("#")[0].split()
        if not words:
            continue
        try:
            person = person_id(words[0])
        except NotAPerson:
            ignored["entries that name nobody"] += 1
            continue
        if person in people:
            ignored["entries that were there already"] += 1
        elif len(people) >= MAX_FOLLOW_LIST:
            ignored["entries beyond the longest list"] += 1
        else:
            people[person] = None
    return FollowFile(tuple(sorted(people)), dict(ignored))
