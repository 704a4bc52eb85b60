"""The folder of one running node, and how everything outside it that belongs to the node is removed.

The folder names all that a node leaves on the host (a control group, a network device), and is written before any of it
is made. Its `lock` is held by the node's keeper: when the kernel has let go of it, the keeper is dead, however it died,
and the folder is anybody's to sweep. Nothing here needs to know what a node is for.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.system.lab.host import LabFault, host_environment

__all__ = ["RunFolder", "RunPlan", "cgroup_mounted", "live_folders", "remove_groups", "sweep_dead"]

_GROUP = "archipelago-lab"
"""The control group over those of all nodes."""

_REMOVE_SECONDS = 120.0
_DEATH_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What a node's keeper has to make. Addresses are IPv4; device names have at most 15 characters."""

    name: str
    layers: tuple[str, ...]
    address: str
    gateway: str
    device: str
    machine_id: str


@dataclass(frozen=True, slots=True)
class RunFolder:
    """`path` holds node.json, lock, logs, disk/ (what the node wrote), and the mount points root/ and cgroup/."""

    path: Path

    @property
    def disk(self) -> Path:
        return self.path / "disk"

    @property
    def root(self) -> Path:
        return self.path / "root"

    @property
    def console(self) -> Path:
        return self.path / "console.log"

    @property
    def keeper_log(self) -> Path:
        return self.path / "keeper.log"

    @property
    def cgroup_mount(self) -> Path:
        return self.path / "cgroup"

    @property
    def cgroup(self) -> Path:
        """The node's own group, where cgroup v2 is mounted at `cgroup_mount`."""
        return self.cgroup_mount / _GROUP / self.path.name

    def create(self, plan: RunPlan) -> int:
        """Make the folder and return the descriptor of its lock, already held; it can be handed to another process."""
        self.path.mkdir(parents=True)
        lock = os.open(self.path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (self.path / "node.json").write_text(json.dumps(asdict(plan)), encoding="utf-8")
        for folder in (self.disk, self.root, self.cgroup_mount):
            folder.mkdir()
        return lock

    def plan(self) -> RunPlan | None:
        """None where the maker died before it was written: then nothing else was made either."""
        try:
            read = json.loads((self.path / "node.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return RunPlan(**(read | {"layers": tuple(read["layers"])}))

    def remove(self) -> None:
        """Kill what still lives in the node's group, then remove device, group, mounts and folder.

        For the keeper at its end and for the sweeper after a keeper's death; needs a private mount namespace with
        cgroup v2 at `cgroup_mount`. Raises LabFault if processes outlive SIGKILL.
        """
        self._remove_group()
        plan = self.plan()
        if plan is not None:
            _quietly(["ip", "link", "delete", plan.device])
        for mounted in reversed(_mounts_below(self.path)):
            _quietly(["umount", "--lazy", mounted])
        left = _mounts_below(self.path)
        if left:
            raise LabFault(f"still mounted, so nothing below is removed: {', '.join(left)}", where=str(self.path))
        # One file system: should a mount be there after all, what is under it is not ours.
        subprocess.run(["rm", "-rf", "--one-file-system", str(self.path)], check=True, timeout=_REMOVE_SECONDS)

    def _remove_group(self) -> None:
        if not self.cgroup.is_dir():
            return
        (self.cgroup / "cgroup.kill").write_text("1")
        remove_groups(self.cgroup, seconds=_DEATH_SECONDS)
        with contextlib.suppress(OSError):  # another node's group is still in it
            self.cgroup.parent.rmdir()


def remove_groups(top: Path, *, seconds: float, keep_top: bool = False) -> None:
    """Remove a control group and all below it, depth first, waiting for the dead to be gone. Raises LabFault."""
    deadline = time.monotonic() + seconds
    while True:
        left = ""
        for folder, _, _ in os.walk(top, topdown=False):
            if keep_top and folder == str(top):
                continue
            try:
                os.rmdir(folder)
            except OSError as error:
                left = f"{folder}: {error.strerror}"
        if not left:
            return
        if time.monotonic() > deadline:
            raise LabFault(f"control group not empty after {seconds:.0f} s: {left}", where=str(top))
        time.sleep(0.01)


@contextlib.contextmanager
def cgroup_mounted(at: Path) -> Iterator[None]:
    """cgroup v2 at this folder; the caller is in a mount namespace of its own."""
    subprocess.run(["mount", "-t", "cgroup2", "cgroup2", str(at)], check=True, env=host_environment())
    try:
        yield
    finally:
        _quietly(["umount", "--lazy", str(at)])


def live_folders(runs: Path) -> tuple[RunFolder, ...]:
    """Every folder there is, whoever owns it, swept or not."""
    if not runs.is_dir():
        return ()
    return tuple(RunFolder(path) for path in sorted(runs.iterdir()) if path.is_dir())


def sweep_dead(runs: Path) -> tuple[str, ...]:
    """Remove what dead keepers left; returns the names of the folders. In a private mount namespace, as root."""
    swept = []
    for folder in live_folders(runs):
        lock_path = folder.path / "lock"
        try:
            lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            folder.cgroup_mount.mkdir(exist_ok=True)
            with cgroup_mounted(folder.cgroup_mount):
                folder.remove()
            swept.append(folder.path.name)
        finally:
            os.close(lock)
    return tuple(swept)


def _mounts_below(path: Path) -> list[str]:
    # proc_pid_mountinfo(5): the fifth field, with blanks and the like as octal escapes.
    found = []
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), line.split(" ")[4])
        if point.startswith(f"{path}/"):
            found.append(point)
    return found


def _quietly(command: list[str]) -> None:
    subprocess.run(command, env=host_environment(), capture_output=True, timeout=_REMOVE_SECONDS, check=False)
