"""What `systemctl show` says of a service, in words. That systemd says it is in the contract suite and the lab."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from orchestrator.systemd import UserSystemd

SHOW = "Id=archy-x.service\nLoadState=loaded\nActiveState=failed\nSubState=failed\nNRestarts=5\n"
ACTIVE = "Id=archy-x.service\nLoadState=loaded\nActiveState=active\nSubState=running\n"


def said(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> UserSystemd:
    (folder / "said").write_text(text)
    (folder / "systemctl").write_text(f"#!/bin/sh\ncat {folder}/said\n")
    (folder / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return UserSystemd()


@pytest.mark.parametrize(
    ("properties", "ended"),
    [
        ("Result=exit-code\nExecMainCode=1\nExecMainStatus=3", "exit code 3"),
        ("Result=exit-code\nExecMainCode=1\nExecMainStatus=137", "exit code 137 (SIGKILL)"),
        ("Result=exit-code\nExecMainCode=1\nExecMainStatus=255", "exit code 255 (signal 127)"),
        ("Result=signal\nExecMainCode=2\nExecMainStatus=9", "killed by SIGKILL"),
        ("Result=core-dump\nExecMainCode=3\nExecMainStatus=11", "killed by SIGSEGV"),
        ("Result=oom-kill\nExecMainCode=1\nExecMainStatus=137", "killed: out of memory"),
        ("Result=success\nExecMainCode=1\nExecMainStatus=0", ""),
        ("Result=success\nExecMainCode=0\nExecMainStatus=0", ""),
        ("Result=success", ""),
    ],
)
async def test_how_a_service_ended_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, properties: str, ended: str
) -> None:  # R-ST4
    systemd = said(tmp_path, f"{SHOW}{properties}\n", monkeypatch)
    assert (await systemd.show("archy", ()))["archy-x.service"].ended == ended


async def test_since_when_a_service_is_as_it_is_is_a_time_of_the_calendar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stamp in ("", "0", "n/a", str(int((time.monotonic() - 90) * 1e6))):
        systemd = said(tmp_path, f"{ACTIVE}StateChangeTimestampMonotonic={stamp}\n", monkeypatch)
        since = (await systemd.show("archy", ()))["archy-x.service"].since
        assert since == (pytest.approx(time.time() - 90, abs=5) if len(stamp) > 3 else None)
