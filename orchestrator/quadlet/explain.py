"""Why each line of a unit is there, in a sentence for whoever wrote the manifest.

Guarantees: what is explained is still the same unit, with comments; every line that is rendered has its sentence. A
table from keys to sentences, and a second one for keys that mean different things by their value. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from orchestrator.quadlet.keys import INSTEAD
from orchestrator.quadlet.text import owner_of


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a unit. `why` is empty for a key that no unit of ours has."""

    section: str
    key: str
    value: str
    why: str


_HEALTH: Final = "`health.cmd`, run inside the container; http and tcp checks are the node's own and in no unit"
_LIMIT: Final = "`resources`, set by systemd on the whole service: one limit for the app and what watches it"
_ROUTE: Final = "chosen by the node, since a route to the host has to name its gateway"
_ATTEMPTS: Final = (
    "five starts in 300 seconds, then it counts as failed; at one start in 10 seconds systemd's own limit never acts"
)

_CACHE: Final = "no step is taken from an image in the store: whoever publishes one writes what its steps claim to be"
_BOUND: Final = "the node's own limit for every build, whatever it is a build of"
_SAME: Final = "nothing of this machine or of the hour goes in: the same inputs give the same image"

WHY: Final[Mapping[tuple[str, str], str]] = {
    ("Unit", "Description"): "what `systemctl --user status` and the journal call it",
    ("Unit", "StartLimitIntervalSec"): _ATTEMPTS,
    ("Unit", "StartLimitBurst"): _ATTEMPTS,
    ("Unit", "After"): "`needs`: this container starts after that one, and stops before it",
    ("Container", "ContainerName"): "its name at Podman: app, publisher and container, so that no two apps ever meet",
    ("Container", "Image"): "`image`, pinned by digest: what runs is what the publisher signed",
    ("Container", "Pull"): "no registry is asked: the node has checked and imported the image itself",
    ("Container", "Entrypoint"): "`entrypoint`, instead of the image's own",
    ("Container", "Exec"): "`command`, instead of the image's own",
    ("Container", "User"): "`user`: who the program is inside the container",
    ("Container", "WorkingDir"): "`working_dir`",
    ("Container", "Environment"): "`environment`, or the value of a setting that names this variable; never a secret",
    ("Container", "Network"): "the app's own network, which no other app's container reaches",
    ("Container", "NetworkAlias"): "a name of this container within its app: its own, and its `network_aliases`",
    ("Container", "AddHost"): "every container knows its host as host.archipelago, whatever the local network is",
    ("Container", "PublishPort"): "`ports` with a `host` port; on 127.0.0.1 alone unless `bind: lan`",
    ("Container", "Volume"): "`mounts`: a named volume, which stays when the container goes",
    ("Container", "Secret"): "`secrets`: by name; the value is in no unit, log or journal",
    ("Container", "DropCapability"): "no capability at all; what `security.capabilities` declares is added again",
    ("Container", "AddCapability"): "`security.capabilities`, which the operator agreed to at the installation",
    ("Container", "NoNewPrivileges"): "no program inside gets more rights than it was started with",
    ("Container", "ReadOnly"): "the image's files can not be changed; data is in volumes",
    ("Container", "AddDevice"): "`security.devices`, which the operator agreed to at the installation",
    ("Container", "HealthCmd"): _HEALTH,
    ("Container", "HealthInterval"): _HEALTH,
    ("Container", "HealthTimeout"): _HEALTH,
    ("Container", "HealthRetries"): _HEALTH,
    ("Container", "HealthStartPeriod"): _HEALTH,
    ("Container", "Notify"): "started means healthy: another container `needs` this one, and waits for that",
    ("Container", "StopTimeout"): "`stop_grace_secs`: so long it may take to end by itself after SIGTERM",
    ("Service", "Slice"): "apps live in a slice of their own: the node can crash or restart without touching them",
    ("Service", "Restart"): "whatever ends by itself is started again; what its user stopped is not",
    ("Service", "RestartSec"): "a pause between starts, so that a crash loop does not keep the machine busy",
    ("Service", "TimeoutStartSec"): "a minute for Podman, and the time in which a health command may still fail",
    ("Service", "TimeoutStopSec"): "`stop_grace_secs` and 15 more: systemd must not be less patient than Podman",
    ("Service", "SuccessExitStatus"): "143 is the answer to SIGTERM: an ordinary stop is no failure",
    ("Service", "MemoryMax"): _LIMIT,
    ("Service", "CPUQuota"): _LIMIT,
    ("Service", "TasksMax"): _LIMIT,
    ("Network", "NetworkName"): "its name at Podman: app and publisher",
    ("Network", "Subnet"): _ROUTE,
    ("Network", "Gateway"): _ROUTE,
    ("Network", "PodmanArgs"): "the one way out of this network: host.archipelago, and nothing behind it",
    ("Volume", "VolumeName"): "its name at Podman: app, publisher and volume; an uninstall keeps it",
    ("Volume", "User"): "`owner`: who may write to it inside the container",
    ("Volume", "Group"): "`owner`: who may write to it inside the container",
    ("Build", "ImageTag"): "its name, and the digest of all that goes in: other inputs never take its place",
    ("Build", "File"): "the Containerfile as the node understood it, written anew for each build",
    (
        "Build",
        "SetWorkingDirectory",
    ): "`build.context`: a copy of its signed files and nothing else, made for each build",
    ("Build", "Network"): "no build reaches a network: everything it reads is signed",
    ("Build", "Pull"): "no registry is asked: a base is one of the app's own images, which the node has checked",
    ("Build", "ForceRM"): "a build that fails leaves no half-made container behind",
    ("BuildService", "TimeoutStartSec"): _BOUND,
    ("BuildService", "MemoryMax"): _BOUND,
    ("BuildService", "TasksMax"): _BOUND,
    ("Service", "RemainAfterExit"): "builds when it is told to, and at no other time: the image is there at every boot",
    ("Service", "CPUWeight"): "the apps that run come first",
    ("Install", "WantedBy"): "starts with the machine; a stopped app does without this file, so it stays stopped",
}

_BY_VALUE: Final[tuple[tuple[str, str, str, str], ...]] = (
    ("", "Label", "archy.prefix=", "marks it as this node's: nothing without the mark is ever touched"),
    ("", "Label", "archy.app=", "whose it is; nobody guesses that from a name"),
    ("", "Label", "archy.container=", "which container of the manifest it is"),
    ("", "Label", "archy.volume=", "which volume of the manifest it is"),
    ("", "Label", "archy.network=", "digest of the app's network: a container of another network is started anew"),
    ("", "Label", "archy.spec=", "digest of what this unit means: whatever runs with another one is started anew"),
    ("Container", "ReadOnly", "false", "`security.read_only: false`: the program writes beside its volumes"),
    ("Container", "Label", "archy.build=", "digest of all that its image is built of: other inputs, another container"),
    ("Build", "Label", "archy.build=", "digest of all that goes in, in the image itself"),
    ("Build", "PodmanArgs", "--no-cache", _CACHE),
    ("Build", "PodmanArgs", "--layers", _CACHE),
    ("Build", "PodmanArgs", "--timestamp", _SAME),
    ("Build", "PodmanArgs", "--identity-label", _SAME),
    ("Build", "PodmanArgs", "--http-proxy", _SAME),
    ("Build", "PodmanArgs", "--no-hosts", _SAME),
    ("Build", "PodmanArgs", "--no-hostname", _SAME),
    ("Build", "PodmanArgs", "--format", _SAME),
    ("Build", "PodmanArgs", "--cap", "commands of a build may set up files and change the user, and nothing else"),
    ("Build", "PodmanArgs", "--security-opt", "no program of the build gets more rights than it was started with"),
    ("Network", "Options", "isolate=true", "neither reaches other apps' networks nor is reached from them"),
    ("Network", "Options", "no_default_route=1", "`permissions.internet: none`: no way out of this network"),
    ("Network", "DNS", "127.0.0.1", "`permissions.internet: none`: names are a way out too, so none from outside"),
)
"""(section or any, key, how the value begins, why); before the other table."""


def lines(text: str) -> tuple[Line, ...]:
    """Every line of a rendered unit with its reason."""
    owner, section, found = owner_of(text), "", []
    builds = "\n[Build]\n" in text
    for line in text.splitlines():
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
        elif section and (parts := _parts(line)):
            key, value = parts
            why = WHY.get(("BuildService", key)) if builds and section == "Service" else None
            found.append(Line(section, key, value, why or _why(owner, section, key, value)))
    return tuple(found)


def explain(text: str) -> str:
    """The same unit with a comment before each line; lines in a row that have one reason share it."""
    reasons, told, out = iter(lines(text)), "", []
    section = False
    for line in text.splitlines():
        if line.startswith("["):
            section, told = True, ""
        elif section and _parts(line):
            why = next(reasons).why
            if why and why != told:
                out.append(f"# {why}")
            told = why
        out.append(line)
    return "\n".join(out) + "\n"


def _parts(line: str) -> tuple[str, str] | None:
    key, equals, value = line.partition("=")
    return (key, value) if equals and not line.startswith("#") else None


def _why(owner: str, section: str, key: str, value: str) -> str:
    for known, option in INSTEAD.items():
        if key == "PodmanArgs" and value.startswith(f"{option}="):
            return f"{known}=, as this Podman has to be told it: {WHY['Container', known]}"
    bare = value.strip('"')
    for where, name, start, why in _BY_VALUE:
        if where in ("", section) and name == key and bare.startswith(start):
            return why
    if key == "After" and f"-{owner}-" not in value:
        return (
            "`dependencies`: after the other app's container; only After=, for nothing may start what its user stopped"
        )
    if section == "Container" and key == "Network" and f"-{owner}.network" not in value:
        return "shared with one other app: a dependency, or one that depends on this app"
    if key == "Volume" and not value.partition(":")[0].endswith(".volume"):
        return "`derived_files`: a folder of files that the node renders, read-only inside"
    return WHY.get((section, key), "")
