"""What a machine lacks is told whatever its files look like."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from orchestrator import preflight
from orchestrator.preflight import PROGRAMS, subordinate_ids


def test_ids_are_those_of_the_user_by_name_or_number() -> None:
    text = "root:1:65536\nop:100000:65536\n1000:200000:10\noperator:300000:65536\n"
    assert subordinate_ids(text, ("op", "1000")) == 65546


@pytest.mark.parametrize(
    "line", ["op:many:more", "op:1:", "op", "", "op:1:-5", "op:1:2:3", "op:1:\u0662", "op:1:" + "9" * 99]
)
def test_a_line_that_is_none_counts_nothing(line: str) -> None:
    assert subordinate_ids(f"{line}\nop:100000:65536\n", ("op",)) == 65536


def test_every_program_that_networks_take_is_looked_for_and_has_its_package_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    found = {finding.name: finding for finding in trio.run(preflight)}
    for program, package in PROGRAMS.items():
        assert found[program].ok or found[program].remedy == f"apt-get install {package}"
    assert (found["podman"].ok, found["podman"].remedy) == (False, "apt-get install podman")


def test_a_podman_that_fails_is_not_told_to_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "podman").write_text("#!/bin/sh\necho 'database is locked' >&2; exit 125\n")
    (tmp_path / "podman").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (podman,) = [finding for finding in trio.run(preflight) if finding.name == "podman"]
    assert "database is locked" in podman.detail
    assert podman.remedy.startswith("podman info")


def test_a_silent_podman_is_told_by_name_and_holds_up_no_other_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # R-FM6
    for program, does in (("podman", "exec /bin/sleep 1000"), ("systemctl", "echo running")):
        (tmp_path / program).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = {finding.name: finding for finding in trio.run(preflight, 0.3)}
    assert (found["podman"].ok, found["podman"].detail) == (False, "does not answer within 0.3 s")
    assert "pgrep --list-full podman" in found["podman"].remedy
    assert (found["user systemd"].ok, found["user systemd"].detail) == (True, "running")
    assert {"disk", "clock", "quadlet", "pasta"} <= found.keys()


@pytest.mark.parametrize(
    ("folder", "told"), [(None, "XDG_RUNTIME_DIR is not set"), ("/nowhere/1000", "/nowhere/1000 is not there")]
)
def test_a_runtime_folder_that_is_none_is_told_for_what_it_is(
    folder: str | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    if folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
    (finding,) = [finding for finding in trio.run(preflight) if finding.name == "runtime folder"]
    assert (finding.ok, finding.detail) == (False, told)
    assert finding.remedy.startswith("export XDG_RUNTIME_DIR=/run/user/")
