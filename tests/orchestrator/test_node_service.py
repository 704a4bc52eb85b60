"""The node's own unit: its text, and what it never touches."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from apps.problems import Problem, Refused
from orchestrator import NodeService
from orchestrator.node_service import linger, unit_text


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_the_unit_keeps_the_node_apart_from_its_apps_and_watches_it() -> None:  # R-FM3, R-ST16
    found = lines(unit_text("archy", ("/usr/bin/python3", "-m", "market.cli", "up"), {}))
    assert {"Type=notify", "KillMode=mixed", "Slice=archy-node.slice", "Delegate=yes", "Restart=always"} <= set(found)
    assert "StartLimitIntervalSec=0" in found
    assert any(line.startswith("WatchdogSec=") for line in found)
    assert not any("archy-apps.slice" in line for line in found)


def test_words_with_blanks_quotes_and_specifiers_stay_words() -> None:
    text = unit_text("archy", ("/opt/my app/python", '--home=%h "$HOME"'), {"PYTHONPATH": "/a b/%h/$$1"})
    assert 'ExecStart="/opt/my app/python" "--home=%%h \\"$$HOME\\""' in text
    assert 'Environment="PYTHONPATH=/a b/%%h/$$1"' in text


def test_a_word_that_would_start_a_line_of_its_own_is_refused() -> None:
    with pytest.raises(Problem):
        unit_text("archy", ("/bin/true\nExecStartPre=/bin/evil",), {})


def test_a_strangers_unit_of_that_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "archy.service").write_text("[Service]\nExecStart=/bin/mine\n")
    service = NodeService("archy", ("/bin/true",), {}, tmp_path)
    with pytest.raises(Refused, match="did not write"):
        trio.run(lambda: service.install(start=True))
    assert trio.run(service.uninstall) is False
    assert trio.run(service.state) == {}
    assert "mine" in (tmp_path / "archy.service").read_text()


def test_without_linger_the_hint_is_the_command(tmp_path: Path) -> None:
    assert linger("op", tmp_path).remedy == "loginctl enable-linger op"
    (tmp_path / "op").touch()
    assert linger("op", tmp_path).ok
