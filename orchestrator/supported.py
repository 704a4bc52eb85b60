"""What this node can not carry out yet: such an app is refused whole, nothing of it is silently ignored. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from apps.manifest import Manifest, ManifestError, ManifestProblem
from apps.manifest_values import satisfies

NODE_VERSION = "0.1.0"
"""What `requires: {node: ...}` is compared with; a test keeps it equal to the package's version."""

_LATER = "wait for a newer node, or ask the publisher for a version without it"


def unsupported(manifest: Manifest) -> tuple[ManifestError, ...]:
    """Every feature of the manifest that this node does not carry out."""
    return tuple(
        ManifestError(path, f"not supported by this node yet: {what}", _LATER) for path, what in _found(manifest)
    )


def require_supported(manifest: Manifest, *, podman: str | None = None, where: str = "") -> None:
    """Raises ManifestProblem unless this node carries out the whole manifest; `podman` is the installed version."""
    errors = list(unsupported(manifest))
    for key, have, want in (
        ("node", NODE_VERSION, manifest.requires.node),
        ("podman", podman, manifest.requires.podman),
    ):
        if have is not None and want is not None and not satisfies(have, want):
            errors.append(
                ManifestError(f"requires.{key}", f"this node has {have}, and {want} is needed", f"upgrade {key}")
            )
    if errors:
        raise ManifestProblem(errors, where=where)


def _found(manifest: Manifest) -> Iterator[tuple[str, str]]:
    if manifest.permissions.host_network:
        yield "permissions.host_network", "the host's own network"
    for name, volume in manifest.volumes.items():
        if volume.backup not in ("include", "exclude"):
            yield f"volumes.{name}.backup", "backups by dump"
    for index, interface in enumerate(manifest.interfaces):
        if interface.type == "tor":
            yield f"interfaces[{index}]", "onion services"
    updates = manifest.updates
    for key, unusual in (
        ("from", updates.from_ is not None),
        ("strategy", updates.strategy != "stop-start"),
        ("rollback", updates.rollback != "auto"),
        ("migrations", bool(updates.migrations)),
    ):
        if unusual:
            yield f"updates.{key}", f"updates with {key}"
