"""A node's home folder: where each part keeps its state, and the lock that makes one process its owner.

Guarantees: the folder is the operator's alone (0700), and whoever holds the lock is the only writer. It knows paths,
and nothing of what is written there.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from market.errors import EnvironmentLacks, Unreachable


@dataclass(frozen=True, slots=True)
class Home:
    """The paths below one home folder."""

    root: Path

    @classmethod
    def default(cls) -> Home:
        """`$ARCHY_HOME`, else `$XDG_DATA_HOME/archy`, else `~/.local/share/archy` (XDG Base Directory)."""
        explicit = os.environ.get("ARCHY_HOME")
        if explicit:
            return cls(Path(explicit).absolute())
        data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
        return cls(Path(data).absolute() / "archy")

    @property
    def identity(self) -> Path:
        return self.root / "identity"

    @property
    def index(self) -> Path:
        return self.root / "market.db"

    @property
    def apps_state(self) -> Path:
        return self.root / "state.db"

    @property
    def apps_data(self) -> Path:
        return self.root / "apps"

    @property
    def blobs(self) -> Path:
        return self.root / "blobs"

    @property
    def bundles(self) -> Path:
        return self.root / "bundles"

    @property
    def anchors(self) -> Path:
        return self.root / "anchors.json"

    @property
    def trust_memory(self) -> Path:
        return self.root / "trust.json"

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def socket(self) -> Path:
        return self.root / "archy.sock"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    def create(self) -> None:
        """Make the folder, 0700. Raises EnvironmentLacks naming the folder when it can not be written."""
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise EnvironmentLacks(
                f"can not create the home folder: {error.strerror}",
                where=str(self.root),
                remedy="choose another folder with --home, or mend its permissions",
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Own this home until the block ends. Raises Unreachable while another process does, EnvironmentLacks."""
        self.create()
        try:
            handle = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise EnvironmentLacks(
                f"can not write the home folder: {error.strerror}",
                where=str(self.root),
                remedy="mount it writable, or choose another folder with --home",
            ) from error
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Unreachable(
                    "another archy process is using this home and does not answer on its socket yet",
                    where=str(self.root),
                    remedy="wait for it to end or to finish starting, then try again",
                ) from error
            yield
        finally:
            os.close(handle)
