"""The orchestrator beside what it stands on, systemctl and podman, in one node of the lab and one run.

    ./run bench orchestrator [--rounds 7] [--apps 50] [--listings 10000] [--planner-only]

Prints a table and writes bench/out/orchestrator.json. Medians. Install to healthy: by turns with a Quadlet unit as a
person writes it, started by systemctl, with the image in the store for both. A tick: CPU time of the process and all
programs it starts, beside one `podman ps` of the same containers; most ticks are quick, every 20th is a whole look.
Memory: every process of `archy up`, in a quiet second. The planner runs here, without a node.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from apps.manifest import Manifest, parse_manifest_json
from apps.names import AppName
from orchestrator.names import Names
from orchestrator.plan import Observed, Wanted, plan
from orchestrator.podman import ContainerSeen, ImageSeen, Inventory
from orchestrator.quadlet.render import Target, render
from orchestrator.quadlet.rendered import RenderedApp
from orchestrator.systemd import UnitState
from orchestrator.unit_folder import OwnedFile
from tests.system.lab import SOURCE, LabUnavailable, Node, ensure_base

OUT: Final = Path(__file__).parent / "out" / "orchestrator.json"
MIB: Final = 1 << 20
PLANNED: Final = 1000
SECONDS: Final = 1500.0
"""For one part in the node; setting 50 apps up takes minutes on two cores."""


def manifest(number: int) -> Manifest:
    """A web server and its database, with a volume and a secret."""
    digest = f"{number:064x}"
    platform = {
        "arch": "amd64",
        "manifest": f"sha256:{digest}",
        "config": f"sha256:{digest}",
        "index": {"blake3": digest, "size": 10},
    }
    image = {"ref": "localhost/bench:1", "platforms": [platform]}
    web = {
        "image": image,
        "needs": ["db"],
        "ports": [{"name": "web", "container": 8080, "host": 20000 + number}],
        "health": {"http": {"port": "web"}},
    }
    mounts, secrets = [{"volume": "data", "path": "/data"}], [{"name": "password", "file": "/run/secrets/password"}]
    body = {
        "schema": 1,
        "id": f"app{number}",
        "version": "1.0.0",
        "title": "Bench",
        "containers": {"web": web, "db": {"image": image, "mounts": mounts, "secrets": secrets}},
        "volumes": {"data": {}},
        "generated_secrets": [{"name": "password"}],
    }
    return parse_manifest_json(body, where="bench")


def in_order(apps: Sequence[RenderedApp], *, whole: bool) -> Observed:
    """A machine on which all of them run as they should."""
    boxes = [(app, box) for app in apps for box in app.containers]
    files = {name: OwnedFile(app.names.slug, text) for app in apps for name, text in {**app.files, **app.boot}.items()}
    seen = tuple(
        ContainerSeen(b.name, b.name, "running", b.config, {"archy.spec": b.spec, "archy.app": a.names.slug})
        for a, b in boxes
    )
    services = {box.service: UnitState(box.service, "loaded", "active", "running") for _, box in boxes}
    inventory = Inventory(
        tuple(ImageSeen(b.config, b.image.split("@")[1], b.image.split("@")[0], "1") for _, b in boxes),
        {app.network: app.network_spec for app in apps},
        {volume: app.names.slug for app in apps for volume in app.volumes},
        frozenset(app.names.secret(label) for app in apps for label in app.secrets),
    )
    return Observed(files, services, seen, inventory if whole else None)


def planner(rounds: int) -> dict[str, float]:
    """Milliseconds of CPU time, which is all that a pure function takes, for 1,000 apps of two containers each."""
    target = Target("archy", (5, 4, 2), "amd64")
    manifests = [manifest(number) for number in range(PLANNED)]
    began = time.process_time()
    apps = [render(m, Names("archy", AppName("did:key:zBench", m.id)), target) for m in manifests]
    found = {"render": (time.process_time() - began) * 1000}
    wants = [Wanted(app, True) for app in apps]
    for name, whole in (("quick", False), ("whole", True)):
        took = []
        for _ in range(rounds):
            seen = in_order(apps, whole=whole)  # a new one: nothing is left of the round before
            gc.collect()  # what making it costs the collector is not the planner's
            began = time.process_time()
            steps = [plan(want, seen) for want in wants]
            took.append((time.process_time() - began) * 1000)
            assert not any(steps)
        found[name] = median(took)
    return found


def inside(node: Node, part: str, **order: int) -> dict[str, Any]:
    # In a control group of the user's own, as the node's service is: elsewhere each podman asks systemd for one first.
    scope = ("systemd-run", "--user", "--scope", "--quiet", "--collect")
    argv = [*scope, "archy-python", "-m", "bench.orchestrator_node", part, json.dumps(order)]
    done = node.run(argv, cwd=SOURCE, timeout=SECONDS)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"==> {part} is measured", file=sys.stderr, flush=True)
    return result


def in_node(rounds: int, apps: int, listings: int) -> list[dict[str, object]]:
    base = ensure_base(lambda line: print(f"==> {line}", file=sys.stderr, flush=True))
    with Node.boot(base, "bench") as node:
        installs = inside(node, "install", rounds=rounds)
        ticks = inside(node, "tick", rounds=max(rounds // 2, 3), apps=apps)
        memory = inside(node, "memory", apps=apps, listings=listings)
    return [*install_figures(installs), *tick_figures(ticks), *memory_figures(memory, listings)]


def install_figures(found: dict[str, Any]) -> list[dict[str, object]]:
    hand, ours = median(found["hand"]), median(found["ours"])
    last = found["phases"][-1]
    print("  phases of the last installation, seconds from its start:", last, file=sys.stderr)
    return [
        figure("Quadlet unit by hand: files to healthy", hand, "s"),
        figure("install to healthy", ours, "s"),
        figure("install to healthy / by hand", ours / hand, "x", 1.3),
    ]


def tick_figures(found: dict[str, Any]) -> list[dict[str, object]]:
    quick, whole, ps = (median(found[key]) for key in ("quick", "whole", "ps"))
    apps = found["apps"]
    mean = (19 * quick + whole) / 20
    programs = {key: (many - few) / (apps - 1) for key, (few, many) in found["programs"].items()}
    return [
        figure("apps that run", found["running"], "", better="higher"),
        figure(f"podman ps, {apps} apps: CPU", ps * 1000, "ms"),
        figure(f"quick tick, {apps} apps: CPU", quick * 1000, "ms"),
        figure("quick tick / podman ps", quick / ps, "x", 2.0),
        figure(f"whole tick (every 20th), {apps} apps: CPU", whole * 1000, "ms"),
        figure("mean of 20 ticks / podman ps", mean / ps, "x", 2.0),
        figure("programs by app, quick tick", programs["quick"], "", 0.0),
        figure("programs by app, whole tick", programs["whole"], "", 0.0),
        figure("programs in all, quick tick", found["programs"]["quick"][1], ""),
        figure("programs in all, whole tick", found["programs"]["whole"][1], ""),
    ]


def memory_figures(found: dict[str, Any], listings: int) -> list[dict[str, object]]:
    for process in found["processes"]:
        print(f"  {process['rss'] / MIB:6.1f} MiB  {process['what']}", file=sys.stderr)
    rss, pss = (sum(process[key] for process in found["processes"]) for key in ("rss", "pss"))
    what = f"{found['apps']} apps, {listings} listings"
    return [
        figure(f"node with {what}: RSS of all processes", rss / MIB, "MiB", 200.0),
        figure("  the same, shared pages counted once (PSS)", pss / MIB, "MiB"),
        figure("  its main process: RSS", found["processes"][0]["rss"] / MIB, "MiB"),
    ]


def figure(name: str, value: float, unit: str, goal: float | None = None, better: str = "lower") -> dict[str, object]:
    return {"name": name, "value": round(value, 3), "unit": unit, "goal": goal, "better": better}


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench orchestrator")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--apps", type=int, default=50)
    parser.add_argument("--listings", type=int, default=10_000)
    parser.add_argument("--planner-only", action="store_true", help="without a node; writes nothing")
    given = parser.parse_args()
    planned = planner(given.rounds)
    figures = [
        figure(f"planner, {PLANNED} apps in order, quick look", planned["quick"], "ms", 50.0),
        figure(f"planner, {PLANNED} apps in order, whole look", planned["whole"], "ms", 50.0),
        figure(f"rendering {PLANNED} apps", planned["render"], "ms"),
    ]
    if not given.planner_only:
        try:
            figures = [*in_node(given.rounds, given.apps, given.listings), *figures]
        except LabUnavailable as lack:
            print(f"bench: {lack}", file=sys.stderr)
            return 4
        OUT.parent.mkdir(exist_ok=True)
        OUT.write_text(json.dumps({"figures": figures}, indent=1) + "\n")
    for row in figures:
        goal = "" if row["goal"] is None else f"  goal <= {row['goal']:g}"
        print(f"{row['name']:<52} {row['value']:>10} {row['unit']:<4}{goal}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
