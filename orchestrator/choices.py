"""What was chosen for an app on this node: values of its settings, host ports, who serves its dependencies.

Guarantees: each change is one transaction of the state database. Settings and ports are kept like data, until the
app is purged; settings on trial are told from those that hold; links belong to a generation and go with it; hooks are
marked as run once per installation. It holds no rule about what may be chosen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from apps.names import AppName
from orchestrator.tables import Tables


@dataclass(frozen=True, slots=True)
class Link:
    """`dependant` has its dependency `dependency` (as its manifest calls it) served by `provider`."""

    dependant: AppName
    dependency: str
    provider: AppName


class Choices(Tables):
    """The tables; made by `State.choices`."""

    def settings(self, app: AppName) -> dict[str, str]:
        """Values that the operator gave, by the setting's name."""
        return dict(self._rows("SELECT name, value FROM setting_values WHERE slug = ? ORDER BY name", app.slug))

    def set_settings(self, app: AppName, values: Mapping[str, str]) -> None:
        """All values at once; what is not among them has its default again."""
        with self._transaction():
            self._replace(app, values)

    def _replace(self, app: AppName, values: Mapping[str, str]) -> None:
        self._db.execute("DELETE FROM setting_values WHERE slug = ?", (app.slug,))
        self._db.executemany(
            "INSERT INTO setting_values VALUES (?, ?, ?)", [(app.slug, *item) for item in sorted(values.items())]
        )

    def try_settings(self, app: AppName, values: Mapping[str, str]) -> None:
        """The same on trial: what held before is remembered until `keep_settings` or `take_back`, crashes included."""
        with self._transaction():
            before = json.dumps(self.settings(app), sort_keys=True)
            self._db.execute("INSERT OR IGNORE INTO trials VALUES (?, ?)", (app.slug, before))
            self._replace(app, values)

    def on_trial(self) -> frozenset[str]:
        """Slugs of apps whose settings are on trial."""
        return frozenset(slug for (slug,) in self._rows("SELECT slug FROM trials"))

    def keep_settings(self, app: AppName) -> None:
        """The app does well with them."""
        with self._transaction():
            self._db.execute("DELETE FROM trials WHERE slug = ?", (app.slug,))

    def take_back(self, app: AppName) -> None:
        """What held before the trial holds again."""
        with self._transaction():
            for (before,) in self._rows("SELECT settings FROM trials WHERE slug = ?", app.slug):
                self._replace(app, json.loads(before))
            self._db.execute("DELETE FROM trials WHERE slug = ?", (app.slug,))

    def ports(self, app: AppName) -> dict[tuple[str, str], int]:
        """Host ports that the node chose, by container and port name."""
        rows = self._rows("SELECT container, port, number FROM host_ports WHERE slug = ?", app.slug)
        return {(container, port): number for container, port, number in rows}

    def set_ports(self, app: AppName, ports: Mapping[tuple[str, str], int]) -> None:
        with self._transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO host_ports VALUES (?, ?, ?, ?)",
                [(app.slug, *key, number) for key, number in sorted(ports.items())],
            )

    def subnet(self, app: AppName) -> str:
        """The subnet of an app without internet; empty when none was chosen."""
        rows = self._rows("SELECT subnet FROM subnets WHERE slug = ?", app.slug)
        return str(rows[0][0]) if rows else ""

    def subnets(self) -> frozenset[str]:
        """Those of all apps."""
        return frozenset(subnet for (subnet,) in self._rows("SELECT subnet FROM subnets"))

    def set_subnet(self, app: AppName, subnet: str) -> None:
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO subnets VALUES (?, ?)", (app.slug, subnet))

    def forget(self, app: AppName) -> None:
        """With the app's data its settings, ports and subnet go too."""
        with self._transaction():
            self._db.execute("DELETE FROM subnets WHERE slug = ?", (app.slug,))
            self._db.execute("DELETE FROM setting_values WHERE slug = ?", (app.slug,))
            self._db.execute("DELETE FROM host_ports WHERE slug = ?", (app.slug,))

    def set_links(self, app: AppName, generation: int, providers: Mapping[str, AppName]) -> None:
        """Who serves the dependencies of one generation."""
        with self._transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO links VALUES (?, ?, ?, ?, ?)",
                [(app.slug, generation, name, p.publisher, p.id) for name, p in sorted(providers.items())],
            )

    def links(self, app: AppName, generation: int) -> dict[str, AppName]:
        """Dependency -> the app that serves it."""
        rows = self._rows(
            "SELECT dependency, publisher, id FROM links WHERE slug = ? AND generation = ?", app.slug, generation
        )
        return {dependency: AppName(publisher, id_) for dependency, publisher, id_ in rows}

    def all_links(self) -> tuple[Link, ...]:
        """The links of every generation that holds or is being installed."""
        rows = self._rows(
            "SELECT a.publisher, a.id, l.dependency, l.publisher, l.id FROM links l JOIN apps a ON a.slug = l.slug "
            "WHERE l.generation = a.generation OR l.generation IN "
            "(SELECT o.generation FROM operations o WHERE o.slug = l.slug AND o.open = 1) ORDER BY 1, 2, 3, 4, 5"
        )
        found = [Link(AppName(dp, di), dependency, AppName(pp, pi)) for dp, di, dependency, pp, pi in rows]
        return tuple(dict.fromkeys(found))

    def hooks_ran(self, app: AppName) -> bool:
        """Did `post_install` run for this installation?"""
        return bool(self._rows("SELECT 1 FROM hooks_run WHERE slug = ?", app.slug))

    def mark_hooks(self, app: AppName) -> None:
        with self._transaction():
            self._db.execute("INSERT OR IGNORE INTO hooks_run VALUES (?)", (app.slug,))
