"""Generations as the planner wants them: rendered for this node, with what else must be kept or removed.

Reads the database and renders; changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType

from apps.manifest import Manifest, parse_manifest_json
from apps.names import AppName
from apps.problems import NotRunning
from orchestrator import guard
from orchestrator.adoption import held_ports
from orchestrator.apply import Source
from orchestrator.bundle import Bundle
from orchestrator.derived import DerivedFile, derive, facts
from orchestrator.homes import KeptContainer
from orchestrator.links import (
    Installed,
    Linked,
    exported,
    linked,
    needed_by,
    refuse_breaking,
    refuse_cycle,
    resolve,
    served_by,
)
from orchestrator.machine import Machine
from orchestrator.names import Names
from orchestrator.offer import Offer
from orchestrator.plan import Absent, Wanted
from orchestrator.plan_units import stop_seconds
from orchestrator.quadlet.keys import Version
from orchestrator.quadlet.render import NO_LINKS, Target, render
from orchestrator.quadlet.rendered import RenderedApp
from orchestrator.quadlet.text import literal
from orchestrator.secret_care import lost_for_good
from orchestrator.settled import Ports, choose_ports, settle
from orchestrator.state import AppRecord, Generation, Operation, State
from orchestrator.stranger import held_by
from orchestrator.subnets import choose_subnet

MIN_STOP_SECONDS = 60
"""Deadline for stopping an app of which no generation is known any more."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """One generation, ready to be planned for."""

    manifest: Manifest
    app: RenderedApp
    source: Source
    providers: Mapping[str, AppName] = field(default_factory=dict)
    """Who serves its dependencies."""
    kept: tuple[KeptContainer, ...] = ()
    """Containers that somebody else made, which run in the place of its units (ADR 12)."""


@lru_cache(maxsize=512)
def _parsed(text: str, where: str) -> Manifest:
    """Manifests are frozen, and every tick asks for every app's."""
    return parse_manifest_json(json.loads(text), where=where)


class Generations:
    """What the database holds, rendered."""

    def __init__(self, state: State, machine: Machine, arch: str) -> None:
        self._state = state
        self._machine = machine
        self._arch = arch
        self._podman: Version | None = None
        self._inside = ""

    async def podman(self, *, again: bool = False) -> Version:
        """Podman's version, asked once. Raises EnvironmentLacks."""
        if self._podman is None or again:
            self._podman = await self._machine.podman.version()
            self._inside = self._machine.host.inside_address()
        return self._podman

    def _target(self, podman: Version, app: AppName, taking: Offer | None) -> Target:
        derived, subnet = literal(str(self._machine.derived.folder)), self._state.choices.subnet(app)
        builds = literal(str(self._machine.builds.folder))
        homes = taking.homes if taking is not None else self._state.kept.homes(app)
        return Target(self._machine.prefix, podman, self._arch, derived, subnet, self._inside, builds, homes)

    def _rendered(
        self, manifest: Manifest, names: Names, podman: Version, linked: Linked, taking: Offer | None = None
    ) -> RenderedApp:
        """With its images pinned that were built."""
        app = render(manifest, names, self._target(podman, names.app, taking), linked)
        return app.with_built(self._machine.builds.built(names.app)) if app.builds else app

    def choose_subnet(self, app: AppName, manifest: Manifest, used: frozenset[str]) -> None:
        """Give an app without internet a subnet, if it has none yet. Raises Refused."""
        choices = self._state.choices
        if manifest.permissions.internet == "none" and not choices.subnet(app):
            taken = choices.subnets() | used | self._machine.host.routes()
            choices.set_subnet(app, choose_subnet(f"{self._machine.prefix} {app.slug}", taken))

    def names(self, app: AppName) -> Names:
        return Names(self._machine.prefix, app, tuple(sorted(self._machine.secrets.turns(app).items())))

    def record(self, app: AppName) -> AppRecord:
        """Raises NotRunning unless the app is installed."""
        record = self._state.app(app)
        if record is None or record.generation is None:
            raise NotRunning(f"{app.id} is not installed", where=str(app), remedy="archy ps lists what is")
        return record

    def manifest(self, generation: Generation) -> Manifest:
        """The manifest as it runs here."""
        app, choices = generation.name, self._state.choices
        return settle(self.signed(generation), choices.settings(app), choices.ports(app))

    def signed(self, generation: Generation) -> Manifest:
        """The manifest as its publisher signed it."""
        return _parsed(generation.manifest, f"{generation.name.id} {generation.version}")

    def signed_now(self, app: AppName) -> Manifest:
        """The signed manifest of the generation that holds. Raises NotRunning."""
        return self.signed(self._state.generation(app, self.record(app).generation or 0))

    def choose_ports(self, app: AppName, manifest: Manifest, taking: Offer | None = None) -> Ports:
        """Host ports for every `auto`; `taking` are containers that are about to be its own. Raises Refused."""
        taken = frozenset((claim.port, claim.protocol) for claim in self.claims_of_others(app))
        kept = {**self._state.choices.ports(app), **(taking.ports if taking is not None else {})}
        held = frozenset() if taking is None else held_by(box for _, box in taking.containers)
        return choose_ports(manifest, kept, taken, self.port_problem_of(app, held))

    def port_problem_of(
        self, app: AppName, held: frozenset[tuple[int, str]] = frozenset()
    ) -> Callable[[int, str, str], str]:
        """What prevents the app from having a host port; what it holds itself, by `held` too, does not."""
        own = {(claim.port, claim.protocol) for claim in self.running_claims(app)} | held
        if self._state.app(app) is None:  # what runs under its names is its own (R-ST7)
            own |= held_ports(app.slug, self._machine.folder.read())

        def problem(port: int, bind: str, protocol: str) -> str:
            return "" if (port, protocol) in own else self._machine.host.port_problem(port, bind, protocol)

        return problem

    def port_problem_beside(self, held: frozenset[tuple[int, str]]) -> Callable[[int, str, str], str]:
        """What prevents a host port from being had, but for the holders of `held`, who are about to give way."""

        def problem(port: int, bind: str, protocol: str) -> str:
            return "" if (port, protocol) in held else self._machine.host.port_problem(port, bind, protocol)

        return problem

    async def load(self, record: AppRecord) -> Loaded:
        """What holds for an app: its generation, or the one that its first installation is about."""
        if record.generation is not None:
            return await self.load_generation(self._state.generation(record.name, record.generation))
        return await self.load_generation(self._state.generations(record.name)[-1])

    async def load_generation(self, generation: Generation) -> Loaded:
        manifest, names = self.manifest(generation), self.names(generation.name)
        providers = self._state.choices.links(generation.name, generation.number)
        linked = self.linked(Installed(generation.name, manifest, "running"), providers)
        app = self._rendered(manifest, names, await self.podman(), linked)
        source = Source(names, manifest, generation.root, self._arch)
        kept = self._state.kept.of(generation.name, generation.number)
        return Loaded(manifest, app, source, MappingProxyType(providers), kept)

    def fresh(
        self,
        bundle: Bundle,
        podman: Version,
        *,
        linked_to: frozenset[str] | None = None,
        taking: Offer | None = None,
    ) -> Loaded:
        """A generation that is not in the database yet, with the ports and providers it would get now.

        `linked_to`: for an app that is here already, the slugs of those that it shares networks with; they serve it
        whether they run or not. `taking`: what it is to keep of containers that somebody else made. Raises Refused: a
        dependency that nothing serves, no free port.
        """
        app, names = bundle.name, self.names(bundle.name)
        ports = self.choose_ports(app, bundle.manifest, taking)
        values = {**self._state.choices.settings(app), **(taking.settings if taking is not None else {})}
        manifest = settle(bundle.manifest, values, ports)
        providers = self.resolve(app, manifest, linked_to)
        linked = self.linked(Installed(app, manifest, "running"), providers)
        rendered = self._rendered(manifest, names, podman, linked, taking)
        return Loaded(manifest, rendered, Source(names, manifest, bundle.root, self._arch), providers)

    def others(self, app: AppName) -> dict[AppName, Installed]:
        """Every other app whose installation holds."""
        return {
            record.name: Installed(
                record.name, self.manifest(self._state.generation(record.name, record.generation)), record.desired
            )
            for record in self._state.apps()
            if record.name != app and record.generation is not None
        }

    def resolve(self, app: AppName, manifest: Manifest, linked_to: frozenset[str] | None = None) -> dict[str, AppName]:
        """Who is to serve an app's dependencies; `linked_to` as for `fresh`. Raises NeedsOthers."""
        if not manifest.dependencies:
            return {}
        record, choices, others = self._state.app(app), self._state.choices, tuple(self.others(app).values())
        kept = choices.links(app, record.generation) if record is not None and record.generation is not None else {}
        if linked_to is not None:
            others = tuple(replace(other, desired="running") for other in others)
            kept = served_by(manifest, [other.name for other in others if other.name.slug in linked_to])
        providers = resolve(app, manifest, others, kept)
        refuse_cycle(app, providers, choices.all_links())
        return providers

    def linked(self, own: Installed, providers: Mapping[str, AppName]) -> Linked:
        """What links add to an app's units."""
        links = [link for link in self._state.choices.all_links() if link.provider == own.name]
        if not providers and not links:
            return NO_LINKS
        others = self.others(own.name)
        serving = {name: others[provider] for name, provider in providers.items() if provider in others}
        served = [
            (link.dependency, dependant)
            for link in links
            if (dependant := self._installing(link.dependant, others)) is not None
        ]
        return linked(own, serving, served, self._machine.prefix)

    def _installing(self, app: AppName, others: Mapping[AppName, Installed]) -> Installed | None:
        """A dependant as it is, or as its open installation makes it."""
        pending = {operation.name: operation.generation for operation in self._state.open_operations()}
        if (number := pending.get(app)) is not None:
            return Installed(app, self.manifest(self._state.generation(app, number)), "running")
        return others.get(app)

    def needed_by(self, app: AppName) -> tuple[AppName, ...]:
        """Apps that can not do without this one."""
        manifests = {name: other.manifest for name, other in self.others(app).items()}
        return needed_by(app, self._state.choices.all_links(), manifests)

    def refuse_breaking(self, app: AppName, manifest: Manifest) -> None:
        """Raises StillNeeded when dependants need the app otherwise than it would be."""
        manifests = {name: other.manifest for name, other in self.others(app).items()}
        # A user may stop what others need; what is refused here are versions and settings
        refuse_breaking(Installed(app, manifest, "running"), self._state.choices.all_links(), manifests)

    async def images(self, app: AppName) -> tuple[frozenset[str], frozenset[str]]:
        """Images of every generation that is known: as units pin them, and as Podman tells them."""
        made = [await self.load_generation(generation) for generation in self._state.generations(app)]
        boxes = [container for loaded in made for container in loaded.app.containers]
        return frozenset(box.image for box in boxes), frozenset(box.config for box in boxes)

    async def wanted(self, app: AppName, loaded: Loaded, *, running: bool, without: int | None = None) -> Wanted:
        """The app as it should be; images of its other generations are kept, except of `without`."""
        others = [g for g in self._state.generations(app) if g.number != without]
        keep = {c.image for g in others for c in (await self.load_generation(g)).app.containers}
        derived = self.derived(app, loaded, self._machine.secrets.read(app)) if running else ()
        return Wanted(loaded.app, running, frozenset(keep), derived)

    def ailing(self, record: AppRecord) -> tuple[str, ...]:
        """Secrets of an installed app whose values are lost or damaged here."""
        if record.generation is None:
            return ()
        manifest = self.signed(self._state.generation(record.name, record.generation))
        return self._machine.secrets.ailing(record.name, [secret.name for secret in manifest.generated_secrets])

    def derived(self, app: AppName, loaded: Loaded, secrets: Mapping[str, str]) -> tuple[DerivedFile, ...]:
        """The derived files of a generation. Raises Problem; Refused for a template that does not work."""
        manifest = loaded.manifest
        if not manifest.derived_files:
            return ()
        if lost := sorted(secret.name for secret in manifest.generated_secrets if secret.name not in secrets):
            # Making it again would give the app another value than its data was made with.
            raise lost_for_good(app.id, tuple(lost))
        others = self.others(app) if loaded.providers else {}
        served = {
            dependency: exported(dependency, others[provider], self._machine.secrets.read(provider))
            for dependency, provider in loaded.providers.items()
            if provider in others
        }
        return derive(loaded.source.root, manifest, facts(manifest, secrets, served))

    async def absent(self, operation: Operation, *, purge: bool) -> Absent:
        """The app gone; volumes that were there before the operation are spared, except by an uninstall."""
        app = operation.name
        names = self.names(app)
        services: dict[str, None] = {}
        secrets = {names.secret(label) for label in self._machine.secrets.known(app)}
        seconds = MIN_STOP_SECONDS
        for generation in self._state.generations(app):
            rendered = (await self.load_generation(generation)).app
            services |= dict.fromkeys(reversed(rendered.services))
            secrets |= {names.secret(secret) for secret in rendered.secrets}
            seconds = max(seconds, stop_seconds(rendered))
        spare, drop = frozenset(operation.volumes), frozenset(operation.drop)
        return Absent(names, tuple(services), tuple(sorted(secrets)), seconds, purge, spare, drop)

    def running_claims(self, app: AppName) -> tuple[guard.Claim, ...]:
        """Host ports that the app itself holds now, as far as the database knows."""
        record = self._state.app(app)
        if record is None or record.generation is None or record.desired != "running":
            return ()
        return tuple(guard.claims(app, self.manifest(self._state.generation(app, record.generation))))

    def claims_of_others(self, app: AppName) -> tuple[guard.Claim, ...]:
        """Host ports of all other apps: of the generation that holds, and of one being installed."""
        found: list[guard.Claim] = []
        pending = {operation.name: operation.generation for operation in self._state.open_operations()}
        for record in self._state.apps():
            if record.name != app:
                for number in {record.generation, pending.get(record.name)}:
                    if number is not None:
                        found += guard.claims(record.name, self.manifest(self._state.generation(record.name, number)))
        return tuple(found)
