"""Trust through the node's operations: real relay, real keys, real blobs; who is believed, and what is remembered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from market.errors import EnvironmentLacks, Problem, Refused, UsageProblem
from market.identity import Keyring
from market.model import AttestKind
from market.node.config import load_config
from market.node.node import open_node
from market.node.vouching import look_at_running
from market.trust import DamagedMemory
from tests.fakes.blob_servers import BlobServer
from tests.market.discovery.publishers import NostrKey, people_list
from tests.market.node.operators import Operator
from tests.market.node.test_market import app_of
from tests.market.square import Publisher, serving
from tests.market.trust.people import did, nostr_hex


@pytest.fixture
def other(tmp_path: Path, relay_url: str) -> Operator:
    return Operator(tmp_path / "other operator", relay_url)


def with_identity(operator: Operator) -> str:
    return Keyring.create(operator.home.identity).did


def verdict_of(operator: Operator, publisher: Publisher, **more: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = operator.do(("show", {"app": app_of(publisher), **more}))["verdict"]
    return found


def factor(verdict: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return next(one for one in verdict["factors"] if one["key"] == key)


def gate(verdict: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    return next(one for one in verdict["gates"] if one["kind"] == kind)


def test_a_review_of_somebody_you_trust_reaches_your_verdict_with_its_note(
    publisher: Publisher, origin: BlobServer, operator: Operator, other: Operator
) -> None:  # R-TR1
    publisher.bring("1.0.0", [origin.url])
    reviewer = with_identity(other)
    word = {"app": app_of(publisher), "kind": "reviewed", "value": 90, "note": "Read the manifest."}
    said = other.do(("attest", word))
    assert [relay["accepted"] for relay in said["relays"]] == [True]
    operator.do(("anchors.add", {"who": reviewer, "label": "Rita"}))
    reviews = factor(verdict_of(operator, publisher), "reviews")
    assert reviews["points"] > 15
    assert [(v["label"], v["note"], v["path"]) for v in reviews["contributors"]] == [
        ("Rita", "Read the manifest.", [reviewer])
    ]
    other.do(("attest", {**word, "value": 0}))
    withdrawn = verdict_of(operator, publisher)
    assert factor(withdrawn, "reviews")["points"] == 15
    assert withdrawn["ignored"]["votes withdrawn"] == 1


def test_a_report_refuses_for_its_author_and_for_who_trusts_him_and_for_nobody_else(
    publisher: Publisher, origin: BlobServer, operator: Operator, other: Operator
) -> None:  # R-TR1, R-TR4
    publisher.bring("1.0.0", [origin.url])
    reporter = with_identity(other)
    for one in (operator, other):
        one.trust(publisher)
    other.do(("attest", {"app": app_of(publisher), "kind": "malware", "value": -100, "note": "Sends your files away."}))
    assert verdict_of(other, publisher)["outcome"] == "refuse"
    assert verdict_of(operator, publisher)["outcome"] == "allow"
    operator.do(("anchors.add", {"who": reporter}))
    refused = verdict_of(operator, publisher)
    assert refused["outcome"] == "refuse"
    listed = operator.do(("search", {"text": "hello", "offline": True}))["results"]
    assert [row["verdict"]["outcome"] for row in listed if row["publisher"] == publisher.did] == ["refuse"]


def test_without_an_identity_nothing_is_said_and_the_remedy_is_named(
    publisher: Publisher, origin: BlobServer, operator: Operator
) -> None:
    publisher.bring("1.0.0", [origin.url])
    with pytest.raises(EnvironmentLacks) as lack:
        operator.do(("attest", {"app": app_of(publisher), "kind": "reviewed", "value": 100}))
    assert lack.value.remedy == "archy id init"


def test_an_own_identity_alone_is_no_anchor(publisher: Publisher, origin: BlobServer, operator: Operator) -> None:
    publisher.bring("1.0.0", [origin.url])
    with_identity(operator)
    operator.do(("attest", {"app": app_of(publisher), "kind": "reviewed", "value": 100}))
    assert gate(verdict_of(operator, publisher), "anchors")["state"] == "ask"


def test_a_release_whose_parts_did_not_match_is_refused_from_then_on(
    publisher: Publisher, origin: BlobServer, operator: Operator
) -> None:  # R-TR3
    manifest = publisher.pack("1.0.0", arch="amd64")
    platforms = manifest["containers"]["web"]["image"]["platforms"]
    platform = next(iter(platforms.values())) if isinstance(platforms, dict) else platforms[0]
    platform["config"] = "sha256:" + "00" * 32
    publisher.publish(publisher.sign(manifest, [origin.url]))
    operator.trust(publisher)
    with pytest.raises(Refused, match="another manifest or config"):
        operator.install(app_of(publisher))
    asked = len(origin.requests)
    with pytest.raises(Refused, match="not what was signed"):
        operator.install(app_of(publisher))
    assert len(origin.requests) == asked, "a release known as broken was fetched again"
    assert gate(verdict_of(operator, publisher), "digest")["state"] == "refuse"
    publisher.bring("1.0.1", [origin.url])
    assert operator.install(app_of(publisher))["status"]["version"] == "1.0.1"


def test_another_signer_under_a_known_name_is_announced_before_anything_is_fetched(
    publisher: Publisher, origin: BlobServer, operator: Operator, tmp_path: Path
) -> None:  # R-MF14
    publisher.bring("1.0.0", [origin.url], app="twice")
    operator.trust(publisher)
    operator.install(app_of(publisher, "twice"))
    thief = Publisher(tmp_path / "thief", publisher.relay)
    thief.www.mkdir(parents=True)
    operator.trust(thief)
    with serving(thief.www) as theirs:
        thief.bring("2.0.0", [theirs.url], app="twice")
        with pytest.raises(Refused) as refusal:
            operator.install(app_of(thief, "twice"))
        assert publisher.did in str(refusal.value)
        assert theirs.requests == []
    planned = operator.do(("plan", {"app": app_of(thief, "twice"), "offline": True}))["verdict"]
    assert planned["signer"]["continuity"] == "changed"
    assert (planned["outcome"], planned["answerable"]) == ("ask", False)


def test_an_update_by_the_same_key_says_so_and_the_signer_is_told_as_progress(
    publisher: Publisher, origin: BlobServer, operator: Operator
) -> None:
    publisher.bring("1.0.0", [origin.url])
    operator.trust(publisher)
    operator.install(app_of(publisher))
    publisher.bring("1.1.0", [origin.url])
    offers = operator.do(("update", {"app": app_of(publisher), "check": True}))["offers"]
    assert [offer["signer"]["continuity"] for offer in offers] == ["same"]
    operator.told.clear()
    operator.do(("update", {"app": app_of(publisher)}))
    phases = [str(one["phase"]) for one in operator.told]
    assert phases.index("signer") < phases.index("fetch")


def test_pinning_an_app_trusts_its_publisher_and_unpinning_forgets_both(
    publisher: Publisher, origin: BlobServer, operator: Operator, tmp_path: Path
) -> None:
    publisher.bring("1.0.0", [origin.url], app="pinned")
    assert operator.do(("trust.pin", {"app": app_of(publisher, "pinned")}))["pinned"]
    shown = operator.do(("show", {"app": app_of(publisher, "pinned")}))["verdict"]
    assert (shown["outcome"], shown["signer"]["continuity"]) == ("allow", "same")
    impostor = Publisher(tmp_path / "impostor", publisher.relay)
    impostor.bring("1.0.0", [origin.url], app="pinned")
    changed = operator.do(("show", {"app": app_of(impostor, "pinned")}))["verdict"]
    assert changed["signer"]["continuity"] == "changed"
    operator.do(("trust.unpin", {"app": app_of(publisher, "pinned")}))
    assert operator.do(("anchors", {}))["anchors"] == []
    with pytest.raises(UsageProblem):
        operator.do(("trust.unpin", {"app": app_of(publisher, "pinned")}))


def test_whom_the_operator_distrusts_is_refused_and_heard_no_more_until_it_is_undone(
    publisher: Publisher, origin: BlobServer, operator: Operator
) -> None:
    publisher.bring("1.0.0", [origin.url])
    operator.trust(publisher)
    listed = operator.do(("trust.distrust", {"who": publisher.did}))
    assert (listed["anchors"], listed["distrusted"]) == ([], [publisher.did])
    refused = verdict_of(operator, publisher)
    assert (refused["outcome"], gate(refused, "distrusted")["state"]) == ("refuse", "refuse")
    operator.do(("trust.distrust", {"who": publisher.did, "undo": True}))
    assert verdict_of(operator, publisher)["outcome"] == "ask"


def test_a_follow_list_is_imported_from_lines_or_a_signed_event_and_a_forged_one_is_not(
    operator: Operator, tmp_path: Path
) -> None:
    lines = tmp_path / "follows.txt"
    lines.write_text(f"# my people\n{did('ada')} Ada\n\n{did('ada')}\nnobody\n{did('ben')}\n")
    imported = operator.do(("trust.import", {"source": str(lines)}))
    assert imported["imported"] == 2
    assert imported["ignored"] == {"entries that were there already": 1, "entries that name nobody": 1}
    event = people_list(NostrKey(), NostrKey().nostr_pubkey, NostrKey().nostr_pubkey).to_json()
    signed = tmp_path / "follows.json"
    signed.write_text(json.dumps(event))
    assert operator.do(("trust.import", {"source": str(signed)}))["imported"] == 2
    signed.write_text(json.dumps({**event, "tags": [["p", nostr_hex("eve")]]}))
    with pytest.raises(Refused, match="no genuine event"):
        operator.do(("trust.import", {"source": str(signed)}))
    assert operator.do(("anchors", {}))["follows"] == 2
    lines.write_text("")
    assert operator.do(("trust.import", {"source": str(lines)}))["imported"] == 0


def test_a_name_that_leads_to_this_machine_is_not_looked_up(operator: Operator) -> None:
    with pytest.raises(Problem):
        operator.do(("anchors.add", {"who": "root@localhost.localdomain"}))
    assert operator.do(("anchors", {}))["anchors"] == []


def test_policy_is_the_operators_and_powerful_permissions_need_more(
    publisher: Publisher, origin: BlobServer, operator: Operator
) -> None:
    publisher.bring("1.0.0", [origin.url])
    operator.trust(publisher)
    assert verdict_of(operator, publisher)["thresholds"] == {"refuse_below": 10, "allow_at": 62}
    operator.do(("config", {"assignments": ["allow_powerful_at=95", "allow_at=90"]}))
    asked = verdict_of(operator, publisher)
    assert (asked["outcome"], asked["answerable"]) == ("ask", True)
    with pytest.raises(UsageProblem, match="make no policy"):
        operator.do(("config", {"assignments": ["refuse_below=95"]}))
    assert load_config(operator.home.config).refuse_below == 10


def test_what_is_refused_is_found_last_with_its_reason_and_points_narrow_more_than_one_page(
    publisher: Publisher, operator: Operator
) -> None:  # R-TR4
    publisher.bring("1.0.0", ["http://127.0.0.1:1"], app="lastonce", internet="outbound")
    publisher.bring("1.0.0", ["http://127.0.0.1:1"], app="lastonce-good")
    operator.do(("config", {"assignments": ["never_allow=internet"]}))

    def found(**filters: Any) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = operator.do(("search", {"text": "lastonce", **filters}))["results"]
        return rows

    good, refused = found()
    assert [good["id"], refused["id"]] == ["lastonce-good", "lastonce"]
    assert refused["verdict"]["outcome"] == "refuse"
    assert refused["verdict"]["reasons"]
    points = refused["verdict"]["points"]
    assert len(found(limit=1, min_score=points)) == 1
    assert found(min_score=100) == []
    with pytest.raises(UsageProblem, match="not an app id"):
        operator.do(("show", {"app": "No Such"}))


def test_a_permission_that_is_never_allowed_refuses_whoever_asks(
    publisher: Publisher, origin: BlobServer, operator: Operator
) -> None:  # R-TR3
    publisher.bring("1.0.0", [origin.url], internet="outbound")
    operator.trust(publisher)
    operator.do(("config", {"assignments": ["never_allow=internet"]}))
    with pytest.raises(Refused, match="never allow"):
        operator.do(("install", {"app": app_of(publisher), "consent": "person", "allow": ["internet"]}))
    assert operator.nothing_installed()


def test_days_of_running_are_said_only_by_who_opted_in_and_once_for_each_milestone(
    publisher: Publisher, origin: BlobServer, operator: Operator
) -> None:
    publisher.bring("1.0.0", [origin.url])
    operator.trust(publisher)
    operator.install(app_of(publisher))
    voter = with_identity(operator)

    def said(hours: int) -> list[tuple[AttestKind, int, str]]:
        async def look() -> list[tuple[AttestKind, int, str]]:
            async with open_node(operator.home, open_apps=operator._apps, preflight=operator._preflight) as node:
                for _ in range(hours):
                    await look_at_running(node, 3600.0)
                votes = node.index.evidence().attestations
                return [(vote.kind, vote.value, vote.note) for vote in votes if vote.voter == voter]

        return trio.run(look)

    assert said(8 * 24) == []
    operator.do(("config", {"assignments": ["attest_running=true"]}))
    assert said(6 * 24) == []
    assert said(2 * 24) == [(AttestKind.RAN, 25, "ran 7 days")]
    assert said(2) == [(AttestKind.RAN, 25, "ran 7 days")]


def test_a_damaged_memory_stops_verdicts_instead_of_forgetting_what_was_broken(
    publisher: Publisher, origin: BlobServer, operator: Operator
) -> None:  # R-TR3
    publisher.bring("1.0.0", [origin.url])
    operator.trust(publisher)
    operator.home.trust_memory.write_text("{")
    with pytest.raises(DamagedMemory):
        operator.install(app_of(publisher))
    assert origin.requests == []
