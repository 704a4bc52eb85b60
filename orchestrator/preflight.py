"""What the machine lacks for running apps, each finding with the command that mends it. Looks only; changes nothing.

Guarantees: every question has a short deadline of its own and none waits for another, so that a machine in trouble is
told within seconds which part of it is silent.
"""

from __future__ import annotations

import ctypes
import getpass
import math
import os
import re
import shutil
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from pathlib import Path
from typing import Final

import trio

from apps.problems import Problem
from orchestrator.node_service import linger
from orchestrator.podman import RootlessPodman
from orchestrator.process import run
from orchestrator.status import Finding
from orchestrator.systemd import generator_path
from orchestrator.together import all_of

PROGRAMS: Final = {
    "newuidmap": "uidmap",
    "pasta": "passt",
    "netavark": "netavark",
    "aardvark-dns": "aardvark-dns",
    "nft": "nftables",
}
"""What Podman's networks take, and the Debian packages. Netavark's only recommends nftables, and fails without it."""
PLACES: Final = (
    *("/usr/lib/podman", "/usr/libexec/podman", "/usr/local/lib/podman", "/usr/local/libexec/podman"),
    *("/usr/sbin", "/sbin", "/usr/local/sbin"),
)
"""Where Podman looks for its network programs (containers.conf(5), helper_binaries_dir), and where users do not."""

_COUNT: Final = re.compile(r"[0-9]{1,10}")

PATIENCE: Final = 6.0
"""Seconds for an answer, which takes a tenth of one; with the two in which a program may end, and those for what is
asked about the apps at the same time, the doctor is done within ten."""
SILENT_PODMAN: Final = "pgrep --list-full podman shows what may hold its locks: end that, or restart the machine"

MIN_FREE: Final = 2 * 1024**3
"""Bytes: an image and its import, twice over, for an app of ordinary size."""

_TIMEX: Final = 256
"""Bytes: struct timex has 208 on 64 bits (adjtimex(2))."""
_TIME_ERROR: Final = 5
"""adjtimex(2): the clock is not synchronised."""


async def preflight(seconds: float = PATIENCE) -> tuple[Finding, ...]:
    """Every finding, good and bad, within `seconds` and what it takes to end a program.

    Never raises for what is missing.
    """
    podman, systemd, disk = await all_of(
        partial(_within, seconds, "podman", _podman, SILENT_PODMAN),
        partial(_within, seconds, "user systemd", _systemd, "systemctl --user list-jobs; is the machine overloaded?"),
        partial(_within, seconds, "disk", _disk, f"df {Path.home()}: is it a network's, and away?"),
    )
    own = (linger(_user()), _delegation(), _runtime_dir(), _not_root())
    return (podman, _generator(), systemd, *own, *_subids(), *_programs(), disk, _clock())


async def _within(seconds: float, name: str, ask: Callable[[], Awaitable[Finding]], remedy: str) -> Finding:
    with trio.move_on_after(seconds):
        return await ask()
    return Finding(name, False, f"does not answer within {seconds:g} s", remedy)


async def _podman() -> Finding:
    try:
        version = await RootlessPodman().version()
    except Problem as problem:
        return Finding(
            "podman", False, problem.what, problem.remedy or "podman info says why; is the machine overloaded?"
        )
    return Finding("podman", True, ".".join(map(str, version)))


def _generator() -> Finding:
    try:
        return Finding("quadlet", True, generator_path())
    except Problem as problem:
        return Finding("quadlet", False, problem.what, problem.remedy)


async def _systemd() -> Finding:
    remedy = f"loginctl enable-linger {_user()}, then log in as {_user()} (not with su)"
    try:
        done = await run(("systemctl", "--user", "is-system-running"), seconds=math.inf)
    except Problem as problem:
        return Finding("user systemd", False, problem.what, problem.remedy or remedy)
    state = done.stdout.decode(errors="replace").strip()
    if state in ("running", "degraded", "starting"):
        # systemctl(1): degraded is one that works, with units that failed
        told = "; systemctl --user --failed lists what failed" if state == "degraded" else ""
        return Finding("user systemd", True, f"{state}{told}")
    return Finding("user systemd", False, state or done.stderr.strip()[:200], remedy)


def _delegation() -> Finding:
    base = f"/sys/fs/cgroup/user.slice/user-{os.getuid()}.slice/user@{os.getuid()}.service/cgroup.controllers"
    try:
        controllers = set(Path(base).read_text().split())
    except OSError:
        return Finding(
            "cgroup v2", False, "no delegated cgroup for this user", "boot with systemd.unified_cgroup_hierarchy=1"
        )
    lacking = sorted({"memory", "pids", "cpu"} - controllers)
    if lacking:
        # Limits are set through systemd, which passes over a controller that is not there: apps run without.
        return Finding(
            "cgroup v2",
            False,
            f"limits are not enforced: {', '.join(lacking)}",
            "systemctl edit user@.service: [Service] Delegate=cpu cpuset io memory pids",
        )
    return Finding("cgroup v2", True, "memory, pids and cpu limits are enforced")


def _runtime_dir() -> Finding:
    path, own = os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{os.getuid()}"
    if path and os.access(path, os.W_OK):
        return Finding("runtime folder", True, path)
    if not path:
        detail = "XDG_RUNTIME_DIR is not set"
    else:
        detail = f"{path} is not {'writable' if Path(path).exists() else 'there'}"
    return Finding("runtime folder", False, detail, f"export XDG_RUNTIME_DIR={own}")


def _not_root() -> Finding:
    root = os.getuid() == 0
    detail = "apps would run as root" if root else _user()
    return Finding("ordinary user", not root, detail, "run as an ordinary user" if root else "")


def _subids() -> list[Finding]:
    found = []
    for path in ("/etc/subuid", "/etc/subgid"):
        try:
            text = Path(path).read_text(errors="replace")
        except OSError:
            text = ""
        total = subordinate_ids(text, (_user(), str(os.getuid())))
        remedy = f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {_user()}"
        found.append(Finding(path, total >= 65536, f"{total} ids for {_user()}", "" if total >= 65536 else remedy))
    return found


def subordinate_ids(text: str, names: Collection[str]) -> int:
    """How many ids a file like /etc/subuid gives to these names; a line that is none counts nothing. Pure."""
    rows = [line.split(":") for line in text.splitlines()]
    return sum(int(row[2]) for row in rows if len(row) == 3 and row[0] in names and _COUNT.fullmatch(row[2]))


def _programs() -> list[Finding]:
    found = []
    for program, package in PROGRAMS.items():
        path = shutil.which(program) or next((f"{d}/{program}" for d in PLACES if Path(d, program).exists()), "")
        found.append(
            Finding(program, bool(path), path or "not installed", "" if path else f"apt-get install {package}")
        )
    return found


async def _disk() -> Finding:
    home = Path.home()
    try:
        # A network's disk that went away keeps who asks for it for as long as it is away
        usage = await trio.to_thread.run_sync(shutil.disk_usage, home, abandon_on_cancel=True)
    except OSError as error:
        return Finding("disk", False, f"{home}: {error.strerror}", "mount the disk that holds your home folder")
    detail = f"{usage.free / 1024**3:.1f} GiB free of {usage.total / 1024**3:.0f}"
    good = usage.free >= MIN_FREE
    return Finding("disk", good, detail, "" if good else f"free space below {home}: podman image prune, journalctl")


def _clock() -> Finding:
    """Freshness of what publishers sign is judged by this clock; the kernel knows whether it is disciplined."""
    libc = ctypes.CDLL(None, use_errno=True)
    state = libc.adjtimex(ctypes.create_string_buffer(_TIMEX))  # modes=0: only asks
    if state < 0:
        return Finding("clock", True, f"not known to be synchronised: {os.strerror(ctypes.get_errno())}")
    good = state != _TIME_ERROR
    detail = "synchronised" if good else "not synchronised"
    return Finding("clock", good, detail, "" if good else "timedatectl set-ntp true")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
