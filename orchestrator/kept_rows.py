"""Adopted containers and where adopted data is, in the state database (ADR 12).

Guarantees: a container belongs to one generation of one app at most; `kept` goes with its generation, `homes` stay
until the app is purged, as data does. It holds no rule about what may be adopted, and removes nothing from the machine.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping

from apps.names import AppName
from orchestrator.homes import Home, KeptContainer
from orchestrator.tables import Tables


class KeptRows(Tables):
    """The tables; made by `State.kept`."""

    def of(self, app: AppName, generation: int) -> tuple[KeptContainer, ...]:
        """The containers that a generation is made of, by label; none for one of units."""
        rows = self._rows(
            "SELECT label, name, id, restart FROM kept WHERE slug = ? AND generation = ? ORDER BY label",
            app.slug,
            generation,
        )
        return tuple(KeptContainer(*row) for row in rows)

    def every(self, app: AppName) -> tuple[KeptContainer, ...]:
        """Those of all generations of an app."""
        rows = self._rows("SELECT label, name, id, restart FROM kept WHERE slug = ? ORDER BY id", app.slug)
        return tuple(KeptContainer(*row) for row in rows)

    def owners(self) -> dict[str, str]:
        """Container id -> the slug of its app."""
        return dict(self._rows("SELECT id, slug FROM kept"))

    def superseded(self, app: AppName) -> tuple[KeptContainer, ...]:
        """Containers whose app has become units; they are still to be removed."""
        rows = self._rows(
            "SELECT k.label, k.name, k.id, k.restart FROM kept k JOIN apps a ON a.slug = k.slug "
            "WHERE k.slug = ? AND k.generation < a.generation ORDER BY k.id",
            app.slug,
        )
        return tuple(KeptContainer(*row) for row in rows)

    def any_superseded(self) -> frozenset[str]:
        """Slugs of the apps that have such."""
        rows = self._rows(
            "SELECT DISTINCT k.slug FROM kept k JOIN apps a ON a.slug = k.slug WHERE k.generation < a.generation"
        )
        return frozenset(slug for (slug,) in rows)

    def forget(self, app: AppName, containers: Iterable[KeptContainer]) -> None:
        """They are gone from the machine. A generation without any is one of units."""
        with self._transaction():
            self._db.executemany(
                "DELETE FROM kept WHERE slug = ? AND id = ?", [(app.slug, box.id) for box in containers]
            )

    def homes(self, app: AppName) -> dict[str, Home]:
        """Where the data of an app's volumes is, where that is no volume of this node."""
        rows = self._rows("SELECT volume, source, relabel FROM homes WHERE slug = ? ORDER BY volume", app.slug)
        return {volume: Home(source, relabel) for volume, source, relabel in rows}

    def owners_of_data(self) -> dict[str, str]:
        """Folder or volume -> the slug of its app, uninstalled ones included."""
        return dict(self._rows("SELECT source, slug FROM homes"))

    def set_homes(self, app: AppName, homes: Mapping[str, Home]) -> None:
        """Those of an app that the database had lost."""
        with self._transaction():
            insert_homes(self._db, app.slug, homes)

    def forget_homes(self, app: AppName) -> None:
        """The app is purged; what is there stays there."""
        with self._transaction():
            self._db.execute("DELETE FROM homes WHERE slug = ?", (app.slug,))


def insert_homes(db: sqlite3.Connection, slug: str, homes: Mapping[str, Home]) -> None:
    """Within a transaction of the caller's."""
    db.executemany(
        "INSERT OR REPLACE INTO homes VALUES (?, ?, ?, ?)",
        [(slug, volume, home.source, home.relabel) for volume, home in sorted(homes.items())],
    )


def insert_kept(db: sqlite3.Connection, slug: str, generation: int, kept: Iterable[KeptContainer]) -> None:
    """Within a transaction of the caller's."""
    db.executemany(
        "INSERT INTO kept VALUES (?, ?, ?, ?, ?, ?)",
        [(slug, generation, box.label, box.id, box.name, box.restart) for box in kept],
    )
