"""Generations as the planner wants them: rendered for this node, with what else must be kept or removed.

Reads the database and renders; changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from apps.manifest import Manifest, parse_manifest_json
from apps.names import AppName
from apps.problems import NotRunning, Problem
from orchestrator import guard
from orchestrator.apply import Source
from orchestrator.bundle import Bundle
from orchestrator.derived import DerivedFile, derive, facts
from orchestrator.machine import Machine
from orchestrator.names import Names
from orchestrator.plan import Absent, Wanted, stop_seconds
from orchestrator.quadlet.keys import Version
from orchestrator.quadlet.render import RenderedApp, Target, render
from orchestrator.quadlet.text import literal
from orchestrator.settled import Ports, choose_ports, settle
from orchestrator.state import AppRecord, Generation, Operation, State

MIN_STOP_SECONDS = 60
"""Deadline for stopping an app of which no generation is known any more."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """One generation, ready to be planned for."""

    manifest: Manifest
    app: RenderedApp
    source: Source


class Generations:
    """What the database holds, rendered."""

    def __init__(self, state: State, machine: Machine, arch: str) -> None:
        self._state = state
        self._machine = machine
        self._arch = arch
        self._podman: Version | None = None

    async def podman(self, *, again: bool = False) -> Version:
        """Podman's version, asked once. Raises EnvironmentLacks."""
        if self._podman is None or again:
            self._podman = await self._machine.podman.version()
        return self._podman

    def _target(self, podman: Version) -> Target:
        return Target(self._machine.prefix, podman, self._arch, literal(str(self._machine.derived.folder)))

    def names(self, app: AppName) -> Names:
        return Names(self._machine.prefix, app)

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
        where = f"{generation.name.id} {generation.version}"
        return parse_manifest_json(json.loads(generation.manifest), where=where)

    def signed_now(self, app: AppName) -> Manifest:
        """The signed manifest of the generation that holds. Raises NotRunning."""
        return self.signed(self._state.generation(app, self.record(app).generation or 0))

    def choose_ports(self, app: AppName, manifest: Manifest) -> Ports:
        """Host ports for every `auto`. Raises Refused."""
        taken = frozenset((claim.port, claim.protocol) for claim in self.claims_of_others(app))
        return choose_ports(manifest, self._state.choices.ports(app), taken, self.port_problem_of(app))

    def port_problem_of(self, app: AppName) -> Callable[[int, str, str], str]:
        """What prevents the app from having a host port; what it holds itself does not."""
        own = {(claim.port, claim.protocol) for claim in self.running_claims(app)}

        def problem(port: int, bind: str, protocol: str) -> str:
            return "" if (port, protocol) in own else self._machine.host.port_problem(port, bind, protocol)

        return problem

    async def load(self, record: AppRecord) -> Loaded:
        """What holds for an app: its generation, or the one that its first installation is about."""
        if record.generation is not None:
            return await self.load_generation(self._state.generation(record.name, record.generation))
        return await self.load_generation(self._state.generations(record.name)[-1])

    async def load_generation(self, generation: Generation) -> Loaded:
        manifest, names = self.manifest(generation), self.names(generation.name)
        app = render(manifest, names, self._target(await self.podman()))
        return Loaded(manifest, app, Source(names, manifest, generation.root, self._arch))

    def fresh(self, bundle: Bundle, podman: Version) -> Loaded:
        """A generation that is not in the database yet, with the ports it would get now. Raises Refused."""
        app, names = bundle.name, self.names(bundle.name)
        ports = self.choose_ports(app, bundle.manifest)
        manifest = settle(bundle.manifest, self._state.choices.settings(app), ports)
        rendered = render(manifest, names, self._target(podman))
        return Loaded(manifest, rendered, Source(names, manifest, bundle.root, self._arch))

    async def wanted(self, app: AppName, loaded: Loaded, *, running: bool, without: int | None = None) -> Wanted:
        """The app as it should be; images of its other generations are kept, except of `without`."""
        others = [g for g in self._state.generations(app) if g.number != without]
        keep = {c.image for g in others for c in (await self.load_generation(g)).app.containers}
        derived = self.derived(app, loaded, self._machine.secrets.read(app)) if running else ()
        return Wanted(loaded.app, running, frozenset(keep), derived)

    def derived(self, app: AppName, loaded: Loaded, secrets: Mapping[str, str]) -> tuple[DerivedFile, ...]:
        """The derived files of a generation. Raises Problem; Refused for a template that does not work."""
        manifest = loaded.manifest
        if not manifest.derived_files:
            return ()
        if lost := sorted(secret.name for secret in manifest.generated_secrets if secret.name not in secrets):
            # Making it again would give the app another value than Podman holds, and its data was made with.
            raise Problem(
                f"the secret {lost[0]} is lost, so that no file can be derived from it",
                where=app.id,
                remedy="restore it from a backup of the node's home",
            )
        return derive(loaded.source.root, manifest, facts(manifest, secrets, {}))

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
        return Absent(names, tuple(services), tuple(sorted(secrets)), seconds, purge, frozenset(operation.volumes))

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
