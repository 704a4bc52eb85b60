"""An app's bundle on disk: the signed manifest and, by container, an OCI image layout.

Guarantees: a `Bundle` that loaded has a packed manifest whose id is the app's. It trusts whoever built the folder
for where it came from, and for nothing else: images are checked again before they are imported.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apps.manifest import Manifest, parse_manifest_json
from apps.names import AppName
from apps.problems import Refused

MAX_MANIFEST: Final = 512 * 1024
"""Bytes of manifest.json; canonical JSON of the largest manifest that YAML may hold."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified app: `root/manifest.json`, `root/images/<container>/` (OCI layouts), `root/files/<path>`."""

    name: AppName
    version: str
    digest: str
    """Digest of the release that named it; opaque here."""
    manifest: Manifest
    root: Path

    @classmethod
    def load(cls, root: Path, name: AppName, version: str, digest: str) -> Bundle:
        """Read a bundle folder. Raises Refused (ManifestProblem included)."""
        path = root / "manifest.json"
        try:
            with path.open("rb") as file:
                raw = file.read(MAX_MANIFEST + 1)
        except OSError as error:
            raise Refused(
                f"the bundle can not be read: {error.strerror}", where=str(path), remedy="fetch the app again"
            ) from error
        if len(raw) > MAX_MANIFEST:
            raise Refused(f"more than {MAX_MANIFEST} bytes", where=str(path), remedy="fetch the app again")
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise Refused("not JSON", where=str(path), remedy="fetch the app again") from error
        if not isinstance(body, dict):
            raise Refused("not a JSON object", where=str(path), remedy="fetch the app again")
        return cls(name, version, digest, parse_manifest_json(body, where=str(path)), root).checked()

    def checked(self) -> Bundle:
        """Raises Refused unless manifest, name and version agree and every byte is named by content."""
        if self.manifest.id != self.name.id or self.manifest.version != self.version:
            raise Refused(
                f"the manifest is of {self.manifest.id} {self.manifest.version}, not of {self.name.id} {self.version}",
                where=str(self.root),
                remedy="fetch the app again",
            )
        self.manifest.require_packed(where=str(self.root))
        return self

    def layout(self, container: str) -> Path:
        """Folder of a container's OCI layout."""
        return self.root / "images" / container
