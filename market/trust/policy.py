"""What the operator lets happen at which score. Guarantees only that thresholds are sane; the gates are not in here,
because no number opens them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from market.errors import UsageProblem


@dataclass(frozen=True, slots=True)
class Policy:
    """Points from `allow_at` on install without a question; below `refuse_below` nothing is installed.

    An app that nobody knows has 43 points and asks. A pinned publisher alone gives 75. 62 lies above 60, which is what
    a pinned publisher keeps when everybody the operator knows has panned the app: that must ask again. Only reports
    that count can take an app below 10. What reaches the machine itself (`is_powerful`) needs `allow_powerful_at`: more
    than a pinned publisher has alone (75), and what one has whose app ran here before (80).
    """

    allow_at: int = 62
    refuse_below: int = 10
    allow_powerful_at: int = 80

    def __post_init__(self) -> None:
        if not 0 <= self.refuse_below <= self.allow_at <= self.allow_powerful_at <= 100:
            raise UsageProblem(
                f"thresholds {self.refuse_below}, {self.allow_at} and {self.allow_powerful_at} make no policy",
                remedy="0 <= refuse_below <= allow_at <= allow_powerful_at <= 100",
            )

    def needed(self, permissions: Iterable[str]) -> int:
        """Points from which a release with these permissions installs without a question."""
        return self.allow_powerful_at if any(is_powerful(word) for word in permissions) else self.allow_at


HARMLESS: Final = frozenset({"internet", "writable-root"})
"""What stays inside the app's own containers and network. Every other word reaches the machine, unknown ones too."""


def is_powerful(permission: str) -> bool:
    """Whether a permission reaches beyond the app: the host's network, devices, capabilities, and what is not known."""
    return permission not in HARMLESS
