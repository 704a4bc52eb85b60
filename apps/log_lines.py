"""One line for each log record: what happened, then its facts as `key=value`, for the journal and for programs.

Guarantees: a record is one line, whatever strangers' text is among its facts; what a library logs is left as it is
but for that. Pure.
"""

from __future__ import annotations

import json
import logging
from typing import Final

_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every record has; the rest was given as `extra`."""


class LineFormatter(logging.Formatter):
    """`2026-11-21 15:00:00,000 INFO orchestrator.apply: step app=hello-1a2b step=Start seconds=0.4`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        facts = (f"{key}={_shown(value)}" for key, value in vars(record).items() if key not in _OWN)
        return " ".join([_one_line(super().formatMessage(record)), *facts])


def _shown(value: object) -> str:
    text = str(value)
    plain = text.isprintable() and text and not set(text) & set(' "=')
    return text if plain else json.dumps(text)


def _one_line(text: str) -> str:
    return (
        text
        if text.isprintable()
        else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    )
