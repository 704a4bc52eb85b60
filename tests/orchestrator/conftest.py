"""What nearly every test here begins with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.orchestrator.nodes import Node


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node without apps on a pretended machine."""
    return Node(tmp_path / "node")
