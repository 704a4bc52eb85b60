"""Can this user play the demo without the lab? Says why not in words."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

MINIMUM_PODMAN = 5


def why_not_directly() -> str | None:
    """None when an ordinary user has Podman >= 5, a user systemd and a static busybox; else the first thing missing."""
    if os.geteuid() == 0:
        return "this is root, and apps run rootless"
    podman = _output(["podman", "--version"])
    found = re.search(r"(\d+)\.\d+", podman or "")
    if found is None:
        return "there is no podman here"
    if int(found.group(1)) < MINIMUM_PODMAN:
        return f"podman {found.group(0)} is older than {MINIMUM_PODMAN}"
    if _output(["systemctl", "--user", "show", "--property=Version"]) is None:
        return "there is no systemd --user session"
    if shutil.which("busybox") is None:
        return "there is no busybox (Debian: busybox-static)"
    return None


def _output(argv: list[str]) -> str | None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
