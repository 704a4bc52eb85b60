"""Values of secrets that this node lost, taken back from the copies that Podman holds (R-MF3).

Guarantees: a copy is taken only where nothing says that another value was there; none is ever made. What can not be
taken back is told, and only its operator's word (`archy secrets rotate`) makes a new one.
"""

from __future__ import annotations

import logging

from apps.manifest import Manifest
from apps.problems import Problem
from orchestrator.machine import Machine
from orchestrator.names import Names, first_turn

log = logging.getLogger(__name__)


async def restore_secrets(
    machine: Machine, names: Names, manifest: Manifest, held: frozenset[str] | None = None
) -> tuple[str, ...]:
    """Mend lost and damaged values, and drifted permissions; the names of those that are lost for good.

    `held` are the names of Podman's copies where they were looked at just now.
    """
    app = names.app
    left = []
    for name in machine.secrets.ailing(app, [secret.name for secret in manifest.generated_secrets]):
        turn, value = await _copy(machine, names, name, held)
        if value is not None and machine.secrets.restore(app, name, turn, value):
            log.warning("a secret was taken back from Podman", extra={"app": names.slug, "secret": name})
        else:
            left.append(name)
    return tuple(left)


async def _copy(machine: Machine, names: Names, name: str, held: frozenset[str] | None) -> tuple[int, bytes | None]:
    """Podman's copy of what holds; of the newest turn it has where the node does not know the turn any more."""
    known = machine.secrets.turns(names.app).get(name)
    if known is not None:
        return known, await machine.podman.secret(Names(names.prefix, names.app, ((name, known),)).secret(name))
    base = Names(names.prefix, names.app).secret(name)
    if held is None:
        held = (await machine.podman.inventory(names.prefix)).secrets
    turns = [int(copy.removeprefix(base).lstrip(".") or 0) for copy in held if first_turn(copy) == base]
    if not turns:
        return 0, None
    newest = max(turns)
    return newest, await machine.podman.secret(f"{base}.{newest}" if newest else base)


def lost_for_good(app: str, names: tuple[str, ...]) -> Problem:
    """The problem that is told of values that are nowhere any more."""
    return Problem(
        f"lost or damaged, and not at Podman either: {', '.join(names)}",
        where=app,
        remedy=f"restore them from a backup of the node's home, or: archy secrets rotate {app} {names[0]}",
    )
