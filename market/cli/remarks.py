"""What the node's parts log while a command does their work itself, told as the command tells everything: `archy: ...`.

Guarantees: a line for each, with its facts, and nothing of strangers' that drives a terminal. Only what may be the
operator's business is told: warnings and worse.
"""

from __future__ import annotations

import logging

from apps.log_lines import LineFormatter

__all__ = ["Remark", "tell_remarks"]


class Remark(LineFormatter):
    """`archy: step failed app=hello-1a2b step=Start`: who logged it, and when, is of no use at a prompt."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return "archy: " + super().formatMessage(record).partition(f" {record.name}: ")[2]


def tell_remarks() -> None:
    """From now on, on standard error; logging's own last resort has neither facts nor escapes."""
    handler = logging.StreamHandler()
    handler.setFormatter(Remark())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
