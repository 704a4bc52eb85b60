"""Blobs by the operator's hand, and who else has them: real node, real relay, real servers on loopback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from market.errors import Refused, UsageProblem
from market.identity import Keyring
from market.model import PIECE_SIZE, AppName
from market.node.node import open_node
from market.node.providers import MAX_NEIGHBOURS, Neighbours, announce, is_neighbourly, peers_of
from market.swarm import AllSourcesFailed
from tests.fakes.blob_servers import BlobServer, Faults
from tests.market.node.operators import Operator
from tests.market.node.test_market import app_of, shared_digests
from tests.market.square import Publisher
from tests.market.swarm.published import publish, some_bytes


def listed(operator: Operator) -> dict[str, Any]:
    return {row["blake3"]: row for row in operator.do(("blobs", {}))["blobs"]}


@pytest.mark.parametrize("size", [0, 1000, 2 * PIECE_SIZE + 5])
def test_a_blob_is_fetched_by_its_digest_and_an_origin_alone(operator: Operator, tmp_path: Path, size: int) -> None:
    data = some_bytes(size)
    ref = publish(tmp_path / "www", data)
    with BlobServer(tmp_path / "www") as server:
        words = {"digest": ref.blake3.hex, "origins": [server.url]}
        got = operator.do(("blobs.get", words))
        again = operator.do(("blobs.get", words))
    assert Path(got["path"]).read_bytes() == data
    assert (got["checked"], got["pinned"], got["signed"]) == ("as a whole", True, False)
    assert got["blob"] == again["blob"] == ref.to_json()
    assert listed(operator)[ref.blake3.hex]["shared"], "a pin is shared"


def test_a_digest_alone_is_refused_from_who_sends_other_bytes_or_too_many(operator: Operator, tmp_path: Path) -> None:
    ref = publish(tmp_path / "www", some_bytes(5000))
    (tmp_path / "www" / "blobs" / ref.blake3.hex).write_bytes(some_bytes(6000, "other"))
    good = publish(tmp_path / "good", some_bytes(5000))
    with BlobServer(tmp_path / "www") as liar, BlobServer(tmp_path / "good") as honest:
        with pytest.raises(AllSourcesFailed, match="does not hash"):
            operator.do(("blobs.get", {"digest": ref.blake3.hex, "origins": [liar.url]}))
        with pytest.raises(AllSourcesFailed, match="more than the 4000"):
            operator.do(("blobs.get", {"digest": ref.blake3.hex, "origins": [honest.url], "most": 4000}))
        assert listed(operator) == {}
        got = operator.do(("blobs.get", {"digest": good.blake3.hex, "origins": [liar.url, honest.url]}))
    assert got["fetch"]["sources"] == [{"url": honest.url}]


def test_a_reference_that_is_known_in_full_is_checked_by_piece(operator: Operator, tmp_path: Path) -> None:
    ref = publish(tmp_path / "www", some_bytes(3 * PIECE_SIZE))
    assert ref.pieces is not None
    with BlobServer(tmp_path / "www", Faults(rate=30e6)) as server:
        known = {"digest": ref.blake3.hex, "size": ref.size, "pieces": ref.pieces.hex, "origins": [server.url]}
        got = operator.do(("blobs.get", {**known, "pin": False}))
    assert (got["checked"], got["pinned"]) == ("by piece", False)
    assert any(event.get("phase") == "fetch" and "MB/s" in event["text"] for event in operator.told)
    assert not listed(operator)[ref.blake3.hex]["pinned"]


def test_a_blob_of_a_signed_listing_needs_no_more_than_its_digest(
    publisher: Publisher, origin: BlobServer, operator: Operator
) -> None:
    release = publisher.bring("1.0.0", [origin.url])
    del release
    operator.do(("search", {"text": "hello"}))
    operator.trust(publisher)
    plan = operator.install(app_of(publisher))
    assert plan["status"]["state"].startswith("running")
    names = sorted(path.name for path in (publisher.www / "blobs").iterdir())
    got = operator.do(("blobs.get", {"digest": names[0], "app": app_of(publisher)}))
    assert got["signed"]
    with pytest.raises(Refused, match="names no such blob"):
        operator.do(("blobs.get", {"digest": "00" * 32, "app": app_of(publisher)}))


def test_what_is_needed_stays_and_the_rest_is_collected_after_its_hour(
    publisher: Publisher, origin: BlobServer, operator: Operator, tmp_path: Path
) -> None:  # R-SW6
    publisher.bring("1.0.0", [origin.url])
    operator.trust(publisher)
    operator.install(app_of(publisher))
    installed = set(listed(operator))
    mine = tmp_path / "mine"
    mine.write_bytes(b"mine")
    digest = operator.do(("blobs.add", {"paths": [str(mine)]}))["blobs"][0]["blake3"]
    old(operator)
    assert operator.do(("blobs.gc", {}))["removed"] == [], "pinned or installed"
    operator.do(("blobs.unpin", {"digest": digest}))
    assert operator.do(("blobs.gc", {}))["removed"] == [digest]
    assert set(listed(operator)) == installed
    operator.do(("uninstall", {"app": "hello"}))
    old(operator)
    assert set(operator.do(("blobs.gc", {}))["removed"]) == installed


def old(operator: Operator) -> None:
    import os

    for file in (operator.home.blobs / "blobs").glob("*/*"):
        os.utime(file, (1_000_000_000, 1_000_000_000))


def test_damage_on_the_disk_is_found_told_and_removed(operator: Operator, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_bytes(b"mine")
    digest = operator.do(("blobs.add", {"paths": [str(mine)]}))["blobs"][0]["blake3"]
    assert operator.do(("blobs.verify", {}))["ok"]
    place = next((operator.home.blobs / "blobs").glob(f"*/{digest}"))
    place.chmod(0o600)
    place.write_bytes(b"mime")
    found = operator.do(("blobs.verify", {"digests": [digest, "00" * 32]}))
    assert not found["ok"]
    assert "damaged" in found["blobs"][0]["problem"]
    assert "not in the store" in found["blobs"][1]["problem"]
    assert listed(operator) == {}


def test_an_app_that_is_not_shared_is_not_served_while_others_are(
    publisher: Publisher, origin: BlobServer, operator: Operator
) -> None:  # R-SW7
    publisher.bring("1.0.0", [origin.url])
    operator.trust(publisher)
    operator.install(app_of(publisher))
    assert shared_digests(operator)
    operator.do(("config", {"assignments": [f"unshared={app_of(publisher)}"]}))
    assert shared_digests(operator) == set()
    operator.do(("config", {"assignments": ["unshared=another-app"]}))
    assert shared_digests(operator)


def test_every_known_peer_is_asked_for_a_blob(operator: Operator, tmp_path: Path) -> None:
    ref = publish(tmp_path / "www", some_bytes(10))
    (tmp_path / "empty" / "blobs").mkdir(parents=True)
    with BlobServer(tmp_path / "www") as has, BlobServer(tmp_path / "empty") as lacks:
        pass
    with BlobServer(tmp_path / "www", port=has.port), BlobServer(tmp_path / "empty", port=lacks.port):
        operator.do(("config", {"assignments": [f"peers={lacks.url},{has.url},http://127.0.0.1:1"]}))
        rows = operator.do(("blobs.peers", {"digest": ref.blake3.hex}))["peers"]
    assert [(row["url"], row["has"]) for row in rows] == [
        (has.url, True),
        *sorted([(lacks.url, False), ("http://127.0.0.1:1", False)]),
    ]
    assert rows[0]["size"] == 10
    assert all(row["problem"] for row in rows[1:])


@pytest.mark.parametrize("bad", ["AB" * 32, "ab" * 31, "", "../../etc/passwd", "ab" * 32 + "\n"])
def test_what_is_no_digest_is_refused_before_anything_happens(operator: Operator, bad: str) -> None:
    for name in ("blobs.get", "blobs.pin", "blobs.unpin", "blobs.peers"):
        with pytest.raises(UsageProblem):
            operator.do((name, {"digest": bad}))


def test_a_node_that_signs_what_it_serves_is_a_source_for_others(
    publisher: Publisher, origin: BlobServer, operator: Operator, tmp_path: Path, relay_url: str
) -> None:
    publisher.bring("1.0.0", [origin.url])
    operator.trust(publisher)
    operator.install(app_of(publisher))
    Keyring.create(operator.home.identity)

    async def say() -> int:
        async with open_node(operator.home, open_apps=operator._apps, preflight=operator._preflight) as node:
            return await announce(node)

    assert trio.run(say) == 0, "nothing is said unless the operator named a URL"
    operator.do(("config", {"assignments": ["announce=https://node.example"]}))
    assert trio.run(say) == 1
    other = Operator(tmp_path / "other", relay_url)
    other.do(("search", {"text": "hello"}))

    async def known() -> set[str]:
        async with open_node(other.home, open_apps=other._apps, preflight=other._preflight) as node:
            return {source.url for source in peers_of(node, AppName(publisher.did, "hello"))}

    assert trio.run(known) == {"https://node.example"}


# --- neighbours


@pytest.mark.parametrize("address", ["192.168.1.7", "10.1.2.3", "172.16.0.1", "fd12::1"])
def test_addresses_of_a_private_network_are_a_neighbours(address: str) -> None:
    assert is_neighbourly(address)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "::1", "169.254.169.254", "fe80::1", "0.0.0.0", "8.8.8.8", "x", "ff02::1"]
)
def test_addresses_that_would_send_this_node_elsewhere_are_not(address: str) -> None:  # R-SW5
    assert not is_neighbourly(address)


def test_neighbours_are_bounded_and_forgotten_when_they_leave() -> None:
    known = Neighbours(own="me")
    known.note("me", ["192.168.1.1"], 1)
    known.note("bad", ["127.0.0.1"], 80)
    known.note("no port", ["192.168.1.1"], None)
    for number in range(MAX_NEIGHBOURS + 5):
        known.note(f"n{number}", ["127.0.0.1", f"192.168.1.{number + 2}"], 8470)
    assert len(known.urls()) == MAX_NEIGHBOURS
    assert known.urls()[0] == "http://192.168.1.2:8470"
    known.note("n0", ["fd12::5"], 8470)
    assert "http://[fd12::5]:8470" in known.urls()
    known.forget("n0")
    assert len(known.urls()) == MAX_NEIGHBOURS - 1
