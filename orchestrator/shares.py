"""One look at the machine, shared out among apps, so that planning for one does not read what belongs to the others.

Guarantees: an app's share holds everything of the look that a plan for it may read; finding it takes time by the size
of the share, not of the machine. Pure.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping

from orchestrator.links import LinkNetwork
from orchestrator.names import Names
from orchestrator.podman import ContainerSeen, ImageSeen, Inventory
from orchestrator.unit_folder import OwnedFile


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
        self._images: defaultdict[str, list[ImageSeen]] = defaultdict(list)
        for image in inventory.images:
            self._images[image.name.rpartition("/")[0]].append(image)
        self._secrets = sorted(inventory.secrets)
        self._links: dict[str, dict[str, LinkNetwork]] = {}
        for name, link in inventory.links.items():
            for slug in (link.provider, link.dependant):
                self._links.setdefault(slug, {})[name] = link

    def of(self, names: Names) -> Inventory:
        start = names.secret("")
        begin = end = bisect_left(self._secrets, start)
        while end < len(self._secrets) and self._secrets[end].startswith(start):
            end += 1
        images = self._images.get(names.image("").rstrip("/"), ())
        links = self._links.get(names.slug, {})
        secrets = frozenset(self._secrets[begin:end])
        return Inventory(tuple(images), self._all.networks, self._all.volumes, secrets, links)
