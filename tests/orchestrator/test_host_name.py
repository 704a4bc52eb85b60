"""`host.archipelago`: every app's way to its machine, whatever the operator's containers.conf says (R-FM4)."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.problems import Refused
from orchestrator.containers_conf import DEFAULT, files, host_address, texts
from orchestrator.host import ThisHost
from orchestrator.quadlet.text import UnitFile, parse
from orchestrator.subnets import RANGE, choose_subnet, gateway_of, is_subnet
from tests.orchestrator.bundles import app_name, container, make_bundle
from tests.orchestrator.nodes import Node, run

HELLO, OTHER = app_name(), app_name("other")


def network(node: Node, app: Any = HELLO) -> UnitFile:
    name = f"archy-{app.slug}.network"
    return parse(name, (node.settings.unit_dir / name).read_text())


def test_an_app_without_internet_has_one_way_out_and_it_is_the_hosts(node: Node, tmp_path: Path) -> None:  # R-FM4
    run(lambda: node.orchestrator.install(make_bundle(tmp_path)))
    unit = network(node)
    (subnet,), (gateway,) = unit.values("Network", "Subnet"), unit.values("Network", "Gateway")
    assert gateway == str(IPv4Network(subnet)[1])
    assert unit.values("Network", "PodmanArgs") == (f"--route=169.254.1.2/32,{gateway}",)
    assert "no_default_route=1" in unit.values("Network", "Options")
    assert unit.values("Network", "DNS") == ("127.0.0.1",)
    boxes = [path for path in node.units() if path.endswith(".container")]
    text = (node.settings.unit_dir / boxes[0]).read_text()
    assert "AddHost=host.archipelago:host-gateway" in text


def test_an_app_with_internet_needs_no_way_of_its_own(node: Node, tmp_path: Path) -> None:
    run(lambda: node.orchestrator.install(make_bundle(tmp_path, permissions={"internet": "outbound"})))
    unit = network(node)
    assert unit.values("Network", "Subnet") == unit.values("Network", "PodmanArgs") == ()


def test_a_subnet_is_kept_through_updates_and_given_back_by_a_purge(node: Node, tmp_path: Path) -> None:  # R-MF5
    async def work() -> None:
        await node.orchestrator.install(make_bundle(tmp_path))
        first = network(node).values("Network", "Subnet")
        await node.orchestrator.install(make_bundle(tmp_path, "2"))
        await node.orchestrator.uninstall(HELLO, purge=False)
        node.world.subnets["strangers"] = first[0]
        boxes = {"web": container(18081)}
        await node.orchestrator.install(make_bundle(tmp_path, name=OTHER, containers=boxes))
        assert network(node, OTHER).values("Network", "Subnet") != first
        del node.world.subnets["strangers"]
        await node.orchestrator.install(make_bundle(tmp_path, "2"))
        assert network(node).values("Network", "Subnet") == first
        for app in (HELLO, OTHER):
            await node.orchestrator.uninstall(app, purge=True)
        assert node.state.choices.subnets() == frozenset()

    run(work)


def test_a_subnet_that_a_stranger_has_is_not_chosen(node: Node, tmp_path: Path) -> None:
    node.world.subnets["lan"] = "10.254.0.0/17"
    run(lambda: node.orchestrator.install(make_bundle(tmp_path)))
    (subnet,) = network(node).values("Network", "Subnet")
    assert not IPv4Network(subnet).overlaps(IPv4Network("10.254.0.0/17"))


subnets = st.sets(st.integers(0, 1023)).map(lambda numbers: {f"10.254.{n // 4}.{n % 4 * 64}/26" for n in numbers})


@given(st.text(), subnets, st.lists(st.text()))
def test_a_chosen_subnet_is_nobody_elses_and_the_same_again(wish: str, taken: set[str], noise: list[str]) -> None:
    if len(taken) == 1024:
        return
    subnet = choose_subnet(wish, [*taken, *noise])
    assert choose_subnet(wish, {*taken, *noise}) == subnet
    assert is_subnet(subnet)
    assert subnet not in taken
    assert IPv4Network(subnet).subnet_of(RANGE)
    assert gateway_of(subnet).rpartition(".")[0] == subnet.rpartition(".")[0]


@pytest.mark.parametrize("taken", ["0.0.0.0/0", "10.0.0.0/8", "10.254.0.0/16"])
def test_a_machine_without_a_free_subnet_is_told_so(taken: str) -> None:
    with pytest.raises(Refused, match="no free subnet"):
        choose_subnet("x", [taken])


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ([], DEFAULT),
        (["[containers]\n# nothing\n"], DEFAULT),
        (['[containers]\nhost_containers_internal_ip = "10.1.2.3"\n'], "10.1.2.3"),
        (['[network]\npasta_options = ["--map-guest-addr", "10.9.9.9", "-T", "auto"]\n'], "10.9.9.9"),
        (['[network]\npasta_options = ["--map-guest-addr=10.9.9.9"]\n'], "10.9.9.9"),
        (['[network]\npasta_options = ["--map-guest-addr"]\n'], DEFAULT),
        (
            ['[network]\npasta_options = ["--map-guest-addr=10.9.9.9"]\n', "[containers]\n", "not toml ["],
            "10.9.9.9",
        ),
        (
            [
                '[containers]\nhost_containers_internal_ip = "10.1.2.3"\n',
                '[containers]\nhost_containers_internal_ip = "10.1.2.4"\n',
            ],
            "10.1.2.4",
        ),
        (['[containers]\nhost_containers_internal_ip = "$(reboot)"\n', "containers = 3\n"], DEFAULT),
        (["[network]\npasta_options = 3\n"], DEFAULT),
    ],
)
def test_the_operators_own_settings_say_where_the_host_is(written: list[str], address: str) -> None:  # R-FM4
    assert host_address(written) == address


def test_files_are_read_in_podmans_order_and_never_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # R-FM4
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for number, folder in enumerate(("usr/share/containers", "etc/containers", "config/containers")):
        (tmp_path / folder / "containers.conf.d").mkdir(parents=True)
        for name in ("containers.conf", "containers.conf.d/10-a.conf"):
            (tmp_path / folder / name).write_text(f'[containers]\nhost_containers_internal_ip = "10.0.{number}.1"\n')
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert host_address(texts(files(root=tmp_path))) == "10.0.2.1"
    assert list(files(root=tmp_path)) == list(before)[:0] + sorted(before, key=list(files(root=tmp_path)).index)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_this_machines_ways_are_subnets_and_not_the_default() -> None:
    routes = ThisHost().routes()
    assert "0.0.0.0/0" not in routes
    assert all(IPv4Network(route) for route in routes)
