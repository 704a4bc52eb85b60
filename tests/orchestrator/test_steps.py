"""Plans and steps: a pure plan, steps that may be taken twice, with a deadline, logged, backed off (R-ST17)."""

from __future__ import annotations

import ast
import inspect
import logging
import stat
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import orchestrator
from orchestrator.apply import take
from orchestrator.bundle import Bundle
from orchestrator.faults import CommandTimedOut, Unhealthy
from orchestrator.generations import Generations, Loaded
from orchestrator.links import LinkNetwork
from orchestrator.names import Names
from orchestrator.patience import BACKOFF
from orchestrator.plan import Absent, Wanted, plan
from orchestrator.podman import RootlessPodman
from orchestrator.quadlet.render import Target, render
from orchestrator.systemd import UserSystemd
from tests.orchestrator.bundles import app_name, container, files_entry, make_bundle, tar_of, write_files
from tests.orchestrator.nodes import Node, run

HELLO = app_name()
SERVICE = f"archy-{HELLO.slug}-web.service"


def derived_bundle(folder: Path, version: str = "1") -> Bundle:
    files = {"t": "v={{ app.version }} {{ secrets.password }}\n"}
    derived = {"template": "t", "dest": "a.conf", "into": {"web": "/run/conf"}}
    bundle = make_bundle(folder, version, derived_files=[derived], **files_entry(files))
    write_files(bundle, files)
    return bundle


def as_it_is(node: Node) -> dict[str, Any]:
    """The machine without what is another at each start."""
    world = node.world
    files = sorted(p for p in node.settings.data_dir.rglob("*") if p.is_file() and p.name != ".pending")
    return {
        "units": {unit: (node.settings.unit_dir / unit).read_text() for unit in node.units()},
        "containers": {name: (box.image_id, box.labels, box.read) for name, box in world.containers.items()},
        "services": {name: service.active for name, service in world.services.items()},
        "podman": (dict(world.networks), dict(world.volumes), dict(world.secrets), dict(world.images)),
        "files": {str(path): path.read_bytes() for path in files},
    }


async def carry_out(node: Node, want: Wanted | Absent, loaded: Loaded, *, times: int) -> None:
    """Look, plan and take every step so many times, until there is nothing to do."""
    for _ in range(5):
        seen = await node.machine.look(loaded.app.services, whole=True, strict=True)
        steps = plan(want, seen)
        assert plan(want, seen) == steps  # R-ST15
        if not steps:
            return
        for step in steps:
            for _ in range(times):
                await take(node.machine, step, loaded.source, loaded.source.names)
    raise AssertionError("it does not settle")


def test_every_step_of_an_apps_life_may_be_taken_twice(tmp_path: Path) -> None:  # R-ST17
    lives: list[Any] = []
    for times in (1, 2, 3):
        node = Node(tmp_path / "home")
        generations = Generations(node.state, node.machine, "amd64")
        states: list[Any] = []

        async def work(
            node: Node = node, generations: Generations = generations, states: list[Any] = states, times: int = times
        ) -> None:
            for version in ("1", "2"):
                bundle = derived_bundle(tmp_path / "bundles", version)
                (secret,) = bundle.manifest.generated_secrets
                node.machine.secrets.restore(HELLO, secret.name, 0, b"0" * 64)
                loaded = generations.fresh(bundle, (5, 4, 2))
                derived = generations.derived(HELLO, loaded, node.machine.secrets.read(HELLO))
                await carry_out(node, Wanted(loaded.app, True, frozenset(), derived), loaded, times=times)
                states.append(as_it_is(node))
            await carry_out(node, Wanted(loaded.app, False), loaded, times=times)
            states.append(as_it_is(node))
            gone = Absent(loaded.source.names, loaded.app.services, loaded.app.secrets, 60, purge=True)
            await carry_out(node, gone, loaded, times=times)
            states.append(as_it_is(node))

        run(work)
        lives.append(states)
        node.state.close()
        assert not node.units()
        for path in sorted(node.home.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    assert lives[0] == lives[1] == lives[2]


def test_every_step_is_logged_with_its_app_and_no_secret(
    node: Node, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:  # R-ST17, R-MF3
    caplog.set_level(logging.DEBUG)

    async def work() -> str:
        await node.orchestrator.install(derived_bundle(tmp_path))
        return node.orchestrator.secrets(HELLO)["password"]

    secret = run(work)
    steps = [record.__dict__ for record in caplog.records if record.message == "step"]
    assert {step["app"] for step in steps} == {HELLO.slug}
    taken = [step["step"] for step in steps]
    assert taken == ["WriteSecrets", "ImportImage", "WriteDerived", "WriteUnits", "DaemonReload", "Start"]
    assert [step["of"] for step in steps][-1] == SERVICE
    assert all(step["seconds"] >= 0 for step in steps)
    assert all(secret not in str(record.__dict__) for record in caplog.records)


def test_a_step_that_fails_is_logged_with_what_went_wrong(
    node: Node, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:  # R-ST17
    bundle = make_bundle(tmp_path)
    node.world.held_ports[18080] = "process 77 (nginx)"
    node.host.port_problem = lambda port, bind, protocol: ""  # type: ignore[method-assign]
    with pytest.raises(Unhealthy):
        run(lambda: node.orchestrator.install(bundle))
    (failed,) = [record.__dict__ for record in caplog.records if record.message == "step failed"]
    assert (failed["app"], failed["step"], failed["of"]) == (HELLO.slug, "Start", SERVICE)
    assert "address already in use" in failed["problem"]


def test_an_app_that_keeps_failing_is_tried_ever_more_seldom_up_to_a_ceiling_and_at_once_when_it_was_well(
    node: Node, tmp_path: Path
) -> None:  # R-ST17
    tries: list[float] = []

    async def watch(seconds: int) -> None:
        for _ in range(seconds):
            before = len(node.world.calls)
            await node.tick()
            if ("start", SERVICE) in node.world.calls[before:]:
                tries.append(trio.current_time())
            await trio.sleep(1)

    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        config = node.world.containers[SERVICE.removesuffix(".service")].image_id
        node.world.crashing.add(config)
        node.world.stop(SERVICE)
        await watch(1600)
        gaps = [round(after - before) for before, after in pairwise(tries)]
        assert gaps == [*BACKOFF[1:], *[BACKOFF[-1]] * (len(gaps) - len(BACKOFF) + 1)]
        assert len(gaps) > len(BACKOFF)
        node.world.crashing.clear()
        await watch(BACKOFF[-1] + 1)
        assert node.world.containers
        node.world.stop(SERVICE)
        tries.clear()
        begun = trio.current_time()
        await watch(2)
        assert tries == [begun]

    run(work)


CALLS: tuple[tuple[type, str, tuple[Any, ...], dict[str, Any]], ...] = (
    (UserSystemd, "show", ("archy", ()), {}),
    (UserSystemd, "daemon_reload", (), {}),
    (UserSystemd, "start", (("x",),), {"seconds": 60}),
    (UserSystemd, "stop", (("x",),), {"seconds": 60}),
    (UserSystemd, "restart", (("x",),), {"seconds": 60}),
    (UserSystemd, "reset_failed", (("x",),), {}),
    (UserSystemd, "journal", (("x",),), {"lines": 1}),
    (UserSystemd, "said", ("x",), {"lines": 1}),
    (RootlessPodman, "version", (), {}),
    (RootlessPodman, "containers", ("archy",), {}),
    (RootlessPodman, "inventory", ("archy",), {}),
    (RootlessPodman, "images", ("archy",), {}),
    (RootlessPodman, "image", ("x",), {}),
    (RootlessPodman, "remove_remains", ("x",), {}),
    (RootlessPodman, "import_image", (Path("/x"), "x"), {}),
    (RootlessPodman, "remove_image", ("x",), {}),
    (RootlessPodman, "create_secret", ("x", b"x", {}), {}),
    (RootlessPodman, "secret", ("x",), {}),
    (RootlessPodman, "remove_secrets", (("x",),), {}),
    (RootlessPodman, "hang_up", ("x",), {}),
    (RootlessPodman, "copy_into", (Path("/x"), "x", "/x"), {}),
    (RootlessPodman, "execute", ("x", ("true",)), {"seconds": 60, "slice_": "x.slice"}),
    (RootlessPodman, "remove_containers", (("x",),), {}),
    (RootlessPodman, "create_link", (LinkNetwork("x", "a", "b", "closed"), "archy"), {}),
    (RootlessPodman, "connect", ("x", "x", ()), {}),
    (RootlessPodman, "disconnect", ("x", "x"), {}),
    (RootlessPodman, "remove_network", ("x",), {}),
    (RootlessPodman, "remove_volume", ("x",), {}),
    (RootlessPodman, "addresses", (("x",),), {}),
    (RootlessPodman, "strangers", (("x",),), {}),
    (RootlessPodman, "start", ("x",), {"seconds": 60, "slice_": "x.slice"}),
    (RootlessPodman, "stop", ("x",), {"grace": 10}),
    (RootlessPodman, "set_restart", ("x", "no"), {}),
    (RootlessPodman, "discard", (("x",),), {}),
)


def test_every_call_to_the_machine_is_in_the_list_of_those_with_a_deadline() -> None:  # R-ST17
    for real in (UserSystemd, RootlessPodman):
        calls = {name for name, _ in inspect.getmembers(real, inspect.isfunction) if not name.startswith("_")}
        assert calls - {"dry_run", "at_hand"} == {name for kind, name, _, _ in CALLS if kind is real}


@pytest.mark.parametrize(("kind", "name", "given", "named"), CALLS)
def test_a_machine_that_never_answers_is_given_up(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: type,
    name: str,
    given: tuple[Any, ...],
    named: dict[str, Any],
) -> None:  # R-ST17, R-ST13
    for program in ("podman", "systemctl", "systemd-run", "journalctl"):
        path = tmp_path / program
        path.write_text("#!/bin/sh\nexec /bin/sleep 1000\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))

    async def work() -> None:
        with pytest.raises(CommandTimedOut):
            await getattr(kind(), name)(*given, **named)

    trio.run(work, clock=MockClock(autojump_threshold=0.05))


def test_a_start_is_waited_for_by_looks_at_its_health_and_no_longer(node: Node, tmp_path: Path) -> None:  # R-ST12
    bundle = make_bundle(tmp_path, containers={"web": container(health=SLOW)})
    config = bundle.manifest.containers["web"].image.platforms[0].config  # type: ignore[union-attr]
    node.world.ill.add(config)

    async def work() -> float:
        async with trio.open_nursery() as nursery:

            async def get_well() -> None:
                await trio.sleep(20)
                node.world.ill.clear()

            nursery.start_soon(get_well)
            status = await node.orchestrator.install(bundle)
            assert status.state == "running"
        return trio.current_time()

    async def timed() -> float:
        begun = trio.current_time()
        return await work() - begun

    assert 20 <= run(timed) < 21


def test_restarts_of_long_ago_are_no_crash_of_an_update(node: Node, tmp_path: Path) -> None:  # R-FM5
    def bundle(version: str) -> Bundle:
        # One layer for both versions: only what is written differently restarts
        web = container(health=SLOW, environment={"VERSION": version})
        boxes = {"web": web, "db": container(ports=[], health=None, mounts=[])}
        return make_bundle(tmp_path, version, containers=boxes, layer=tar_of({"a": b"b"}))

    second = bundle("2.0.0")
    config = second.manifest.containers["web"].image.platforms[0].config  # type: ignore[union-attr]
    db = SERVICE.replace("-web", "-db")

    async def get_well() -> None:
        await trio.sleep(10)
        node.world.ill.clear()

    async def work() -> None:
        await node.orchestrator.install(bundle("1.0.0"))
        node.world.services[db].restarts = 5
        node.world.ill.add(config)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(get_well)
            status = await node.orchestrator.install(second)
        assert (status.version, status.state) == ("2.0.0", "running")
        assert node.world.services[db].restarts == 5  # it was not restarted

    run(work)


SLOW = {"http": {"port": "web"}, "interval": 1, "timeout": 1, "retries": 2, "start_period": 30}


def test_time_alone_makes_nothing_healthy(node: Node, tmp_path: Path) -> None:  # R-ST12
    bundle = make_bundle(tmp_path, containers={"web": container(health=SLOW)})
    node.world.ill.add(bundle.manifest.containers["web"].image.platforms[0].config)  # type: ignore[union-attr]
    with pytest.raises(Unhealthy, match=r"did not become healthy in time \(34 s\)"):
        run(lambda: node.orchestrator.install(bundle))


PAUSES = {("converge.py", "wait_healthy"), ("rounds.py", "run"), ("rounds.py", "_listen")}
"""Pauses between two looks; each of these looks again afterwards."""


def test_nothing_is_waited_for_by_sleeping() -> None:  # R-ST12
    assert {(path.name, name) for path, tree in sources() for name in _sleepers(tree)} == PAUSES


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(Path(orchestrator.__file__).parent.rglob("*.py")):
        yield path, ast.parse(path.read_text())


def _sleepers(tree: ast.Module) -> Iterator[str]:
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            called = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
            names = {f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "") for f in called}
            if any(name.startswith("sleep") for name in names):
                yield function.name


KNOWN = {
    *("bitcoin", "btcpay", "electrs", "fulcrum", "gitea", "grafana", "homeassistant", "immich", "jellyfin", "knots"),
    *("lightning", "lnd", "mariadb", "mempool", "mysql", "nextcloud", "nginx", "paperless", "photoprism", "plex"),
    *("postgres", "redis", "synapse", "umbrel", "vaultwarden", "wordpress"),
}


def test_the_orchestrator_knows_no_app_by_name() -> None:  # R-MF6
    found = [
        f"{path.name}: {text[:60]}"
        for path, tree in sources()
        for text in _said(tree)
        for known in KNOWN
        if known in text.lower()
    ]
    assert found == []


def _said(tree: ast.Module) -> Iterator[str]:
    """Every text and name in the code but what is said to its readers."""
    told = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield node.value
        if isinstance(node, ast.Name):
            yield node.id


@pytest.mark.parametrize("id_", ["bitcoin-knots", "immich", "postgres", "nextcloud"])
def test_an_apps_name_changes_nothing_but_names(tmp_path: Path, id_: str) -> None:  # R-MF6
    def units(name: str) -> dict[str, str]:
        app = app_name(name)
        bundle = make_bundle(tmp_path / name, name=app)
        made = render(bundle.manifest, Names("archy", app), Target("archy", (5, 4, 2), "amd64"))
        files = {**made.files, **made.boot}
        return {file.replace(app.slug, "APP"): text.replace(app.slug, "APP") for file, text in files.items()}

    def without_spec(made: dict[str, str]) -> dict[str, list[str]]:
        return {
            file: [line for line in text.splitlines() if "archy.spec=" not in line and "archy.network=" not in line]
            for file, text in made.items()
        }

    assert without_spec(units(id_)) == without_spec(units("hello"))
