"""`./run gate [N]`: every app through every event, N times in a row (5 unless told) on one node of the lab.

Prints a matrix and writes it as JSON. Exit code 0 when every cell passed, 1 when one did not, 4 without a lab.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.system.gate.rounds import EVENTS, Cell, play
from tests.system.gate.stand import APPS, Stand, with_needs
from tests.system.lab import PROJECT, LabUnavailable, Node, ensure_base

OUT = PROJECT / "bench" / "out" / "gate.json"


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run gate", description=__doc__)
    parser.add_argument("rounds", nargs="?", type=int, default=5, metavar="N", help="rounds in a row (5)")
    parser.add_argument("--iterations", type=int, metavar="N", help="the same")
    chosen = "only this app and those it needs; may repeat"
    parser.add_argument("--app", action="append", choices=[app.id for app in APPS], help=chosen)
    parser.add_argument("--out", type=Path, default=OUT, help="where the JSON goes")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rounds = options.rounds if options.iterations is None else options.iterations
    apps = with_needs(options.app) if options.app else APPS
    began = time.monotonic()
    cells: list[Cell] = []
    try:
        base = ensure_base(tell)
        with Node.boot(base, "gate") as node:
            tell(f"a node is up at {node.address}; publishing {', '.join(app.id for app in apps)}")
            stand = Stand(node, apps)
            for iteration in range(1, rounds + 1):
                tell(f"round {iteration} of {rounds}")
                cells += play(stand, apps, iteration, told)
    except LabUnavailable as lack:
        print(f"gate: {lack}", file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        return 130
    failed = [cell for cell in cells if not cell.ok]
    print(matrix(cells))
    for cell in failed:
        print(f"round {cell.iteration}, {cell.app}, {cell.event}: {cell.detail}")
    seconds = round(time.monotonic() - began, 1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "schema": "archy/gate/1",
        "iterations": rounds,
        "seconds": seconds,
        "passed": len(cells) - len(failed),
        "failed": len(failed),
        "cells": [cell.to_json() for cell in cells],
    }
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(f"{len(cells) - len(failed)} passed, {len(failed)} failed in {seconds:.0f} s")
    return 1 if failed else 0


def matrix(cells: Sequence[Cell]) -> str:
    """App x event; a cell has a mark for each round (`.` passed, `F` failed) and the longest one's seconds."""
    apps = list(dict.fromkeys(cell.app for cell in cells))
    rows = [["", *EVENTS]]
    for app in apps:
        row = [app]
        for event in EVENTS:
            found = [cell for cell in cells if (cell.app, cell.event) == (app, event)]
            marks = "".join("." if cell.ok else "F" for cell in found)
            row.append(f"{marks} {max((cell.seconds for cell in found), default=0.0):.1f}s")
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(EVENTS) + 1)]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def told(cell: Cell) -> None:
    mark = "ok  " if cell.ok else "FAIL"
    detail = f"  {cell.detail}" if cell.detail else ""
    print(f"    {mark} {cell.app:9} {cell.event:16} {cell.seconds:6.1f} s{detail}", file=sys.stderr, flush=True)


def tell(text: str) -> None:
    print(f"==> {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
