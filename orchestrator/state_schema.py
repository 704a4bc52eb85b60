"""The tables of state.db, and how an older database becomes the present one."""

from __future__ import annotations

from typing import Final

MIGRATIONS: Final = (
    """
    CREATE TABLE apps (
        slug TEXT PRIMARY KEY,
        publisher TEXT NOT NULL,
        id TEXT NOT NULL,
        desired TEXT NOT NULL CHECK (desired IN ('running', 'stopped')),
        generation INTEGER
    ) STRICT;
    CREATE TABLE generations (
        slug TEXT NOT NULL REFERENCES apps (slug) ON DELETE CASCADE,
        number INTEGER NOT NULL,
        version TEXT NOT NULL,
        digest TEXT NOT NULL,
        root TEXT NOT NULL,
        manifest TEXT NOT NULL,
        PRIMARY KEY (slug, number)
    ) STRICT;
    CREATE TABLE operations (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        slug TEXT NOT NULL,
        kind TEXT NOT NULL CHECK (kind IN ('install', 'update', 'uninstall')),
        state TEXT NOT NULL,
        generation INTEGER,
        detail TEXT NOT NULL,
        open INTEGER NOT NULL CHECK (open IN (0, 1))
    ) STRICT;
    CREATE UNIQUE INDEX one_open_operation ON operations (slug) WHERE open = 1;
    """,
    """
    CREATE TABLE setting_values (
        slug TEXT NOT NULL,
        name TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (slug, name)
    ) STRICT;
    CREATE TABLE host_ports (
        slug TEXT NOT NULL,
        container TEXT NOT NULL,
        port TEXT NOT NULL,
        number INTEGER NOT NULL,
        PRIMARY KEY (slug, container, port)
    ) STRICT;
    CREATE TABLE links (
        slug TEXT NOT NULL,
        generation INTEGER NOT NULL,
        dependency TEXT NOT NULL,
        publisher TEXT NOT NULL,
        id TEXT NOT NULL,
        PRIMARY KEY (slug, generation, dependency),
        FOREIGN KEY (slug, generation) REFERENCES generations (slug, number) ON DELETE CASCADE
    ) STRICT;
    CREATE TABLE hooks_run (
        slug TEXT PRIMARY KEY REFERENCES apps (slug) ON DELETE CASCADE
    ) STRICT;
    """,
    """
    CREATE TABLE subnets (
        slug TEXT PRIMARY KEY,
        subnet TEXT NOT NULL UNIQUE
    ) STRICT;
    """,
    """
    CREATE TABLE kept (
        slug TEXT NOT NULL,
        generation INTEGER NOT NULL,
        label TEXT NOT NULL,
        id TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        restart TEXT NOT NULL,
        PRIMARY KEY (slug, generation, label),
        FOREIGN KEY (slug, generation) REFERENCES generations (slug, number) ON DELETE CASCADE
    ) STRICT;
    CREATE TABLE homes (
        slug TEXT NOT NULL,
        volume TEXT NOT NULL,
        source TEXT NOT NULL,
        relabel TEXT NOT NULL,
        PRIMARY KEY (slug, volume)
    ) STRICT;
    """,
    """
    CREATE TABLE trials (
        slug TEXT PRIMARY KEY REFERENCES apps (slug) ON DELETE CASCADE,
        settings TEXT NOT NULL
    ) STRICT;
    """,
)
"""Numbered from 1 in `PRAGMA user_version`; a step that was released is never changed."""
