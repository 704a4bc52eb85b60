"""Taking over containers that somebody else started, because a manifest offers it and the operator agrees (ADR 12).

Guarantees: asking changes nothing; what is agreed to are the very containers that were shown; taking over touches no
container, and is one transaction of the state database after everything that can be refused was. What it writes before
that (values of settings and secrets, ports) means nothing without it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from apps.manifest import Manifest
from apps.names import AppName
from apps.problems import Refused
from orchestrator import guard
from orchestrator.adoption import is_here
from orchestrator.bundle import Bundle
from orchestrator.generations import Generations
from orchestrator.homes import Home
from orchestrator.machine import Machine, Settings
from orchestrator.offer import Belongings, NotAdoptable, Offer, make_offer
from orchestrator.operations import Operations
from orchestrator.quadlet.keys import Version
from orchestrator.settled import settle
from orchestrator.state import AppRecord, State
from orchestrator.stranger import Stranger, held_by

log = logging.getLogger(__name__)

PRIVATE = (
    ".ssh",
    ".gnupg",
    ".config/systemd",
    ".config/containers",
    ".local/share/containers",
    ".local/share/keyrings",
)
"""Folders of the user's home that would let an app act as the user, or read other apps' data."""


class Takeovers:
    """Offers, and what becomes of them. The caller sees to it that an app has one operation at a time."""

    def __init__(
        self,
        settings: Settings,
        state: State,
        machine: Machine,
        generations: Generations,
        operations: Operations,
        arch: str,
    ) -> None:
        self._settings = settings
        self._state = state
        self._machine = machine
        self._generations = generations
        self._operations = operations
        self._arch = arch

    async def offer(self, name: AppName, manifest: Manifest) -> Offer:
        """What taking over would mean. Raises NotAdoptable; Refused for an app that is installed."""
        if self._state.app(name) is not None:
            raise Refused(f"{name.id} is installed", where=str(name), remedy=f"archy update {name.id}")
        found = await self._machine.podman.strangers(manifest.adopt.container_names)
        found = tuple(box for box in found if box.name in manifest.adopt.container_names)
        strangers = [await self._given(box) for box in found]
        whose = self._belongings(name, await self._generations.podman())
        offer = make_offer(name, manifest, self._arch, strangers, whose)
        if lost := sorted(home.source for home in offer.homes.values() if not self._is_there(home)):
            raise NotAdoptable(
                f"no folders, or behind a link: {', '.join(lost)}", where=str(name), remedy="podman inspect CONTAINER"
            )
        return offer

    async def present(self, manifest: Manifest) -> tuple[str, ...]:
        """Containers that the manifest names and that carry no mark of a node."""
        found = await self._machine.podman.strangers(manifest.adopt.container_names)
        return tuple(
            sorted(
                box.name
                for box in found
                if box.name in manifest.adopt.container_names and "archy.app" not in box.labels
            )
        )

    async def take(self, bundle: Bundle, agreed: Collection[str]) -> AppRecord:
        """Record them as the app; `agreed` are the ids of the containers that the operator was shown.

        Raises Refused, PortTaken, Problem with nothing changed.
        """
        name = bundle.name
        await self._operations.inspect(bundle)
        seen = await self._machine.look((), whole=True, strict=True)
        if is_here(name.slug, seen):
            raise Refused(f"units of {name.id} are here already", where=str(name), remedy=f"archy adopt {name.id}")
        offer = await self.offer(name, bundle.manifest)
        if set(agreed) != set(offer.ids):
            raise Refused(
                "other containers are here than those that were agreed to",
                where=str(name),
                remedy=f"archy adopt {name.id} --check shows them",
            )
        loaded = await self._operations.verify(bundle, seen, taking=offer)
        ports = self._generations.choose_ports(name, bundle.manifest, offer)
        wanted = tuple(guard.claims(name, settle(bundle.manifest, {}, ports)))
        beside = self._generations.port_problem_beside(held_by(box for _, box in offer.containers))
        guard.check_ports(wanted, self._generations.claims_of_others(name), beside)
        choices = self._state.choices
        choices.set_ports(name, ports)
        choices.set_settings(name, {**choices.settings(name), **offer.settings})
        self._keep_secrets(name, bundle.manifest, offer)
        record = self._state.adopt(
            name,
            version=bundle.version,
            digest=bundle.digest,
            root=bundle.root,
            manifest=json.dumps(bundle.manifest.canonical(), ensure_ascii=False),
            desired="running" if offer.running else "stopped",
            providers=loaded.providers,
            kept=offer.kept,
            homes=offer.homes,
        )
        log.info("taken over", extra={"app": name.slug, "containers": [box.name for box in offer.kept]})
        return record

    async def _given(self, box: Stranger) -> Stranger:
        """With the variables alone that its image does not have anyway."""
        image = await self._machine.podman.image(box.image_id.removeprefix("sha256:"))
        known = image.environment if image is not None else frozenset()
        usual = {"PATH", "HOME", "HOSTNAME", "TERM", "container"}
        given = {k: v for k, v in box.environment.items() if k not in usual and f"{k}={v}" not in known}
        return replace(box, environment=given)

    def _belongings(self, name: AppName, podman: Version) -> Belongings:
        kept = self._state.kept
        user = Path.home()
        own = (self._settings.data_dir.parent, self._settings.unit_dir, *(user / folder for folder in PRIVATE))
        return Belongings(
            self._settings.prefix,
            podman,
            kept.owners(),
            {source: slug for source, slug in kept.owners_of_data().items() if slug != name.slug},
            tuple(map(str, own)),
            str(user),
        )

    def _is_there(self, home: Home) -> bool:
        """Podman's volumes are: a container is mounted on them."""
        return not home.source.startswith("/") or self._machine.host.is_folder(Path(home.source))

    def _keep_secrets(self, name: AppName, manifest: Manifest, offer: Offer) -> None:
        """A value that a container was given is the one that holds, whatever an earlier installation left."""
        secrets = self._machine.secrets
        for secret in manifest.generated_secrets:
            value = offer.secrets.get(secret.name)
            if value is None:
                secrets.ensure(name, secret)
            elif secrets.read(name).get(secret.name) != value:
                turns = secrets.turns(name)
                turn = turns[secret.name] + 1 if secret.name in turns else 0
                secrets.restore(name, secret.name, turn, value.encode())
