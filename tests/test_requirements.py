"""Every requirement that this project claims is named by a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.requirements import main, shown


def test_every_claimed_requirement_is_named_by_a_test(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0, capsys.readouterr().out


def test_a_gap_and_a_word_that_is_no_id_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test_one.py").write_text(
        '# R-XX1\ndef test_a() -> None:  # R-XX2\n    # R-XX4\n    text = "# R-XX3"\n'
    )
    assert main(["R-XX2", "R-XX4", "--tests", str(tmp_path)]) == 0
    assert main(["R-XX1", "R-XX2", "--tests", str(tmp_path)]) == 1
    assert "gaps: R-XX1" in capsys.readouterr().out
    assert main(["XX2", "--tests", str(tmp_path)]) == 2
    assert shown(tmp_path) == {"R-XX2": ("test_one.py::test_a",), "R-XX4": ("test_one.py::test_a",)}
