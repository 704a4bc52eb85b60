"""Findings about apps for `archy doctor`: things without an app, secrets without a value. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from apps.problems import Problem
from orchestrator.status import Finding


def orphaned(things: tuple[str, ...]) -> Finding:
    """Units and containers that carry this node's mark and match no app; nothing removes them by itself (R-ST7)."""
    if not things:
        return Finding("orphans", True, "no unit or container without an app")
    remedy = (
        "archy adopt, for an app of yours that goes on running; "
        "else look at each, then: systemctl --user stop UNIT; podman rm NAME; rm the unit's file"
    )
    return Finding("orphans", False, ", ".join(things), remedy)


def orphans_unknown(problem: Problem) -> Finding:
    """Podman or systemd did not answer."""
    return Finding("orphans", False, f"not known: {problem.what}", problem.remedy or "podman info says why")


def lost_secrets(lost: Mapping[str, tuple[str, ...]]) -> tuple[Finding, ...]:
    """Values that are neither on this node nor at Podman, by app."""
    return tuple(
        Finding(
            "secrets",
            False,
            f"{app}: {', '.join(names)} lost or damaged",
            f"restore them from a backup of the node's home, or: archy secrets rotate {app} {names[0]}",
        )
        for app, names in sorted(lost.items())
    )
