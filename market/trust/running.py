"""When "this release ran here for N days" may be said. Pure: seconds of seen running in, a milestone out.

Guarantees that only time during which the app was seen running counts, and that each milestone is said once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from market.trust.memory import Ran

MILESTONES: Final[Mapping[int, int]] = {7: 25, 30: 50, 90: 75, 365: 100}
"""Days -> value of the vote: a week without a crash says little, a year a lot."""

MAX_STEP: Final = 2 * 3600
"""Seconds counted between two looks at most: a node that slept did not see the app run."""

_DAY: Final = 86_400


def seen_running(ran: Mapping[str, Ran], running: Collection[str], elapsed: float) -> dict[str, Ran]:
    """Add `elapsed` seconds to the releases (digests) that run; forget those that are gone from this node."""
    step = int(min(max(elapsed, 0), MAX_STEP))
    before = {digest: ran.get(digest, Ran()) for digest in sorted(running)}
    return {digest: Ran(known.seconds + step, known.attested) for digest, known in before.items()}


def milestone(ran: Ran) -> tuple[int, int] | None:
    """(days, value) to attest now, or None."""
    reached = [days for days in MILESTONES if ran.seconds >= days * _DAY and days > ran.attested]
    return (max(reached), MILESTONES[max(reached)]) if reached else None
