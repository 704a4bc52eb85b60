"""What an app has that this node did not make: containers that are kept as they run, and places of its data. Values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Home:
    """Where the data of a volume is: a folder of the host, or a volume of Podman that is not this node's."""

    source: str
    relabel: str = ""

    def mounted(self, path: str, *, read_only: bool) -> str:
        """As a unit has it, but for what systemd expands."""
        modes = [*(["ro"] if read_only else []), *([self.relabel] if self.relabel else [])]
        return f"{self.source}:{path}{':' if modes else ''}{','.join(modes)}"


@dataclass(frozen=True, slots=True)
class KeptContainer:
    """A container that is adopted as it is: what it is in the manifest, and the restart policy that Podman had."""

    label: str
    name: str
    id: str
    restart: str = "no"
