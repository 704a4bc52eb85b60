"""What holds between the parts of a manifest: references that must resolve, names that must be unique.

Works on the plain tree, before typing, so that these faults are told together with the schema's own. A part of the
wrong shape is passed over here; the schema speaks of it. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from apps.manifest_errors import ManifestError, dotted
from apps.manifest_values import parse_size

Tree = Mapping[str, Any]

MAX_BASES = 16
"""Of one build: as many as a Containerfile has stages."""


def _mapping(tree: Tree, key: str) -> dict[str, Tree]:
    value = tree.get(key)
    if not isinstance(value, Mapping):
        return {}
    return {name: item for name, item in value.items() if isinstance(name, str) and isinstance(item, Mapping)}


def _listed(tree: Tree, key: str) -> list[tuple[int, Tree]]:
    value = tree.get(key)
    return [(i, item) for i, item in enumerate(value) if isinstance(item, Mapping)] if isinstance(value, list) else []


def _words(tree: Tree, key: str) -> list[str]:
    value = tree.get(key)
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _names(tree: Tree, key: str, field: str = "name") -> list[str]:
    return [str(item[field]) for _, item in _listed(tree, key) if field in item]


def _choose(names: object) -> str:
    known = ", ".join(sorted(str(name) for name in names)) if isinstance(names, list | set | dict) else ""
    return f"declared are {known}" if known else "none is declared"


def rules(tree: Tree) -> Iterator[ManifestError]:
    """Every fault between the parts."""
    containers = _mapping(tree, "containers")
    yield from _counts(tree, containers)
    for name, container in containers.items():
        yield from _container(tree, containers, name, container)
    companions = _mapping(tree, "companions")
    for name, companion in companions.items():
        yield from _one_of(companion, ("companions", name), "image", "build")
        yield from _refers(companion, "serves", ("companions", name), containers, "container")
        if name in containers or name in ("network", "volume") or name.endswith(("-network", "-volume")):
            yield ManifestError(dotted(("companions", name)), "a name that is taken", "choose another name")
    for name, box in {**companions, **containers}.items():
        yield from _build(("containers" if name in containers else "companions", name), box, {*companions, *containers})
    yield from _cycle(containers)
    yield from _host_ports({**companions, **containers}, companions)
    yield from _exclusive(containers)
    yield from _top_level(tree, containers)


def _counts(tree: Tree, containers: Mapping[str, Tree]) -> Iterator[ManifestError]:
    if isinstance(tree.get("containers"), Mapping) and not 1 <= len(tree["containers"]) <= 32:
        yield ManifestError("containers", f"{len(containers)} containers", "an app has 1 to 32 containers")
    for key, most in (("volumes", 64), ("settings", 128), ("files", 1024), ("categories", 8), ("interfaces", 32)):
        value = tree.get(key)
        if isinstance(value, list | Mapping) and len(value) > most:
            yield ManifestError(key, f"{len(value)} entries", f"at most {most}")
    for key, field in (
        ("generated_secrets", "name"),
        ("settings", "name"),
        ("interfaces", "id"),
        ("exports", "name"),
        ("dependencies", "id"),
    ):
        yield from _unique(tree, key, field, ())


def _unique(tree: Tree, key: str, field: str, at: tuple[str | int, ...]) -> Iterator[ManifestError]:
    seen: set[str] = set()
    for index, item in _listed(tree, key):
        value = str(item.get(field))
        if field in item and value in seen:
            yield ManifestError(dotted((*at, key, index, field)), f"{value} appears twice", "names are unique here")
        seen.add(value)


def _one_of(tree: Tree, at: tuple[str | int, ...], *keys: str) -> Iterator[ManifestError]:
    if sum(key in tree for key in keys) != 1:
        listed = f"{', '.join(keys[:-1])} and {keys[-1]}"
        yield ManifestError(dotted(at), f"exactly one of {listed} is needed", f"write one of {listed}")


def _refers(
    tree: Tree, key: str, at: tuple[str | int, ...], known: Mapping[str, Any] | list[str], what: str
) -> Iterator[ManifestError]:
    value = tree.get(key)
    if isinstance(value, str) and value not in known:
        yield ManifestError(dotted((*at, key)), f"no {what} {value[:60]!a}", _choose(list(known)))


def _container(tree: Tree, containers: Mapping[str, Tree], name: str, container: Tree) -> Iterator[ManifestError]:
    at: tuple[str | int, ...] = ("containers", name)
    if name in ("network", "volume") or name.endswith(("-network", "-volume")):
        # Quadlet calls the service of x.network x-network.service: a container x-network would take its place.
        yield ManifestError(dotted(at), "a name that units of networks and volumes use", "choose another name")
    yield from _one_of(container, at, "image", "build")  # R-MF1
    yield from _unique(container, "ports", "name", at)
    for index, need in enumerate(_words(container, "needs")):
        if need not in containers:
            yield ManifestError(dotted((*at, "needs", index)), f"no container {need[:60]!a}", _choose(containers))
    secrets = _names(tree, "generated_secrets")
    for index, use in _listed(container, "secrets"):
        here = (*at, "secrets", index)
        yield from _refers(use, "name", here, secrets, "generated secret")
        yield from _one_of(use, here, "file", "env")
    volumes = _mapping(tree, "volumes")
    paths: set[str] = set()
    for index, mount in _listed(container, "mounts"):
        yield from _refers(mount, "volume", (*at, "mounts", index), volumes, "volume")
        path = str(mount.get("path"))
        if path in paths:
            yield ManifestError(dotted((*at, "mounts", index, "path")), "mounted twice", "one volume per path")
        paths.add(path)
    yield from _environment(tree, at, container)
    if isinstance(container.get("health"), Mapping):
        yield from _health(container, (*at, "health"), container["health"])


def _environment(tree: Tree, at: tuple[str | int, ...], container: Tree) -> Iterator[ManifestError]:
    environment = container.get("environment")
    taken = set(environment) if isinstance(environment, Mapping) else set()
    for index, use in _listed(container, "secrets"):
        if isinstance(use.get("env"), str) and use["env"] in taken:
            path = dotted((*at, "secrets", index, "env"))
            yield ManifestError(path, f"{use['env'][:60]} is also in environment", "keep one of them")
    for index, setting in _listed(tree, "settings"):
        mapped = setting.get("env")
        variable = mapped.get(at[-1]) if isinstance(mapped, Mapping) else None
        if isinstance(variable, str) and variable in taken:
            path = dotted(("settings", index, "env", at[-1]))
            yield ManifestError(path, f"{variable[:60]} is also in the container's environment", "keep one of them")


def _health(container: Tree, at: tuple[str | int, ...], health: Tree) -> Iterator[ManifestError]:
    yield from _one_of(health, at, "http", "tcp", "cmd")
    ports = _names(container, "ports")
    for kind in ("http", "tcp"):
        check = health.get(kind)
        port = check.get("port") if isinstance(check, Mapping) else None
        if isinstance(port, str) and not port.isdigit() and port not in ports:
            yield ManifestError(dotted((*at, kind, "port")), f"no port {port[:60]!a}", _choose(ports))


def _build(at: tuple[str | int, ...], box: Tree, names: set[str]) -> Iterator[ManifestError]:
    build = box.get("build")
    if not isinstance(build, Mapping):
        return
    if f"{at[-1]}-build" in names:
        # Quadlet calls the service of x.build x-build.service: a container x-build would take its place.
        what = f"the name {at[-1]}-build is taken by another container"
        yield ManifestError(dotted(at), what, "choose another name for one of them")
    bases = build.get("bases")
    if isinstance(bases, list) and len(bases) > MAX_BASES:
        yield ManifestError(dotted((*at, "build", "bases")), f"{len(bases)} bases", f"at most {MAX_BASES}")


def _cycle(containers: Mapping[str, Tree]) -> Iterator[ManifestError]:
    done: set[str] = set()
    while ready := {
        name
        for name, container in containers.items()
        if name not in done and {need for need in _words(container, "needs") if need in containers} <= done
    }:
        done |= ready
    if stuck := sorted(set(containers) - done):
        yield ManifestError(
            dotted(("containers", stuck[0], "needs")),
            f"the needs of {', '.join(stuck)} run in a circle",
            "remove one of them, so that something can start first",
        )


def _host_ports(containers: Mapping[str, Tree], companions: Mapping[str, Tree]) -> Iterator[ManifestError]:
    owners: dict[tuple[str, str], str] = {}
    for name, container in containers.items():
        for index, port in _listed(container, "ports"):
            host = str(port.get("host", ""))
            if not host.isdigit():
                continue
            key = (host, str(port.get("protocol", "tcp")))
            at = dotted(("companions" if name in companions else "containers", name, "ports", index, "host"))
            if key in owners:  # R-ST9
                yield ManifestError(at, f"host port {host} is already {owners[key]}", "one host port has one owner")
            owners.setdefault(key, at)


def _exclusive(containers: Mapping[str, Tree]) -> Iterator[ManifestError]:
    uses: dict[str, list[tuple[str, bool]]] = {}
    for name, container in containers.items():
        for index, mount in _listed(container, "mounts"):
            exclusive = mount.get("exclusive") in (True, "true")
            path = dotted(("containers", name, "mounts", index))
            uses.setdefault(str(mount.get("volume")), []).append((path, exclusive))
    for volume, found in uses.items():
        if len(found) > 1 and any(exclusive for _, exclusive in found):  # R-ST9
            both = " and ".join(path for path, _ in found)
            remedy = "mount it in one container, or remove exclusive"
            yield ManifestError(found[-1][0], f"exclusive volume {volume[:60]} is mounted by {both}", remedy)


def _top_level(tree: Tree, containers: Mapping[str, Tree]) -> Iterator[ManifestError]:
    boxes = (*containers.values(), *_mapping(tree, "companions").values())
    ports = [port for container in boxes for port in _names(container, "ports")]
    for key in ("interfaces", "exports"):
        for index, door in _listed(tree, key):
            yield from _refers(door, "port", (key, index), ports, "port")
            if (count := ports.count(str(door.get("port")))) > 1:
                path, what = dotted((key, index, "port")), f"{count} containers have a port of this name"
                yield ManifestError(path, what, "give their ports different names")
    secrets, settings = _names(tree, "generated_secrets"), _names(tree, "settings")
    for index, export in _listed(tree, "exports"):
        at = ("exports", index)
        yield from _refers(export, "secret", at, secrets, "generated secret")
        yield from _refers(export, "setting", at, settings, "setting")
    for index, setting in _listed(tree, "settings"):
        for name in setting["env"] if isinstance(setting.get("env"), Mapping) else ():
            if name not in containers:
                path = dotted(("settings", index, "env", str(name)))
                yield ManifestError(path, f"no container {str(name)[:60]!a}", _choose(dict(containers)))
    yield from _defaults(tree)
    yield from _derived(tree, containers)
    hooks = tree.get("hooks")
    for index, hook in _listed(hooks if isinstance(hooks, Mapping) else {}, "post_install"):
        yield from _one_of(hook, ("hooks", "post_install", index), "copy_from_host", "exec")
        if isinstance(hook.get("copy_from_host"), Mapping):
            yield from _copied(hook["copy_from_host"], ("hooks", "post_install", index, "copy_from_host"), containers)
        if isinstance(hook.get("exec"), Mapping):
            at_exec = ("hooks", "post_install", index, "exec")
            yield from _refers(hook["exec"], "in", at_exec, containers, "container")
    for name, volume in _mapping(tree, "volumes").items():
        backup = volume.get("backup")
        dump = backup.get("dump") if isinstance(backup, Mapping) else None
        if isinstance(dump, Mapping):
            yield from _refers(dump, "in", ("volumes", name, "backup", "dump"), containers, "container")


def _copied(copy: Tree, at: tuple[str | int, ...], containers: Mapping[str, Tree]) -> Iterator[ManifestError]:
    """Into a volume, through a canonical path (R-MF4): elsewhere it would be gone at the next start."""
    label, colon, path = str(copy.get("dest")).partition(":")
    here = dotted((*at, "dest"))
    if not colon or label not in containers:
        yield ManifestError(here, f"no container {label[:60]!a}", "write CONTAINER:/path/in/a/volume")
        return
    mounts = [
        mount for _, mount in _listed(containers[label], "mounts") if mount.get("read_only") in (None, "false", False)
    ]
    plain = re.fullmatch(r"(/[A-Za-z0-9_.@+-]{1,128}){1,16}", path) and not {".", ".."} & set(path.split("/"))
    if not plain or not any(path.startswith(f"{mount.get('path')}/") for mount in mounts):
        yield ManifestError(here, f"not a path in a writable volume of {label}", "mount a volume and copy into it")


def _derived(tree: Tree, containers: Mapping[str, Tree]) -> Iterator[ManifestError]:
    """A derived file goes into containers that exist and can read it, where nothing else is mounted."""
    seen: set[tuple[str, str, str]] = set()
    for index, derived in _listed(tree, "derived_files"):
        into = derived.get("into")
        name = str(derived.get("dest")).rpartition("/")[2]
        for label, folder in into.items() if isinstance(into, Mapping) else ():
            path = dotted(("derived_files", index, "into", str(label)))
            if label not in containers:
                yield ManifestError(path, f"no container {str(label)[:60]!a}", _choose(dict(containers)))
                continue
            if (label, str(folder), name) in seen:
                yield ManifestError(path, f"two files are {name[:60]} there", "choose another folder or dest")
            seen.add((label, str(folder), name))
            if any(mount.get("path") == folder for _, mount in _listed(containers[label], "mounts")):
                yield ManifestError(path, "a volume is mounted there", "choose a folder for derived files only")
            user, mode = str(containers[label].get("user", "0")).partition(":")[0], str(derived.get("mode", "0600"))
            if user not in ("0", "root") and mode[-1:] in ("0", "1", "2", "3"):
                what = f"{label} runs as {user[:40]}, and the file is root's with mode {mode[:4]}"
                yield ManifestError(path, what, 'write mode: "0444"; on the node its folder keeps others out')


_DEFAULTS = {"number": re.compile(r"-?(0|[1-9][0-9]{0,14})"), "truth": re.compile(r"true|false")}


def _defaults(tree: Tree) -> Iterator[ManifestError]:
    for index, setting in _listed(tree, "settings"):
        kind, default = setting.get("type", "text"), setting.get("default")
        if not isinstance(kind, str) or not isinstance(default, str):
            continue
        pattern = _DEFAULTS.get(kind)
        if (pattern and not pattern.fullmatch(default)) or (kind == "size" and parse_size(default) is None):
            path = dotted(("settings", index, "default"))
            right = {"number": "write a whole number", "truth": "write true or false", "size": "write a size: 4GiB"}
            yield ManifestError(path, f"not a {kind}: {default[:60]!a}", right[kind])
