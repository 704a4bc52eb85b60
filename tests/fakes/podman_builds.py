"""What a pretended Podman makes of a `.build` unit: the same image for the same inputs, and the same ways to fail."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.faults import CommandFailed
from orchestrator.quadlet.text import UnitFile


@dataclass(frozen=True)
class BuiltImage:
    """What a build gave; `said` is what it wrote."""

    name: str
    digest: str
    id: str
    labels: dict[str, str]
    volumes: tuple[str, ...]


@dataclass
class Store:
    """What builders keep beside images."""

    details: dict[str, tuple[dict[str, str], tuple[str, ...]]] = field(default_factory=dict)
    """Labels and volumes by image id."""
    remains: dict[str, str] = field(default_factory=dict)
    """Working containers of builds that were killed: id -> name of the image they began with."""
    said: dict[str, list[str]] = field(default_factory=dict)
    """By service."""
    salt: str = ""
    """Another one: commands of builds give other bytes than before."""


def build(unit: UnitFile, service: str, known: Mapping[str, str], store: Store) -> BuiltImage:
    """Read what the unit names. `known`: id by `name:tag` and `name@digest`. Raises CommandFailed."""
    (file,), (folder,) = unit.values("Build", "File"), unit.values("Build", "SetWorkingDirectory")
    if not Path(file).is_file() or not Path(folder).is_dir():
        raise _failed(store, service, f"the specified Containerfile {file} does not exist")
    lines = Path(file).read_text().splitlines()
    stages: set[str] = set()
    for line in lines:
        keyword, _, rest = line.partition(" ")
        if keyword == "FROM":
            start, _, name = rest.partition(" AS ")
            if start not in stages and start not in known and start != "scratch":
                raise _failed(store, service, f"creating build container: {start}: image not known")
            stages.add(name)
        elif keyword == "RUN" and "wget" in rest:
            raise _failed(store, service, f'building at STEP "RUN {rest}": while running runtime: exit status 1')
    labels = dict(value.partition("=")[::2] for value in unit.values("Build", "Label"))
    volumes = [path for line in lines if line.startswith("VOLUME ") for path in json.loads(line[7:])]
    content = json.dumps([lines, labels, sorted(_files(Path(folder))), store.salt]).encode()
    digest, id_ = (f"sha256:{hashlib.sha256(mark + content).hexdigest()}" for mark in (b"manifest", b"config"))
    store.said[service] = ["COMMIT", id_.removeprefix("sha256:")]
    store.details[id_] = (labels, tuple(sorted(volumes)))
    return BuiltImage(unit.values("Build", "ImageTag")[0], digest, id_, labels, tuple(volumes))


def begins_with(unit: UnitFile) -> str:
    """The name of the image that the first stage begins with."""
    text = Path(unit.values("Build", "File")[0]).read_text()
    return text.partition("FROM ")[2].partition(" AS ")[0]


def _files(folder: Path) -> Iterable[tuple[str, str, int]]:
    for path in folder.rglob("*"):
        if path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            yield str(path.relative_to(folder)), digest, path.stat().st_mode & 0o777


def _failed(store: Store, service: str, why: str) -> CommandFailed:
    store.said[service] = ["STEP 1/2: FROM", f"Error: {why}"]
    return CommandFailed(("systemctl", "start"), 1, f"Job for {service} failed")
