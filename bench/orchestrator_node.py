"""The part of bench/orchestrator.py that runs inside a node of the lab. Prints one JSON object.

archy-python -m bench.orchestrator_node install|tick|memory '{"rounds": 7, "apps": 50, "listings": 10000}'
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, Final

import trio

from apps.names import AppName
from bench.search import fill
from market.discovery import open_index
from market.node.home import Home
from orchestrator import Bundle, Orchestrator, Settings, default_unit_dir, open_orchestrator
from orchestrator.images import image_name
from orchestrator.rounds import WHOLE_EVERY
from tests.orchestrator.driver import web_bundle, web_container

WORK: Final = Path.home() / "bench"
PORT: Final = 18080
FIRST_PORT: Final = 21000
STEM: Final = "benchhand"
KEPT: Final = "localhost/benchhand/web:1"
POLL: Final = 0.02
BY_SIDE: Final = 4
"""Installations that run at the same time while the 50 apps are set up."""

QUIET_SAMPLES: Final = 10
"""Seconds in which at least one has no tick and no question of ours."""

HAND: Final = {
    f"{STEM}.container": f"""[Unit]
Description=By hand

[Container]
ContainerName={STEM}
Image={KEPT}
Pull=never
Exec=/bin/busybox httpd -f -p 8080 -h /www
User=1000:1000
Network={STEM}.network
PublishPort={PORT}:8080
Volume={STEM}.volume:/data
DropCapability=all
NoNewPrivileges=true
ReadOnly=true
StopTimeout=1

[Service]
Restart=always

[Install]
WantedBy=default.target
""",
    f"{STEM}.network": f"[Network]\nNetworkName={STEM}\n",
    f"{STEM}.volume": f"[Volume]\nVolumeName={STEM}\nUser=1000\nGroup=1000\n",
}
"""What a person writes who wants the same: pinned, confined, with a network and a volume of its own."""


def sh(*argv: str, check: bool = True) -> str:
    return subprocess.run(argv, check=check, capture_output=True, text=True).stdout


def orchestrator_at(home: Path) -> Any:
    return open_orchestrator(Settings(home / "state.db", home / "data", default_unit_dir()))


def bundle(number: int = 0) -> Bundle:
    """An app of one container with a port, a volume and an http check; all have one image layer."""
    port = PORT if number == 0 else FIRST_PORT + number
    health = {"http": {"port": "web"}, "interval": 5, "timeout": 5, "retries": 3, "start_period": 60}
    box = web_container(port, secrets=[], health=health)
    name = AppName("did:key:zBench", f"app{number}")
    more = {"volumes": {"data": {"owner": "1000:1000"}}, "generated_secrets": []}
    return web_bundle(WORK / "bundles", name, "1.0.0", containers={"web": box}, **more)


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def by_hand() -> float:
    folder = default_unit_dir()
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    for name, text in HAND.items():
        (folder / name).write_text(text)
    sh("systemctl", "--user", "daemon-reload")
    sh("systemctl", "--user", "start", f"{STEM}.service")
    while not answers(PORT):
        time.sleep(POLL)
    seconds = time.perf_counter() - began
    sh("systemctl", "--user", "stop", f"{STEM}.service", f"{STEM}-network.service", f"{STEM}-volume.service")
    for name in HAND:
        (folder / name).unlink()
    sh("systemctl", "--user", "daemon-reload")
    sh("podman", "network", "rm", STEM)
    sh("podman", "volume", "rm", STEM)
    return seconds


async def installs(rounds: int) -> dict[str, object]:
    """Seconds by hand and by the orchestrator, by turns; the image is in the store under both names."""
    made = bundle()
    image = made.manifest.containers["web"].image
    assert image is not None
    name = image_name(f"localhost/archy/{made.name.slug}/web", image.platforms[0].manifest)
    hand, ours, phases = [], [], []
    async with orchestrator_at(WORK / "install") as orchestrator:
        await orchestrator.install(made)
        sh("podman", "tag", name, KEPT)
        await orchestrator.uninstall(made.name, purge=True)
    for _ in range(rounds + 1):  # the first of each warms the disk's cache
        hand.append(by_hand())
        sh("podman", "tag", KEPT, name)
        told: list[tuple[float, str]] = []
        await all_ended()
        async with orchestrator_at(WORK / "install") as orchestrator:  # a new one: it remembers no unit it has tried
            began = time.perf_counter()
            await orchestrator.install(made, report=lambda p: told.append((time.perf_counter(), p.phase)))  # noqa: B023
            ours.append(time.perf_counter() - began)
            phases.append({phase: round(at - began, 3) for at, phase in told})
            assert answers(PORT)
            await orchestrator.uninstall(made.name, purge=True)
    return {"hand": hand[1:], "ours": ours[1:], "phases": phases[1:]}


async def fill_node(orchestrator: Orchestrator, apps: int) -> float:
    """Install so many apps; seconds."""
    began = time.perf_counter()
    limit = trio.CapacityLimiter(BY_SIDE)

    async def one(number: int) -> None:
        async with limit:
            await orchestrator.install(bundle(number))

    async with trio.open_nursery() as nursery:
        for number in range(1, apps + 1):
            nursery.start_soon(one, number)
    return time.perf_counter() - began


def cpu() -> float:
    """Seconds of this process and of all its children that have ended."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


class Spawned:
    """Counts the programs that this process starts (Python's audit event of subprocess.Popen)."""

    def __init__(self) -> None:
        self.count = 0
        sys.addaudithook(self._hook)

    def _hook(self, event: str, _: object) -> None:
        if event == "subprocess.Popen":
            self.count += 1


async def cost(work: Callable[[], Awaitable[object]]) -> float:
    """CPU seconds of the work, and of every program it started, to the end of the last one."""
    before = cpu()
    await work()
    await all_ended()
    return cpu() - before


async def all_ended() -> None:
    """Wait for programs that were told to end and for which nobody waits."""
    with trio.fail_after(10):
        while any(children(os.getpid())):  # noqa: ASYNC110 - other processes' ends
            await trio.sleep(POLL)


def children(pid: int) -> list[int]:
    """Those that any of its threads started (proc(5), /proc/PID/task/TID/children)."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # a thread that has just ended
            found += map(int, (task / "children").read_text().split())
    return found


async def ticks(apps: int, rounds: int) -> dict[str, object]:
    """CPU seconds of a quick and of a whole tick, and of one `podman ps`, with so many apps; programs by app."""
    home = WORK / "many"
    spawned = Spawned()

    async def tick() -> None:
        async with trio.open_nursery() as nursery:
            await orchestrator.tick(nursery)

    async def ps() -> None:
        await trio.run_process(["podman", "ps", "--all", "--format", "json"], capture_stdout=True)

    async with orchestrator_at(home) as orchestrator:
        took = await fill_node(orchestrator, 1)
        few = await programs(spawned, tick)
        took += await fill_node(orchestrator, apps)
        many = await programs(spawned, tick)
        quick: list[float] = []
        whole: list[float] = []
        peer: list[float] = []
        for number in range(rounds * WHOLE_EVERY):
            seconds = await cost(tick)
            index = (number + 2 * WHOLE_EVERY) % WHOLE_EVERY
            (whole if index == 0 else quick).append(seconds)
            if index % (WHOLE_EVERY // 4) == 0:
                peer.append(await cost(ps))
        status = await cost(orchestrator.status)
        running = [state.state for state in await orchestrator.status()].count("running")
    return {
        "apps": apps,
        "running": running,
        "install_all": took,
        "quick": quick,
        "whole": whole,
        "ps": peer,
        "status": status,
        "programs": {"quick": [few[1], many[1]], "whole": [few[0], many[0]]},
    }


async def programs(spawned: Spawned, tick: Callable[[], Awaitable[None]]) -> tuple[int, int]:
    """Programs started by a whole tick and by a quick one; ends just before a whole tick."""
    found = []
    for _ in range(WHOLE_EVERY):
        before = spawned.count
        await tick()
        found.append(spawned.count - before)
    return found[0], int(median(found[1:]))


def memory(apps: int, listings: int) -> dict[str, object]:
    """Bytes of every process of a running node with the apps of `ticks` and so many listings."""
    home = Home(WORK / "node")
    home.create()
    shutil.copytree(WORK / "many" / "data", home.apps_data, dirs_exist_ok=True)
    shutil.copy(WORK / "many" / "state.db", home.apps_state)
    with open_index(home.index, now=time.time) as index:
        fill(index, listings, random.Random(1))
    archy = ["archy", "--home", str(home.root)]
    with subprocess.Popen([*archy, "up"], stdout=subprocess.PIPE, text=True) as node:
        assert node.stdout is not None
        try:
            node.stdout.readline()
            sh(*archy, "ps", "--json", check=False)
            sh(*archy, "search", "photo", "--offline", "--json")
            found = json.loads(sh(*archy, "ps", "--json", check=False))["apps"]
            samples = []
            for _ in range(QUIET_SAMPLES):
                time.sleep(1)
                samples.append(processes(node.pid))
        finally:
            node.terminate()
    quiet = min(samples, key=lambda sample: sum(process["rss"] for process in sample))
    return {"apps": len(found), "running": sum(a["state"] == "running" for a in found), "processes": quiet}


def processes(root: int) -> list[dict[str, Any]]:
    """The process and all below it: what it is called, RSS and PSS in bytes (proc(5), smaps_rollup)."""
    found, front = [], [root]
    while front:
        pid = front.pop()
        try:
            sizes = dict(line.split()[:2] for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:60]
            front += children(pid)
        except (OSError, ValueError):
            continue  # it has just ended
        found.append({"pid": pid, "what": words, "rss": int(sizes["Rss:"]) * 1024, "pss": int(sizes["Pss:"]) * 1024})
    return found


def main(verb: str, order: dict[str, int]) -> None:
    os.chdir(Path.home())
    match verb:
        case "install":
            result = trio.run(installs, order["rounds"])
        case "tick":
            result = trio.run(ticks, order["apps"], order["rounds"])
        case _:
            result = memory(order["apps"], order["listings"])
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
