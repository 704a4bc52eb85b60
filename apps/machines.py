"""Architectures as OCI images name them."""

from __future__ import annotations

import platform
from typing import Final

from apps.problems import EnvironmentLacks

_MACHINES: Final = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64", "riscv64": "riscv64"}
"""uname -m to GOARCH, as the OCI image specification wants architectures."""


def local_arch(machine: str | None = None) -> str:
    """This machine's architecture as OCI names it. Raises EnvironmentLacks for one this project does not know."""
    name = machine or platform.machine()
    if name not in _MACHINES:
        raise EnvironmentLacks(f"no images are known for the machine {name!r}", remedy="amd64 and arm64 are known")
    return _MACHINES[name]
