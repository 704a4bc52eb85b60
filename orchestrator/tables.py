"""A part of the state database, for the classes that each keep some of its tables."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any


class Tables:
    """Made by `State`. `rows` reads, `transaction` is all or nothing; both translate SQLite's faults."""

    def __init__(
        self,
        db: sqlite3.Connection,
        transaction: Callable[[], AbstractContextManager[None]],
        rows: Callable[..., list[Any]],
    ) -> None:
        self._db = db
        self._transaction = transaction
        self._rows = rows
