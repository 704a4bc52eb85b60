"""What an app may do beyond running, in stable words that an operator agrees to one by one. Pure.

Only what the orchestrator enforces has a word: an app that lacks one can not do it.
"""

from __future__ import annotations

from apps.manifest import Manifest


def permissions_of(manifest: Manifest) -> tuple[str, ...]:
    """Sorted words such as `internet`, `gpu`, `device:/dev/dri`, `capability:NET_BIND_SERVICE`, `writable-root`."""
    declared = manifest.permissions
    words: set[str] = set(declared.devices)
    if declared.internet == "outbound":
        words.add("internet")
    if declared.host_network:
        words.add("host-network")
    for container in manifest.containers.values():
        words |= {f"device:{device}" for device in container.security.devices}
        words |= {f"capability:{capability}" for capability in container.security.capabilities}
        if not container.security.read_only:
            words.add("writable-root")
    return tuple(sorted(words))
