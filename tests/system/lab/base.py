"""The cached base of every node: a Debian 13 root file system, and the project's locked dependencies as a layer on it.

Each is built in a temporary folder and renamed when it is whole, under a lock, so that a killed builder leaves nothing
that could be taken for finished and two builders do the work once. The name of each is a digest of everything that
went into it. Nothing here is ever written to by a node.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.system.lab.dependencies import NODE_PYTHON, node_requirements, platform_tags
from tests.system.lab.host import (
    LabFault,
    LabUnavailable,
    Report,
    ensure_tools,
    host_environment,
    lab_home,
    mirrors,
    proxy_settings,
    why_unavailable,
)

__all__ = ["PROJECT", "Base", "cached_base", "ensure_base", "file_lock", "remove_stale_bases"]

PROJECT = Path(__file__).resolve().parents[3]
_HERE = Path(__file__).resolve().parent

_SUITE = "trixie"
_PACKAGES = (
    # What a node is.
    *("systemd", "systemd-sysv", "dbus", "dbus-user-session", "libpam-systemd", "python3", "ca-certificates"),
    # Rootless Podman; nftables is only recommended by netavark, which does not start without it.
    *("podman", "uidmap", "passt", "crun", "netavark", "aardvark-dns", "nftables", "fuse-overlayfs", "catatonit"),
    # What tests look at it with, and the whole contents of the hello app's image.
    *("iproute2", "procps", "curl", "busybox-static"),
)
_REVISION = 1
"""Count up when this file's own steps change in a way that the files and lists below do not show."""

_UMASK = 0o022
"""Whatever the builder's own is: a node's ordinary user reads all of this."""
_DEBOOTSTRAP_SECONDS = 900.0
_STEP_SECONDS = 300.0
_MIRROR_SECONDS = 20.0
_CONTAINED = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private")
"""A builder's children die with it, and what they mount is seen by nobody else and gone with them."""
_CONTAINED_PIDS = ("--pid", "--fork", "--kill-child", "--mount-proc")


@dataclass(frozen=True, slots=True)
class Base:
    """Two finished folders, both read-only to every node: the site layer lies over the root file system."""

    rootfs: Path
    site: Path

    @property
    def layers(self) -> tuple[Path, Path]:
        """Topmost first, the order of overlayfs' lowerdir."""
        return self.site, self.rootfs


def cached_base(home: Path | None = None) -> Base | None:
    """The base as this checkout wants it, if it is already built."""
    base = _wanted(home or lab_home())
    return base if base.rootfs.is_dir() and base.site.is_dir() else None


def ensure_base(report: Report, home: Path | None = None) -> Base:
    """Build what is missing (one to three minutes the first time) and return the base.

    Raises LabUnavailable where this machine can not do it, LabFault where a step failed that should have worked.
    """
    base = cached_base(home)
    if base is not None:
        return base
    reason = why_unavailable()
    if reason is not None:
        raise LabUnavailable(reason, where="lab")
    ensure_tools(report)
    base = _wanted(home or lab_home())
    base.rootfs.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(base.rootfs.parent / "build.lock", waiting=lambda: report("another builder is at work, waiting")):
        _remove_unfinished(base.rootfs.parent)
        _build_once(base.rootfs, lambda into: _build_rootfs(into, report))
        _build_once(base.site, lambda into: _build_site(base.rootfs, into, report))
    return base


def remove_stale_bases(*, current_too: bool = False, home: Path | None = None) -> tuple[Path, ...]:
    """Remove cached bases that this checkout does not use, and return them. No node may be using one."""
    wanted = _wanted(home or lab_home())
    folder = wanted.rootfs.parent
    if not folder.is_dir():
        return ()
    with file_lock(folder / "build.lock"):
        _remove_unfinished(folder)
        keep = set() if current_too else {wanted.rootfs, wanted.site}
        stale = tuple(
            path for path in sorted(folder.iterdir()) if path.name.startswith(("rootfs-", "site-")) and path not in keep
        )
        for path in stale:
            _discard(path)
    return stale


@contextlib.contextmanager
def file_lock(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold an exclusive lock that the kernel lets go of when this process ends, however it ends (flock(2))."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is not None:
                waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _wanted(home: Path) -> Base:
    rootfs_key = _digest(
        _SUITE, platform.machine(), *_PACKAGES, str(_REVISION), *_tree_parts(_HERE / "rootfs"), _text("provision.sh")
    )
    site_key = _digest(rootfs_key, (PROJECT / "requirements.lock").read_text(), _text("dependencies.py"))
    return Base(home / "bases" / f"rootfs-{rootfs_key}", home / "bases" / f"site-{site_key}")


def _text(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _tree_parts(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield f"{path.relative_to(folder)} {path.stat().st_mode & 0o111:o}"
            yield path.read_text(encoding="utf-8")


def _digest(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:16]


def _build_once(target: Path, build: Callable[[Path], None]) -> None:
    if target.is_dir():
        return
    unfinished = Path(tempfile.mkdtemp(prefix="tmp-", dir=target.parent))
    unfinished.chmod(0o755)
    try:
        build(unfinished)
    except BaseException:
        # Also on Ctrl-C: half a gigabyte should not wait for the next builder.
        _discard(unfinished)
        raise
    os.sync()
    unfinished.rename(target)


def _remove_unfinished(folder: Path) -> None:
    for path in folder.glob("tmp-*"):
        _discard(path)


def _discard(folder: Path) -> None:
    # Renamed first: a removal that is cut short must not leave a base that looks whole.
    doomed = folder if folder.name.startswith("tmp-") else folder.rename(folder.with_name(f"tmp-{folder.name}"))
    subprocess.run(["rm", "-rf", "--one-file-system", str(doomed)], check=True, timeout=_STEP_SECONDS)


def _build_rootfs(into: Path, report: Report) -> None:
    report(f"building the node's root file system (Debian {_SUITE}, once)")
    mirror = _reachable_mirror()
    command = [
        *_CONTAINED,
        *_CONTAINED_PIDS,
        *("debootstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", _SUITE, str(into), mirror),
    ]
    _run_phases(command, report)
    report("setting the node up")
    _lay_over(_HERE / "rootfs", into)
    script = into / "tmp" / "provision.sh"
    script.write_text(_text("provision.sh"), encoding="utf-8")
    _run([*_CONTAINED, *_CONTAINED_PIDS, "chroot", str(into), "/bin/sh", "/tmp/provision.sh"], "provision.sh")
    script.unlink()


def _lay_over(tree: Path, into: Path) -> None:
    """Copy files and folders with modes of their own, since those of a checkout follow its owner's umask."""
    for source in sorted(tree.rglob("*")):
        target = into / source.relative_to(tree)
        if not source.is_dir():
            target.write_bytes(source.read_bytes())
            target.chmod(0o755 if source.stat().st_mode & 0o100 else 0o644)
        elif not target.is_dir():
            target.mkdir()
            target.chmod(0o755)


def _reachable_mirror() -> str:
    tried = []
    for mirror in mirrors():
        handlers = [urllib.request.ProxyHandler({k.removesuffix("_proxy"): v for k, v in proxy_settings().items()})]
        opener = urllib.request.build_opener(*(handlers if proxy_settings() else []))
        try:
            with opener.open(f"{mirror}/dists/{_SUITE}/Release", timeout=_MIRROR_SECONDS):
                return mirror
        except (urllib.error.URLError, OSError, ValueError) as error:
            tried.append(f"{mirror}: {error}")
    raise LabUnavailable(
        f"no configured Debian mirror serves {_SUITE}: {'; '.join(tried)}",
        where="lab",
        remedy="see sources.list(5) and the network",
    )


_PHASES = (
    ("I: Retrieving ", "fetching packages"),
    ("I: Extracting ", "extracting the base system"),
    ("I: Installing core packages", "installing the core"),
    ("I: Unpacking the base system", "unpacking packages"),
    ("I: Configuring the base system", "configuring packages"),
)
_PHASE_STEP = 40
"""A line per so many packages: a minute's wait shows that it moves, and does not flood a log."""


def _run_phases(command: list[str], report: Report) -> None:
    environment = host_environment() | proxy_settings() | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    said: list[str] = []
    phase, count = "", 0
    deadline = time.monotonic() + _DEBOOTSTRAP_SECONDS
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        umask=_UMASK,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                said.append(line)
                now = next((words for prefix, words in _PHASES if line.startswith(prefix)), None)
                if now is not None and now != phase:
                    phase, count = now, 0
                    report(phase)
                count += 1
                if count % _PHASE_STEP == 0 and phase:
                    report(f"{phase} ({count})")
                if time.monotonic() > deadline:
                    raise LabFault(f"took more than {_DEBOOTSTRAP_SECONDS:.0f} s", where="debootstrap")
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise LabFault(f"left with {process.returncode}:\n{''.join(said[-15:])}", where="debootstrap")


def _build_site(rootfs: Path, into: Path, report: Report) -> None:
    report(f"installing the project's locked dependencies for the node's Python {NODE_PYTHON}")
    site = into / "opt" / "archy" / "site"
    _run(["mkdir", "-p", str(site)], "mkdir")
    requirements = into / "requirements.txt"
    requirements.write_text(node_requirements((PROJECT / "requirements.lock").read_text()))
    tags = [word for tag in platform_tags(platform.machine()) for word in ("--platform", tag)]
    # Sources are allowed for the one pure package without a wheel; a compiled one is caught below.
    options = ["--no-deps", "--require-hashes", "--prefer-binary", "--no-compile", "--ignore-requires-python"]
    _run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *options),
            *("--implementation", "cp", "--python-version", NODE_PYTHON, *tags),
            *("--target", str(site), "--requirement", str(requirements)),
        ],
        "pip",
    )
    requirements.unlink()
    foreign = [path.name for path in site.rglob("*.cpython-*.so") if "cpython-313" not in path.name]
    if foreign:
        raise LabFault(f"built for another Python: {', '.join(sorted(foreign))}", where="pip", remedy="pin a wheel")
    report("compiling them")
    # In the node's own Python, seen at the path it will have there, so that tracebacks name it.
    script = 'mount --bind "$1$3" "$2$3"; exec chroot "$2" python3 -m compileall -q -j 0 "$3"'
    _run([*_CONTAINED, "sh", "-ceu", script, "sh", str(into), str(rootfs), "/opt/archy/site"], "compileall")


def _run(command: list[str], what: str) -> None:
    try:
        done = subprocess.run(
            command,
            env=host_environment() | {"LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_STEP_SECONDS,
            umask=_UMASK,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LabFault(f"took more than {_STEP_SECONDS:.0f} s", where=what) from error
    if done.returncode != 0:
        raise LabFault(f"left with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}", where=what)
