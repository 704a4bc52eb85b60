"""Real systemd and real rootless Podman for tests and the demo, on a machine that has neither.

`ensure_base` makes and caches a Debian 13 root file system; `Node.boot` boots a node from it in namespaces; `link` puts
a cable between two. Needs root on Linux; `why_unavailable` says what else is missing.
"""

from tests.system.lab.base import PROJECT, Base, cached_base, ensure_base, remove_stale_bases
from tests.system.lab.commands import CommandFailed, CommandTimedOut, NodeProcess
from tests.system.lab.host import LabFault, LabUnavailable, lab_home, why_unavailable
from tests.system.lab.node import SOURCE, Node, link, sweep

__all__ = [
    "PROJECT",
    "SOURCE",
    "Base",
    "CommandFailed",
    "CommandTimedOut",
    "LabFault",
    "LabUnavailable",
    "Node",
    "NodeProcess",
    "cached_base",
    "ensure_base",
    "lab_home",
    "link",
    "remove_stale_bases",
    "sweep",
    "why_unavailable",
]
