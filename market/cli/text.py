"""Words for a terminal: strangers' text made harmless, sizes and tables. Pure."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Final

_BIDI: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def safe(text: object) -> str:
    """`text` with control and bidirectional characters escaped, so that no stranger drives the terminal (CWE-150)."""
    return "".join(
        f"\\u{{{ord(c):x}}}" if c in _BIDI or unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co") else c
        for c in str(text)
    )


def size_text(count: int) -> str:
    """Bytes for people, in IEC units: `64.0 MiB`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def duration_text(seconds: float) -> str:
    """A time span for people, in its largest unit: `5 s`, `59 min`, `47 h`, `2 d`."""
    whole = max(int(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    return f"{whole // 3600} h" if whole < 48 * 3600 else f"{whole // 86400} d"


def shortened(text: str, most: int) -> str:
    """At most so many characters, cut at a blank where there is one."""
    if len(text) <= most:
        return text
    return f"{text[: most - 3].rpartition(' ')[0] or text[: most - 3]}..."


def counted(count: int, noun: str) -> str:
    """`1 event`, `2 events`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def table(
    header: Sequence[str], rows: Iterable[Sequence[object]], paint: Callable[[int, str], str] | None = None
) -> str:
    """Columns padded to their widest cell; every cell is made safe. `paint` is given a column's number and a cell."""
    cells = [[safe(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]

    def padded(line: Sequence[str], painted: Callable[[int, str], str]) -> str:
        last = max((i for i, cell in enumerate(line) if cell), default=0)
        return "  ".join(
            painted(i, c) + " " * (widths[i] - len(c) if i < last else 0) for i, c in enumerate(line[: last + 1])
        )

    return "\n".join([padded(header, _as_it_is), *(padded(line, paint or _as_it_is) for line in cells)])


def _as_it_is(_: int, cell: str) -> str:
    return cell
