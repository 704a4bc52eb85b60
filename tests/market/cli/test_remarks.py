"""What is logged while a command works reaches its user as the command's own words."""

from __future__ import annotations

import logging
from typing import Any

from market.cli.remarks import Remark


def told(message: str, *words: object, **facts: Any) -> str:
    record = logging.LogRecord("orchestrator.apply", logging.WARNING, "", 0, message, words, None)
    vars(record).update(facts)
    return Remark().format(record)


def test_a_remark_is_the_programs_word_with_its_facts() -> None:
    assert told("step failed", app="hello-1", problem="no room") == 'archy: step failed app=hello-1 problem="no room"'


def test_what_looks_like_the_loggers_name_cuts_nothing_off() -> None:
    assert told("why orchestrator.apply: failed") == "archy: why orchestrator.apply: failed"


def test_a_stranger_drives_no_terminal_through_a_remark() -> None:
    shown = told("of %s", "a\x1b[2J\nb", id="\u202ex")
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "\n" not in shown
