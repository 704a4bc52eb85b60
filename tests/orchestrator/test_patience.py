"""An app that fails is tried ever more seldom, however it fails."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.patience import BACKOFF, STEADY, Patience
from tests.fakes.podman_machine import Service
from tests.orchestrator.bundles import app_name, make_bundle
from tests.orchestrator.nodes import Node, run

HELLO = app_name()
SERVICE = f"archy-{HELLO.slug}-web.service"
BURST = 60
"""Seconds until systemd gives up a service that it starts five times, ten seconds apart."""


def test_pauses_grow_to_a_ceiling_and_begin_anew_after_a_steady_time() -> None:
    patience, now = Patience(), 0.0
    for pause in (*BACKOFF[1:], BACKOFF[-1], BACKOFF[-1]):
        assert patience.over("a", now)
        patience.failed("a", now)
        assert not patience.over("a", now + pause - 1)
        now += pause
    assert patience.over("a", now)
    patience.came_up("a", now)
    patience.well("a", now + STEADY - 1)
    assert patience
    patience.well("a", now + STEADY)
    assert not patience


@given(st.lists(st.tuples(st.sampled_from(("failed", "given_up", "came_up", "well", "forgive")), st.floats(0, 400))))
def test_no_pause_is_longer_than_the_ceiling_and_no_app_has_anothers(happens: list[tuple[str, float]]) -> None:
    patience, now = Patience(), 0.0
    for what, later in happens:
        now += later
        patience.forgive("a") if what == "forgive" else getattr(patience, what)("a", now)
        assert patience.over("a", now + BACKOFF[-1])
        assert patience.over("b", now)


@pytest.mark.parametrize("starts", [True, False])
def test_an_app_that_systemd_gives_up_again_and_again_is_started_ever_more_seldom(
    node: Node, tmp_path: Path, starts: bool
) -> None:  # R-ST17
    tries: list[float] = []

    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        if not starts:
            node.world.crashing.add(node.world.containers[SERVICE.removesuffix(".service")].image_id)
        for _ in range(200):
            # Since its last start systemd has tried again by itself, which looks like starting, until it gave up
            burst = bool(tries) and trio.current_time() < tries[-1] + BURST
            node.world.stop(SERVICE)
            node.world.services[SERVICE] = Service(
                *(("activating", "auto-restart", 1) if burst else ("failed", "failed", 5))
            )
            before = len(node.world.calls)
            await node.tick()
            if ("start", SERVICE) in node.world.calls[before:]:
                tries.append(trio.current_time())
            await trio.sleep(10)
        gaps = [after - before for before, after in pairwise(tries)]
        assert gaps == sorted(gaps)
        assert gaps[-1] >= BACKOFF[-1]
        assert len(tries) < 12

    run(work)
