"""Rootless Podman, through its command line; every call has a deadline, and one call observes all of a kind.

It never starts a container: that is systemd's (a container started from here would live in our cgroup). Foreign
errors arrive as Problems.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from apps.problems import EnvironmentLacks, Problem
from orchestrator.faults import CommandFailed
from orchestrator.process import Completed, run
from orchestrator.quadlet.keys import OLDEST, Version, parse_version

QUICK: Final = 30.0
"""Seconds for a question; Podman answers in a tenth of one unless the machine is overloaded or its state is broken."""
IMPORT: Final = 1800.0
"""Seconds to import an image: tens of GiB on a slow disk."""


@dataclass(frozen=True, slots=True)
class ContainerSeen:
    """A container as `podman ps` lists it. `health` is empty without a check inside the container."""

    name: str
    id: str
    state: str
    image_id: str
    labels: Mapping[str, str]
    health: str = ""


@dataclass(frozen=True, slots=True)
class ImageSeen:
    """An image in the store: its id is the config's digest (`sha256:...`), `digest` the OCI manifest's."""

    id: str
    digest: str
    name: str
    """`localhost/archy/<slug>/<container>` without tag."""
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Inventory:
    """What Podman has of this node's, beside containers.

    `networks`: name -> specification (label archy.spec); `volumes`: name -> slug of the app (label archy.app).
    """

    images: tuple[ImageSeen, ...]
    networks: Mapping[str, str]
    volumes: Mapping[str, str]
    secrets: frozenset[str]


class Podman(Protocol):
    """The calls that the orchestrator makes."""

    async def version(self) -> Version:
        """Raises EnvironmentLacks without Podman, or with one that is too old."""
        ...

    async def containers(self, prefix: str) -> tuple[ContainerSeen, ...]:
        """All containers of the node, running or not."""
        ...

    async def inventory(self, prefix: str) -> Inventory:
        """Everything else of the node."""
        ...

    async def import_image(self, layout: Path, name: str) -> None:
        """Import an OCI layout folder whose index.json names the image `name` (`localhost/...:tag`)."""
        ...

    async def remove_image(self, name: str) -> None:
        """`name:tag` or `name@digest`; an absent one is fine, one that a container still uses stays."""
        ...

    async def create_secret(self, name: str, value: bytes, labels: Mapping[str, str]) -> None:
        """Create or replace."""
        ...

    async def remove_secrets(self, names: Sequence[str]) -> None:
        """Absent ones are fine."""
        ...

    async def hang_up(self, name: str) -> None:
        """Send SIGHUP to a container's first process. Raises CommandFailed when it does not run."""
        ...

    async def remove_containers(self, names: Sequence[str]) -> None:
        """Kill and remove; absent ones are fine."""
        ...

    async def remove_network(self, name: str) -> None:
        """An absent one is fine."""
        ...

    async def remove_volume(self, name: str) -> None:
        """An absent one is fine. The data is gone."""
        ...

    async def addresses(self, names: Sequence[str]) -> Mapping[str, str]:
        """IPv4 addresses of running containers inside the user's network namespace."""
        ...


class RootlessPodman:
    """The real one."""

    async def version(self) -> Version:
        done = await self._ask("version", "--format", "{{.Client.Version}}")
        try:
            found = parse_version(done.stdout.decode().strip())
        except ValueError as error:
            raise Problem("podman does not tell its version", remedy="podman version") from error
        if found < OLDEST:
            have, need = ".".join(map(str, found)), ".".join(map(str, OLDEST))
            raise EnvironmentLacks(
                f"Podman {have} is too old, {need} is needed", remedy="upgrade Podman (Debian 13 has 5.4)"
            )
        return found

    async def containers(self, prefix: str) -> tuple[ContainerSeen, ...]:
        listed = await self._json("ps", "--all", "--filter", f"label=archy.prefix={prefix}", "--format", "json")
        return tuple(_container(item) for item in listed)

    async def inventory(self, prefix: str) -> Inventory:
        label = ("--filter", f"label=archy.prefix={prefix}", "--format", "json")
        images = await self._json("images", "--all", "--digests", "--format", "json")
        networks = await self._json("network", "ls", *label)
        volumes = await self._json("volume", "ls", *label)
        # secret-ls(1) has no JSON form before 5.5
        secrets = (await self._ask("secret", "ls", "--noheading", "--format", "{{.Name}}")).stdout.decode().split()
        return Inventory(
            tuple(seen for item in images for seen in _images(item, f"localhost/{prefix}/")),
            {item["name"]: (item.get("labels") or {}).get("archy.spec", "") for item in networks},
            {item["Name"]: (item.get("Labels") or {}).get("archy.app", "") for item in volumes},
            frozenset(name for name in secrets if name.startswith(f"{prefix}-")),
        )

    async def import_image(self, layout: Path, name: str) -> None:
        await self._ask("pull", "--quiet", f"oci:{layout}:{name}", seconds=IMPORT)

    async def remove_image(self, name: str) -> None:
        await self._remove("rmi", "--ignore", name)

    async def create_secret(self, name: str, value: bytes, labels: Mapping[str, str]) -> None:
        marks = [part for key, text in labels.items() for part in ("--label", f"{key}={text}")]
        await self._ask("secret", "create", "--replace", *marks, name, "-", stdin=value)

    async def remove_secrets(self, names: Sequence[str]) -> None:
        if names:
            await self._remove("secret", "rm", "--ignore", *names)

    async def hang_up(self, name: str) -> None:
        await self._ask("kill", "--signal=HUP", name)

    async def remove_containers(self, names: Sequence[str]) -> None:
        if names:
            await self._ask("rm", "--force", "--ignore", "--volumes", "--time=10", *names)

    async def remove_network(self, name: str) -> None:
        await self._remove("network", "rm", name)

    async def remove_volume(self, name: str) -> None:
        await self._remove("volume", "rm", name)

    async def addresses(self, names: Sequence[str]) -> Mapping[str, str]:
        if not names:
            return {}
        listed = await self._json("inspect", "--type", "container", *names)
        found = {}
        for item in listed:
            for network in (item.get("NetworkSettings", {}).get("Networks") or {}).values():
                if network.get("IPAddress"):
                    found[item["Name"]] = str(network["IPAddress"])
        return found

    async def _json(self, *argv: str) -> list[Any]:
        done = await self._ask(*argv)
        try:
            body = json.loads(done.stdout or b"[]")
        except ValueError as error:
            raise Problem(f"podman {argv[0]} wrote something that is not JSON") from error
        return body if isinstance(body, list) else []

    async def _ask(self, *argv: str, seconds: float = QUICK, stdin: bytes = b"") -> Completed:
        return (await run(("podman", *argv), seconds=seconds, stdin=stdin)).checked()

    async def _remove(self, *argv: str) -> None:
        try:
            await self._ask(*argv)
        except CommandFailed as error:
            if not any(text in error.stderr for text in _ABSENT_OR_USED):
                raise


_ABSENT_OR_USED: Final = ("no such", "not found", "image is in use", "image used by")


def _container(item: Mapping[str, Any]) -> ContainerSeen:
    status = str(item.get("Status", ""))
    health = next((word for word in ("unhealthy", "healthy", "starting") if f"({word})" in status), "")
    return ContainerSeen(
        str((item.get("Names") or [""])[0]),
        str(item.get("Id", "")),
        str(item.get("State", "")),
        f"sha256:{item.get('ImageID', '')}",
        dict(item.get("Labels") or {}),
        health,
    )


def _images(item: Mapping[str, Any], start: str) -> list[ImageSeen]:
    names = [name for name in item.get("Names") or [] if name.startswith(start)]
    names += [name.split("@")[0] for name in item.get("RepoDigests") or [] if name.startswith(start)]
    seen = {tuple(name.rpartition(":")[::2]) if ":" in name else (name, "") for name in names}
    tagged = {name for name, tag in seen if tag}
    return [
        ImageSeen(f"sha256:{item.get('Id', '')}", str(item.get("Digest", "")), name, tag)
        for name, tag in sorted(seen)
        if tag or name not in tagged
    ]
