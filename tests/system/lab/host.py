"""What this machine can give the lab: tools, a Debian mirror, a place for the cache; or why the lab can not run here.

No host name of a mirror is known here: the machine's own package configuration is asked.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from apps.problems import EnvironmentLacks, Problem

__all__ = [
    "LabFault",
    "LabUnavailable",
    "Report",
    "ensure_tools",
    "host_environment",
    "lab_home",
    "mirrors",
    "proxy_settings",
    "why_unavailable",
]

Report = Callable[[str], None]
"""Takes one line for people about what is being done."""

_TOOLS: Mapping[str, str] = {
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "mount": "mount",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "tar": "tar",
    "unshare": "util-linux",
}
"""Command -> the Debian package that brings it."""

_PROBE = ("unshare", "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--net", "--fork", "--kill-child", "true")
_PROBE_SECONDS = 20.0
_APT_SECONDS = 600.0


class LabUnavailable(EnvironmentLacks):
    """This machine can not run the lab."""

    kind = "lab-unavailable"


class LabFault(Problem):
    """The lab itself failed where it should have worked."""

    kind = "lab-fault"


def host_environment() -> dict[str, str]:
    """This process's environment with the administrator's folders on PATH, which a plain `su` leaves out."""
    environment = dict(os.environ)
    environment["PATH"] = f"{environment.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
    return environment


def lab_home() -> Path:
    """The folder that holds cached bases and the folders of running nodes."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(cache) if cache.startswith("/") else Path.home() / ".cache"
    return root / "archipelago-market" / "lab"


def why_unavailable() -> str | None:
    """The reason why nodes can not run here, in a sentence; None when they can. Changes nothing."""
    if platform.system() != "Linux":
        return f"the lab needs Linux, this is {platform.system()}"
    if os.geteuid() != 0:
        return "the lab needs root: it mounts file systems and makes network devices in namespaces of its own"
    filesystems = Path("/proc/filesystems").read_text(encoding="ascii").split()
    for needed in ("overlay", "cgroup2"):
        if needed not in filesystems:
            return f"this kernel has no {needed} (it is not in /proc/filesystems)"
    missing = sorted({package for tool, package in _TOOLS.items() if _which(tool) is None})
    if missing and _which("apt-get") is None:
        return f"the lab needs {', '.join(missing)}, and there is no apt-get to install it with"
    if _which("unshare") is not None:
        probe = subprocess.run(
            _PROBE, env=host_environment(), capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False
        )
        if probe.returncode != 0:
            return (
                f"namespaces are not available here: {probe.stderr.strip() or f'unshare left with {probe.returncode}'}"
            )
    return None


def ensure_tools(report: Report) -> None:
    """Install what the lab needs from the distribution and this machine lacks. Raises LabUnavailable."""
    missing = sorted({package for tool, package in _TOOLS.items() if _which(tool) is None})
    if not missing:
        return
    report(f"installing {', '.join(missing)}")
    environment = host_environment() | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", *missing]):
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_APT_SECONDS, check=False
        )
        if done.returncode != 0:
            raise LabUnavailable(
                f"could not install {', '.join(missing)}: {done.stderr.strip()[-500:]}",
                where=" ".join(command[:2]),
                remedy=f"apt-get install {' '.join(missing)}",
            )


def mirrors() -> tuple[str, ...]:
    """The Debian mirrors that this machine's apt is configured with, likeliest first. Raises LabUnavailable.

    Labels are known only after an `apt-get update`; without them the security archive is told by its path.
    """
    labelled = _index_targets("Label: Debian")
    found = labelled or tuple(uri for uri in _index_targets() if "security" not in uri)
    if not found:
        raise LabUnavailable(
            "apt has no Debian mirror configured", where="apt-get indextargets", remedy="see sources.list(5)"
        )
    return found


def proxy_settings() -> dict[str, str]:
    """The proxy that apt uses, as the variables that debootstrap's downloader reads."""
    found = {}
    for scheme in ("http", "https"):
        value = _output(["apt-config", "shell", "proxy", f"Acquire::{scheme}::Proxy"]).strip()
        if value.startswith("proxy='") and value.endswith("'"):
            found[f"{scheme}_proxy"] = value[len("proxy='") : -1]
    return found


def _index_targets(*filters: str) -> tuple[str, ...]:
    lines = _output(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", *filters])
    return tuple(dict.fromkeys(line.strip().rstrip("/") for line in lines.splitlines() if line.strip()))


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, env=host_environment(), capture_output=True, text=True, timeout=_APT_SECONDS, check=False
        )
    except FileNotFoundError as error:
        raise LabUnavailable("this is not a Debian machine", where=command[0]) from error
    return done.stdout


def _which(tool: str) -> str | None:
    return shutil.which(tool, path=host_environment()["PATH"])
