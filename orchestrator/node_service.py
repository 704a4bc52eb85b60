"""The node itself as a unit of the user's systemd.

Guarantees: the unit is written whole; installing twice is the same as once; a unit of that name that archy did not
write is left alone. The node lives in a slice of its own beside that of the apps, so that nothing that happens to it,
crash loop and SIGKILL included, reaches an app (R-FM3, R-ST16). It refuses to know what the node does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apps.problems import EnvironmentLacks, Problem, Refused
from orchestrator.names import check_prefix
from orchestrator.process import Completed, run
from orchestrator.quadlet.text import HEADER, literal
from orchestrator.secret_files import sync_folder
from orchestrator.status import Finding

ANSWER: Final = 20.0
"""Seconds for a question to systemd."""
START: Final = 150.0
"""Seconds until the node must have said that it is ready: the unit's own limit and a margin."""

_SHOWN: Final = ("ActiveState", "SubState", "UnitFileState", "MainPID", "NRestarts", "ActiveEnterTimestamp", "Result")


@dataclass(frozen=True, slots=True)
class NodeService:
    """The unit `<prefix>.service` in `folder`, which runs `argv` with these variables."""

    prefix: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path

    def __post_init__(self) -> None:
        check_prefix(self.prefix)

    @property
    def unit(self) -> str:
        return f"{self.prefix}.service"

    @property
    def path(self) -> Path:
        return self.folder / self.unit

    async def install(self, *, start: bool) -> None:
        """Write, enable and start (or restart, where the unit has changed) the service.

        Raises Refused over a stranger's unit, EnvironmentLacks without a user systemd, CommandFailed.
        """
        changed = self._write()
        await self._systemctl("daemon-reload")
        await self._systemctl("enable", self.unit)
        if start:
            await self._systemctl("restart" if changed else "start", self.unit, seconds=START)

    async def uninstall(self) -> bool:
        """Stop and remove the service; False when there is none. Apps go on."""
        if not self._ours():
            return False
        await self._systemctl("disable", "--now", self.unit, seconds=START)
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise Problem(f"the unit can not be removed: {error.strerror}", where=str(self.path)) from error
        await self._systemctl("daemon-reload")
        await run(("systemctl", "--user", "reset-failed", self.unit), seconds=ANSWER)
        return True

    async def state(self) -> Mapping[str, str]:
        """What systemd says of the service (systemctl(1), show), empty when it is not installed."""
        if not self._ours():
            return {}
        done = await self._systemctl("show", f"--property={','.join(_SHOWN)}", self.unit)
        return dict(
            pair for line in done.stdout.decode(errors="replace").splitlines() if len(pair := line.split("=", 1)) == 2
        )

    def _ours(self) -> bool:
        try:
            return self.path.read_text(errors="replace").startswith(HEADER)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise Problem(f"the unit can not be read: {error.strerror}", where=str(self.path)) from error

    def _write(self) -> bool:
        if self.path.exists() and not self._ours():
            raise Refused(
                "a unit that archy did not write is already there",
                where=str(self.path),
                remedy="remove it, or choose another unit_prefix",
            )
        text = unit_text(self.prefix, self.argv, self.environment)
        try:
            if self.path.exists() and self.path.read_text() == text:
                return False
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = self.path.with_name(f".{self.unit}.archy-new")
            with temporary.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
            sync_folder(self.folder)
        except OSError as error:
            raise Problem(f"the unit can not be written: {error.strerror}", where=str(self.path)) from error
        return True

    async def _systemctl(self, *argv: str, seconds: float = ANSWER) -> Completed:
        done = await run(("systemctl", "--user", *argv), seconds=seconds)
        if done.code != 0 and "Failed to connect to" in done.stderr:
            raise EnvironmentLacks(
                "there is no systemd for this user",
                remedy="log in as the user (not with su), or: loginctl enable-linger USER, and set XDG_RUNTIME_DIR",
            )
        return done.checked()


def default_service_dir() -> Path:
    """Where a user's own units are (systemd.unit(5))."""
    return Path.home() / ".config" / "systemd" / "user"


def unit_text(prefix: str, argv: Sequence[str], environment: Mapping[str, str]) -> str:
    """The unit. Raises Problem for a word that does not fit on a line. Pure."""
    # systemd.exec(5): specifiers are expanded in Environment=, variables are not
    pairs = [_quoted(f"{key}={value}", variables=False) for key, value in sorted(environment.items())]
    settings = "".join(f"Environment={pair}\n" for pair in pairs)
    return f"""{HEADER}
[Unit]
Description=Archipelago Market node
# A crash loop is slowed down below, and never given up.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={" ".join(map(_quoted, argv))}
{settings}Slice={prefix}-node.slice
Delegate=yes
# The node itself gets SIGTERM; what it left behind is killed with the rest. Apps are in {prefix}-apps.slice.
KillMode=mixed
TimeoutStartSec=120
TimeoutStopSec=30
WatchdogSec=60
Restart=always
RestartSec=1
RestartSteps=6
RestartMaxDelaySec=60

[Install]
WantedBy=default.target
"""


def _quoted(value: str, *, variables: bool = True) -> str:
    """One word; `variables`: the key expands `$` too, as ExecStart= does."""
    if any(ord(c) < 32 or ord(c) == 127 for c in value):
        raise Problem(f"not a word for a unit file: {value[:80]!a}")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{literal(escaped) if variables else escaped.replace("%", "%%")}"'


def linger(user: str, folder: Path = Path("/var/lib/systemd/linger")) -> Finding:
    """Whether the user's systemd, and with it node and apps, is there from boot on (loginctl(1))."""
    if (folder / user).exists():
        return Finding("linger", True, "apps start at boot")
    return Finding("linger", False, "apps stop when the last session ends", f"loginctl enable-linger {user}")
