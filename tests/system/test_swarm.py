"""The swarm between real hosts: three nodes with cables between them, that lose, delay, reorder and break."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.lab import SOURCE, Base, Node, NodeProcess, link
from tests.system.weather import BadLink, Weather

PYTHON = ["archy-python", "-m", "tests.system.swarm_node"]
PORT = 8470
MIB = 1024 * 1024
SIZE = 24 * MIB
DEADLINE = 90.0


class Swarm:
    """An origin, a peer and a fetching node; each reaches the others."""

    def __init__(self, origin: Node, peer: Node, fetcher: Node) -> None:
        self.origin, self.peer, self.fetcher = origin, peer, fetcher
        for one, other in ((fetcher, origin), (fetcher, peer), (origin, peer)):
            link(one, other)
        script = "import hashlib,sys; sys.stdout.buffer.write(hashlib.shake_128(b'layer').digest(int(sys.argv[1])))"
        self.ref: dict[str, Any] = {}
        for node in (origin, peer):
            node.run(["sh", "-c", f'archy-python -c "{script}" {SIZE} > /home/op/layer'])

    def serve(self, node: Node, rate: float) -> NodeProcess:
        at = f"{node.address}:{PORT}"
        server = node.popen([*PYTHON, "serve", "/home/op/served", at, str(rate), "/home/op/layer"], cwd=SOURCE)
        server.wait_output("listening", DEADLINE)
        self.ref = json.loads(server.output().splitlines()[0])["listening"]
        return server

    def fetch(self, store: str, *sources: tuple[Node, str]) -> NodeProcess:
        named = json.dumps([(f"http://{node.address}:{PORT}", kind) for node, kind in sources])
        return self.fetcher.popen([*PYTHON, "fetch", f"/home/op/{store}", json.dumps(self.ref), named], cwd=SOURCE)

    def by(self, report: dict[str, Any], node: Node) -> int:
        return next(int(each["bytes"]) for each in report["sources"] if node.address in each["url"])


@pytest.fixture(scope="module")
def swarm(lab_base: Base) -> Iterator[Swarm]:
    with Node.boot(lab_base, "origin") as one, Node.boot(lab_base, "peer") as two, Node.boot(lab_base, "fetcher") as me:
        made = Swarm(one, two, me)
        made.serve(one, 4e6)
        made.serve(two, 4e6)
        yield made


def last(process: NodeProcess) -> dict[str, Any]:
    """The event that ended a fetch."""
    process.wait_output('"(report|problem)"', DEADLINE)
    event: dict[str, Any] = json.loads(process.output().splitlines()[-1])
    return event


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"not so after {DEADLINE} s: {what}"
        time.sleep(0.05)


def done_bytes(process: NodeProcess) -> int:
    events = [json.loads(line) for line in process.output().splitlines() if line.startswith("{")]
    return max((int(event.get("done", 0)) for event in events), default=0)


def test_a_blob_arrives_from_two_hosts_at_once(swarm: Swarm) -> None:
    report = last(swarm.fetch("clean", (swarm.origin, "origin"), (swarm.peer, "peer")))["report"]
    assert swarm.by(report, swarm.origin) > 0
    assert swarm.by(report, swarm.peer) > 0
    assert report["wasted"] <= SIZE * 0.05


def test_loss_delay_and_reordering_slow_a_source_down_and_break_nothing(swarm: Swarm) -> None:  # R-SW2
    rough = Weather(delay=0.02, jitter=0.01, loss=0.01, overtaking=0.2)
    with BadLink(swarm.fetcher, swarm.origin, rough) as weather:
        report = last(swarm.fetch("rough", (swarm.origin, "origin"), (swarm.peer, "peer")))["report"]
        assert weather.lost > 0
    assert swarm.by(report, swarm.peer) > 0
    assert not any(each["banned"] for each in report["sources"])


def test_a_partition_from_the_origin_is_bridged_by_a_peer(swarm: Swarm) -> None:  # R-SW2
    with BadLink(swarm.fetcher, swarm.origin, Weather(delay=0.005)) as weather:
        fetching = swarm.fetch("bridged", (swarm.origin, "origin"), (swarm.peer, "peer"))
        wait_for(lambda: done_bytes(fetching) >= 2 * MIB, "the fetch is under way")
        weather.partitioned.set()
        report = last(fetching)["report"]
    assert swarm.by(report, swarm.peer) > SIZE / 3
    faults = next(each["faults"] for each in report["sources"] if swarm.origin.address in each["url"])
    assert not faults or "nothing came" in faults[0] or "connection" in faults[0]


def test_a_partition_from_everyone_is_told_and_the_next_attempt_goes_on(swarm: Swarm) -> None:  # R-SW4, R-SW5
    with BadLink(swarm.fetcher, swarm.origin, Weather(delay=0.005)) as weather:
        fetching = swarm.fetch("resumed", (swarm.origin, "origin"))
        wait_for(lambda: done_bytes(fetching) >= 4 * MIB, "the fetch is under way")
        weather.partitioned.set()
        told = last(fetching)
        assert told["kind"] == "no-source"
        assert swarm.origin.address in told["problem"]
        weather.partitioned.clear()
        report = last(swarm.fetch("resumed", (swarm.origin, "origin")))["report"]
    assert report["resumed"] >= 4 * MIB
    assert report["resumed"] + report["fetched"] == SIZE


def test_a_link_that_comes_back_in_time_is_no_failure(swarm: Swarm) -> None:  # R-SW2
    with BadLink(swarm.fetcher, swarm.origin, Weather(delay=0.005)) as weather:
        fetching = swarm.fetch("healed", (swarm.origin, "origin"))
        wait_for(lambda: done_bytes(fetching) >= 4 * MIB, "the fetch is under way")
        weather.partitioned.set()
        held = done_bytes(fetching)
        time.sleep(7.0)  # longer than the origin's stall deadline, shorter than its last chance
        assert done_bytes(fetching) <= held + MIB
        weather.partitioned.clear()
        assert "report" in last(fetching)


def test_a_killed_fetch_goes_on_where_it_was(swarm: Swarm, tmp_path: Path) -> None:  # R-SW4
    fetching = swarm.fetch("killed", (swarm.origin, "origin"), (swarm.peer, "peer"))
    wait_for(lambda: done_bytes(fetching) >= 6 * MIB, "the fetch is under way")
    fetching.kill()
    report = last(swarm.fetch("killed", (swarm.origin, "origin"), (swarm.peer, "peer")))["report"]
    assert report["resumed"] >= 5 * MIB


def test_nodes_on_one_network_find_each_other_and_notice_when_one_leaves(swarm: Swarm) -> None:
    looking = {
        node.name: node.popen(
            [*PYTHON, "neighbours", f"/home/op/lan-{node.name}", f"{node.address}:{PORT}"], cwd=SOURCE
        )
        for node in (swarm.fetcher, swarm.peer)
    }
    looking["fetcher"].wait_output(f"http://{swarm.peer.address}:{PORT}", DEADLINE)
    looking["peer"].wait_output(f"http://{swarm.fetcher.address}:{PORT}", DEADLINE)
    looking["peer"].send_signal(signal.SIGINT)
    looking["fetcher"].wait_output(r'"found": \[\]', DEADLINE)
    looking["fetcher"].kill()
