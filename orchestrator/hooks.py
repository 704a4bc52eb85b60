"""What an app does once, after its first start: its own assets into its volumes, commands inside its containers.

Guarantees: only files that the signed manifest names, with their signed bytes, are copied (R-MF4); commands run
inside containers, in a scope of their own, with a deadline; the first fault ends it.
"""

from __future__ import annotations

import logging
from typing import Final

from apps.manifest_parts import Hook
from apps.problems import Problem
from orchestrator.apply import Source
from orchestrator.derived import read_file
from orchestrator.machine import Machine
from orchestrator.names import slice_name

log = logging.getLogger(__name__)

MAX_ASSET: Final = 64 * 1024 * 1024
"""Bytes of a file that is copied; what is larger belongs into an image."""


async def run_hooks(machine: Machine, source: Source) -> None:
    """Run `post_install` in order. Raises Problem, naming the hook."""
    for index, hook in enumerate(source.manifest.hooks.post_install):
        where = f"{source.names.app.id}: hooks.post_install[{index}]"
        log.info("hook", extra={"app": source.names.slug, "hook": index})
        try:
            await _run(machine, source, hook)
        except Problem as problem:
            remedy = problem.remedy or "the publisher has to correct the hook"
            raise Problem(f"a hook failed: {problem.what}", where=where, remedy=remedy) from problem


async def _run(machine: Machine, source: Source, hook: Hook) -> None:
    if (copy := hook.copy_from_host) is not None:
        read_file(source.root, source.manifest, copy.src, MAX_ASSET)
        label, _, path = copy.dest.partition(":")
        await machine.podman.copy_into(source.root / "files" / copy.src, source.names.container(label), path)
    if (command := hook.exec) is not None:
        container, slice_ = source.names.container(command.in_), slice_name(source.names.prefix)
        await machine.podman.execute(container, command.argv, seconds=command.timeout, slice_=slice_)
