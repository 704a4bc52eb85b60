"""The faults of the orchestrator's own layer, each saying whose fault it was."""

from __future__ import annotations

from typing import Final

from apps.problems import EnvironmentLacks, Problem


class CommandFailed(Problem):
    """A program ended with an error. `stderr` is what it said, bounded."""

    kind = "command-failed"

    def __init__(self, argv: tuple[str, ...], code: int, stderr: str) -> None:
        self.argv, self.code, self.stderr = argv, code, stderr
        command = " ".join([argv[0], *[word for word in argv[1:] if word != "--user"][:1]])
        lines = [line.strip() for line in stderr.splitlines() if line.strip()]
        # systemctl(1) ends with where to read more, after what went wrong
        said = [line for line in lines if not line.startswith("See ")] or lines
        super().__init__(f"{command} ended with {code}{f': {said[-1]}' if said else ''}")


_JOBS: Final = {
    "canceled": "another request called it off",
    "dependency": "a unit that it needs failed",
    "failed": "it ended with an error",
    "timeout": "it was not up in time",
}


class JobFailed(CommandFailed):
    """What systemd was told to do did not work, as `systemctl` would say. `result`: how the job ended, in the words of
    org.freedesktop.systemd1(5), JobRemoved."""

    def __init__(self, verb: str, service: str, result: str) -> None:
        super().__init__(("systemctl", "--user", verb, "--", service), 1, "")
        self.result = result
        self.what = _JOBS.get(result, f"its job ended as {result}")


class CommandTimedOut(Problem):
    """A program did not end within its deadline and was killed with its whole process group."""

    kind = "command-timeout"

    def __init__(self, argv: tuple[str, ...], seconds: float) -> None:
        self.argv, self.seconds = argv, seconds
        super().__init__(
            f"{' '.join(argv[:3])} did not end within {seconds:g} s", remedy="archy doctor says what does not answer"
        )


class CommandMissing(EnvironmentLacks):
    """A program is not installed."""

    def __init__(self, program: str) -> None:
        self.program = program
        package = {"systemctl": "systemd", "journalctl": "systemd"}.get(program, program)
        super().__init__(f"{program} is not installed", remedy=f"apt-get install {package}")


class CommandNotStarted(Problem):
    """A program is there and can not be started: no memory, too many processes or files, no right to."""

    kind = "command-not-started"

    def __init__(self, program: str, error: OSError) -> None:
        super().__init__(
            f"{program} can not be started: {error.strerror}", remedy="archy doctor; is the machine overloaded?"
        )


class OutputTooLong(Problem):
    """A program wrote more than its caller was ready to read."""

    kind = "command-output"


class UnitRefused(Problem):
    """Quadlet's generator does not accept a unit; nothing was put in place (R-MF9)."""

    kind = "unit-refused"


class BuildFailed(Problem):
    """An image could not be built from what was signed; nothing of the build is left (R-MF12)."""

    kind = "build-failed"

    def __init__(self, app: str, label: str, said: str, service: str) -> None:
        super().__init__(
            f"the image of {label} can not be built: {said}",
            where=f"{app}: {label}.build",
            remedy=f"tell the publisher; journalctl --user -u {service} has all that it said",
        )


class StateProblem(Problem):
    """The state database can not be read or written."""

    kind = "state"


class PortTaken(Problem):
    """A host port has another owner. Nothing was changed."""

    kind = "port-taken"
    exit_code = 3


class Unhealthy(Problem):
    """An app was started but did not become healthy within its window."""

    kind = "unhealthy"


class Busy(Problem):
    """Another operation on this app is under way (R-ST20)."""

    kind = "busy"


class Waiting(Problem):
    """What an app needs is not there yet; it is tried again at the next tick."""

    kind = "waiting"
