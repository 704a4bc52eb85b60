"""Dependencies: who may serve whom, what the two share, and what is asked before somebody is left alone (R-MF8)."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from apps.manifest import parse_manifest_json
from apps.names import AppName
from apps.problems import Problem, Refused
from orchestrator.bundle import Bundle
from orchestrator.choices import Link
from orchestrator.faults import StateProblem
from orchestrator.links import Installed, NeedsOthers, StillNeeded, refuse_cycle, resolve
from orchestrator.quadlet.text import parse
from tests.fakes.podman_machine import Crash
from tests.orchestrator.bundles import app_name, container, files_entry, make_bundle, write_files
from tests.orchestrator.nodes import Node, run

CHAIN, WALLET = app_name("chain"), app_name("wallet")
MALLORY = "did:key:zMallory"
TEMPLATE = (
    "{{ dependencies.chain.rpc.address }}:{{ dependencies.chain.rpc.port }} {{ dependencies.chain.rpc.secret }} "
    "{{ dependencies.chain.fee.setting }}\n"
)


def chain(folder: Path, version: str = "27.1", name: AppName = CHAIN, port: int = 18090, **more: Any) -> Bundle:
    known: dict[str, Any] = {
        "exports": [{"name": "rpc", "port": "web", "secret": "password"}, {"name": "fee", "setting": "fee"}],
        "settings": [{"name": "txindex", "default": "0", "env": {"web": "TXINDEX"}}, {"name": "fee", "default": "3"}],
        "containers": {"web": container(port), "cache": {}},
    }
    return make_bundle(folder, version, name=name, **(known | more))


def wallet(folder: Path, version: str = "1", *, needs: dict[str, Any] | None = None, **more: Any) -> Bundle:
    derived = {"template": "t", "dest": "wallet.conf", "into": {"web": "/run/conf"}}
    known: dict[str, Any] = {
        "dependencies": [{"id": "chain", "version": ">=27"} | (needs or {})],
        "derived_files": [derived],
        **files_entry({"t": TEMPLATE}),
    }
    bundle = make_bundle(folder, version, name=WALLET, **(known | more))
    write_files(bundle, {"t": TEMPLATE})
    return bundle


def box(node: Node, app: AppName, label: str = "web") -> Any:
    return node.world.containers[f"archy-{app.slug}-{label}"]


def test_a_dependant_gets_the_exports_and_a_network_of_the_pair(node: Node, tmp_path: Path) -> None:  # R-MF13
    async def work() -> None:
        await node.orchestrator.install(chain(tmp_path))
        begun = box(node, CHAIN).id
        await node.orchestrator.install(wallet(tmp_path))
        secret = node.orchestrator.secrets(CHAIN)["password"]
        assert box(node, WALLET).read["/run/conf/wallet.conf"].decode() == f"rpc.chain:8080 {secret} 3\n"
        (network,) = node.world.links
        assert box(node, CHAIN).networks == {network: {"rpc.chain"}}
        assert box(node, CHAIN).id == begun  # it joined as it ran
        assert not box(node, CHAIN, "cache").networks
        assert set(box(node, WALLET).networks) == {network}
        name = f"archy-{WALLET.slug}-web.container"
        unit = parse(name, (node.settings.unit_dir / name).read_text())
        assert f"archy-{CHAIN.slug}-web.service" in unit.values("Unit", "After")  # R-ST14
        assert unit.values("Unit", "Requires") == ()
        before = node.changes()
        await node.tick()
        node.restart()
        await node.settle()
        assert node.changes() == before  # R-ST15, R-ST16

    run(work)


def test_two_dependants_of_one_app_share_no_network(node: Node, tmp_path: Path) -> None:  # R-MF13
    other = app_name("explorer")

    async def work() -> None:
        await node.orchestrator.install(chain(tmp_path))
        await node.orchestrator.install(wallet(tmp_path))
        boxes = {"web": container(18091)}
        needs = [{"id": "chain"}]
        await node.orchestrator.install(make_bundle(tmp_path, name=other, containers=boxes, dependencies=needs))
        assert len(box(node, CHAIN).networks) == 2
        assert not set(box(node, WALLET).networks) & set(box(node, other).networks)

    run(work)


@pytest.mark.parametrize(
    ("needs", "says", "remedy"),
    [
        ({"version": ">=28"}, "chain is 27.1, and >=28 is needed", "archy update chain"),
        ({"settings": {"txindex": "1"}}, "chain has to be set to txindex=1", "archy config chain txindex=1"),
        ({"settings": {"nothing": "1"}}, "chain has no setting nothing", "archy update chain"),
        ({"any_of": ["knots", "core"]}, "knots or core is not installed", "archy install knots"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_command_that_mends_it(
    node: Node, tmp_path: Path, needs: dict[str, Any], says: str, remedy: str
) -> None:
    async def work() -> None:
        await node.orchestrator.install(chain(tmp_path))
        before = node.changes()
        with pytest.raises(NeedsOthers, match=says) as caught:
            await node.orchestrator.install(wallet(tmp_path, needs=needs))
        assert (caught.value.remedy, caught.value.exit_code) == (remedy, 3)
        assert node.changes() == before

    run(work)


def test_a_required_setting_is_required_as_long_as_somebody_needs_it(node: Node, tmp_path: Path) -> None:
    async def work() -> None:
        await node.orchestrator.install(chain(tmp_path))
        await node.orchestrator.configure(CHAIN, {"txindex": "1"})
        await node.orchestrator.install(wallet(tmp_path, needs={"settings": {"txindex": "1"}}))
        with pytest.raises(StillNeeded, match="wallet needs chain as it is: chain has to be set to txindex=1"):
            await node.orchestrator.configure(CHAIN, {"txindex": None})
        with pytest.raises(StillNeeded, match="wallet needs chain as it is: chain is 26, and >=27 is needed"):
            await node.orchestrator.install(chain(tmp_path, "26"))
        await node.orchestrator.configure(CHAIN, {"fee": "5"})
        await node.settle()
        assert box(node, WALLET).read["/run/conf/wallet.conf"].endswith(b" 5\n")

    run(work)


def test_a_stopped_app_serves_nobody_and_is_not_started_for_anybody(node: Node, tmp_path: Path) -> None:  # R-ST2
    async def work() -> None:
        await node.orchestrator.install(chain(tmp_path))
        await node.orchestrator.stop(CHAIN)
        with pytest.raises(NeedsOthers, match="chain is stopped"):
            await node.orchestrator.install(wallet(tmp_path))
        await node.orchestrator.start(CHAIN)
        await node.orchestrator.install(wallet(tmp_path))
        await node.orchestrator.stop(CHAIN)
        await node.settle()
        assert set(node.world.containers) == {f"archy-{WALLET.slug}-web"}

    run(work)


def test_after_a_crash_a_dependant_waits_for_what_it_depends_on(node: Node, tmp_path: Path) -> None:  # R-ST14
    first = chain(tmp_path)
    ill = first.manifest.containers["web"].image.platforms[0].config  # type: ignore[union-attr]

    async def work() -> None:
        await node.orchestrator.install(first)
        await node.orchestrator.install(wallet(tmp_path))
        node.world.ill.add(ill)
        node.world.stop(f"archy-{WALLET.slug}-web.service")
        await node.tick()
        await node.tick()
        assert f"archy-{WALLET.slug}-web" not in node.world.containers
        node.world.ill.clear()
        await node.tick()
        assert f"archy-{WALLET.slug}-web" in node.world.containers

    run(work)


def test_uninstalling_what_others_need_is_refused_by_name(node: Node, tmp_path: Path) -> None:
    async def work() -> None:
        await node.orchestrator.install(chain(tmp_path))
        await node.orchestrator.install(wallet(tmp_path))
        with pytest.raises(StillNeeded, match="wallet can not do without chain") as caught:
            await node.orchestrator.uninstall(CHAIN, purge=False)
        assert caught.value.exit_code == 3
        assert len(node.world.containers) == 3
        await node.orchestrator.uninstall(CHAIN, purge=False, needed=True)
        await node.settle()
        assert not node.world.links
        assert set(node.world.containers) == {f"archy-{WALLET.slug}-web"}

    run(work)


def test_uninstalling_the_dependant_leaves_no_trace_at_the_other(node: Node, tmp_path: Path) -> None:  # R-ST10
    async def work() -> None:
        await node.orchestrator.install(chain(tmp_path))
        units = {name: (node.settings.unit_dir / name).read_text() for name in node.units()}
        begun = box(node, CHAIN).id
        await node.orchestrator.install(wallet(tmp_path))
        await node.orchestrator.uninstall(WALLET, purge=True)
        assert {name: (node.settings.unit_dir / name).read_text() for name in node.units()} == units
        assert not node.world.links
        assert box(node, CHAIN).networks == {}
        assert box(node, CHAIN).id == begun

    run(work)


def test_a_look_at_the_other_app_in_the_middle_of_it_does_not_keep_their_network(node: Node, tmp_path: Path) -> None:
    """Between taking the other app's container out and removing the network, a tick lets it join once more."""

    class Calls(list[tuple[str, str]]):
        joined = False

        def append(self, call: tuple[str, str]) -> None:
            super().append(call)
            if call[0] == "remove_network" and call[1] in node.world.links and not self.joined:
                self.joined = True
                box(node, CHAIN).networks[call[1]] = frozenset()

    async def work() -> None:
        await node.orchestrator.install(chain(tmp_path))
        await node.orchestrator.install(wallet(tmp_path))
        node.world.calls = calls = Calls()
        await node.orchestrator.uninstall(WALLET, purge=True)
        assert calls.joined
        assert not node.world.links
        assert box(node, CHAIN).networks == {}

    run(work)


def test_a_failed_install_of_a_dependant_leaves_no_trace_at_the_other(node: Node, tmp_path: Path) -> None:
    bad = wallet(tmp_path)
    config = bad.manifest.containers["web"].image.platforms[0].config  # type: ignore[union-attr]

    async def work() -> None:
        await node.orchestrator.install(chain(tmp_path))
        units = {name: (node.settings.unit_dir / name).read_text() for name in node.units()}
        node.world.ill.add(config)
        with pytest.raises(Problem):
            await node.orchestrator.install(bad)
        await node.settle()
        assert {name: (node.settings.unit_dir / name).read_text() for name in node.units()} == units
        assert not node.world.links

    run(work)


def test_anothers_app_of_the_same_id_takes_no_dependant_over(node: Node, tmp_path: Path) -> None:  # R-MF14
    theirs = AppName(MALLORY, "chain")

    async def work() -> None:
        await node.orchestrator.install(chain(tmp_path))
        await node.orchestrator.install(wallet(tmp_path))
        await node.orchestrator.install(chain(tmp_path, "99", theirs, 18095))
        await node.orchestrator.install(wallet(tmp_path, "2"))
        await node.settle()
        assert not box(node, theirs).networks
        assert box(node, CHAIN).networks
        await node.orchestrator.uninstall(CHAIN, purge=False, needed=True)
        await node.settle()
        assert not box(node, theirs).networks

    run(work)


def test_a_crash_anywhere_in_the_install_of_a_dependant_leaves_all_or_nothing(tmp_path: Path) -> None:
    for at in range(0, 90, 4):
        folder = tmp_path / str(at)
        node, first, second = Node(folder), chain(folder), wallet(folder)

        async def work(node: Node = node, first: Bundle = first, second: Bundle = second, at: int = at) -> bool:
            await node.orchestrator.install(first)
            begun = box(node, CHAIN).id
            node.world.crash_at = at
            with suppress(Crash, StateProblem, BaseExceptionGroup):
                await node.orchestrator.install(second)
            dead, node.world.crash_at = node.world.crashed, None
            if dead:
                node.boot()
                await node.settle()
            assert box(node, CHAIN).id == begun
            whole = f"archy-{WALLET.slug}-web" in node.world.containers
            assert whole == (len(node.orchestrator.installed()) == 2), f"crash at call {at}"
            assert len(node.world.links) == len(box(node, CHAIN).networks) == int(whole), f"crash at call {at}"
            return dead

        if not run(work):
            assert at > 20
            return
    raise AssertionError("the operation never ended")


def installed(id_: str, publisher: str = "did:key:zAlice", **more: Any) -> Installed:
    body = {"schema": 1, "id": id_, "version": "1", "title": "x", "containers": {"web": {"image": {"ref": "a.b/c:1"}}}}
    return Installed(AppName(publisher, id_), parse_manifest_json(body | more, where="m"), "running")


def needing(*dependencies: dict[str, Any]) -> Installed:
    return installed("wallet", dependencies=list(dependencies))


def test_the_own_publishers_app_serves_first_and_the_first_alternative_before_others() -> None:
    me = needing({"id": "smtp", "any_of": ["postfix", "maddy"]})
    apps = [installed("maddy"), installed("postfix"), installed("postfix", MALLORY)]
    assert resolve(me.name, me.manifest, apps, {}) == {"smtp": apps[1].name}
    assert resolve(me.name, me.manifest, [apps[0], apps[2]], {}) == {"smtp": apps[0].name}
    assert resolve(me.name, me.manifest, apps, {"smtp": apps[2].name}) == {"smtp": apps[2].name}


def test_of_two_strangers_that_could_serve_none_is_chosen() -> None:
    me = needing({"id": "postfix"})
    apps = [installed("postfix", "did:key:zBob"), installed("postfix", MALLORY)]
    with pytest.raises(NeedsOthers, match="both did:key:zBob/postfix and did:key:zMallory/postfix could serve"):
        resolve(me.name, me.manifest, apps, {})


def test_an_optional_dependency_is_left_out_and_everything_missing_is_told_at_once() -> None:
    me = needing({"id": "one"}, {"id": "two", "optional": True}, {"id": "three"})
    with pytest.raises(NeedsOthers, match="one is not installed; three is not installed"):
        resolve(me.name, me.manifest, [], {})
    assert set(resolve(me.name, me.manifest, [installed("one"), installed("three")], {})) == {"one", "three"}


def test_a_circle_of_apps_is_refused() -> None:
    one, two, three = (AppName("p", id_) for id_ in ("one", "two", "three"))
    links = [Link(two, "three", three), Link(three, "one", one)]
    with pytest.raises(Refused, match="one would need itself through three, two"):
        refuse_cycle(one, {"two": two}, links)
    refuse_cycle(two, {"three": three}, [*links, Link(two, "two", two)])
