"""What standard output is: how wide, and whether it wants colours. Nothing else asks.

A pipe has no width and no colours; a person who set NO_COLOR (no-color.org) has no colours either.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from typing import Final, TextIO

import click

NARROWEST: Final = 20
"""Columns: what says that it has fewer, or none, does not know."""


def width() -> float:
    """Columns of the terminal; endless where there is none, so that programs get a line for a line."""
    if not _is_terminal():
        return math.inf
    columns = shutil.get_terminal_size(fallback=(0, 0)).columns
    return columns if columns >= NARROWEST else math.inf


def painted(text: str, colour: str) -> str:
    """`text` in a colour of click's, where that is wanted; an empty one changes nothing."""
    plain = not colour or not _is_terminal() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain else click.style(text, fg=colour)


def _is_terminal() -> bool:
    stdout: TextIO | None = sys.stdout  # None when who started this program had closed it
    return stdout is not None and stdout.isatty()
