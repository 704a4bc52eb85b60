"""The node's own version is told truthfully to manifests that ask for one."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from apps.manifest import ManifestProblem, parse_manifest_yaml
from orchestrator import require_supported, unsupported
from orchestrator.supported import NODE_VERSION

ROOT = Path(__file__).parents[2]


def test_the_node_version_is_the_packages() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == NODE_VERSION


def test_every_feature_of_the_whole_schema_that_is_not_carried_out_is_named() -> None:
    manifest = parse_manifest_yaml((ROOT / "tests" / "apps" / "immich.yml").read_text(), where="m")
    assert [error.path for error in unsupported(manifest)] == [
        "volumes.pgdata.backup",
        "interfaces[1]",
        "updates.from",
        "updates.strategy",
        "updates.migrations",
    ]
    with pytest.raises(ManifestProblem, match=r"requires\.podman: this node has 4\.9\.0, and >=5\.0 is needed"):
        require_supported(manifest, podman="4.9.0")
