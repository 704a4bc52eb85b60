"""The index as a file: a clear problem for each way it can be unusable, and nothing half done."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from market.discovery import BadIndex, Event, Index, open_index
from market.discovery.schema import connect, transaction
from market.errors import EnvironmentLacks, UsageProblem
from tests.market.discovery.publishers import NOW, Publisher, from_relay


def content(path: Path) -> bytes:
    return path.read_bytes()


def test_what_was_accepted_is_there_after_reopening(tmp_path: Path, alice: Publisher) -> None:
    path = tmp_path / "new" / "market.db"
    with open_index(path, now=lambda: NOW) as index:
        index.ingest(from_relay(*alice.events(*alice.release().documents)))
    with open_index(path, now=lambda: NOW) as index:
        assert [listing.title for listing in index.search("hello")] == ["Hello"]
        history = index.identity(alice.did)
        assert history is not None
        assert len(history.entries) == 1


@pytest.mark.parametrize("damage", [b"no database, but long enough to be one" * 30, b"SQLite format 3\x00" * 64])
def test_a_damaged_index_is_refused_with_a_remedy_and_left_as_it_was(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "market.db"
    path.write_bytes(damage)
    with pytest.raises(BadIndex) as caught:
        open_index(path)
    assert caught.value.where == str(path)
    assert "damaged" in str(caught.value)
    assert content(path) == damage


def test_an_index_of_a_newer_program_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "market.db"
    open_index(path).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 999")
    with pytest.raises(BadIndex, match="newer version"):
        open_index(path)
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (999,)


def test_another_programs_database_is_not_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "market.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE theirs (a)")
    with pytest.raises(BadIndex, match="another program"):
        open_index(path)
    with sqlite3.connect(path) as database:
        assert [row[0] for row in database.execute("SELECT name FROM sqlite_master")] == ["theirs"]


def test_a_place_that_can_not_be_written_is_a_clear_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentLacks):
        open_index(tmp_path / "file" / "market.db")
    with pytest.raises(EnvironmentLacks):
        open_index(tmp_path)


FILL = """
import resource, sys
from pathlib import Path
from market.discovery import open_index
from market.errors import EnvironmentLacks
from tests.market.discovery.publishers import NOW, Publisher, from_relay

home = Path(sys.argv[1])
publisher = Publisher(home)
events = publisher.events(*publisher.release(manifest={"notes": "x" * 12000}).documents)
more = [one for n in range(2, 30) for one in publisher.events(
    *publisher.release(f"1.{n}.0", manifest={"notes": "x" * 12000}).documents)]
with open_index(home / "market.db", now=lambda: NOW) as index:
    index.ingest(from_relay(*events))
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    import signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        index.ingest(from_relay(*more))
    except EnvironmentLacks as problem:
        print("problem:", problem.what)
    print([release.version for release in index.search("hello")[:1] for release in [release.release]])
"""


def test_a_full_disk_stores_nothing_of_the_batch_and_loses_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    problem, versions = done.stdout.splitlines()
    assert problem.startswith("problem: ")
    assert versions == "['1.0.0']"
    with open_index(tmp_path / "market.db", now=lambda: NOW) as index:
        assert [one.release.version for one in index.search("hello") if one.release] == ["1.0.0"]


KILLED = """
import os, signal, sys
from pathlib import Path
from market.discovery import open_index
from tests.market.discovery.publishers import NOW, Publisher, from_relay

home = Path(sys.argv[1])
publisher = Publisher(home)
print(publisher.did, flush=True)
with open_index(home / "market.db", now=lambda: NOW) as index:
    for n in range(1, 1000):
        index.ingest(from_relay(*publisher.events(*publisher.release(f"1.{n}.0").documents)))
        print(n, flush=True)
"""


def test_a_kill_while_writing_leaves_a_whole_index(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        last = [int(process.stdout.readline()) for _ in range(8)][-1]
        os.kill(process.pid, 9)
        process.wait()
    with open_index(tmp_path / "market.db", now=lambda: NOW + 60) as index:
        [listing] = index.search("hello")
        assert listing.release is not None
        assert listing.release.seq >= last
        assert listing.release.seq == listing.head_epoch == len(index.releases(listing.app))
        assert listing.flags == ()


def test_readers_and_writers_of_many_threads_do_not_disturb_each_other(index: Index, tmp_path: Path) -> None:
    publishers = [Publisher(tmp_path, f"p{number}") for number in range(4)]
    batches = [from_relay(*one.events(*one.release().documents)) for one in publishers]
    failures: list[BaseException] = []

    def work(batch: list[object]) -> None:
        try:
            index.ingest(batch)  # type: ignore[arg-type]  # the list is a Candidate list, invariantly typed
            index.search("hello")
        except BaseException as error:  # noqa: BLE001  # carried to the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(batch,)) for batch in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(index.search("hello")) == 4


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("hello", True),
        ("HELL", True),
        ("says everybody", True),
        ("demo", True),
        ("z6Mk", True),
        ("hello nothing", False),
        ('"', True),
        ("hello AND NOT", False),
        ("hello* OR x", False),
        ("title:hello", False),
        ("", True),
    ],
)
def test_search_finds_every_word_as_a_prefix_and_knows_no_operators(
    index: Index, alice: Publisher, text: str, found: bool
) -> None:
    index.ingest(from_relay(*alice.events(*alice.release().documents)))
    assert bool(index.search(text)) is found


def test_two_publishers_of_one_app_id_are_two_candidates(index: Index, alice: Publisher, mallory: Publisher) -> None:
    for publisher in (alice, mallory):  # R-MF14
        index.ingest(from_relay(*publisher.events(*publisher.release().documents)))
    assert {listing.app.publisher for listing in index.candidates("hello")} == {alice.did, mallory.did}
    assert index.candidates("other") == []


def test_relays_are_kept_in_order_and_checked(index: Index) -> None:
    index.add_relay("wss://b.example/")
    index.add_relay("ws://a.example:7447")
    index.add_relay("wss://b.example")
    assert index.relays() == ("wss://b.example", "ws://a.example:7447")
    index.remove_relay("wss://b.example/")
    assert index.relays() == ("ws://a.example:7447",)
    for bad in ("https://a.example", "ws://a b", "ws://" + "a" * 300):
        with pytest.raises(UsageProblem):
            index.add_relay(bad)


def test_channels_are_offered_separately(index: Index, alice: Publisher) -> None:
    index.ingest(from_relay(*alice.events(*alice.release("1.0.0").documents)))
    index.ingest(from_relay(*alice.events(*alice.release("2.0.0-rc1", channel="beta").documents)))
    app = index.search("hello")[0].app
    stable, beta = index.listing(app), index.listing(app, "beta")
    assert stable is not None
    assert beta is not None
    assert (stable.release and stable.release.version, beta.release and beta.release.version) == ("1.0.0", "2.0.0-rc1")


def test_a_commit_that_fails_leaves_no_transaction_open(tmp_path: Path) -> None:
    database = connect(tmp_path / "any.db")
    database.execute("PRAGMA foreign_keys = ON")
    database.execute("CREATE TABLE parents (id INTEGER PRIMARY KEY)")
    database.execute("CREATE TABLE children (parent REFERENCES parents DEFERRABLE INITIALLY DEFERRED)")
    with pytest.raises(sqlite3.IntegrityError), transaction(database):
        database.execute("INSERT INTO children VALUES (1)")  # only COMMIT finds that there is no such parent
    with transaction(database):
        database.execute("INSERT INTO parents VALUES (2)")
    assert database.execute("SELECT count(*) FROM children").fetchone() == (0,)
    database.close()


def test_what_a_known_event_costs_does_not_grow_with_what_is_stored(tmp_path: Path, alice: Publisher) -> None:
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    def spent_on(*events: Event) -> int:
        before = steps
        assert {outcome.fate.value for outcome in index.ingest(from_relay(*events))} == {"known"}
        return steps - before

    first = alice.events(*alice.release().documents)
    with open_index(tmp_path / "market.db", now=lambda: NOW) as index:
        index.ingest(from_relay(*first))
        with index.writing() as (db, _):
            db.set_progress_handler(count, 10)
        few = spent_on(*first)
        more = [alice.events(*alice.release(app_id=f"app{number}").documents[1:]) for number in range(40)]
        index.ingest(from_relay(*(event for events in more for event in events)))
        assert 0 < spent_on(*first) <= few + 5
