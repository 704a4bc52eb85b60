"""A publisher of an app with one container, for tests that care about its manifest."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from market.packing import pack_app
from tests.market.layouts import layer, write_layout
from tests.market.square import Publisher


class NotesPublisher(Publisher):
    """Packs the app notes, whose container is `web`."""

    manifest: ClassVar[str]
    """Its install manifest, with `{version}` in it."""

    def pack(self, version: str, **_: Any) -> dict[str, Any]:
        source = self.folder / f"notes-{version}"
        source.mkdir(parents=True)
        (source / "manifest.yml").write_text(self.manifest.format(version=version))
        image = write_layout(source / "image", [layer("version", version.encode())])
        pack_app(source, {"web": image}, self.www)
        manifest: dict[str, Any] = json.loads((self.www / "manifest.json").read_bytes())
        return manifest
