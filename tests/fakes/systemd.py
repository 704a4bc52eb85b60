"""A pretended user systemd with Quadlet's generator. Held to the same contract suite as the real one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.quadlet.keys import SINCE
from orchestrator.quadlet.text import keys_of, parse
from orchestrator.systemd import DryRun, UnitState
from tests.fakes.podman_machine import Machine, Service


class FakeSystemd:
    """`machine` is what it shares with the pretended Podman."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    async def show(self, prefix: str, services: Sequence[str], *, brief: bool = False) -> dict[str, UnitState]:
        self._machine.enter("systemd", "show")
        running = {name for name in self._machine.services if name.startswith(f"{prefix}-")}
        states = [self._state(name) for name in (*services, *sorted(running))]
        if brief:
            states = [UnitState(s.name, s.load, s.active, s.sub) if s.active == "active" else s for s in states]
        return {state.name: state for state in states}

    def _state(self, name: str) -> UnitState:
        machine = self._machine
        service = machine.services.get(name, Service())
        loaded = name in machine.loaded
        return UnitState(
            name,
            "loaded" if loaded else "not-found",
            service.active,
            service.sub,
            "exit-code" if service.active == "failed" else "success",
            service.restarts,
            loaded and machine.stale(name),
            "/user.slice/apps.slice" if service.active == "active" else "",
            service.since if loaded else None,
            service.ended,
        )

    async def daemon_reload(self) -> None:
        self._machine.enter("systemd", "daemon_reload")
        self._machine.reload()

    async def start(self, services: Sequence[str], *, seconds: float) -> None:
        self._machine.enter("systemd", "start", " ".join(services))
        for service in services:
            self._machine.start(service)

    async def stop(self, services: Sequence[str], *, seconds: float) -> None:
        self._machine.enter("systemd", "stop", " ".join(services))
        for service in services:
            self._machine.stop(service)

    async def restart(self, services: Sequence[str], *, seconds: float) -> None:
        self._machine.enter("systemd", "restart", " ".join(services))
        for service in services:
            self._machine.stop(service)
            self._machine.start(service)

    async def reset_failed(self, services: Sequence[str]) -> None:
        self._machine.enter("systemd", "reset_failed")
        for service in services:
            if (state := self._machine.services.get(service)) is not None and state.active == "failed":
                del self._machine.services[service]

    async def dry_run(self, folder: Path) -> DryRun:
        self._machine.enter("systemd", "dry_run")
        return _generate(folder)

    async def journal(self, containers: Sequence[str], *, lines: int) -> list[str]:
        self._machine.enter("systemd", "journal")
        return [f"{name}: started" for name in containers if name in self._machine.containers][-lines:]

    async def said(self, service: str, *, lines: int) -> list[str]:
        self._machine.enter("systemd", "said", service)
        return self._machine.builds.said.get(service, [])[-lines:]


def _generate(folder: Path) -> DryRun:
    made, complaints = set(), []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            continue
        unit = parse(path.name, path.read_text())
        section = path.suffix[1:].title()
        unknown = [key for at, key in keys_of(unit) if at == section and key not in SINCE[section]]
        if unknown:
            complaints.append(f'converting "{path.name}": unsupported key {unknown[0]!r} in group {section!r}')
            continue
        stem = path.stem if section == "Container" else f"{path.stem}-{path.suffix[1:]}"
        made.add(f"{stem}.service")
    return DryRun(frozenset(made), tuple(complaints))
