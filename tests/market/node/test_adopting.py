"""`archy adopt` of what an operator started by hand: shown, asked about, agreed to by release and container (R-ST7)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from market.errors import Refused, UsageProblem
from orchestrator.stranger import StrangerMount, StrangerPort
from tests.fakes.blob_servers import BlobServer
from tests.market.cli.archy import Answer
from tests.market.node.notes import NotesPublisher
from tests.market.node.operators import Operator
from tests.market.node.test_app_settings import with_node
from tests.market.node.test_market import app_of
from tests.market.square import Publisher

MANIFEST = """\
schema: 1
id: notes
version: "{version}"
title: Notes
containers:
  web:
    image: {{ref: "localhost/notes:{version}"}}
    ports: [{{name: web, container: 8080, host: auto}}]
    mounts: [{{volume: data, path: /data}}]
volumes:
  data: {{on_uninstall: keep}}
interfaces:
  - {{id: ui, type: ui, port: web, path: /}}
adopt: {{container_names: [notes]}}
"""


class Adoptable(NotesPublisher):
    """Packs an app that offers to take over a container called notes."""

    manifest = MANIFEST


@pytest.fixture
def publisher(tmp_path: Path, relay_url: str) -> Publisher:
    return Adoptable(tmp_path / "publisher", relay_url)


@pytest.fixture
def config(publisher: Publisher, origin: BlobServer, operator: Operator) -> str:
    """Version 1 is on offer and its publisher trusted; the digest of its image's config."""
    signed = publisher.sign(publisher.pack("1.0.0"), [origin.url])
    publisher.publish(signed)
    operator.trust(publisher)
    manifest = json.loads((publisher.www / "manifest.json").read_bytes())
    return str(manifest["containers"]["web"]["image"]["platforms"][0]["config"])


def by_hand(operator: Operator, config: str) -> str:
    mounts, ports = (StrangerMount("bind", "/srv/notes", "/data"),), (StrangerPort(8080, "tcp", 8088),)
    return operator.machine.world.meet("notes", config, mounts=mounts, ports=ports)


def test_it_is_shown_taken_over_and_restarted_word_by_word(
    operator: Operator, publisher: Publisher, config: str
) -> None:
    notes = app_of(publisher, "notes")

    def work(archy: Callable[..., Answer]) -> None:
        id_ = by_hand(operator, config)
        shown = archy("adopt", notes, "--check")
        assert (shown.code, shown.err) == (0, f"discover  looking for {notes}\n")
        for text in ("takes over   notes, running, as web", f"{config[:19]} as signed", "data stays in /srv/notes"):
            assert text in shown.out
        assert "port 8088 is reached from this machine only" in shown.out
        asked = archy("adopt", notes)
        assert (asked.code, asked.out) == (2, "")
        assert "--yes" in asked.err
        assert archy("adopt", "--check").out == "Nothing runs here that is not known.\n"
        taken = archy("adopt", notes, "--yes")
        assert taken.code == 0, taken
        assert taken.out == "notes 1.0.0 is running\n  adopted as it is; `archy restart notes` makes it a service\n"
        assert list(operator.machine.world.strangers) == [id_]
        listed = archy("ps")
        assert listed.code == 0
        assert "running (adopted)" in listed.out
        assert "http://127.0.0.1:8088/" in listed.out
        assert archy("restart", "notes").out == "notes 1.0.0 is running: http://127.0.0.1:8088/\n"
        assert not operator.machine.world.strangers
        gone = archy("uninstall", "notes", "--purge", "notes")
        assert gone.out.endswith("its data was removed, but not /srv/notes, which was there before it.\n")
        assert list(operator.machine.world.places) == ["/srv/notes"]

    with_node(operator, work)


def test_an_installation_tells_of_what_could_be_taken_over(
    operator: Operator, publisher: Publisher, config: str
) -> None:
    by_hand(operator, config)
    assert operator.do(("plan", {"app": app_of(publisher, "notes")}))["adoptable"] == ["notes"]


def test_another_image_is_refused_with_3_and_nothing_is_fetched(
    operator: Operator, publisher: Publisher, config: str
) -> None:  # R-MF14
    by_hand(operator, "sha256:" + "6" * 64)
    with pytest.raises(Refused, match="was signed with") as caught:
        operator.do(("adopt", {"app": app_of(publisher, "notes"), "check": True}))
    assert caught.value.exit_code == 3
    assert operator.nothing_installed()


def test_only_what_was_agreed_to_is_taken_over(operator: Operator, publisher: Publisher, config: str) -> None:
    by_hand(operator, config)
    offer = operator.do(("adopt", {"app": app_of(publisher, "notes"), "check": True}))["offers"][0]
    for agreed, told in (
        ({}, "other containers are here"),
        ({"containers": ["0" * 64]}, "other containers are here"),
        ({"containers": offer["ids"], "release": "0" * 64}, "not the release that was agreed to"),
    ):
        with pytest.raises(Refused, match=told):
            operator.do(("adopt", {"app": app_of(publisher, "notes"), "consent": "person", **agreed}))
    assert operator.nothing_installed()
    agreed = {"containers": offer["ids"], "release": offer["release"]}
    assert (
        operator.do(("adopt", {"app": app_of(publisher, "notes"), **agreed}))["adopted"][0]["status"]["adopted"] is True
    )


def test_an_untrusted_publishers_offer_is_not_taken_by_yes(
    publisher: Publisher, operator: Operator, config: str
) -> None:
    by_hand(operator, config)
    offer = operator.do(("adopt", {"app": app_of(publisher, "notes"), "check": True}))["offers"][0]
    operator.do(("anchors.remove", {"who": publisher.did}))
    with pytest.raises(Refused, match=r"refused|your own word"):
        operator.do(("adopt", {"app": app_of(publisher, "notes"), "containers": offer["ids"]}))
    assert operator.nothing_installed()


def test_a_name_that_nobody_offers_is_told_as_before(operator: Operator) -> None:
    with pytest.raises(UsageProblem, match="is not here without being known"):
        operator.do(("adopt", {"app": "nothing"}))
