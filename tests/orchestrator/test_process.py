"""Programs are bounded in time and output, and leave no children behind."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import trio

from orchestrator.faults import CommandFailed, CommandMissing, CommandNotStarted, CommandTimedOut, OutputTooLong
from orchestrator.process import run


async def wait_gone(pid: int) -> None:
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        await trio.sleep(0.01)


async def test_output_input_and_exit_code_come_back() -> None:
    done = await run(["sh", "-c", "cat; echo bad >&2; exit 3"], seconds=10, stdin=b"in")
    assert (done.code, done.stdout, done.stderr) == (3, b"in", "bad\n")
    with pytest.raises(CommandFailed, match="sh -c ended with 3: bad"):
        done.checked()


async def test_a_program_that_reads_nothing_is_no_fault() -> None:
    assert (await run(["true"], seconds=10, stdin=b"x" * 1_000_000)).code == 0


async def test_a_missing_program_is_told_with_the_command_that_mends_it() -> None:
    with pytest.raises(CommandMissing, match="no-such-program is not installed") as caught:
        await run(["no-such-program"], seconds=10)
    assert caught.value.exit_code == 4


async def test_a_program_that_can_not_be_started_is_told_and_is_no_defect(tmp_path: Path) -> None:  # R-ST13
    program = tmp_path / "podman"
    program.write_text("not to be executed")
    with pytest.raises(CommandNotStarted, match="podman can not be started: Permission denied"):
        await run([str(program)], seconds=10)


def test_what_went_wrong_is_told_and_not_where_more_is_to_be_read() -> None:
    said = 'Job for x.service failed because of a timeout.\nSee "systemctl --user status x.service" for details.\n'
    failed = CommandFailed(("systemctl", "--user", "start", "--", "x.service"), 1, said)
    assert str(failed) == "systemctl start ended with 1: Job for x.service failed because of a timeout."
    assert str(CommandFailed(("systemctl", "--user", "stop"), 1, "")) == "systemctl stop ended with 1"
    assert "archy doctor" in CommandTimedOut(("podman", "ps"), 30).remedy


@pytest.mark.parametrize("cancelled", [True, False])
async def test_grandchildren_die_with_the_deadline_and_with_a_cancel(tmp_path: Path, cancelled: bool) -> None:
    note = tmp_path / "pid"
    script = f"sh -c 'echo $$ > {note}; trap \"\" TERM; while :; do sleep 1; done' & wait"
    with trio.move_on_after(0.5 if cancelled else 60) as scope:
        with pytest.raises(CommandTimedOut if not cancelled else trio.Cancelled):
            await run(["sh", "-c", script], seconds=60 if cancelled else 0.5)
        await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught is cancelled
    with trio.fail_after(10):
        await wait_gone(int(note.read_text()))


async def test_endless_output_is_cut_and_told() -> None:
    script = "import sys\nfor _ in range(100): sys.stdout.write('x' * 10000)"
    with pytest.raises(OutputTooLong, match="more than 1000 bytes"):
        await run([sys.executable, "-c", script], seconds=20, limit=1000)


async def test_endless_errors_do_not_block_the_program() -> None:
    script = "import sys\nfor _ in range(100): sys.stderr.write('x' * 10000)"
    done = await run([sys.executable, "-c", script], seconds=20)
    assert done.code == 0
    assert len(done.stderr) <= 64 * 1024
