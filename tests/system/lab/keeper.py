"""The process that a node hangs on: it makes the node's mounts, control group and network device, and removes them.

It reads commands from its standard input, one JSON object per line, and answers on its standard output; the end of its
input is the order to remove everything and leave, so the owner's death by any signal cleans up at once. Should the
keeper itself be killed, the kernel ends the node (PR_SET_PDEATHSIG down to the node's first process, which takes its
pid namespace along) and the next sweep removes the rest.

Runs in a mount namespace of its own:
  unshare --mount --propagation private python -m tests.system.lab.keeper keep RUN_FOLDER LOCK_FD
  unshare --mount --propagation private python -m tests.system.lab.keeper sweep RUNS_FOLDER
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from apps.problems import Problem
from tests.system.lab.host import LabFault, host_environment
from tests.system.lab.run_folder import RunFolder, RunPlan, cgroup_mounted, remove_groups, sweep_dead

__all__ = ["main"]

_BOOT_SCRIPT = Path(__file__).resolve().with_name("boot.sh")
_NAMESPACES_SECONDS = 15.0
"""From the first fork to the node's file systems being in place: a few mounts."""
_STEP_SECONDS = 60.0
_DEATH_SECONDS = 10.0
_SYSTEMD_REBOOT = signal.SIGRTMIN + 5
"""systemd(1): starts reboot.target."""


class Keeper:
    """One node over any number of boots; `root` stays mounted between them, so what was written stays."""

    def __init__(self, folder: RunFolder, plan: RunPlan) -> None:
        self._folder = folder
        self._plan = plan
        self._outer: subprocess.Popen[bytes] | None = None
        """`unshare`, which waits for the node's first process."""
        self._first = 0

    @contextlib.contextmanager
    def mounted(self) -> Iterator[None]:
        """The node's file systems in place; at the end, whatever happened, nothing of the node is left on this host."""
        folder = self._folder
        with cgroup_mounted(folder.cgroup_mount):
            try:
                self._mount_disk()
                self._make_group()
                yield
            finally:
                self._kill()
                folder.remove()

    def boot(self) -> int:
        """Start the node; returns the pid of its systemd as this host sees it. Waits for namespaces, not for units."""
        with self._folder.console.open("ab") as console:
            self._outer = subprocess.Popen(
                self._boot_command(),
                env=host_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=console,
                umask=0o022,
                start_new_session=True,
            )
        assert self._outer.stdin is not None
        assert self._outer.stdout is not None
        try:
            self._wait_namespaces(self._outer.stdout.fileno())
            self._first = self._first_child()
            self._leave_group()
            self._connect()
            self._outer.stdin.write(b"go\n")
        finally:
            self._outer.stdin.close()
            self._outer.stdout.close()
        return self._first

    def reboot(self, *, hard: bool, seconds: float) -> int:
        """Down and up again; `hard` is the pulled plug. Raises LabFault if an orderly shutdown takes too long."""
        outer = self._outer
        if hard or outer is None or outer.poll() is not None:
            self._kill()
        else:
            os.kill(self._first, _SYSTEMD_REBOOT)
            try:
                outer.wait(seconds)
            except subprocess.TimeoutExpired as error:
                raise LabFault(f"did not shut down in {seconds:.0f} s", where=self._plan.name) from error
        # The old namespace's end of the pair may outlive it for a moment.
        subprocess.run(
            ["ip", "link", "delete", self._plan.device], env=host_environment(), capture_output=True, check=False
        )
        remove_groups(self._folder.cgroup, seconds=_DEATH_SECONDS, keep_top=True)
        return self.boot()

    def _boot_command(self) -> list[str]:
        plan, folder = self._plan, self._folder
        return [
            *("setpriv", "--pdeathsig", "KILL"),
            # Joined before the cgroup namespace is made, which makes it that namespace's root.
            *("sh", "-ceu", 'echo $$ > "$1/cgroup.procs"; shift; exec "$@"', "sh", str(folder.cgroup)),
            *("unshare", "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--net", "--fork", "--kill-child"),
            *("sh", str(_BOOT_SCRIPT), str(folder.root), plan.name, plan.address, plan.gateway, plan.machine_id),
        ]

    def _wait_namespaces(self, ready: int) -> None:
        readable, _, _ = select.select([ready], [], [], _NAMESPACES_SECONDS)
        if not readable or os.read(ready, 64) != b"ready\n":
            raise LabFault(f"did not come up:\n{_tail(self._folder.console)}", where=self._plan.name)

    def _first_child(self) -> int:
        assert self._outer is not None
        pid = self._outer.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
        if len(children) != 1:
            raise LabFault(f"expected one first process, found {children}", where=self._plan.name)
        return int(children[0])

    def _leave_group(self) -> None:
        """Move `unshare` out again: systemd can not hand controllers down from a group with a foreign process in it."""
        assert self._outer is not None
        own = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        with contextlib.suppress(OSError):  # where our own group is not visible, there are no controllers either
            (self._folder.cgroup_mount / own.lstrip("/") / "cgroup.procs").write_text(str(self._outer.pid))

    def _connect(self) -> None:
        plan = self._plan
        _run(["ip", "link", "add", plan.device, "type", "veth", "peer", "name", "up0", "netns", str(self._first)])
        _run(["ip", "address", "add", f"{plan.gateway}/30", "dev", plan.device])
        _run(["ip", "link", "set", plan.device, "up"])

    def _mount_disk(self) -> None:
        """The overlay and the homes; in memory where the cache lies on an overlay, which can not be an upper layer."""
        try:
            self._mount_overlay()
        except LabFault:
            _run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(self._folder.disk)])
            self._mount_overlay()
        # Not on the overlay: rootless Podman's own overlay mounts want a plain file system below them.
        homes = self._folder.disk / "home"
        _run(["cp", "-a", f"{self._plan.layers[-1]}/home", str(homes)])
        _run(["mount", "--bind", str(homes), str(self._folder.root / "home")])

    def _mount_overlay(self) -> None:
        disk = self._folder.disk
        for folder in (disk / "upper", disk / "work"):
            folder.mkdir(exist_ok=True)
        lower = ":".join(_escaped(layer) for layer in self._plan.layers)
        options = f"lowerdir={lower},upperdir={_escaped(str(disk / 'upper'))},workdir={_escaped(str(disk / 'work'))}"
        # volatile: a node's disk need not survive the host's power failure, so its syncs can be free.
        _run(["mount", "-t", "overlay", "overlay", "-o", f"{options},volatile", str(self._folder.root)])

    def _make_group(self) -> None:
        group = self._folder.cgroup
        group.mkdir(parents=True)
        # What the host hands down, the node gets; where it keeps controllers in v1 hierarchies that is nothing.
        for controller in (group.parent / "cgroup.controllers").read_text().split():
            with contextlib.suppress(OSError):
                (group.parent / "cgroup.subtree_control").write_text(f"+{controller}")

    def _kill(self) -> None:
        if self._outer is None:
            return
        # The first process takes its pid namespace along; `unshare` ends when all of it is gone.
        with contextlib.suppress(ProcessLookupError):
            if self._first and self._outer.poll() is None:
                os.kill(self._first, signal.SIGKILL)
            else:
                self._outer.kill()
        try:
            self._outer.wait(_DEATH_SECONDS)
        except subprocess.TimeoutExpired:
            self._outer.kill()
            self._outer.wait()


def main(arguments: list[str]) -> int:
    """`keep RUN_FOLDER LOCK_FD` or `sweep RUNS_FOLDER`; see the module's text."""
    # A node's / has the mode of the upper folder that is made here; its ordinary user must be able to enter it.
    os.umask(0o022)
    match arguments:
        case ["keep", path, lock]:
            # Ours for as long as we live, and nobody else's: a lock that a node's process held would outlive us.
            os.set_inheritable(int(lock), False)
            return _keep(RunFolder(Path(path)))
        case ["sweep", path]:
            print(json.dumps(sweep_dead(Path(path))))
            return 0
    print(__doc__, file=sys.stderr)
    return 2


def _keep(folder: RunFolder) -> int:
    plan = folder.plan()
    if plan is None:
        return 2
    for ending in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(ending, _leave)
    keeper = Keeper(folder, plan)
    try:
        with keeper.mounted():
            for line in sys.stdin:
                _answer(_obey(keeper, json.loads(line)))
    except Problem as problem:
        _answer({"fault": str(problem)})
        return 1
    return 0


def _obey(keeper: Keeper, order: Mapping[str, Any]) -> dict[str, Any]:
    match order:
        case {"do": "boot"}:
            return {"first": keeper.boot()}
        case {"do": "reboot", "hard": bool(hard), "seconds": float(seconds)}:
            return {"first": keeper.reboot(hard=hard, seconds=seconds)}
    raise LabFault(f"unknown order {order!r}", where="keeper")


def _answer(answer: Mapping[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # the owner is gone; what is left to do is to clean up
        print(json.dumps(answer), flush=True)


def _leave(number: int, frame: object) -> None:
    # Once: the cleaning that follows must not be cut short by an impatient second signal.
    for ending in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(ending, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command, env=host_environment(), capture_output=True, text=True, timeout=_STEP_SECONDS, check=False
    )
    if done.returncode != 0:
        raise LabFault(f"left with {done.returncode}: {done.stderr.strip()}", where=" ".join(command))


def _escaped(path: str) -> str:
    # Documentation/filesystems/overlayfs: colons separate layers, commas separate options.
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def _tail(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")[-2000:]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
