"""What the operator lets happen at which score. Guarantees only that thresholds are sane; the gates are not in here,
because no number opens them.
"""

from __future__ import annotations

from dataclasses import dataclass

from market.errors import UsageProblem


@dataclass(frozen=True, slots=True)
class Policy:
    """Points from `allow_at` on install without a question; below `refuse_below` nothing is installed.

    An app that nobody knows has 43 points and asks. A pinned publisher alone gives 75. 62 lies above 60, which is what
    a pinned publisher keeps when everybody the operator knows has panned the app: that must ask again. Only reports
    that count can take an app below 10.
    """

    allow_at: int = 62
    refuse_below: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.refuse_below <= self.allow_at <= 100:
            raise UsageProblem(
                f"thresholds {self.refuse_below} and {self.allow_at} make no policy",
                remedy="0 <= refuse_below <= allow_at <= 100",
            )
