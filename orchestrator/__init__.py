"""Keeps apps running as systemd units: manifest and bundle in, Quadlet units out, reality reconciled.

Knows nothing of Nostr, DIDs or swarms.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from apps.machines import local_arch
from apps.problems import EnvironmentLacks
from orchestrator.adoption import Orphan
from orchestrator.build_folder import BuildFolder
from orchestrator.bundle import Bundle
from orchestrator.derived import DerivedFolder
from orchestrator.engine import Orchestrator
from orchestrator.fixes import fix, safe_fix
from orchestrator.health import ContainerStatus
from orchestrator.host import ThisHost
from orchestrator.machine import Machine, Settings, default_unit_dir
from orchestrator.node_service import NodeService, default_service_dir, linger
from orchestrator.offer import NotAdoptable, Offer
from orchestrator.podman import RootlessPodman
from orchestrator.podman_care import RootlessCare
from orchestrator.preflight import preflight
from orchestrator.preview import render_units
from orchestrator.prober import NetworkProber
from orchestrator.secret_files import SecretFiles
from orchestrator.state import State
from orchestrator.status import AppStatus, Finding, Progress, SettingStatus
from orchestrator.supported import require_supported, unsupported
from orchestrator.systemd import UserSystemd
from orchestrator.triggers import FolderWatch, PodmanEvents
from orchestrator.unit_folder import UnitFolder

__all__ = [
    "AppStatus",
    "Bundle",
    "ContainerStatus",
    "Finding",
    "NodeService",
    "NotAdoptable",
    "Offer",
    "Orchestrator",
    "Orphan",
    "Progress",
    "SettingStatus",
    "Settings",
    "default_service_dir",
    "default_unit_dir",
    "fix",
    "linger",
    "open_orchestrator",
    "preflight",
    "render_units",
    "require_supported",
    "safe_fix",
    "unsupported",
]


@asynccontextmanager
async def open_orchestrator(settings: Settings) -> AsyncIterator[Orchestrator]:
    """Open the state and join it with this machine's systemd and Podman. Raises Problem (StateProblem)."""
    if ":" in str(settings.data_dir):
        raise EnvironmentLacks("the home's path has a colon", where=str(settings.data_dir), remedy="use another path")
    state = State.open(settings.state_db)
    podman = RootlessPodman()
    machine = Machine(
        UserSystemd(),
        podman,
        NetworkProber(podman.addresses),
        ThisHost(),
        UnitFolder(settings.unit_dir, settings.prefix),
        SecretFiles(settings.data_dir / "secrets"),
        settings.data_dir / "staging",
        settings.prefix,
        DerivedFolder(settings.data_dir / "derived"),
        BuildFolder(settings.data_dir / "builds"),
        RootlessCare(),
        (PodmanEvents(settings.prefix), FolderWatch(settings.unit_dir)),
    )
    try:
        yield Orchestrator(settings, state, machine, local_arch())
    finally:
        state.close()
