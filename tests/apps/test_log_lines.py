"""Log records as lines: facts beside the message, and nobody's text begins a line of its own."""

from __future__ import annotations

import logging
import sys
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from apps.log_lines import LineFormatter


def line(message: str, *arguments: object, **facts: Any) -> str:
    record = logging.getLogger("orchestrator.apply").makeRecord(
        "orchestrator.apply", logging.INFO, "f.py", 1, message, arguments, None, extra=facts
    )
    return LineFormatter().format(record)


def test_facts_stand_behind_the_message_in_their_order() -> None:
    said = line("step", app="hello-1a2b", step="Start", seconds=0.4, problem='x: "y" = z')
    assert said.endswith(
        ' INFO orchestrator.apply: step app=hello-1a2b step=Start seconds=0.4 problem="x: \\"y\\" = z"'
    )
    assert line("a %s", "b").endswith("orchestrator.apply: a b")
    assert line("x", empty="").endswith('x empty=""')


@given(st.text(), st.text())
def test_no_text_of_a_stranger_begins_a_line_of_its_own(message: str, fact: str) -> None:
    assert "\n" not in line("%s", message, problem=fact)
    assert len(line("%s", message, problem=fact).splitlines()) == 1


def test_a_fault_keeps_its_traceback() -> None:
    try:
        raise ValueError("x")
    except ValueError:
        record = logging.getLogger("a").makeRecord("a", logging.ERROR, "f", 1, "m", (), sys.exc_info())
    assert LineFormatter().format(record).splitlines()[-1] == "ValueError: x"
