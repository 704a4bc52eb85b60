"""Unit files: typed sections to text and back.

Guarantees: what is printed parses back to the same value, and no value can start a new line, key or section. It
refuses to know what keys mean. Pure. Format: systemd.syntax(7), podman-systemd.unit(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from apps.problems import Problem

_KEY = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_./:@,+=-]+")
HEADER: Final = "# Written by archy. Changes made here are overwritten.\n"


@dataclass(frozen=True, slots=True)
class Section:
    """`[name]` and its lines, in order; a key may repeat."""

    name: str
    lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class UnitFile:
    """One file of the unit folder. `owner` is the slug of the app it belongs to, in a comment of its own."""

    name: str
    owner: str
    sections: tuple[Section, ...]

    def text(self) -> str:
        """The file's text. Raises Problem for a value that is not one line."""
        out = [HEADER, f"# app: {_checked(self.owner)}\n"]
        for section in self.sections:
            out.append(f"\n[{section.name}]\n")
            for key, value in section.lines:
                if not _KEY.fullmatch(key):
                    raise Problem(f"not a unit key: {key[:60]!a}", where=self.name)
                out.append(f"{key}={_checked(value)}\n")
        return "".join(out)

    def values(self, section: str, key: str) -> tuple[str, ...]:
        """All values of a key."""
        return tuple(v for s in self.sections if s.name == section for k, v in s.lines if k == key)


def _checked(value: str) -> str:
    # A line feed would start a key of the attacker's choice; a final backslash would swallow the next line.
    if _FORBIDDEN.search(value) or value.endswith("\\") or value != value.strip():
        raise Problem(f"not a value for a unit file: {value[:80]!a}")
    return value


def parse(name: str, text: str) -> UnitFile:
    """Read a file that `UnitFile.text` wrote. Raises Problem for lines that it would not write."""
    owner, sections = owner_of(text), []
    lines: list[tuple[str, str]] = []
    title = ""
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("[") and line.endswith("]"):
            if title:
                sections.append(Section(title, tuple(lines)))
            title, lines = line[1:-1], []
            continue
        key, equals, value = line.partition("=")
        if not equals or not title or not _KEY.fullmatch(key):
            raise Problem(f"not a line of a unit: {line[:80]!a}", where=name)
        lines.append((key, value))
    if title:
        sections.append(Section(title, tuple(lines)))
    return UnitFile(name, owner, tuple(sections))


def owner_of(text: str) -> str:
    """The slug of the app a file belongs to; empty for a file of somebody else."""
    if not text.startswith(HEADER):
        return ""
    second = text[len(HEADER) :].split("\n", 1)[0]
    return second.removeprefix("# app: ") if second.startswith("# app: ") else ""


def literal(value: str) -> str:
    """Text that systemd must not expand: `%` specifiers and `$` variables doubled (systemd.service(5))."""
    return value.replace("%", "%%").replace("$", "$$")


def word(value: str) -> str:
    """One word of a key that takes several (Environment=, Exec=, Label=), quoted where needed."""
    if _PLAIN_WORD.fullmatch(value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{literal(escaped)}"'


def words(values: tuple[str, ...]) -> str:
    """Several words."""
    return " ".join(word(value) for value in values)


def keys_of(unit: UnitFile) -> Iterator[tuple[str, str]]:
    """(section, key) of every line."""
    for section in unit.sections:
        for key, _ in section.lines:
            yield section.name, key
