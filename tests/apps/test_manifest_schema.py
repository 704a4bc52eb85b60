"""What editors are told of a manifest is what the parser takes."""

from __future__ import annotations

from pathlib import Path

import yaml

from apps.manifest import Manifest
from apps.manifest_schema import SCHEMA_FILE, manifest_schema, schema_text

ROOT = Path(__file__).parents[2]


def test_the_exported_schema_is_that_of_the_parser() -> None:
    assert SCHEMA_FILE.read_text() == schema_text(), "python -m apps.manifest_schema writes it again"


def test_every_key_of_the_parser_is_in_the_schema_and_no_other_is_allowed() -> None:
    schema = manifest_schema()
    assert set(schema["properties"]) == {field.alias or name for name, field in Manifest.model_fields.items()}
    for part in (schema, *schema["$defs"].values()):
        assert part["additionalProperties"] is False
    assert schema["required"] == ["schema", "id", "version", "title", "containers"]


def test_every_manifest_of_this_project_names_the_schema_for_editors() -> None:
    manifests = sorted((ROOT / "apps").glob("*/manifest.yml"))
    assert manifests
    for path in manifests:
        first = path.read_text().splitlines()[0]
        assert first.startswith("# yaml-language-server: $schema=")
        assert (path.parent / first.partition("=")[2]).resolve() == SCHEMA_FILE
        assert set(yaml.safe_load(path.read_text())) <= set(manifest_schema()["properties"])
