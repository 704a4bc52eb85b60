"""The faults every part of the market shares. Those with an exit code come from the lowest layer."""

from __future__ import annotations

from apps.problems import (
    EnvironmentLacks,
    NotRunning,
    Problem,
    Refused,
    RolledBack,
    StillRunning,
    Unreachable,
    UsageProblem,
    only_problem,
    ungrouped,
)

__all__ = [
    "EnvironmentLacks",
    "NotRunning",
    "Problem",
    "Refused",
    "RolledBack",
    "StillRunning",
    "Unreachable",
    "UsageProblem",
    "only_problem",
    "ungrouped",
]
