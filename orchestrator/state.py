"""What the operator wants, in SQLite: apps, their generations, and the journal of operations.

Guarantees: every change is one transaction; at most one open operation per app (R-ST20); a database that can not be
written is a Problem raised before anything else was changed. It holds no secret and no observation, and refuses to
know systemd and Podman.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from apps.names import AppName
from orchestrator.choices import Choices
from orchestrator.faults import Busy, StateProblem
from orchestrator.homes import Home, KeptContainer
from orchestrator.kept_rows import KeptRows, insert_homes, insert_kept
from orchestrator.state_schema import MIGRATIONS

KEPT_GENERATIONS: Final = 2
"""The running one and the one to return to."""
KEPT_OPERATIONS: Final = 1000
"""Closed journal entries, for people who ask what happened."""
NO_HOMES: Final[Mapping[str, Home]] = MappingProxyType({})
NO_ROOM: Final = 1 << 20
"""Bytes of free space under which a failed write is taken for a full disk: a transaction's log is smaller."""


class OpState(StrEnum):
    """How far an operation went. What is durable before each step is what a restart acts on."""

    STAGED = "staged"
    """Nothing was placed yet; images may have been imported. A restart undoes it."""
    SWITCHING = "switching"
    """Units are being written and started. A restart undoes it."""
    VERIFYING = "verifying"
    """Started, not proven healthy. A restart proves it or undoes it (R-FM5)."""
    ROLLING_BACK = "rolling-back"
    """Being undone. A restart goes on undoing."""
    REMOVING = "removing"
    """An uninstall under way. A restart goes on removing."""
    COMMITTED = "committed"
    UNDONE = "undone"


@dataclass(frozen=True, slots=True)
class AppRecord:
    """One app: what its user wants, and the generation that holds (None before the first install is committed)."""

    name: AppName
    desired: str
    generation: int | None


@dataclass(frozen=True, slots=True)
class Generation:
    """One version as it was installed: enough to render its units again without the bundle."""

    name: AppName
    number: int
    version: str
    digest: str
    root: Path
    manifest: str
    """Canonical JSON."""


@dataclass(frozen=True, slots=True)
class Operation:
    """An entry of the journal. `volumes` and `secrets`: those that were there before, which an undo must keep; `drop`:
    volumes, as Podman names them, that go with an uninstall because the operator said so."""

    id: int
    name: AppName
    kind: str
    state: OpState
    generation: int | None
    volumes: tuple[str, ...] = ()
    purge: bool = False
    was_desired: str = "running"
    secrets: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()


class State:
    """The database. One writer: the node's lock sees to that."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._db = connection
        self._path = path

    @classmethod
    def open(cls, path: Path) -> State:
        """Create or migrate. Raises StateProblem."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            connection = sqlite3.connect(path, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise _translated(error, path) from error
        state = cls(connection, path)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")  # an operation that was acknowledged survives power loss
            connection.execute("PRAGMA foreign_keys = ON")
            state._migrate()
        except sqlite3.Error as error:
            connection.close()
            raise _translated(error, path) from error
        except StateProblem:
            connection.close()
            raise
        return state

    @property
    def choices(self) -> Choices:
        """What was chosen for the apps of this node."""
        return Choices(self._db, self._transaction, self._rows)

    @property
    def kept(self) -> KeptRows:
        """Containers and data that this node did not make."""
        return KeptRows(self._db, self._transaction, self._rows)

    def close(self) -> None:
        self._db.close()

    def _migrate(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise StateProblem(
                f"the database is of a newer version ({version})", where=str(self._path), remedy="upgrade the node"
            )
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            with self._transaction():
                for statement in script.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {number}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise
        except sqlite3.Error as error:
            if isinstance(error, sqlite3.IntegrityError) and "operations.slug" in str(error):
                raise Busy("another operation on this app is under way", remedy="wait for it to end") from error
            raise _translated(error, self._path) from error

    def _roll_back(self) -> None:
        try:
            self._db.execute("ROLLBACK")
        except sqlite3.Error:
            return  # SQLite has rolled back by itself (a full disk), or the database is closed

    def _rows(self, query: str, *values: object) -> list[Any]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise _translated(error, self._path) from error

    def apps(self) -> tuple[AppRecord, ...]:
        """All apps, also those whose first install is under way."""
        rows = self._rows("SELECT publisher, id, desired, generation FROM apps ORDER BY slug")
        return tuple(AppRecord(AppName(publisher, id_), want, number) for publisher, id_, want, number in rows)

    def app(self, name: AppName) -> AppRecord | None:
        return next((record for record in self.apps() if record.name == name), None)

    def generation(self, name: AppName, number: int) -> Generation:
        """Raises StateProblem when it is not there."""
        rows = self._rows(
            "SELECT version, digest, root, manifest FROM generations WHERE slug = ? AND number = ?", name.slug, number
        )
        if not rows:
            raise StateProblem(f"generation {number} of {name} is not in the database", where=str(self._path))
        version, digest, root, manifest = rows[0]
        return Generation(name, number, version, digest, Path(root), manifest)

    def generations(self, name: AppName) -> tuple[Generation, ...]:
        rows = self._rows("SELECT number FROM generations WHERE slug = ? ORDER BY number", name.slug)
        return tuple(self.generation(name, number) for (number,) in rows)

    def open_operations(self) -> tuple[Operation, ...]:
        """What a crash, or this moment, left unfinished."""
        rows = self._rows("SELECT id, kind, state, generation, detail FROM operations WHERE open = 1 ORDER BY id")
        found = []
        for id_, kind, state, generation, text in rows:
            detail = json.loads(text)
            found.append(
                Operation(
                    id_,
                    AppName(detail["publisher"], detail["id"]),
                    kind,
                    OpState(state),
                    generation,
                    tuple(detail["volumes"]),
                    detail["purge"],
                    detail["was_desired"],
                    tuple(detail["secrets"]),
                    tuple(detail.get("drop", ())),
                )
            )
        return tuple(found)

    def open_operation(self, name: AppName) -> Operation | None:
        """The one of an app."""
        return next((operation for operation in self.open_operations() if operation.name == name), None)

    def begin_install(
        self,
        name: AppName,
        *,
        version: str,
        digest: str,
        root: Path,
        manifest: str,
        volumes: tuple[str, ...],
        secrets: tuple[str, ...],
    ) -> Operation:
        """Journal a new generation. The app's current one stays in force until `commit`."""
        with self._transaction():
            record = self.app(name)
            self._db.execute(
                "INSERT OR IGNORE INTO apps VALUES (?, ?, ?, 'running', NULL)", (name.slug, name.publisher, name.id)
            )
            (highest,) = self._db.execute(
                "SELECT coalesce(max(number), 0) FROM generations WHERE slug = ?", (name.slug,)
            ).fetchone()
            number = highest + 1
            self._db.execute(
                "INSERT INTO generations VALUES (?, ?, ?, ?, ?, ?)",
                (name.slug, number, version, digest, str(root), manifest),
            )
            fresh = record is None or record.generation is None
            operation = Operation(
                0,
                name,
                "install" if fresh else "update",
                OpState.STAGED,
                number,
                volumes,
                was_desired=record.desired if record else "running",
                secrets=secrets,
            )
            return self._begin(operation)

    def adopt(
        self,
        name: AppName,
        *,
        version: str,
        digest: str,
        root: Path,
        manifest: str,
        desired: str,
        providers: Mapping[str, AppName],
        kept: Sequence[KeptContainer] = (),
        homes: Mapping[str, Home] = NO_HOMES,
    ) -> AppRecord:
        """Know an app that is on the machine already, hooks and all; `kept` and `homes` where somebody else put it.

        Raises Busy when the app, or one of these containers, is known.
        """
        slug = name.slug
        with self._transaction():
            self._db.execute("INSERT INTO apps VALUES (?, ?, ?, ?, 1)", (slug, name.publisher, name.id, desired))
            self._db.execute(
                "INSERT INTO generations VALUES (?, 1, ?, ?, ?, ?)", (slug, version, digest, str(root), manifest)
            )
            self._db.execute("INSERT INTO hooks_run VALUES (?)", (slug,))
            self._db.executemany(
                "INSERT INTO links VALUES (?, 1, ?, ?, ?)",
                [(slug, dependency, p.publisher, p.id) for dependency, p in sorted(providers.items())],
            )
            insert_kept(self._db, slug, 1, kept)
            insert_homes(self._db, slug, homes)
        return AppRecord(name, desired, 1)

    def begin_uninstall(self, name: AppName, *, purge: bool, drop: tuple[str, ...] = ()) -> Operation:
        """Journal a removal, and want the app stopped from now on."""
        with self._transaction():
            self._db.execute("UPDATE apps SET desired = 'stopped' WHERE slug = ?", (name.slug,))
            return self._begin(
                Operation(0, name, "uninstall", OpState.REMOVING, None, purge=purge, was_desired="stopped", drop=drop)
            )

    def _begin(self, operation: Operation) -> Operation:
        detail = {
            "publisher": operation.name.publisher,
            "id": operation.name.id,
            "volumes": list(operation.volumes),
            "secrets": list(operation.secrets),
            "purge": operation.purge,
            "was_desired": operation.was_desired,
            "drop": list(operation.drop),
        }
        cursor = self._db.execute(
            "INSERT INTO operations (slug, kind, state, generation, detail, open) VALUES (?, ?, ?, ?, ?, 1)",
            (operation.name.slug, operation.kind, operation.state.value, operation.generation, json.dumps(detail)),
        )
        return replace(operation, id=cursor.lastrowid or 0)

    def advance(self, operation: Operation, state: OpState) -> None:
        with self._transaction():
            self._db.execute("UPDATE operations SET state = ? WHERE id = ?", (state.value, operation.id))

    def commit(self, operation: Operation) -> None:
        """The new generation holds; older ones than the one to return to are forgotten."""
        slug, number = operation.name.slug, operation.generation
        with self._transaction():
            self._db.execute("UPDATE apps SET generation = ?, desired = 'running' WHERE slug = ?", (number, slug))
            self._db.execute(
                "DELETE FROM generations WHERE slug = ? AND number NOT IN "
                "(SELECT number FROM generations WHERE slug = ? ORDER BY number DESC LIMIT ?)",
                (slug, slug, KEPT_GENERATIONS),
            )
            self._close(operation, OpState.COMMITTED)

    def undo(self, operation: Operation) -> None:
        """The new generation never was."""
        slug = operation.name.slug
        with self._transaction():
            self._db.execute("DELETE FROM generations WHERE slug = ? AND number = ?", (slug, operation.generation))
            self._db.execute("DELETE FROM apps WHERE slug = ? AND generation IS NULL", (slug,))
            self._db.execute("UPDATE apps SET desired = ? WHERE slug = ?", (operation.was_desired, slug))
            self._close(operation, OpState.UNDONE)

    def forget(self, operation: Operation) -> None:
        """The app is gone."""
        with self._transaction():
            self._db.execute("DELETE FROM apps WHERE slug = ?", (operation.name.slug,))
            self._close(operation, OpState.COMMITTED)

    def want(self, name: AppName, desired: str) -> None:
        """Store the user's word: `running` or `stopped`. The one place where it is written (R-ST2)."""
        with self._transaction():
            self._db.execute("UPDATE apps SET desired = ? WHERE slug = ?", (desired, name.slug))

    def _close(self, operation: Operation, state: OpState) -> None:
        self._db.execute("UPDATE operations SET state = ?, open = 0 WHERE id = ?", (state.value, operation.id))
        self._db.execute(
            "DELETE FROM operations WHERE open = 0 AND id <= (SELECT max(id) FROM operations) - ?", (KEPT_OPERATIONS,)
        )


def _no_room(folder: Path) -> bool:
    """SQLite says only "disk I/O error" when its write-ahead log does not fit."""
    try:
        return shutil.disk_usage(folder).free < NO_ROOM
    except OSError:
        return False


def _translated(error: Exception, path: Path) -> StateProblem:
    text = str(error)
    remedy = "make the folder writable for this user, or choose another home"
    if "full" in text or "No space" in text or _no_room(path.parent):
        remedy = f"free space on the disk that holds {path.parent}"
    elif "malformed" in text or "not a database" in text:
        remedy = f"restore {path.name} from a backup"
    return StateProblem(f"the state can not be stored: {text}", where=str(path), remedy=remedy)
