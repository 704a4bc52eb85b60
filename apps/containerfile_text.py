"""The bytes of a Containerfile as instructions, each with the line on which it begins. Pure.

Guarantees: plain text only; continued lines are joined and comments left out, so that nothing of either reaches whoever
reads the instructions. What would change how the file is read (a parser directive) is a fault.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

MAX_BYTES: Final = 64 * 1024
"""Of a Containerfile; a long one has five thousand. Scripts are files of the context."""

CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff]")
"""What no line of text has; a tab is fine."""

_COMMENT: Final = re.compile(r"[ \t]*#")
_DIRECTIVE: Final = re.compile(r"[ \t]*#[ \t]*(syntax|escape|check)[ \t]*=", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is refused. `line` counts from 1; 0 is the file as a whole."""

    line: int
    what: str
    remedy: str

    def __str__(self) -> str:
        at = f"line {self.line}: " if self.line else ""
        return f"{at}{self.what} ({self.remedy})"


def instructions(raw: bytes, faults: list[Fault]) -> list[tuple[int, str]]:
    """(line, instruction); faults are added to the list, and nothing comes back of what is no plain text."""
    text = _decoded(raw, faults)
    return [] if text is None else _joined(text.split("\n"), faults)


def _decoded(raw: bytes, faults: list[Fault]) -> str | None:
    if len(raw) > MAX_BYTES:
        faults.append(Fault(0, f"more than {MAX_BYTES} bytes", "move commands into scripts of the context"))
        return None
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        faults.append(Fault(0, "not UTF-8", "save it as UTF-8"))
        return None
    if found := CONTROL.search(text):
        line = text.count("\n", 0, found.start()) + 1
        what = f"a control character ({found.group()!a})"
        faults.append(Fault(line, what, "save it as plain text with Unix line ends"))
        return None
    return text


def _joined(lines: list[str], faults: list[Fault]) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    begun, parts = 0, ""
    for number, line in enumerate(lines, 1):
        bare = line.rstrip()
        if _DIRECTIVE.match(line):
            faults.append(Fault(number, "a parser directive", "remove the line: this node reads one syntax only"))
        elif not _COMMENT.match(line) and (bare or begun):
            if not bare:
                faults.append(Fault(number, "an empty line inside an instruction", "remove it"))
            if bare.endswith("\\") and bare != line:
                faults.append(Fault(number, "spaces after the backslash", "remove them"))
            begun = begun or number
            parts += bare.removesuffix("\\")
            if not bare.endswith("\\"):
                found.append((begun, parts.strip()))
                begun, parts = 0, ""
    if begun:
        faults.append(Fault(begun, "the file ends inside an instruction", "remove the last backslash"))
    return found
