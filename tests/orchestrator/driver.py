"""The orchestrator from a command line of its own, for tests inside a lab node. Prints one JSON line per result.

    archy-python -m tests.orchestrator.driver install '{"version": "1.0.0", "port": 18080}'
    archy-python -m tests.orchestrator.driver stop|start|restart|status|settle|watch|logs|uninstall|purge ['{...}']
    archy-python -m tests.orchestrator.driver configure|secrets|rotate '{"settings": {"greeting": "Hi"}, "secret": "x"}'
    archy-python -m tests.orchestrator.driver orphans|adopt '{...as for install}'

Leaves with the problem's exit code; the problem is a JSON line too.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import trio

from apps.names import AppName
from apps.problems import Problem
from orchestrator import Bundle, Orchestrator, Settings, default_unit_dir, open_orchestrator, preflight
from orchestrator.images import check_layout, stage, write_index
from orchestrator.podman import RootlessPodman
from tests.orchestrator.bundles import files_entry, make_bundle, tar_of, write_files, write_layout

BUSYBOX = Path("/bin/busybox")


def web_layer(text: str) -> bytes:
    """A web server and one page; something that is no program where there is no static busybox."""
    program = BUSYBOX.read_bytes() if BUSYBOX.exists() else b"no program"
    return tar_of({"bin/busybox": program, "www/index.html": text.encode()}, executable=True)


def web_container(port: int | None, **more: Any) -> dict[str, Any]:
    """Serves the page on 8080 as an unprivileged user."""
    body: dict[str, Any] = {
        "command": ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/www"],
        "user": "1000:1000",
        "ports": [{"name": "web", "container": 8080} | ({"host": port, "bind": "lan"} if port else {})],
        "mounts": [{"volume": "data", "path": "/data"}],
        "secrets": [{"name": "password", "file": "/run/secrets/password"}],
        "health": {"http": {"port": "web"}, "interval": 1, "timeout": 5, "retries": 3, "start_period": 15},
        "stop_grace_secs": 1,
    }
    return body | more


def web_bundle(folder: Path, name: AppName, version: str, **more: Any) -> Bundle:
    """A bundle whose containers all run the same image, which shows the version."""
    return make_bundle(folder, version, name=name, layer=web_layer(f"{name.id} {version}\n"), **more)


def with_images(folder: Path, name: AppName, version: str, companions: dict[str, Any]) -> dict[str, Any]:
    """Companions that do nothing, each in an image of its own."""
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/bin/busybox", "sh", "-c", "trap exit TERM; while true; do sleep 1 & wait; done"]},
    }
    config["config"]["Env"] = ["PATH=/bin"]  # type: ignore[index]
    layer = tar_of({"bin/busybox": BUSYBOX.read_bytes(), "bin/sleep": BUSYBOX.read_bytes()}, executable=True)
    images = folder / f"{name.slug}-{version}" / "images"
    return {
        label: body | {"image": write_layout(images / label, label.encode(), layer=layer, config=dict(config))}
        for label, body in companions.items()
    }


def name_of(order: dict[str, Any]) -> AppName:
    return AppName(order.get("publisher", "did:key:zAlice"), order.get("id", "hello"))


async def load_by_hand(bundle: Bundle, image: str) -> str:
    """What an operator has who once pulled the image of the app's one container from a registry."""
    platform = next(iter(bundle.manifest.containers.values())).image.platforms[0]  # type: ignore[union-attr]
    layout = check_layout(bundle.layout(next(iter(bundle.manifest.containers))), platform, where="driver")
    with tempfile.TemporaryDirectory(dir=bundle.root) as folder:
        write_index(stage(layout, Path(folder) / "layout"), layout, image)
        await RootlessPodman().import_image(Path(folder) / "layout", image)
    return platform.config


def say(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


async def obey(orchestrator: Orchestrator, verb: str, order: dict[str, Any], home: Path) -> None:
    name = name_of(order)
    match verb:
        case "install" | "adopt" | "load" | "offer" | "take over":
            containers = order.get("containers") or {"web": web_container(order.get("port", 18080))}
            more = {"volumes": {"data": {"owner": "1000:1000"}}} | order.get("manifest", {})
            more |= files_entry(order.get("files", {}))
            if companions := more.get("companions"):
                more["companions"] = with_images(home / "bundles", name, order["version"], companions)
            bundle = web_bundle(home / "bundles", name, order["version"], containers=containers, **more)
            write_files(bundle, order.get("files", {}))
            if order.get("spoil") == "config":
                image = bundle.manifest.containers["web"].image
                assert image is not None
                blob = bundle.layout("web") / "blobs" / "sha256" / image.platforms[0].config[7:]
                blob.write_bytes(blob.read_bytes().replace(b"linux", b"xunil"))
            match verb:
                case "adopt":
                    say((await orchestrator.adopt(bundle)).to_json())
                    return
                case "load":
                    say([await load_by_hand(bundle, order["image"])])
                    return
                case "offer":
                    say((await orchestrator.offer(name, bundle.manifest)).to_json())
                    return
                case "take over":
                    offer = await orchestrator.offer(name, bundle.manifest)
                    say((await orchestrator.take_over(bundle, order.get("agreed", offer.ids))).to_json())
                    return
            status = await orchestrator.install(bundle, report=lambda progress: say({"phase": progress.phase}))
            say(status.to_json())
        case "start":
            say((await orchestrator.start(name)).to_json())
        case "restart":
            say((await orchestrator.restart(name)).to_json())
        case "stop":
            say((await orchestrator.stop(name)).to_json())
        case "configure":
            say([setting.to_json() for setting in await orchestrator.configure(name, order["settings"])])
        case "secrets":
            say(dict(orchestrator.secrets(name)))
        case "rotate":
            await orchestrator.rotate(name, order["secret"])
            say({"rotated": order["secret"]})
        case "orphans":
            say([[orphan.id, orphan.running] for orphan in await orchestrator.orphans()])
        case "uninstall" | "purge":
            await orchestrator.uninstall(name, purge=verb == "purge")
            say({"gone": name.slug})
        case "status":
            say([status.to_json() for status in await orchestrator.status()])
        case "logs":
            say(await orchestrator.logs(name, lines=50))
        case "settle":
            async with trio.open_nursery() as nursery:
                await orchestrator.tick(nursery)
            say([list(map(str, item)) for item in orchestrator.installed()])
        case "watch":
            async with trio.open_nursery() as nursery:
                await nursery.start(orchestrator.run)
                say({"watching": os.getpid()})


async def main(verb: str, order: dict[str, Any]) -> int:
    home = Path(order.get("home") or Path.home() / "archy")
    tick = float(order.get("tick", 30))
    settings = Settings(home / "state.db", home / "data", default_unit_dir(), tick_seconds=tick)
    try:
        if verb == "preflight":
            say([finding.to_json() for finding in await preflight()])
            return 0
        async with open_orchestrator(settings) as orchestrator:
            await obey(orchestrator, verb, order, Path.home())
    except Problem as problem:
        say({"problem": problem.kind, "text": str(problem)})
        return problem.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(trio.run(main, sys.argv[1], json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}))
