"""The programs of bench/swarm.py behind one door: `run(task)` fetches the task's blobs and says how long it took.

Each of them ends with the bytes in a file. Those that are not part of this project are looked for, and brought where
that is possible: aria2c from the distribution, libtorrent and iroh each into an environment of its own in the cache.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from xml.sax.saxutils import escape

from market.model import PIECE_SIZE, BlobRef

CONCURRENT = 8
"""Small blobs that are fetched at the same time, by every program that can be told."""
_PEERS = Path(__file__).parent
_INSTALL_SECONDS = 300


class NotHere(Exception):
    """Why a program can not take part."""


@dataclass(frozen=True)
class Task:
    """What to fetch, from where, and the folder to leave it in."""

    blobs: tuple[BlobRef, ...]
    origin: str
    peers: tuple[str, ...]
    bad: frozenset[str]
    out: Path
    limit: float
    """Seconds after which a program has failed."""

    def urls(self, blob: BlobRef) -> list[str]:
        return [f"{base}/blobs/{blob.blake3}" for base in (self.origin, *self.peers)]


@dataclass(frozen=True)
class Measured:
    """Seconds (infinite: it failed), the most bytes that one bad peer made it receive for nothing, its peak memory."""

    seconds: float
    wasted_by_bad: int = 0
    peak_rss: int = 0
    """Bytes; 0 where nobody looked."""


class Contestant(Protocol):
    """One program."""

    name: str

    def fits(self, task: Task, *, capped: bool) -> bool:
        """Whether the case can be asked of it."""

    def run(self, task: Task) -> Measured:
        """Fetch everything. Raises NotHere."""

    def close(self) -> None:
        """End what it started."""


def _fresh(out: Path) -> Path:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    return out


def _timed(command: list[str], limit: float) -> Measured:
    began = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return Measured(math.inf)
    return Measured(time.perf_counter() - began if done.returncode == 0 else math.inf)


class Archy:
    """This project's fetcher."""

    name = "archy"

    def fits(self, task: Task, *, capped: bool) -> bool:
        return True

    def close(self) -> None:
        """Nothing is left running."""

    def run(self, task: Task) -> Measured:
        blobs = [blob.to_json() for blob in task.blobs]
        given = {"blobs": blobs, "origin": task.origin, "peers": task.peers}
        command = [sys.executable, "-m", "bench.swarm_peers.with_archy", str(_fresh(task.out))]
        try:
            done = subprocess.run(
                command, input=json.dumps(given), stdout=subprocess.PIPE, text=True, timeout=task.limit, check=False
            )
        except subprocess.TimeoutExpired:
            return Measured(math.inf)
        if done.returncode != 0:
            return Measured(math.inf)
        answer = json.loads(done.stdout)
        wasted = max((answer["wasted"].get(url, 0) for url in task.bad), default=0)
        return Measured(float(answer["seconds"]), wasted, int(answer["peak_rss"]))


class Curl:
    """The floor: one stream, nothing verified."""

    name = "curl"

    def fits(self, task: Task, *, capped: bool) -> bool:
        return not task.peers

    def close(self) -> None:
        """Nothing is left running."""

    def run(self, task: Task) -> Measured:
        out = _fresh(task.out)
        if len(task.blobs) == 1:
            return _timed(["curl", "-sS", "--fail", "-o", str(out / "it"), *task.urls(task.blobs[0])], task.limit)
        listed = out.parent / "curl.config"
        listed.write_text(
            "".join(f'url = "{task.urls(blob)[0]}"\noutput = "{out / blob.blake3.hex}"\n' for blob in task.blobs)
        )
        flags = ["-sS", "--fail", "--parallel", "--parallel-max", str(CONCURRENT)]
        return _timed(["curl", *flags, "--config", str(listed)], task.limit)


class Aria2:
    """aria2c with a metalink: every source at once, SHA-1 of each piece checked."""

    name = "aria2c"

    def __init__(self) -> None:
        self._metalinks: dict[BlobRef, str] = {}

    def fits(self, task: Task, *, capped: bool) -> bool:
        return True

    def close(self) -> None:
        """Nothing is left running."""

    def run(self, task: Task) -> Measured:
        self._require()
        out = _fresh(task.out)
        command = [
            *("aria2c", "--no-conf", "--quiet", f"--dir={out}", "--file-allocation=none", "--split=16"),
            *("--max-connection-per-server=4", "--min-split-size=1M", "--connect-timeout=2", "--timeout=3"),
            *("--max-tries=2", "--retry-wait=0", "--allow-overwrite=true", "--auto-file-renaming=false"),
        ]
        if len(task.blobs) > 1:
            listed = out.parent / "aria2.list"
            listed.write_text("".join(f"{task.urls(blob)[0]}\n" for blob in task.blobs))
            return _timed([*command, f"--input-file={listed}", f"--max-concurrent-downloads={CONCURRENT}"], task.limit)
        metalink = out.parent / "it.meta4"
        metalink.write_text(self._metalink(task))
        return _timed([*command, f"--metalink-file={metalink}"], task.limit)

    def _require(self) -> None:
        if shutil.which("aria2c") is not None:
            return
        if os.geteuid() == 0 and shutil.which("apt-get") is not None:
            subprocess.run(["apt-get", "install", "-y", "-qq", "aria2"], capture_output=True, check=False)
        if shutil.which("aria2c") is None:
            raise NotHere("aria2c is not installed (Debian: apt-get install aria2)")

    def _metalink(self, task: Task) -> str:
        """RFC 5854."""
        blob = task.blobs[0]
        if blob not in self._metalinks:
            self._metalinks[blob] = _piece_hashes(_published(task, blob))
        urls = "".join(f'<url priority="{n}">{escape(url)}</url>' for n, url in enumerate(task.urls(blob), start=1))
        return (
            '<?xml version="1.0"?><metalink xmlns="urn:ietf:params:xml:ns:metalink">'
            f'<file name="it"><size>{blob.size}</size>'
            f'<pieces length="{PIECE_SIZE}" type="sha-1">{self._metalinks[blob]}</pieces>{urls}</file></metalink>'
        )


def _published(task: Task, blob: BlobRef) -> Path:
    return task.out.parent / "published" / "blobs" / blob.blake3.hex


def _piece_hashes(path: Path) -> str:
    hashes = []
    with path.open("rb") as file:
        while piece := file.read(PIECE_SIZE):
            hashes.append(f"<hash>{hashlib.sha1(piece, usedforsecurity=False).hexdigest()}</hash>")
    return "".join(hashes)


class _Environment:
    """A virtual environment in the cache folder with one package in it."""

    def __init__(self, package: str, version: str) -> None:
        self._package = package
        self._version = version
        self._why_not = ""

    def python(self) -> str:
        """Its interpreter. Raises NotHere."""
        if self._why_not:
            raise NotHere(self._why_not)
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = cache / "archipelago-market" / "bench" / f"{self._package}-{self._version}"
        python = folder / "bin" / "python"
        if not (folder / "ready").exists():
            wanted = f"{self._package}=={self._version}"
            print(f"bench: bringing {wanted} into {folder}", file=sys.stderr)
            for command in (
                [sys.executable, "-m", "venv", "--clear", str(folder)],
                [str(python), "-m", "pip", "install", "--quiet", wanted],
            ):
                done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False)
                if done.returncode != 0:
                    self._why_not = f"{wanted} can not be installed here: {done.stderr.strip().splitlines()[-1:]}"
                    raise NotHere(self._why_not)
            (folder / "ready").touch()
        return str(python)


class Libtorrent:
    """libtorrent: every source as a web seed of one torrent."""

    name = "libtorrent"

    def __init__(self) -> None:
        self._environment = _Environment("libtorrent", "2.1.1")

    def fits(self, task: Task, *, capped: bool) -> bool:
        return len(task.blobs) == 1

    def close(self) -> None:
        """Nothing is left running."""

    def run(self, task: Task) -> Measured:
        blob = task.blobs[0]
        given = {"name": blob.blake3.hex, "data": str(_published(task, blob)), "web_seeds": task.urls(blob)}
        command = [
            self._environment.python(),
            "-W",
            "ignore",
            str(_PEERS / "with_libtorrent.py"),
            str(_fresh(task.out)),
        ]
        try:
            done = subprocess.run(
                command, input=json.dumps(given), capture_output=True, text=True, timeout=task.limit, check=False
            )
        except subprocess.TimeoutExpired:
            return Measured(math.inf)
        answer: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
        return Measured(float(answer.get("seconds", math.inf)))


class Iroh:
    """iroh 0.35's own downloader from iroh's own node. It speaks no HTTP: cases with caps can not be asked of it."""

    name = "iroh 0.35"

    def __init__(self) -> None:
        self._environment = _Environment("iroh", "0.35.0")
        self._serving: dict[tuple[BlobRef, ...], tuple[subprocess.Popen[str], str]] = {}

    def fits(self, task: Task, *, capped: bool) -> bool:
        return not capped and not task.peers

    def close(self) -> None:
        for process, _ in self._serving.values():
            process.kill()
            process.wait()
        self._serving.clear()

    def run(self, task: Task) -> Measured:
        tickets = self._tickets(task)
        command = [self._environment.python(), str(_PEERS / "with_iroh.py"), "get", str(_fresh(task.out) / "iroh")]
        try:
            done = subprocess.run(
                command, input=tickets, capture_output=True, text=True, timeout=task.limit, check=False
            )
        except subprocess.TimeoutExpired:
            return Measured(math.inf)
        return Measured(float(json.loads(done.stdout)["seconds"]) if done.returncode == 0 else math.inf)

    def _tickets(self, task: Task) -> str:
        if task.blobs not in self._serving:
            root = task.out.parent / ("published" if len(task.blobs) == 1 else "small")
            files = [str(root / "blobs" / blob.blake3.hex) for blob in task.blobs]
            folder = task.out.parent / f"iroh-{len(self._serving)}"
            process = subprocess.Popen(
                [self._environment.python(), str(_PEERS / "with_iroh.py"), "serve", str(folder), *files],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert process.stdout is not None
            self._serving[task.blobs] = (process, process.stdout.readline())
        return self._serving[task.blobs][1]
