"""The manifest's JSON Schema, for editors: they complete keys and mark unknown ones while a manifest is written.

It says of the YAML form what a schema can say; ranges, names and what holds between parts are told by
`archy app validate`. `python -m apps.manifest_schema` writes docs/manifest.schema.json again. Pure but for that.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from apps.manifest import Manifest

SCHEMA_FILE: Final = Path(__file__).parents[1] / "docs" / "manifest.schema.json"


def manifest_schema() -> dict[str, Any]:
    """JSON Schema, draft 2020-12."""
    body = Manifest.model_json_schema(by_alias=True, mode="validation")
    plain: dict[str, Any] = _plain(body)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | plain


def schema_text() -> str:
    """The file's text."""
    return json.dumps(manifest_schema(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _plain(node: Any) -> Any:
    """Without the titles that only repeat a key, and without null, which YAML manifests can not say."""
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {key: _plain(value) for key, value in node.items() if not (key == "title" and isinstance(value, str))}
    if kept.get("default", "") is None:
        del kept["default"]
    choices = [choice for choice in kept.get("anyOf", []) if choice != {"type": "null"}]
    if "anyOf" in kept and len(choices) == 1:
        del kept["anyOf"]
        return choices[0] | kept
    return kept


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text())
