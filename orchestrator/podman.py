"""Rootless Podman, through its command line; every call has a deadline, and one call observes all of a kind.

It never starts a container: that is systemd's (a container started from here would live in our cgroup). Foreign
errors arrive as Problems.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote

from apps.problems import EnvironmentLacks, Problem
from orchestrator.faults import CommandFailed
from orchestrator.links import LinkNetwork
from orchestrator.podman_answers import ContainerSeen as ContainerSeen
from orchestrator.podman_answers import ImageDetail as ImageDetail
from orchestrator.podman_answers import ImageSeen as ImageSeen
from orchestrator.podman_answers import Inventory as Inventory
from orchestrator.podman_answers import address, container, listed
from orchestrator.podman_answers import images as images_of
from orchestrator.podman_answers import link as link_of
from orchestrator.podman_service import PodmanService
from orchestrator.process import Completed, run
from orchestrator.quadlet.keys import OLDEST, Version, parse_version
from orchestrator.stranger import Stranger, stranger
from orchestrator.together import all_of

QUICK: Final = 30.0
"""Seconds for a question; Podman answers in a tenth of one unless the machine is overloaded or its state is broken."""
COPY: Final = 120.0
"""Seconds to copy a file of an app into a container."""
MAX_HOOK_OUTPUT: Final = 1024 * 1024
"""Bytes that a command inside a container may write; nobody reads them."""
IMPORT: Final = 1800.0
"""Seconds to import an image: tens of GiB on a slow disk."""


class Podman(Protocol):
    """The calls that the orchestrator makes."""

    def at_hand(self) -> AbstractAsyncContextManager[None]:
        """Several questions are to come: inside, they cost less."""
        ...

    async def version(self) -> Version:
        """Raises EnvironmentLacks without Podman, or with one that is too old."""
        ...

    async def containers(self, prefix: str) -> tuple[ContainerSeen, ...]:
        """All containers of the node, running or not."""
        ...

    async def inventory(self, prefix: str) -> Inventory:
        """Everything else of the node."""
        ...

    async def images(self, prefix: str) -> tuple[ImageSeen, ...]:
        """The node's images alone."""
        ...

    async def image(self, name: str) -> ImageDetail | None:
        """One image by `name:tag` or id; None where there is none."""
        ...

    async def remove_remains(self, start: str) -> None:
        """Remove what killed builds left that began with an image whose name begins with `start`."""
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

    async def secret(self, name: str) -> bytes | None:
        """The value of a secret; None where there is none."""
        ...

    async def remove_secrets(self, names: Sequence[str]) -> None:
        """Absent ones are fine."""
        ...

    async def hang_up(self, name: str) -> None:
        """Send SIGHUP to a container's first process. Raises CommandFailed when it does not run."""
        ...

    async def copy_into(self, source: Path, container: str, path: str) -> None:
        """Copy a file into a running container, owned by the user it runs as. Raises CommandFailed."""
        ...

    async def execute(self, container: str, argv: Sequence[str], *, seconds: float, slice_: str) -> None:
        """Run a command in a running container, outside our own cgroup. Raises CommandFailed, CommandTimedOut."""
        ...

    async def remove_containers(self, names: Sequence[str]) -> None:
        """Kill and remove; absent ones are fine."""
        ...

    async def create_link(self, network: LinkNetwork, prefix: str) -> None:
        """Create the network of two apps; one that is there is fine."""
        ...

    async def connect(self, network: str, container: str, aliases: Sequence[str]) -> None:
        """Let a running container join a network; one that is in it already is fine."""
        ...

    async def disconnect(self, network: str, container: str) -> None:
        """Take a container out of a network; one that is not in it is fine."""
        ...

    async def remove_network(self, name: str) -> None:
        """An absent one is fine."""
        ...

    async def remove_volume(self, name: str) -> None:
        """An absent one is fine. The data is gone."""
        ...

    async def strangers(self, names: Sequence[str]) -> tuple[Stranger, ...]:
        """Containers by name or id, whosever they are; those that are not there are left out."""
        ...

    async def start(self, container: str, *, seconds: float, slice_: str) -> None:
        """Start a stranger's container again as it was, outside our own cgroup; one that runs is fine."""
        ...

    async def stop(self, container: str, *, grace: int) -> None:
        """Stop a stranger's container; one that is down or gone is fine. It is killed after `grace` seconds."""
        ...

    async def set_restart(self, container: str, policy: str) -> None:
        """Change a stranger's restart policy (podman-run(1), --restart); a container that is gone is fine."""
        ...

    async def discard(self, containers: Sequence[str]) -> None:
        """Remove strangers that are down, without any volume; absent ones are fine."""
        ...

    async def addresses(self, names: Sequence[str]) -> Mapping[str, str]:
        """IPv4 addresses of running containers inside the user's network namespace, without those that are gone."""
        ...


class RootlessPodman:
    """The real one."""

    def __init__(self) -> None:
        self._service = PodmanService()

    def at_hand(self) -> AbstractAsyncContextManager[None]:
        return self._service.at_hand()

    async def version(self) -> Version:
        said = await self._service.version()
        if said is None:
            said = (await self._ask("version", "--format", "{{.Client.Version}}")).stdout.decode()
        try:
            found = parse_version(said.strip())
        except ValueError as error:
            raise Problem("podman does not tell its version", remedy="podman version") from error
        if found < OLDEST:
            have, need = ".".join(map(str, found)), ".".join(map(str, OLDEST))
            raise EnvironmentLacks(
                f"Podman {have} is too old, {need} is needed", remedy="upgrade Podman (Debian 13 has 5.4)"
            )
        return found

    async def containers(self, prefix: str) -> tuple[ContainerSeen, ...]:
        path = f"/containers/json?all=true&{_labelled(prefix)}"
        listed = await self._list(path, "ps", "--all", "--filter", f"label=archy.prefix={prefix}", "--format", "json")
        return tuple(container(item) for item in listed)

    async def inventory(self, prefix: str) -> Inventory:
        label = ("--filter", f"label=archy.prefix={prefix}", "--format", "json")
        images, every, volumes, secrets = await all_of(
            partial(self.images, prefix),
            partial(self._list, "/networks/json", "network", "ls", "--format", "json"),
            partial(self._list, f"/volumes/json?{_labelled(prefix)}", "volume", "ls", *label),
            self._secret_names,
        )
        networks = [item for item in every if (item.get("labels") or {}).get("archy.prefix") == prefix]
        return Inventory(
            images,
            {
                item["name"]: labels.get("archy.spec", "")
                for item in networks
                if "archy.link" not in (labels := item.get("labels") or {})
            },
            {item["Name"]: (item.get("Labels") or {}).get("archy.app", "") for item in volumes},
            frozenset(name for name in secrets if name.startswith(f"{prefix}-")),
            {link.name: link for link in map(link_of, networks) if link is not None},
            frozenset(str(subnet["subnet"]) for item in every for subnet in item.get("subnets") or ()),
        )

    async def images(self, prefix: str) -> tuple[ImageSeen, ...]:
        listed = await self._list("/images/json?all=true", "images", "--all", "--digests", "--format", "json")
        # One image with several names is listed once for each, with all of them
        return tuple(dict.fromkeys(seen for item in listed for seen in images_of(item, f"localhost/{prefix}/")))

    async def _secret_names(self) -> list[str]:
        if (listed := await self._service_list("/secrets/json")) is not None:
            return [str(item["Spec"]["Name"]) for item in listed]
        # secret-ls(1) has no JSON form before 5.5
        done = await self._ask("secret", "ls", "--noheading", "--format", "{{.Name}}")
        return done.stdout.decode().split()

    async def image(self, name: str) -> ImageDetail | None:
        try:
            (item,) = await self._json("image", "inspect", name)
        except CommandFailed as error:
            if any(text in error.stderr for text in _ABSENT_OR_USED) or "image not known" in error.stderr:
                return None
            raise
        config = item.get("Config") or {}
        labels = {str(key): str(value) for key, value in (config.get("Labels") or {}).items()}
        return ImageDetail(
            f"sha256:{item.get('Id', '')}",
            str(item.get("Digest", "")),
            labels,
            tuple(sorted(config.get("Volumes") or ())),
            frozenset(map(str, config.get("Env") or ())),
        )

    async def remove_remains(self, start: str) -> None:
        listed = await self._json("ps", "--all", "--external", "--format", "json")
        remains = [
            str(item["Id"])
            for item in listed
            # podman-ps(1): --external lists builders' containers, which are in the storage and nowhere else
            if item.get("Command") == ["buildah"] and str(item.get("Image", "")).startswith(start)
        ]
        if remains:
            await self._ask("rm", "--force", "--ignore", *remains)

    async def import_image(self, layout: Path, name: str) -> None:
        await self._ask("pull", "--quiet", f"oci:{layout}:{name}", seconds=IMPORT)

    async def remove_image(self, name: str) -> None:
        await self._remove("rmi", "--ignore", name)

    async def create_secret(self, name: str, value: bytes, labels: Mapping[str, str]) -> None:
        marks = [part for key, text in labels.items() for part in ("--label", f"{key}={text}")]
        await self._ask("secret", "create", "--replace", *marks, name, "-", stdin=value)

    async def secret(self, name: str) -> bytes | None:
        try:
            (item,) = await self._json("secret", "inspect", "--showsecret", name)
        except CommandFailed as error:
            if "no such secret" in error.stderr:
                return None
            raise
        return str(item.get("SecretData", "")).encode()

    async def remove_secrets(self, names: Sequence[str]) -> None:
        if names:
            await self._remove("secret", "rm", "--ignore", *names)

    async def hang_up(self, name: str) -> None:
        await self._ask("kill", "--signal=HUP", name)

    async def copy_into(self, source: Path, container: str, path: str) -> None:
        await self._ask("cp", "--overwrite", str(source), f"{container}:{path}", seconds=COPY)

    async def execute(self, container: str, argv: Sequence[str], *, seconds: float, slice_: str) -> None:
        scope = ("systemd-run", "--user", "--scope", "--quiet", "--collect", f"--slice={slice_}")
        (await run((*scope, "podman", "exec", container, *argv), seconds=seconds, limit=MAX_HOOK_OUTPUT)).checked()

    async def remove_containers(self, names: Sequence[str]) -> None:
        if names:
            await self._ask("rm", "--force", "--ignore", "--volumes", "--time=10", *names)

    async def create_link(self, network: LinkNetwork, prefix: str) -> None:
        labels = {
            "archy.prefix": prefix,
            "archy.link": "1",
            "archy.provider": network.provider,
            "archy.dependant": network.dependant,
            "archy.spec": network.spec,
        }
        marks = [part for key, text in labels.items() for part in ("--label", f"{key}={text}")]
        # Neither a way out nor, where one of the two has no internet, names from outside: see quadlet.render
        closed = ("--dns", "127.0.0.1") if network.spec == "closed" else ()
        options = ("--opt", "isolate=true", "--opt", "no_default_route=1", *closed)
        await self._ask("network", "create", "--ignore", *options, *marks, network.name)

    async def connect(self, network: str, container: str, aliases: Sequence[str]) -> None:
        names = [part for alias in aliases for part in ("--alias", alias)]
        try:
            await self._ask("network", "connect", *names, network, container)
        except CommandFailed as error:
            if "already connected" not in error.stderr:
                raise

    async def disconnect(self, network: str, container: str) -> None:
        try:
            await self._ask("network", "disconnect", "--force", network, container)
        except CommandFailed as error:
            if "not connected" not in error.stderr and not any(text in error.stderr for text in _ABSENT_OR_USED):
                raise

    async def remove_network(self, name: str) -> None:
        await self._remove("network", "rm", name)

    async def remove_volume(self, name: str) -> None:
        await self._remove("volume", "rm", name)

    async def strangers(self, names: Sequence[str]) -> tuple[Stranger, ...]:
        if not names:
            return ()
        ready = [await self._service.ask(f"/containers/{name}/json") for name in names]
        if None not in ready:
            items = [json.loads(raw or b"{}") for raw in ready]
        else:
            done = await run(("podman", "container", "inspect", *names), seconds=QUICK)
            if done.code != 0 and "no such" not in done.stderr:
                done.checked()
            items = listed(done.stdout, done.argv[1])
        # A name may also be how an id begins (podman-container-inspect(1)), and one container be asked for twice
        found = {box.id: box for box in map(stranger, items)}
        return tuple(box for box in found.values() if box.name in names or box.id in names)

    async def start(self, container: str, *, seconds: float, slice_: str) -> None:
        scope = ("systemd-run", "--user", "--scope", "--quiet", "--collect", f"--slice={slice_}")
        (await run((*scope, "podman", "start", container), seconds=seconds)).checked()

    async def stop(self, container: str, *, grace: int) -> None:
        await self._ask("stop", "--ignore", f"--time={grace}", container, seconds=grace + QUICK)

    async def set_restart(self, container: str, policy: str) -> None:
        try:
            await self._ask("update", f"--restart={policy}", container)
        except CommandFailed as error:
            if not any(text in error.stderr for text in _ABSENT_OR_USED):
                raise

    async def discard(self, containers: Sequence[str]) -> None:
        if containers:
            await self._ask("rm", "--ignore", *containers)

    async def addresses(self, names: Sequence[str]) -> Mapping[str, str]:
        if not names:
            return {}
        ready = [await self._service.ask(f"/containers/{name}/json") for name in names]
        if None not in ready:
            return dict(filter(None, (address(json.loads(raw or b"{}")) for raw in ready)))
        argv = ("podman", "inspect", "--type", "container", *names)
        done = await run(argv, seconds=QUICK)
        if done.code != 0 and "no such" not in done.stderr:  # one that is gone hides the others from nobody (R-ST4)
            done.checked()
        return dict(filter(None, map(address, listed(done.stdout, done.argv[1]))))

    async def _list(self, path: str, *argv: str) -> list[Any]:
        """What the service says under a path, or else the program."""
        ready = await self._service_list(path)
        return await self._json(*argv) if ready is None else ready

    async def _service_list(self, path: str) -> list[Any] | None:
        raw = await self._service.ask(path)
        try:
            body = None if raw is None else json.loads(raw)
        except ValueError:
            return None
        return body if isinstance(body, list) else None

    async def _json(self, *argv: str) -> list[Any]:
        return listed((await self._ask(*argv)).stdout, argv[0])

    async def _ask(self, *argv: str, seconds: float = QUICK, stdin: bytes = b"") -> Completed:
        return (await run(("podman", *argv), seconds=seconds, stdin=stdin)).checked()

    async def _remove(self, *argv: str) -> None:
        try:
            await self._ask(*argv)
        except CommandFailed as error:
            if not any(text in error.stderr for text in _ABSENT_OR_USED):
                raise


_ABSENT_OR_USED: Final = ("no such", "not found", "image is in use", "image used by")


def _labelled(prefix: str) -> str:
    return "filters=" + quote(json.dumps({"label": [f"archy.prefix={prefix}"]}))
