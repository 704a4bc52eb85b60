"""Whether a release comes from the signer this node knows under that name. Pure: a key history in, words out.

Guarantees that a change of publisher or key is never called a rotation unless the publisher's own key history leads
from the one key to the other without a fork. Refuses to know where the earlier signer was remembered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from market.identity.history import KeyHistory
from market.model import SignedBy


class Continuity(StrEnum):
    """How this release's signer compares to what this node ran or pinned under the same app id."""

    FIRST_SEEN = "first-seen"
    SAME = "same"
    ROTATED = "rotated"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class Signer:
    """The comparison, as a sentence for people and the digests of the history's entries that show it."""

    continuity: Continuity = Continuity.FIRST_SEEN
    text: str = ""
    evidence: tuple[str, ...] = ()

    def to_json(self) -> Mapping[str, object]:
        return {"continuity": self.continuity.value, "text": self.text, "evidence": list(self.evidence)}


def compare(before: SignedBy | None, now: SignedBy | None, history: KeyHistory | None) -> Signer:
    """`before` signed what this node ran or pinned, `now` signed what is offered, `history` is the offer's publisher's.

    Fails closed: what can not be shown to be the same signer, or a rotation, is CHANGED.
    """
    if before is None or now is None:
        return Signer()
    if before.publisher != now.publisher:
        return Signer(
            Continuity.CHANGED,
            f"Another publisher: {now.publisher} signed this, {before.publisher} what you know under this name."
            " No key history leads from one publisher to another.",
        )
    if before.key == now.key:
        return Signer(Continuity.SAME, "The same publisher and key as before.")
    return _other_key(before, now, history)


def _other_key(before: SignedBy, now: SignedBy, history: KeyHistory | None) -> Signer:
    entries = history.entries if history is not None else ()
    changed = f"The publisher is the same and the key is not ({_short(before.key)}, now {_short(now.key)}): "
    if history is None or now.keys >= len(entries) or now.key not in entries[now.keys].entry.keys.release:
        return Signer(Continuity.CHANGED, changed + "its key history does not name the new key; this is no rotation.")
    evidence = tuple(entry.digest.hex for entry in entries[before.keys : now.keys + 1])
    if history.forks:
        shown = (*evidence, *(fork.digest.hex for fork in history.forks))
        return Signer(Continuity.CHANGED, changed + "its key history is forked; no rotation can be relied on.", shown)
    if now.keys < before.keys or before.key not in entries[before.keys].entry.keys.release:
        text = changed + "its key history does not lead from the old key to the new one; this is no rotation."
        return Signer(Continuity.CHANGED, text, evidence)
    if now.keys == before.keys:
        return Signer(Continuity.ROTATED, changed + f"both stand in entry {now.keys} of its key history.", evidence)
    text = changed + f"a valid rotation. Entry {now.keys} of its history is signed by the key committed to before."
    return Signer(Continuity.ROTATED, text, evidence)


def _short(key: str) -> str:
    return f"{key[:8]}...{key[-4:]}"
