"""A home folder has one owner at a time, and says so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from market.errors import Problem, Unreachable
from market.node.home import Home


def test_home_is_private_to_its_operator(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.create()
    assert home.root.stat().st_mode & 0o777 == 0o700


def test_second_owner_is_refused_until_the_first_leaves(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with home.locked():
        with pytest.raises(Unreachable) as refusal, home.locked():
            pass
        assert str(tmp_path) in str(refusal.value)
    with home.locked():
        assert home.lock.exists()


def test_home_below_a_file_names_the_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Problem) as refusal:
        Home(tmp_path / "file" / "home").create()
    assert str(tmp_path / "file" / "home") in str(refusal.value)
    assert refusal.value.remedy


def test_default_home_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHY_HOME", str(tmp_path / "mine"))
    assert Home.default().root == tmp_path / "mine"
    monkeypatch.delenv("ARCHY_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert Home.default().root == tmp_path / "archy"
    assert os.environ.get("ARCHY_HOME") is None
