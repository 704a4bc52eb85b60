"""The command line as its user meets it: messages, exit codes, JSON, the running node and its socket."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.market.cli.archy import Archy
from tests.market.square import Publisher, serving


@pytest.fixture
def archy(tmp_path: Path) -> Archy:
    return Archy(tmp_path / "home")


BAD_MANIFEST = """\
schema: 1
id: Not_An_Id
version: "1.0"
title: Bad
colour: red
containers:
  web:
    image: {ref: "localhost/x:1"}
    build: {context: ../outside}
    resources: {memory: 5GB}
"""


def test_every_error_of_a_manifest_is_told_at_once_with_its_path(archy: Archy, tmp_path: Path) -> None:  # R-MF2
    (tmp_path / "manifest.yml").write_text(BAD_MANIFEST)
    answer = archy("app", "validate", str(tmp_path))
    assert answer.code == 3
    for path in ("colour", "id", "containers.web:", "containers.web.build.context", "containers.web.resources.memory"):
        assert f"  {path}" in answer.err, answer.err
    as_json = archy("app", "validate", str(tmp_path), "--json")
    assert as_json.code == 3
    assert {"colour", "id"} <= {error["path"] for error in as_json.json["errors"]}
    assert not archy.home.exists(), "validating made a home"


BUILT_MANIFEST = """
schema: 1
id: built
version: "1.0"
title: Built
containers:
  web:
    build: {context: build/web}
"""


def test_a_containerfile_that_no_node_would_build_is_told_with_its_lines(archy: Archy, tmp_path: Path) -> None:
    (tmp_path / "manifest.yml").write_text(BUILT_MANIFEST)  # R-MF12
    (tmp_path / "build" / "web").mkdir(parents=True)
    (tmp_path / "build" / "web" / "Containerfile").write_text("FROM scratch\nADD http://x /\nRUN --network=host id\n")
    answer = archy("app", "validate", str(tmp_path))
    assert answer.code == 3
    first, *lines = answer.err.splitlines()
    assert first.endswith("containers.web.build: the Containerfile can not be built here:")
    assert [line.partition(" (")[0] for line in lines] == [
        "  line 2: ADD is not allowed",
        "  line 3: RUN with '--network'",
    ]
    told = archy("app", "validate", str(tmp_path), "--json").json["errors"]
    assert [error["path"] for error in told] == ["line 2", "line 3"]
    (tmp_path / "build" / "web" / "Containerfile").write_text("FROM scratch\nUSER 1000\n")
    assert archy("app", "validate", str(tmp_path)).code == 0


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["nonsense"], 2, "No such command"),
        (["search", "--limit", "0"], 2, "--limit"),
        (["--home", "/dev/null/x", "ps"], 4, "/dev/null/x"),
        (["relay", "run", "--listen", "nowhere"], 2, "HOST:PORT"),
        (["app", "validate", "/nowhere"], 2, "/nowhere"),
        (["op", "ls"], 6, "archy up"),
        (["id", "show"], 1, "archy id init"),
        (["app", "pack", "/nowhere", "--out", "/x"], 2, "/nowhere"),
        (["stop", "hello"], 2, "archy ps"),
        (["config", "colour=red"], 2, "no setting"),
        (["blob", "gc", "--quota", "\u00b2"], 2, "no size"),
        (["app", "render", "/nowhere", "--publisher", "x"], 2, "/nowhere"),
    ],
)
def test_bad_use_names_what_and_how_to_mend_it(archy: Archy, words: list[str], code: int, told: str) -> None:
    answer = archy(*words)
    assert answer.code == code, answer
    assert told in answer.err
    assert "Traceback" not in answer.err


@pytest.mark.parametrize("words", [["nonsense"], ["search", "--limit", "x"], ["show"], ["--frob"]])
def test_bad_use_is_told_to_programs_as_every_problem_is(archy: Archy, words: list[str]) -> None:
    answer = archy("--json", *words)
    assert (answer.code, answer.json["exit_code"], answer.err) == (2, 2, "")
    assert answer.json["type"] == "urn:archy:problem:usage"


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_an_answer_that_nobody_can_take_is_no_traceback(archy: Archy, as_json: tuple[str, ...]) -> None:
    for words, code, told in (
        (("relays",), 1, "the answer could not be written"),
        (("show", "nothing", "--offline"), 2, ""),
        (("--help",), 1, "the answer could not be written"),
    ):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                archy.argv(*words, *as_json), stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
            )
        assert told in done.stderr
        assert "internal fault" not in done.stderr
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr
        assert done.returncode == code


def test_help_names_every_command_with_its_whole_first_sentence(archy: Archy) -> None:
    for words in ((), ("id",), ("app",), ("trust",), ("blob",)):
        shown = archy(*words, "--help").out
        assert "..." not in shown.partition("Commands:")[2].partition("Exit codes")[0]


def test_help_loads_nothing_that_it_does_not_need(archy: Archy) -> None:
    program = (
        "import sys; sys.argv = ['archy', '--help']; from market.cli import main; main();"
        "sys.exit(len({'orchestrator', 'pydantic', 'trio', 'sqlite3'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False).returncode == 0


def test_identity_is_made_once_with_private_files(archy: Archy) -> None:
    made = archy("id", "init", "--json")
    assert made.code == 0
    assert made.json["did"].startswith("did:key:z6Mk")
    folder = archy.home / "identity"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir() if path.is_file()} == {0o600}
    again = archy("id", "init")
    assert again.code == 3
    assert archy("id", "show", "--json").json["did"] == made.json["did"]


def test_install_without_terminal_and_without_yes_is_a_usage_error(
    archy: Archy, tmp_path: Path, relay_url: str
) -> None:
    publisher = Publisher(tmp_path / "publisher", relay_url)
    publisher.bring("1.0.0", ["http://127.0.0.1:1"])
    archy("relays", "add", relay_url)
    answer = archy("install", f"{publisher.did}/hello")
    assert answer.code == 2
    assert "--yes" in answer.err


def test_install_without_anchor_is_refused_with_3_though_yes_is_given(
    archy: Archy, tmp_path: Path, relay_url: str
) -> None:
    publisher = Publisher(tmp_path / "publisher", relay_url)
    publisher.bring("1.0.0", ["http://127.0.0.1:1"])
    archy("relays", "add", relay_url)
    answer = archy("install", f"{publisher.did}/hello", "--yes", "--json")
    assert answer.code == 3
    assert "anchors" in answer.json["title"]
    assert archy("ps", "--json").json["apps"] == []


def test_machine_without_podman_ends_with_4_and_the_command_that_mends_it(
    archy: Archy, tmp_path: Path, relay_url: str
) -> None:
    publisher = Publisher(tmp_path / "publisher", relay_url)
    publisher.www.mkdir(parents=True)
    with serving(publisher.www) as origin:
        publisher.bring("1.0.0", [origin.url])
        archy("relays", "add", relay_url)
        archy("trust", "add", publisher.did)
        archy("config", "allow_private_origins=true")
        answer = archy("install", f"{publisher.did}/hello", "--yes")
        assert answer.code == 4, answer
        assert "apt-get install podman" in answer.err
        assert origin.requests == []
    assert archy("doctor").code == 4


def test_commands_speak_to_the_running_node_and_a_second_node_is_refused(
    archy: Archy, tmp_path: Path, relay_url: str
) -> None:
    publisher = Publisher(tmp_path / "publisher", relay_url)
    with archy.up() as node:
        assert stat.S_IMODE((archy.home / "archy.sock").stat().st_mode) == 0o600
        assert archy("relays", "add", relay_url).code == 0
        publisher.bring("1.0.0", ["http://127.0.0.1:1"])
        arrived = threading.Event()
        for _ in range(60):
            rows = archy("search", "hello", "--json").json["results"]
            if publisher.did in {row["publisher"] for row in rows}:
                break
            arrived.wait(0.25)
        else:
            raise AssertionError("the running node did not hear of the app")
        second = archy("up")
        assert second.code == 6
        assert "another archy" in second.err
        assert archy("op", "ls", "--json").json["operations"]
        for word in ("a/b", "x y", "../../v1", "", "\u00e9", "op-0"):
            answer = archy("op", "wait", "--", word)
            assert answer.code == 2, answer
            assert "archy op ls" in answer.err
        node.send_signal(signal.SIGTERM)
        assert node.wait(20) == 0
    assert not (archy.home / "archy.sock").exists()
    assert archy("search", "hello", "--offline").code == 0


def test_killed_node_leaves_a_home_that_opens_again(archy: Archy) -> None:
    with archy.up() as node:
        node.kill()
        node.wait(20)
    assert archy("ps").code == 0
    with archy.up():
        assert archy("ps").code == 0


def test_damaged_settings_stop_the_node_with_the_file_named(archy: Archy) -> None:
    archy.home.mkdir()
    (archy.home / "config.yaml").write_text("lisen: 127.0.0.1:1\n")
    answer = archy("ps")
    assert answer.code == 1
    assert "config.yaml" in answer.err
    assert "lisen" in answer.err


def test_damaged_index_is_told_and_not_overwritten(archy: Archy) -> None:
    archy.home.mkdir()
    (archy.home / "market.db").write_bytes(b"this is not a database" * 100)
    answer = archy("ps")
    assert answer.code != 0
    assert "market.db" in answer.err
    assert "Traceback" not in answer.err
    assert (archy.home / "market.db").read_bytes().startswith(b"this is not")


def test_a_question_without_progress_leaves_the_terminal_alone(archy: Archy) -> None:
    code, shown = archy.at_a_terminal("ps")
    assert (code, shown) == (0, "Nothing is installed; `archy search` shows what there is.\r\n")


@pytest.mark.parametrize("word", ["hello", "did:key:z6Mk/hello", ".*", "\x1b[2J"])
def test_logs_of_what_never_was_installed_are_a_usage_error(archy: Archy, word: str) -> None:
    answer = archy("logs", word)
    assert (answer.code, answer.out) == (2, "")
    assert "\x1b" not in answer.err


def test_help_of_every_command_has_a_sentence(archy: Archy) -> None:
    for words in ([], ["id"], ["relay"], ["app"], ["relays"], ["trust"], ["blob"], ["op"], ["install"], ["update"]):
        answer = archy(*words, "--help")
        assert answer.code == 0
        assert "Usage:" in answer.out
