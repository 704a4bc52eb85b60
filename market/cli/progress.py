"""Progress on stderr: a bar on a terminal, a line per phase and per quarter elsewhere; nothing when quiet."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from market.cli.text import safe, size_text


class ProgressPrinter:
    """Shows `{phase, text, done?, total?, unit?}` events as they come; without a unit they count bytes."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._quarter: dict[tuple[str, int], int] = {}
        self._last = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def show(self, event: Mapping[str, Any]) -> None:
        """Take one event."""
        if self._quiet:
            return
        phase, total, unit = str(event.get("phase", "")), int(event.get("total") or 0), str(event.get("unit", ""))
        if total and not unit and sys.stderr.isatty():
            self._bar(phase, int(event.get("done") or 0), total, safe(event.get("text", "")))
        elif total:
            self._line_per_quarter(phase, int(event.get("done") or 0), total, unit, safe(event.get("text", "")))
        else:
            self._line(f"{phase:<9} {safe(event.get('text', ''))}")

    def _bar(self, phase: str, done: int, total: int, text: str) -> None:
        if self._bars is None:  # not before: a question that has none leaves the terminal alone
            self._bars = _begun()
        if phase not in self._tasks:
            self._tasks[phase] = self._bars.add_task(phase, total=total, text="")
        self._bars.update(self._tasks[phase], completed=done, total=total, text=text)

    def _line_per_quarter(self, phase: str, done: int, total: int, unit: str, text: str) -> None:
        quarter = 4 * done // total
        if quarter > self._quarter.get((phase, total), -1):
            self._quarter[phase, total] = quarter
            told = f"{done} of {total} {unit}" if unit else f"{size_text(done)} of {size_text(total)}"
            self._line(f"{phase:<9} {told}  {text}".rstrip())

    def _line(self, line: str) -> None:
        if line != self._last:
            self._last = line
            if self._bars is not None:
                self._bars.console.print(line, markup=False, highlight=False)
            else:
                click.echo(line, err=True)


def _begun() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[text]}", markup=False),
    )
    bars = Progress(*columns, console=Console(stderr=True))
    bars.start()
    return bars
