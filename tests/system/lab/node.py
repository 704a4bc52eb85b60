"""A node: a Debian 13 with systemd as its first process, a user `op`, rootless Podman, and this project's source.

What it guarantees: it starts from the same base every time and never changes it; when `Node.boot` returns, op's user
manager and network-online.target are reached; after `stop`, or the death of this process by whatever signal, nothing of
it is left on the host. Every method that waits has a deadline in seconds. Nothing here is async: a caller that must not
block uses a thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

from tests.system.lab.base import PROJECT, Base, file_lock
from tests.system.lab.commands import CommandFailed, CommandTimedOut, Entrance, NodeProcess, User
from tests.system.lab.host import LabFault, host_environment, lab_home
from tests.system.lab.network import Pair, choose_pair, connect_namespaces, device_name, host_networks, route_over
from tests.system.lab.run_folder import RunFolder, RunPlan, live_folders

__all__ = ["SOURCE", "Node", "link", "sweep"]

SOURCE = "/opt/archy/src"
"""Where a node has this project's source, owned by `op`."""

_SOURCE_TREES = ("apps", "market", "orchestrator", "tests", "bench", "pyproject.toml")
_KEEPER = ("unshare", "--mount", "--propagation", "private", sys.executable, "-m", "tests.system.lab.keeper")

_BOOT_SECONDS = 60.0
_ANSWER_SECONDS = 30.0
_STOP_SECONDS = 60.0
_SWEEP_SECONDS = 180.0
_COPY_SECONDS = 120.0
_POLL_SECONDS = 0.01


class Node:
    """One running node, made by `Node.boot`. A context manager that stops it at the end."""

    def __init__(self, folder: RunFolder, plan: RunPlan, keeper: subprocess.Popen[bytes]) -> None:
        self._folder = folder
        self._plan = plan
        self._keeper = keeper
        self._entrance: Entrance | None = None
        self._cables: list[tuple[Node, Pair]] = []
        self._logs = 0

    @classmethod
    def boot(cls, base: Base, name: str = "node", *, home: Path | None = None) -> Self:
        """Boot a node and return it when it is ready, a few seconds later. Raises LabFault.

        Whatever dead owners left behind is swept first. `name` is its host name: letters, digits and hyphens.
        """
        runs = (home or lab_home()) / "runs"
        with file_lock(runs.with_name("runs.lock")):
            _sweep_locked(runs)
            node = cls(*_start_keeper(base, name, runs))
        try:
            node._boot_first()
        except BaseException:
            with contextlib.suppress(LabFault):
                node.stop()
            raise
        return node

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"Node({self.name!r}, {self.address})"

    @property
    def name(self) -> str:
        """Its host name."""
        return self._plan.name

    @property
    def address(self) -> str:
        """The IPv4 address at which this host, and every linked node, reaches it."""
        return self._plan.address

    @property
    def gateway(self) -> str:
        """This host's address as the node sees it."""
        return self._plan.gateway

    @property
    def device(self) -> str:
        """The host's end of its cable."""
        return self._plan.device

    @property
    def folder(self) -> Path:
        """Its folder on this host; gone after `stop`."""
        return self._folder.path

    @property
    def first(self) -> int:
        """The pid, on this host, of its systemd. Another one after each reboot. Raises LabFault when it is stopped."""
        return self._way_in().first

    def run(
        self,
        argv: Sequence[str],
        *,
        user: User = "op",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        input: str | None = None,  # noqa: A002 - subprocess.run calls it so
        timeout: float = 60.0,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, as after a login of that user, with nothing of this process's environment.

        Raises CommandFailed (if `check`) and CommandTimedOut; both carry what it said.
        """
        done = self._run(argv, user, env, cwd, None if input is None else input.encode(), timeout)
        stdout, stderr = (data.decode("utf-8", errors="replace") for data in (done.stdout, done.stderr))
        if check and done.returncode != 0:
            raise CommandFailed(argv, done.returncode, stdout, stderr, where=self.name)
        return subprocess.CompletedProcess(list(argv), done.returncode, stdout, stderr)

    def popen(
        self,
        argv: Sequence[str],
        *,
        user: User = "op",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: int | IO[bytes] | None = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
    ) -> NodeProcess:
        """Start a program that goes on. Without `stdout`, what it says goes to a log for `output` and `wait_output`."""
        if stdout is not None:
            return self._way_in().start(argv, user=user, env=env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=None)
        self._logs += 1
        log = self.folder / f"output-{self._logs}.log"
        with log.open("wb") as target:
            return self._way_in().start(
                argv, user=user, env=env, cwd=cwd, stdin=stdin, stdout=target, stderr=subprocess.STDOUT, log=log
            )

    def shell(self, argv: Sequence[str] = ("/bin/bash", "-l"), *, user: User = "op") -> int:
        """An interactive program on this process's terminal; its exit code."""
        env = {"TERM": host_environment().get("TERM", "dumb")}
        process = self._way_in().start(argv, user=user, env=env, stdin=None, stdout=None, stderr=None, terminal=True)
        return process.popen.wait()

    def wait_until(self, argv: Sequence[str], timeout: float, *, user: User = "op", every: float = 0.1) -> str:
        """Run a program again and again until it leaves with 0; what it said then. Raises CommandTimedOut."""
        deadline = time.monotonic() + timeout
        while True:
            done = self.run(argv, user=user, timeout=max(deadline - time.monotonic(), 1.0), check=False)
            if done.returncode == 0:
                return done.stdout
            if time.monotonic() > deadline:
                raise CommandTimedOut(
                    f"{' '.join(argv)}: not so in {timeout:g} s; last: {done.stdout}{done.stderr}", where=self.name
                )
            time.sleep(every)

    def push(self, source: Path, dest: str, *, user: User = "op") -> None:
        """Copy a file to the path `dest`, or a folder's contents into the folder `dest`, owned by that user."""
        if source.is_dir():
            self._push_trees(source, ["."], dest, user)
        else:
            self.write(dest, source.read_bytes(), user=user, mode=source.stat().st_mode & 0o777)

    def pull(self, source: str, dest: Path, *, user: User = "op") -> None:
        """Copy the contents of a folder of the node into a folder of this host, which is made if it is not there."""
        dest.mkdir(parents=True, exist_ok=True)
        packing = self._way_in().start(["tar", "-C", source, "-cf", "-", "."], user=user)
        unpacked = subprocess.run(
            ["tar", "-C", str(dest), "-xf", "-", "--no-same-owner"],
            stdin=packing.popen.stdout,
            capture_output=True,
            text=True,
            timeout=_COPY_SECONDS,
            check=False,
        )
        _, said = packing.communicate(None, _COPY_SECONDS)
        if packing.returncode != 0 or unpacked.returncode != 0:
            raise CommandFailed(
                ["tar", source], packing.returncode or 0, said.decode(), unpacked.stderr, where=self.name
            )

    def write(self, path: str, data: bytes, *, user: User = "op", mode: int = 0o644) -> None:
        """Write a file, and the folders over it, as that user."""
        script = 'mkdir -p "$(dirname "$1")" && cat > "$1" && chmod "$2" "$1"'
        argv = ["sh", "-c", script, "sh", path, f"{mode:o}"]
        done = self._run(argv, user, None, None, data, _COPY_SECONDS)
        if done.returncode != 0:
            raise CommandFailed(["write", path], done.returncode, "", done.stderr.decode(), where=self.name)

    def read(self, path: str) -> bytes:
        """A file's bytes, read by root inside the node, where its symbolic links mean what they should."""
        done = self._run(["cat", "--", path], "root", None, None, None, _COPY_SECONDS)
        if done.returncode != 0:
            raise CommandFailed(["cat", path], done.returncode, "", done.stderr.decode(), where=self.name)
        return done.stdout

    def journal(self, lines: int = 200) -> str:
        """The end of the journal, all units and users, over all boots."""
        argv = ["journalctl", "--no-pager", "--output=short-precise", "--no-hostname", f"--lines={lines}"]
        return self.run(argv, user="root", timeout=_ANSWER_SECONDS).stdout

    def console(self) -> str:
        """What was said before the journal began; empty after `stop`."""
        with contextlib.suppress(FileNotFoundError):
            return self._folder.console.read_text(encoding="utf-8", errors="replace")
        return ""

    def reboot(self, *, hard: bool = False, timeout: float = 120.0) -> None:
        """Down and up again with the same disk and links: in order, or `hard`, as if the plug had been pulled."""
        order = {"do": "reboot", "hard": hard, "seconds": timeout}
        self._entrance = Entrance(self.name, int(self._order(order, timeout + _ANSWER_SECONDS)["first"]))
        self.wait_ready(_BOOT_SECONDS)
        for other, pair in self._cables:
            self._lay(other, pair)

    def stop(self) -> None:
        """End it at once and remove everything of it. Does nothing the second time."""
        if self._keeper.stdin is None or self._keeper.stdin.closed:
            return
        self._entrance = None
        self._keeper.stdin.close()
        try:
            self._keeper.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired as error:
            self._keeper.kill()
            self._keeper.wait()
            raise LabFault(f"its keeper had to be killed:\n{self._keeper_said()}", where=self.name) from error
        finally:
            if self._keeper.stdout is not None:
                self._keeper.stdout.close()
        for other, _ in self._cables:
            other._cables = [(end, pair) for end, pair in other._cables if end is not self]
        if self._keeper.returncode != 0:
            raise LabFault(f"its keeper failed:\n{self._keeper_said()}", where=self.name)

    def _boot_first(self, timeout: float = _BOOT_SECONDS) -> None:
        self._entrance = Entrance(self.name, int(self._order({"do": "boot"}, _ANSWER_SECONDS)["first"]))
        self.wait_ready(timeout)
        trees = [tree for tree in _SOURCE_TREES if (PROJECT / tree).exists()]
        self._push_trees(PROJECT, trees, SOURCE, "op")

    def wait_ready(self, timeout: float) -> None:
        """Wait for systemd, op's user manager and the network. Raises LabFault with the console's and journal's end."""
        deadline = time.monotonic() + timeout
        try:
            socket = Path(f"/proc/{self.first}/root/run/systemd/private")
            while not socket.exists():
                if time.monotonic() > deadline:
                    raise CommandTimedOut(f"systemd does not answer after {timeout:g} s", where=self.name)
                time.sleep(_POLL_SECONDS)
            wait = ["systemctl", "is-system-running", "--wait"]
            self.run(wait, user="root", timeout=max(deadline - time.monotonic(), 1.0), check=False)
            units = ["network-online.target", "user@1000.service"]
            self.run(["systemctl", "start", *units], user="root", timeout=max(deadline - time.monotonic(), 1.0))
            wait.insert(1, "--user")
            self.run(wait, timeout=max(deadline - time.monotonic(), 1.0), check=False)
        except (CommandFailed, CommandTimedOut) as error:
            said = self.console()[-2000:]
            with contextlib.suppress(CommandFailed, CommandTimedOut):
                said += self.journal(80)
            raise LabFault(f"did not get ready: {error.what}\n{said}", where=self.name) from error

    def _lay(self, other: Node, pair: Pair) -> None:
        connect_namespaces(self.first, other.first, device_name("lk"), pair)
        route_over(self.first, other.address, pair.far, self.address)
        route_over(other.first, self.address, pair.near, other.address)

    def _way_in(self) -> Entrance:
        if self._entrance is None:
            raise LabFault("is not running", where=self.name)
        return self._entrance

    def _run(
        self,
        argv: Sequence[str],
        user: User,
        env: Mapping[str, str] | None,
        cwd: str | None,
        data: bytes | None,
        timeout: float,
    ) -> subprocess.CompletedProcess[bytes]:
        stdin = subprocess.DEVNULL if data is None else subprocess.PIPE
        process = self._way_in().start(argv, user=user, env=env, cwd=cwd, stdin=stdin)
        stdout, stderr = process.communicate(data, timeout)
        return subprocess.CompletedProcess(list(argv), process.popen.returncode, stdout, stderr)

    def _push_trees(self, parent: Path, names: Sequence[str], dest: str, user: User) -> None:
        packing = subprocess.Popen(
            ["tar", "-C", str(parent), "--exclude=__pycache__", "--exclude=.git", "-cf", "-", *names],
            stdout=subprocess.PIPE,
        )
        assert packing.stdout is not None
        script = 'mkdir -p "$1" && exec tar -C "$1" -xf - --no-same-owner'
        unpacking = self._way_in().start(["sh", "-c", script, "sh", dest], user=user, stdin=packing.stdout)
        packing.stdout.close()
        _, said = unpacking.communicate(None, _COPY_SECONDS)
        if packing.wait(_COPY_SECONDS) != 0 or unpacking.returncode != 0:
            raise CommandFailed(["tar", dest], unpacking.returncode or 0, "", said.decode(), where=self.name)

    def _order(self, order: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # its answer, or the lack of one, tells why
            self._keeper.stdin.write(json.dumps(order).encode() + b"\n")
            self._keeper.stdin.flush()
        readable, _, _ = select.select([self._keeper.stdout], [], [], seconds)
        line = self._keeper.stdout.readline() if readable else b""
        answer: dict[str, Any] = json.loads(line) if line else {"fault": f"no answer:\n{self._keeper_said()}"}
        if "fault" in answer:
            raise LabFault(str(answer["fault"]), where=self.name)
        return answer

    def _keeper_said(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return self._folder.keeper_log.read_text(encoding="utf-8", errors="replace")[-2000:]
        return ""


def link(first: Node, second: Node) -> None:
    """A cable between two nodes: from now on, over reboots too, each reaches the other's `address`."""
    with file_lock(first.folder.parent.with_name("runs.lock")):
        taken = _taken(first.folder.parent) + [pair.near for _, pair in first._cables + second._cables]
        pair = choose_pair(taken)
    first._lay(second, pair)
    first._cables.append((second, pair))
    second._cables.append((first, Pair(near=pair.far, far=pair.near)))


def sweep(home: Path | None = None) -> tuple[str, ...]:
    """Remove what owners that died left behind; the names of their folders. Nodes that are in use stay."""
    runs = (home or lab_home()) / "runs"
    with file_lock(runs.with_name("runs.lock")):
        return _sweep_locked(runs)


def _sweep_locked(runs: Path) -> tuple[str, ...]:
    if not live_folders(runs):
        return ()
    done = subprocess.run(
        [*_KEEPER, "sweep", str(runs)],
        cwd=PROJECT,
        env=host_environment(),
        capture_output=True,
        text=True,
        timeout=_SWEEP_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise LabFault(f"could not sweep:\n{done.stderr[-2000:]}", where=str(runs))
    return tuple(json.loads(done.stdout))


def _taken(runs: Path) -> list[str]:
    plans = [folder.plan() for folder in live_folders(runs)]
    return [*host_networks(), *(plan.address for plan in plans if plan is not None)]


def _start_keeper(base: Base, name: str, runs: Path) -> tuple[RunFolder, RunPlan, subprocess.Popen[bytes]]:
    pair = choose_pair(_taken(runs))
    plan = RunPlan(
        name=name,
        layers=tuple(str(layer) for layer in base.layers),
        address=pair.far,
        gateway=pair.near,
        device=device_name("lab"),
        machine_id=secrets.token_hex(16),
    )
    folder = RunFolder(runs / f"{name}-{secrets.token_hex(4)}")
    lock = folder.create(plan)
    try:
        with folder.keeper_log.open("wb") as log:
            keeper = subprocess.Popen(
                [*_KEEPER, "keep", str(folder.path), str(lock)],
                cwd=PROJECT,
                env=host_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=[lock],
                # Ctrl-C is the owner's to handle; the keeper sees its end of input.
                start_new_session=True,
            )
    finally:
        # The keeper holds it now, and it is let go of when the keeper ends.

        os.close(lock)
    return folder, plan, keeper
