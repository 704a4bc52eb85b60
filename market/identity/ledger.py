"""What this signer has promised never to use again: sequence numbers, epochs and signing times.

Guarantees that no number is handed out twice, across processes and crashes: under an exclusive lock the new value is on
disk before the caller sees it. A crash between reserving and signing leaves a gap, and a gap is harmless.
Refuses to know keys and documents; the last head's body is kept for it as an opaque value.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from market.errors import Problem
from market.identity.private_files import NoSuchFile, cannot_write, read_private, write_private

T = TypeVar("T")

_FILE: Final = "ledger.json"
_LOCK: Final = "ledger.lock"


class DamagedLedger(Problem):
    """The ledger can not be read; signing on would risk equivocation, so it stops here."""

    kind = "damaged-ledger"


class LedgerState(msgspec.Struct, forbid_unknown_fields=True):
    """Keys are `<kind>/<name>`: the highest number, the newest signing time, and the body of each app's last head."""

    numbers: dict[str, int] = {}
    times: dict[str, int] = {}
    heads: dict[str, dict[str, Any]] = {}
    floor: int = 0
    """Numbers up to this one may have been used by a machine whose ledger was lost; no name begins below it."""


SKIPPED_AT_IMPORT: Final = 1000
"""Numbers left out when a ledger comes from an export: the machine that made it may have signed that many since."""


class Ledger:
    """The durable record beside the keys. Methods block for an fsync; call them in a thread from trio."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def reserve(self, kind: str, name: str, *, above: int = 0) -> int:
        """The next number for (kind, name): one more than the last, and more than `above`. The first is 1."""

        def take(state: LedgerState) -> int:
            key = f"{kind}/{name}"
            number = max(state.numbers.get(key, 0), state.floor, above) + 1
            state.numbers[key] = number
            return number

        return self._change(take)

    def reserve_time(self, kind: str, name: str, now: float) -> int:
        """A signing time in Unix seconds: now, or one second after the last one.

        Strictly rising, because a relay keeps the lower id of two events with one address and one time (NIP-01).
        """

        def take(state: LedgerState) -> int:
            key = f"{kind}/{name}"
            made = max(int(now), state.times.get(key, 0) + 1)
            state.times[key] = made
            return made

        return self._change(take)

    def raise_to(self, numbers: Mapping[str, int]) -> None:
        """Never again hand out these numbers or lower ones; keys are `<kind>/<name>`."""

        def lift(state: LedgerState) -> None:
            for key, number in numbers.items():
                state.numbers[key] = max(state.numbers.get(key, 0), number)

        if numbers:
            self._change(lift)

    def merge(self, other: LedgerState, *, skip: int = SKIPPED_AT_IMPORT) -> None:
        """Take over another machine's record: the higher of both for every number and time, and a safe distance."""

        def join(state: LedgerState) -> None:
            for app, head in other.heads.items():
                epoch = f"head/{app}"
                if app not in state.heads or other.numbers.get(epoch, 0) > state.numbers.get(epoch, 0):
                    state.heads[app] = head
            state.floor = max(state.floor, other.floor) + skip
            for name, number in {**other.numbers, **state.numbers}.items():
                state.numbers[name] = max(number, other.numbers.get(name, 0)) + skip
            for name, made in other.times.items():
                state.times[name] = max(made, state.times.get(name, 0))

        self._change(join)

    def state(self) -> LedgerState:
        """All of it, for an export."""
        return self._read()

    def apps(self) -> tuple[str, ...]:
        """The apps for which a head was signed here."""
        return tuple(sorted(self._read().heads))

    def head(self, app_id: str) -> dict[str, Any] | None:
        """The body of the last head that was signed here for the app."""
        return self._read().heads.get(app_id)

    def keep_head(self, app_id: str, body: dict[str, Any]) -> None:
        """Remember the newest head's body, so that the next one keeps its channels and revocations."""

        def put(state: LedgerState) -> None:
            state.heads[app_id] = body

        self._change(put)

    def _change(self, change: Callable[[LedgerState], T]) -> T:
        with self.locked():
            state = self._read()
            result = change(state)
            write_private(self._folder / _FILE, msgspec.json.encode(state, order="sorted"))
            return result

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone with the folder, across processes, for as long as the context lasts (flock(2)).

        Raises EnvironmentLacks where nothing can be written.
        """
        try:
            descriptor = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise cannot_write(self._folder / _LOCK, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _read(self) -> LedgerState:
        path = self._folder / _FILE
        try:
            return msgspec.json.decode(read_private(path), type=LedgerState)
        except NoSuchFile:
            return LedgerState()
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DamagedLedger(
                f"not a ledger: {error}",
                where=str(path),
                remedy="restore it from a backup; numbers that were used before must not be used again",
            ) from error
