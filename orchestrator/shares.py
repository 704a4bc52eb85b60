"""One look at the machine, shared out among apps, so that planning for one does not read what belongs to the others.

Guarantees: an app's share holds everything of the look that a plan for it may read; finding it takes time by the size
of the share, not of the machine. Pure.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TypeVar

from orchestrator.links import LinkNetwork
from orchestrator.names import Names
from orchestrator.podman import ContainerSeen, Inventory
from orchestrator.unit_folder import OwnedFile

T = TypeVar("T")


class Shares:
    """Indexes over one look, each made once."""

    def __init__(
        self, files: Mapping[str, OwnedFile], containers: tuple[ContainerSeen, ...] | None, inventory: Inventory | None
    ) -> None:
        self._texts: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for name, file in files.items():
            self._texts[file.owner][name] = file.text
        self._boxes = None if containers is None else _Boxes(containers)
        self._inventory = None if inventory is None else _Goods(inventory)

    def texts(self, slug: str) -> Mapping[str, str]:
        """Unit files that say that they are this app's: name -> text."""
        return self._texts.get(slug, {})

    def inventory(self, names: Names) -> Inventory | None:
        """Images, secrets and links of this app; networks and volumes are looked up by name, and all there."""
        return None if self._inventory is None else self._inventory.of(names)

    def containers(self, slug: str, named: Iterable[str], networks: Iterable[str]) -> tuple[ContainerSeen, ...] | None:
        """Containers that carry the app's mark, have one of these names, or are in one of these networks."""
        return None if self._boxes is None else self._boxes.of(slug, named, networks)


class _Boxes:
    def __init__(self, containers: tuple[ContainerSeen, ...]) -> None:
        self._by_app: defaultdict[str, list[ContainerSeen]] = defaultdict(list)
        self._by_name: defaultdict[str, list[ContainerSeen]] = defaultdict(list)
        self._by_network: defaultdict[str, list[ContainerSeen]] = defaultdict(list)
        for box in containers:
            self._by_app[_app(box)].append(box)
            self._by_name[box.name].append(box)
            for network in box.networks:
                self._by_network[network].append(box)

    def of(self, slug: str, named: Iterable[str], networks: Iterable[str]) -> tuple[ContainerSeen, ...]:
        own = self._by_app.get(slug, [])
        others = [box for name in named for box in self._by_name.get(name, ()) if _app(box) != slug]
        others += [box for network in networks for box in self._by_network.get(network, ()) if _app(box) != slug]
        return (*own, *{id(box): box for box in others}.values()) if others else tuple(own)


def _app(box: ContainerSeen) -> str:
    return box.labels.get("archy.app", "")


class _Goods:
    def __init__(self, inventory: Inventory) -> None:
        self._all = inventory
        self._images = sorted(inventory.images, key=lambda image: image.name)
        self._image_names = [image.name for image in self._images]
        self._secrets = sorted(inventory.secrets)
        self._links: dict[str, dict[str, LinkNetwork]] = {}
        for name, link in inventory.links.items():
            for slug in (link.provider, link.dependant):
                self._links.setdefault(slug, {})[name] = link

    def of(self, names: Names) -> Inventory:
        secrets = _starting(names.secret(""), self._secrets, self._secrets)
        images = _starting(names.image(""), self._image_names, self._images)
        links = self._links.get(names.slug, {})
        return Inventory(tuple(images), self._all.networks, self._all.volumes, frozenset(secrets), links)


def _starting(start: str, keys: list[str], values: list[T]) -> list[T]:
    """The values whose key begins so; keys are sorted."""
    begin = end = bisect_left(keys, start)
    while end < len(keys) and keys[end].startswith(start):
        end += 1
    return values[begin:end]
