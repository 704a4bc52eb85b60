"""The findings that the node may mend by itself when its operator asks: commands that take nothing away.

What needs root, removes something or is a matter of taste stays the operator's to run; the finding names the command.
"""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from typing import Final

from apps.problems import Problem
from orchestrator.process import run
from orchestrator.status import Finding

SECONDS: Final = 30.0


def safe_fix(finding: Finding) -> tuple[str, ...]:
    """The command that mends a finding without taking anything away; empty without one. Pure but for the user."""
    if finding.ok:
        return ()
    return {"linger": ("loginctl", "enable-linger", getpass.getuser())}.get(finding.name, ())


async def fix(findings: Sequence[Finding]) -> tuple[str, ...]:
    """Run what is safe; a line for each about how that went."""
    told = []
    for finding in findings:
        if argv := safe_fix(finding):
            try:
                done = await run(argv, seconds=SECONDS)
                said = "done" if done.code == 0 else f"{done.stderr.strip()[:200]}; as root: sudo {' '.join(argv)}"
            except Problem as problem:
                said = problem.what
            told.append(f"{finding.name}: {' '.join(argv)}: {said}")
    return tuple(told)
