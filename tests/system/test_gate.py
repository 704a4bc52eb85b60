"""One round of the gate, as a test: every event for every app, on real systemd and Podman.

It takes five minutes, so `./run test` and `./run lab` leave it to `./run gate`, which prints the matrix as it grows.
"""

from __future__ import annotations

import pytest

from tests.system.conftest import MakeNode
from tests.system.gate.__main__ import matrix
from tests.system.gate.rounds import EVENTS, Cell, play
from tests.system.gate.stand import APPS, Stand


@pytest.mark.gate
@pytest.mark.timeout(600)  # it is a minute's work; the machine may have others to do
def test_every_app_gets_through_one_round_of_the_gate(make_node: MakeNode) -> None:  # R-ST1, R-ST6, R-ST10, R-ST16
    cells: list[Cell] = []
    play(Stand(make_node("gate"), APPS), APPS, 1, cells.append)
    assert len(cells) == len(APPS) * len(EVENTS)
    failed = [f"{cell.app}, {cell.event}: {cell.detail}" for cell in cells if not cell.ok]
    assert not failed, "\n".join([*failed, matrix(cells)])
