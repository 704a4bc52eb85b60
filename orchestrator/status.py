"""What the orchestrator tells others: an app's status, progress of an operation, findings about the machine. Values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from apps.manifest import Manifest
from apps.names import AppName
from orchestrator.health import ContainerStatus
from orchestrator.settled import settle

PHASES: Final = ("verify", "import", "build", "write", "start", "health", "done")
"""The phases of an installation, in order."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an installation is. `phase` is one of PHASES; `step` of `steps` within it."""

    app: AppName
    phase: str
    detail: str = ""
    step: int = 0
    steps: int = 0


@dataclass(frozen=True, slots=True)
class AppStatus:
    """An app for people. `desired` is the user's word; `state` what is seen."""

    name: AppName
    version: str
    digest: str
    desired: str
    state: str
    containers: tuple[ContainerStatus, ...]
    urls: tuple[str, ...]
    units: tuple[str, ...]
    detail: str = ""
    journal: tuple[str, ...] = ()
    """Names under which the journal has what its containers write."""
    adopted: bool = False
    """It runs in containers that somebody else made, and has no units yet (ADR 12)."""

    def to_json(self) -> dict[str, object]:
        return {
            "publisher": self.name.publisher,
            "id": self.name.id,
            "version": self.version,
            "digest": self.digest,
            "desired": self.desired,
            "state": self.state,
            "containers": [container.to_json() for container in self.containers],
            "urls": list(self.urls),
            "units": list(self.units),
            "detail": self.detail,
            "journal": list(self.journal),
            "adopted": self.adopted,
        }


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; when it is not ok, the remedy is the command that mends it."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""

    def to_json(self) -> dict[str, object]:
        return {"name": self.name, "ok": self.ok, "detail": self.detail, "remedy": self.remedy}


@dataclass(frozen=True, slots=True)
class SettingStatus:
    """One setting of an app: `value` is what holds, `default` what its publisher wrote."""

    name: str
    type: str
    title: str
    value: str
    default: str

    def to_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "type": self.type,
            "title": self.title,
            "value": self.value,
            "default": self.default,
        }


def setting_statuses(manifest: Manifest, values: Mapping[str, str]) -> tuple[SettingStatus, ...]:
    """Every setting of a signed manifest under the operator's values."""
    now = {setting.name: setting.default for setting in settle(manifest, values, {}).settings}
    return tuple(SettingStatus(s.name, s.type, s.title, now[s.name], s.default) for s in manifest.settings)


def urls(manifest: Manifest, lan_address: str) -> tuple[str, ...]:
    """Where a person opens the app: first from this machine, then from the local network."""
    found = []
    ports = {port.name: port for container in manifest.containers.values() for port in container.ports}
    for interface in manifest.interfaces:
        port = ports.get(interface.port)
        if interface.type != "ui" or port is None or not isinstance(port.host, int):
            continue
        found.append(f"http://127.0.0.1:{port.host}{interface.path}")
        if port.bind == "lan" and lan_address:
            found.append(f"http://{lan_address}:{port.host}{interface.path}")
    return tuple(found)
