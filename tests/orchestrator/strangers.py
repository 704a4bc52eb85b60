"""An app whose container anybody may have started by hand before, and somebody who did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.bundle import Bundle
from orchestrator.stranger import StrangerMount, StrangerPort
from tests.orchestrator.bundles import app_name, container, make_bundle
from tests.orchestrator.nodes import Node

NOTES = app_name("notes")
WEB = f"archy-{NOTES.slug}-web"
DATA = "/srv/notes"
AUTO = [{"name": "web", "container": 8080, "host": "auto", "bind": "lan"}]
SETTINGS = [{"name": "upload", "type": "size", "default": "4GiB", "env": {"web": "MAX_UPLOAD"}}]
PORT = StrangerPort(8080, "tcp", 8088)
MOUNT = StrangerMount("bind", DATA, "/data")


def notes(folder: Path, version: str = "1", **more: Any) -> Bundle:
    """One container, which anybody may have started by hand before."""
    known: dict[str, Any] = {
        "name": NOTES,
        "containers": {"web": container(ports=AUTO, secrets=[{"name": "password", "env": "PASSWORD"}])},
        "settings": SETTINGS,
        "adopt": {"container_names": ["notes", "my-notes"]},
    }
    return make_bundle(folder, version, **(known | more))


def config_of(bundle: Bundle, label: str = "web") -> str:
    image = bundle.manifest.containers[label].image
    assert image is not None
    return image.platforms[0].config


def by_hand(node: Node, bundle: Bundle, name: str = "notes", label: str = "web", **more: Any) -> str:
    """`podman run` of somebody's; the container's id."""
    known: dict[str, Any] = {
        "ports": (PORT,),
        "mounts": (MOUNT,),
        "environment": {"PASSWORD": "from-before", "MAX_UPLOAD": "3145728", "TZ": "UTC"},
        "restart": "always",
    }
    return node.world.meet(name, config_of(bundle, label), **(known | more))


async def take_over(node: Node, bundle: Bundle) -> Any:
    offer = await node.orchestrator.offer(bundle.name, bundle.manifest)
    return await node.orchestrator.take_over(bundle, offer.ids)


def touched(node: Node) -> list[tuple[str, str]]:
    """Everything that was done to the machine since the calls were cleared."""
    return [call for call in node.changes() if call[0] != "secret"]
