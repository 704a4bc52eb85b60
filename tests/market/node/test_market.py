"""The main job through the node's operations: real relay, real blobs, the real orchestrator on a pretended machine."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import trio

from market.errors import EnvironmentLacks, Problem, Refused, UsageProblem
from market.node.node import Node, open_node
from market.node.operations import perform
from market.service import running
from orchestrator import Finding
from tests.fakes.blob_servers import BlobServer
from tests.market.node.operators import Operator
from tests.market.square import Publisher, serving


def app_of(publisher: Publisher, id_: str = "hello") -> str:
    return f"{publisher.did}/{id_}"


def test_published_app_is_found_judged_fetched_installed_and_updated(
    publisher: Publisher, origin: BlobServer, operator: Operator
) -> None:
    publisher.bring("1.0.0", [origin.url])
    operator.trust(publisher)
    found = operator.do(("search", {"text": "hello"}))["results"]
    assert app_of(publisher) in [row["app"] for row in found]
    installed = operator.install(app_of(publisher))
    assert installed["status"]["version"] == "1.0.0"
    assert installed["status"]["state"].startswith("running")
    assert {s["url"] for s in installed["fetch"]["sources"] if s["bytes"]} == {origin.url}
    publisher.bring("1.1.0", [origin.url])
    updated = operator.do(("update", {"app": app_of(publisher)}))["updated"][0]
    assert updated["status"]["version"] == "1.1.0"
    assert updated["fetch"]["already_here"] > 3 * 1024 * 1024, "the shared layer was fetched again"
    assert operator.do(("update", {"check": True}))["offers"] == []
    assert [path.name for path in operator.home.bundles.iterdir()] == [updated["release"]]
    operator.do(("uninstall", {"app": app_of(publisher)}))
    assert list(operator.home.bundles.iterdir()) == []


def test_without_an_anchor_an_install_asks_and_yes_does_not_answer(
    publisher: Publisher, origin: BlobServer, operator: Operator
) -> None:
    publisher.bring("1.0.0", [origin.url])
    with pytest.raises(Refused) as refusal:
        operator.install(app_of(publisher))
    assert "no anchors" in str(refusal.value)
    assert origin.requests == [], "something was fetched before the verdict"
    assert operator.nothing_installed()
    assert operator.do(("install", {"app": app_of(publisher), "consent": "person"}))["status"]["version"] == "1.0.0"


def test_new_permission_is_not_accepted_by_yes_but_by_name(  # R-MF7
    publisher: Publisher, origin: BlobServer, operator: Operator
) -> None:
    publisher.bring("1.0.0", [origin.url])
    operator.trust(publisher)
    operator.install(app_of(publisher))
    publisher.bring("1.1.0", [origin.url], internet="outbound")
    with pytest.raises(Refused) as refusal:
        operator.do(("update", {"app": app_of(publisher)}))
    assert "internet" in str(refusal.value)
    assert operator.do(("ps", {}))["apps"][0]["version"] == "1.0.0"
    operator.do(("update", {"app": app_of(publisher), "allow": ["internet"]}))
    assert operator.do(("ps", {}))["apps"][0]["version"] == "1.1.0"


def test_two_publishers_of_one_id_are_listed_and_none_is_taken(  # R-MF14
    publisher: Publisher, origin: BlobServer, operator: Operator, tmp_path: Path
) -> None:
    other = Publisher(tmp_path / "other", publisher.relay)
    publisher.bring("1.0.0", [origin.url], app="twice")
    other.bring("9.0.0", [origin.url], app="twice")
    operator.trust(publisher)
    with pytest.raises(Refused) as refusal:
        operator.install("twice")
    assert publisher.did in str(refusal.value)
    assert other.did in str(refusal.value)
    assert operator.nothing_installed()


def test_origin_down_and_peers_suffice(publisher: Publisher, operator: Operator) -> None:  # R-SW2
    publisher.bring("1.0.0", ["http://127.0.0.1:1"])
    operator.trust(publisher)
    with serving(publisher.www) as peer:
        operator.do(("config", {"assignments": [f"peers={peer.url}"]}))
        installed = operator.install(app_of(publisher))
        assert {s["url"] for s in installed["fetch"]["sources"] if s["bytes"]} == {peer.url}


def test_peers_down_or_lying_and_the_origin_suffices(  # R-SW2, R-SW3
    publisher: Publisher, origin: BlobServer, operator: Operator
) -> None:
    publisher.bring("1.0.0", [origin.url])
    operator.trust(publisher)
    with serving(publisher.www, corrupt_pieces=frozenset(range(8))) as liar:
        operator.do(("config", {"assignments": [f"peers={liar.url},http://127.0.0.1:1"]}))
        installed = operator.install(app_of(publisher))
    assert {s["url"] for s in installed["fetch"]["sources"] if s["bytes"]} == {origin.url}


def test_nothing_serves_the_app_and_the_sources_are_named(publisher: Publisher, operator: Operator) -> None:
    publisher.bring("1.0.0", ["http://127.0.0.1:1"])
    operator.trust(publisher)
    with pytest.raises(Problem) as failure:
        operator.install(app_of(publisher))
    assert "127.0.0.1:1" in str(failure.value)
    assert operator.nothing_installed()


def test_private_origin_is_not_asked_unless_the_operator_allows_it(  # R-SW5
    publisher: Publisher, origin: BlobServer, operator: Operator
) -> None:
    publisher.bring("1.0.0", [origin.url])
    operator.trust(publisher)
    operator.do(("config", {"assignments": ["allow_private_origins=false"]}))
    with pytest.raises(Problem) as failure:
        operator.install(app_of(publisher))
    assert "private" in str(failure.value)
    assert origin.requests == []


def test_machine_without_podman_is_told_before_anything_is_fetched(
    publisher: Publisher, origin: BlobServer, operator: Operator
) -> None:
    publisher.bring("1.0.0", [origin.url])
    operator.trust(publisher)
    operator.findings = (Finding("podman", False, "podman is not installed", "apt-get install podman"),)
    with pytest.raises(EnvironmentLacks) as lack:
        operator.install(app_of(publisher))
    assert "apt-get install podman" in lack.value.remedy
    assert origin.requests == []


def test_taken_port_names_both_sides_and_changes_nothing(  # R-ST9
    publisher: Publisher, origin: BlobServer, operator: Operator
) -> None:
    publisher.bring("1.0.0", [origin.url])
    publisher.bring("1.0.0", [origin.url], app="second")
    operator.trust(publisher)
    operator.install(app_of(publisher))
    units = operator.machine.units()
    with pytest.raises(Problem) as conflict:
        operator.install(app_of(publisher, "second"))
    assert "18080" in str(conflict.value)
    assert "hello" in str(conflict.value)
    assert operator.machine.units() == units


def test_agreed_release_is_the_only_one_installed(publisher: Publisher, origin: BlobServer, operator: Operator) -> None:
    publisher.bring("1.0.0", [origin.url])
    operator.trust(publisher)
    agreed = operator.do(("plan", {"app": app_of(publisher)}))["release"]
    publisher.bring("1.1.0", [origin.url])
    with pytest.raises(Refused):
        operator.install(app_of(publisher), release=agreed)
    assert operator.nothing_installed()


def test_uninstall_keeps_data_unless_the_id_is_repeated(  # R-ST10
    publisher: Publisher, origin: BlobServer, operator: Operator
) -> None:
    publisher.bring("1.0.0", [origin.url])
    operator.trust(publisher)
    operator.install(app_of(publisher))
    with pytest.raises(UsageProblem):
        operator.do(("uninstall", {"app": "hello", "purge": "helo"}))
    assert operator.do(("uninstall", {"app": "hello", "check": True}))["disposable"] == []
    with pytest.raises(UsageProblem):
        operator.do(("uninstall", {"app": "hello", "drop": ["data"]}))
    operator.do(("uninstall", {"app": "hello"}))
    assert operator.nothing_installed()
    assert operator.machine.world.volumes
    operator.install(app_of(publisher))
    operator.do(("uninstall", {"app": "hello", "purge": "hello"}))
    assert not operator.machine.world.volumes


def test_only_blobs_of_installed_apps_and_pins_are_shared(  # R-SW7
    publisher: Publisher, origin: BlobServer, operator: Operator, tmp_path: Path
) -> None:
    publisher.bring("1.0.0", [origin.url])
    operator.trust(publisher)
    operator.install(app_of(publisher))
    pinned = tmp_path / "mine"
    pinned.write_bytes(b"mine")
    digest = operator.do(("blobs.add", {"paths": [str(pinned)]}))["blobs"][0]["blake3"]
    shared = shared_digests(operator)
    assert digest in shared
    assert {path.name for path in (publisher.www / "blobs").iterdir()} <= shared
    operator.do(("config", {"assignments": ["share=false"]}))
    assert shared_digests(operator) == {digest}


def shared_digests(operator: Operator) -> set[str]:
    async def look() -> set[str]:
        async with open_node(operator.home, open_apps=operator._apps, preflight=operator._preflight) as node:
            return {digest.hex for digest in node.shared}

    return trio.run(look)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("nonsense", {}),
        ("install", {"app": "hello"}),
        ("install", {"app": "hello", "consent": "maybe"}),
        ("search", {"text": 5}),
        ("search", {"limit": 10**9}),
        ("ps", {"extra": 1}),
        ("ps", []),
        ("stop", {"app": "never-installed"}),
        ("relays.add", {"url": "http://x"}),
        ("relays.remove", {"url": "ws://never-added"}),
        ("anchors.add", {"who": "somebody"}),
        ("config", {"assignments": ["nonsense=1"]}),
        ("show", {"app": "unknown-app", "offline": True}),
    ],
)
def test_bad_request_is_a_usage_problem(operator: Operator, name: str, params: Any) -> None:
    with pytest.raises(UsageProblem) as refusal:
        operator.do((name, params))
    assert refusal.value.what


def test_node_is_a_context_manager_that_gives_the_home_back(operator: Operator) -> None:
    async def twice() -> list[Node]:
        opened = []
        for _ in range(2):
            async with open_node(operator.home, open_apps=operator._apps, preflight=operator._preflight) as node:
                opened.append(node)
        return opened

    assert len(trio.run(twice)) == 2


def test_a_question_to_a_node_that_has_just_begun_is_answered_with_what_its_relays_have(
    publisher: Publisher, origin: BlobServer, operator: Operator
) -> None:  # R-DS8
    publisher.bring("1.0.0", [origin.url])

    async def main() -> list[str]:
        async with operator.node() as node, running(node):
            found = await perform(node, "search", {"text": "hello"}, operator.told.append)
            return [row["app"] for row in found["results"]]

    assert app_of(publisher) in trio.run(main)


def test_a_problem_from_within_a_services_tasks_is_logged_as_that_problem(
    operator: Operator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    again = trio.Event()

    def told() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.getMessage().startswith("discovery")]

    async def damaged(_: object) -> None:
        if told():
            again.set()
            await trio.sleep_forever()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 0)
            raise Problem("the database is damaged", where="market.db")

    monkeypatch.setattr("market.discovery.Discovery.run", damaged)

    async def main() -> None:
        async with operator.node() as node, running(node):
            with trio.fail_after(20):
                await again.wait()

    trio.run(main)
    first = told()[0]
    assert first.getMessage() == "discovery: market.db: the database is damaged"
    assert first.exc_info is None
