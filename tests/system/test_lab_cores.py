"""The lab's pure parts: which packages a node gets, and which addresses."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.system.lab.dependencies import node_requirements, platform_tags
from tests.system.lab.host import LabFault
from tests.system.lab.network import Pair, choose_pair

POOL = ipaddress.IPv4Network("198.18.0.0/15")

LOCK = """\
# written by a tool
plain==1.0 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
    # via somebody
numpy==2.4 ; python_full_version < '3.12' \\
    --hash=sha256:cc
numpy==2.5 ; python_full_version >= '3.12' \\
    --hash=sha256:dd
colorama==0.4 ; sys_platform == 'win32' \\
    --hash=sha256:ee
mypy==2.4 \\
    --hash=sha256:ff
"""


def test_node_gets_what_its_own_python_asks_for_with_hashes_and_no_checkers() -> None:
    assert node_requirements(LOCK) == (
        "plain==1.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\nnumpy==2.5 \\\n    --hash=sha256:dd\n"
    )


def test_wheels_for_any_glibc_up_to_the_nodes_fit() -> None:
    tags = platform_tags("x86_64")
    assert tags[0] == "manylinux_2_41_x86_64"
    assert {"manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"} <= set(tags)


@given(st.lists(st.tuples(st.integers(0, (3 << 15) - 1), st.integers(22, 32)), max_size=8))
def test_chosen_addresses_overlap_nothing_that_is_taken(networks: list[tuple[int, int]]) -> None:
    taken = [f"{POOL[host]}/{prefix}" for host, prefix in networks]
    pair = choose_pair([*taken, "10.0.0.0/8", "192.168.1.7"])
    near, far = (ipaddress.IPv4Address(address) for address in (pair.near, pair.far))
    assert int(far) == int(near) + 1
    for network in taken:
        assert near not in ipaddress.IPv4Network(network, strict=False)
        assert far not in ipaddress.IPv4Network(network, strict=False)


def test_last_free_addresses_are_found_and_none_is_told() -> None:
    all_but_last = ["198.18.0.0/16", "198.19.0.0/17", *(f"198.19.{third}.0/24" for third in range(128, 255))]
    all_but_last += [f"198.19.255.{fourth}" for fourth in range(252)]
    assert choose_pair(all_but_last) == Pair("198.19.255.253", "198.19.255.254")
    with pytest.raises(LabFault, match="in use"):
        choose_pair([str(POOL)])
