"""A market square: a real relay, a publisher with real keys, an origin and peers that serve real bytes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import trio

from market.discovery import SignedRelease, publish, sign_release, to_events
from market.identity import Keyring
from market.packing import pack_app
from tests.fakes.blob_servers import BlobServer, Faults
from tests.market.layouts import layer, write_layout

MANIFEST = """\
schema: 1
id: {id}
version: "{version}"
title: {title}
summary: An app for tests
categories: [demo]
containers:
  web:
    image: {{ref: "localhost/{id}:{version}"}}
    ports: [{{name: web, container: 8080, host: {port}, bind: loopback}}]
    mounts: [{{volume: data, path: /data}}]
volumes:
  data: {{on_uninstall: keep}}
interfaces:
  - {{id: ui, type: ui, port: web, path: /}}
permissions: {{internet: {internet}}}
"""

BALLAST = bytes(range(256)) * 12_288
"""3 MiB: three pieces, in a layer that every version shares."""


class Publisher:
    """Packs, signs and publishes small apps; `www` is what its origin serves."""

    def __init__(self, folder: Path, relay: str) -> None:
        self.folder, self.relay, self.www = folder, relay, folder / "www"
        self.keyring = Keyring.create(folder / "identity", now=time.time())

    @property
    def did(self) -> str:
        return self.keyring.did

    def pack(
        self, version: str, *, app: str = "hello", port: int = 18080, internet: str = "none", arch: str = "amd64"
    ) -> dict[str, Any]:
        """The packed install manifest; its blobs are put where the origin finds them."""
        source = self.folder / f"{app}-{version}"
        source.mkdir(parents=True)
        text = MANIFEST.format(id=app, version=version, title=app.title(), port=port, internet=internet)
        (source / "manifest.yml").write_text(text)
        layers = [layer("ballast", BALLAST), layer("version", version.encode())]
        image = write_layout(source / "image", layers, arch=arch)
        pack_app(source, {"web": image}, self.www)
        manifest: dict[str, Any] = json.loads((self.www / "manifest.json").read_bytes())
        return manifest

    def sign(self, manifest: dict[str, Any], origins: list[str], **options: Any) -> SignedRelease:
        now = options.pop("now", time.time())
        return sign_release(self.keyring, manifest, origins=origins, source="", now=now, **options)

    def publish(self, signed: SignedRelease) -> None:
        """Hand the events to the relay; every one must be taken."""
        events = to_events(self.keyring, signed.documents, now=time.time())
        (result,) = trio.run(lambda: publish(events, [self.relay], timeout=10))
        assert len(result.accepted) == len(events), result

    def bring(self, version: str, origins: list[str], **options: Any) -> SignedRelease:
        """Pack, sign and publish."""
        signed = self.sign(self.pack(version, **options), origins)
        self.publish(signed)
        return signed


def serving(www: Path, **faults: Any) -> BlobServer:
    """A static server of a publisher's folder, with faults if need be."""
    return BlobServer(www, Faults(**faults))
