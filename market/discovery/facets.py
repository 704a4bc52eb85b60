"""What search can filter by, read from a stranger's install manifest. Pure.

Guarantees bounded words without spaces. Refuses to judge the manifest: that is the orchestrator's schema's part.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from market.discovery.documents import ReleaseDocument

MAX_FACETS: Final = 64
"""Words of one kind; an app with more is found by the first ones."""


def facets(release: ReleaseDocument) -> tuple[str, str]:
    """Architectures and permissions of an install manifest as ` word word `, for filters.

    The manifest is a stranger's JSON that only the orchestrator's schema judges; what has another shape has no facet.
    """
    containers, permissions = release.install.get("containers"), release.install.get("permissions")
    archs: set[str] = set()
    words: set[str] = set()
    for container in containers.values() if isinstance(containers, dict) else ():
        image = container.get("image") if isinstance(container, dict) else None
        platforms = image.get("platforms") if isinstance(image, dict) else None
        archs |= set(platforms) if isinstance(platforms, dict) else set()
        words |= _security(container.get("security") if isinstance(container, dict) else None)
    for name, value in permissions.items() if isinstance(permissions, dict) else ():
        if isinstance(value, list):
            words |= {one for one in value if isinstance(one, str)}
        elif value not in (False, "none", "", None):
            words.add(name.replace("_", "-"))
    return _words(archs), _words(words)


def _security(security: object) -> set[str]:
    """The words of `apps.permissions` for one container."""
    if not isinstance(security, dict):
        return set()
    words = {"writable-root"} if security.get("read_only") is False else set()
    for kind, one in (("devices", "device"), ("capabilities", "capability")):
        values = security.get(kind)
        words |= {f"{one}:{value}" for value in values if isinstance(value, str)} if isinstance(values, list) else set()
    return words


def _words(words: Iterable[str]) -> str:
    plain = sorted(word for word in words if word and " " not in word)[:MAX_FACETS]
    return f" {' '.join(plain)} " if plain else ""
