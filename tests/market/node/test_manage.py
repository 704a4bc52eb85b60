"""Words for installed apps, as operators type them."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from market.errors import Problem, UsageProblem
from market.node.manage import alike
from market.node.operations import perform, start_operation
from tests.fakes.blob_servers import BlobServer
from tests.market.node.operators import Operator
from tests.market.square import Publisher

IDS = ["hello", "photo-library", "immich", "bitcoind"]


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("helo", ["hello"]),
        ("Hello", ["hello"]),
        ("photo", ["photo-library"]),
        ("bitcoin", ["bitcoind"]),
        ("zzz", []),
        ("", []),
        ("o", []),
    ],
)
def test_a_word_that_is_nearly_an_apps_leads_to_it(word: str, meant: list[str]) -> None:
    assert alike(word, IDS) == meant


@given(st.text(max_size=200), st.lists(st.text(max_size=40), max_size=20))
def test_no_more_than_three_installed_ids_are_proposed_whatever_is_asked(word: str, ids: list[str]) -> None:
    meant = alike(word, ids)
    assert len(meant) <= 3
    assert set(meant) <= set(ids)


def test_a_misspelled_app_is_told_what_may_have_been_meant_and_waits_are_announced(
    publisher: Publisher, origin: BlobServer, operator: Operator
) -> None:
    publisher.bring("1.0.0", [origin.url])
    operator.trust(publisher)
    operator.install(f"{publisher.did}/hello")
    with pytest.raises(UsageProblem) as wrong:
        operator.do(("logs", {"app": "helo"}))
    assert wrong.value.remedy == "did you mean hello? `archy ps` lists what is"
    operator.told.clear()
    operator.do(("stop", {"app": "hello"}), ("start", {"app": "hello"}), ("restart", {"app": "hello"}))
    assert [event["phase"] for event in operator.told] == ["stop", "start", "restart"]


def test_a_doctor_whose_fix_fails_tells_that_and_still_all_that_it_finds(
    publisher: Publisher, origin: BlobServer, operator: Operator
) -> None:  # R-FM6
    publisher.bring("1.0.0", [origin.url])
    operator.trust(publisher)
    operator.install(f"{publisher.did}/hello")
    operator.machine.world.broken = {"podman"}
    told = operator.do(("doctor", {"fix": True}))
    assert [line.partition(":")[0] for line in told["fixed"]] == ["apps"]
    found = {finding["name"]: finding for finding in told["findings"]}
    assert not found["orphans"]["ok"]
    assert found["podman"]["ok"]  # the machine has one
    assert not told["ok"]


def test_a_fault_from_within_an_operations_tasks_is_that_fault_to_whoever_asked(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def damaged(_: object) -> None:
        raise Problem("the database is damaged", where="state.db")

    monkeypatch.setattr("orchestrator.Orchestrator.status", damaged)

    async def main() -> list[str]:
        told = []
        async with operator.node() as node:
            try:
                await perform(node, "ps", {}, operator.told.append)
            except Problem as problem:
                told.append(str(problem))
            followed = await node.operations.wait_progress(start_operation(node, "ps", {}), 0, 60)
            told.append(str(followed.problem))
        return told

    assert trio.run(main) == ["state.db: the database is damaged"] * 2


def test_a_fault_of_whoever_uses_a_node_leaves_it_as_that_fault(operator: Operator) -> None:
    async def main() -> None:
        async with operator.node():
            raise Problem("no such app", where="notes")

    with pytest.raises(Problem, match="no such app"):
        trio.run(main)
