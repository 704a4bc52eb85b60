"""The manifest, version 1: what an app is, as people write it (YAML) and as it is signed (canonical JSON).

Guarantees: what parses is typed, frozen, bounded and closed under its own references; all faults are told at once
with key path and remedy; `parse_manifest_json(m.canonical()) == m`. It refuses to know which node will run the app.
Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from apps.containerfile import NAME as CONTAINERFILE
from apps.manifest_errors import ManifestError, ManifestProblem, from_pydantic
from apps.manifest_parts import (
    Adopt,
    BlobEntry,
    Companion,
    Container,
    Dependency,
    DerivedFile,
    Disk,
    Export,
    Frozen,
    GeneratedSecret,
    Hooks,
    Interface,
    Many,
    Part,
    Permissions,
    Requires,
    Setting,
    Updates,
    Volume,
)
from apps.manifest_rules import rules
from apps.manifest_values import AppId, AppVersion, Category, Form, Label, RelativePath, Summary, Title, WebAddress
from apps.yaml_strict import MAX_DEPTH, MAX_NODES, load

__all__ = ["Manifest", "ManifestError", "ManifestProblem", "parse_manifest_json", "parse_manifest_yaml"]

SCHEMA: Final = 1


class Manifest(Part):
    """An app. Mappings keep the order in which they were written; nothing depends on it."""

    schema_: Literal[1] = Field(alias="schema")
    id: AppId
    version: AppVersion
    title: Title
    summary: Summary = ""
    homepage: WebAddress | None = None
    categories: Many[Category] = ()
    requires: Requires = Requires()
    dependencies: Many[Dependency] = ()
    generated_secrets: Many[GeneratedSecret] = ()
    derived_files: Many[DerivedFile] = ()
    containers: Frozen[Label, Container]
    volumes: Frozen[Label, Volume] = Field(default_factory=lambda: MappingProxyType({}))
    companions: Frozen[Label, Companion] = Field(default_factory=lambda: MappingProxyType({}))
    files: Frozen[RelativePath, BlobEntry] = Field(default_factory=lambda: MappingProxyType({}))
    settings: Many[Setting] = ()
    exports: Many[Export] = ()
    interfaces: Many[Interface] = ()
    permissions: Permissions = Permissions()
    hooks: Hooks = Hooks()
    updates: Updates = Updates()
    adopt: Adopt = Adopt()
    disk: Disk = Disk()

    def canonical(self) -> dict[str, Any]:
        """The JSON form that is signed: no floats, integers below 2^53, keys that hold their default left out."""
        body = super().canonical()
        return {key: value for key, value in body.items() if value not in ({}, [])}

    def unpacked(self) -> tuple[ManifestError, ...]:
        """What packing still has to add: digests of images, and BlobRefs of the files that the app names."""
        missing = [
            ManifestError(f"{key}.{name}.image.platforms", "the image is not packed", "pack the app")
            for key, boxes in (("containers", self.containers), ("companions", self.companions))
            for name, box in boxes.items()
            if box.image is not None and not box.image.platforms
        ]
        named = [derived.template for derived in self.derived_files]
        named += [hook.copy_from_host.src for hook in self.hooks.post_install if hook.copy_from_host is not None]
        builds = [box.build for box in self.containers.values()] + [box.build for box in self.companions.values()]
        named += [f"{build.context}/{CONTAINERFILE}" for build in builds if build is not None]
        missing += [
            ManifestError(f"files.{path}", "the file is named but not packed", "pack the app")
            for path in dict.fromkeys(named)
            if path not in self.files
        ]
        return tuple(missing)

    def require_packed(self, *, where: str = "") -> None:
        """Raises ManifestProblem unless every byte of the app is named by content (R-MF12)."""
        if missing := self.unpacked():
            raise ManifestProblem(missing, where=where)


def parse_manifest_yaml(text: str | bytes, *, where: str) -> Manifest:
    """The form people write. Raises Refused for what is not strict YAML, ManifestProblem for what is no manifest."""
    return _parse(load(text, where=where), Form.YAML, where)


def parse_manifest_json(obj: Mapping[str, Any], *, where: str) -> Manifest:
    """The form that was signed (decoded JSON). Raises ManifestProblem."""
    if not _bounded(obj):
        raise ManifestProblem([ManifestError("", "nested too deep or too long", "pack the app again")], where=where)
    return _parse(obj, Form.JSON, where)


def _bounded(tree: object) -> bool:
    level, seen = [tree], 0
    for _ in range(MAX_DEPTH):
        inner: list[object] = []
        for node in level:
            if isinstance(node, Mapping):
                inner += node.values()
            elif isinstance(node, list):
                inner += node
        seen += len(inner)
        if not inner:
            return True
        if seen > MAX_NODES:
            return False
        level = inner
    return False


def _parse(tree: object, form: Form, where: str) -> Manifest:
    if not isinstance(tree, Mapping):
        raise ManifestProblem([ManifestError("", "not a mapping", "write keys and values")], where=where)
    plain = _schema_version(tree, form)
    errors = list(rules(plain))
    manifest = None
    try:
        manifest = Manifest.model_validate(plain, context=form)
    except ValidationError as error:
        errors += from_pydantic(error, Manifest)
    if errors or manifest is None:
        raise ManifestProblem(errors, where=where)
    return manifest


def _schema_version(tree: Mapping[str, Any], form: Form) -> dict[str, Any]:
    """YAML's `schema: 1` is the text "1"; the literal type wants the number."""
    plain = dict(tree)
    if form is Form.YAML and plain.get("schema") == str(SCHEMA):
        plain["schema"] = SCHEMA
    elif isinstance(plain.get("schema"), bool):
        plain["schema"] = "true"  # True == 1 in Python; a signed document must not profit from it
    return plain
