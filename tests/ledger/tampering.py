"""What somebody does to a store who does not want it to be noticed."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def unguarded(path: Path, *, without: str = "") -> Iterator[sqlite3.Connection]:
    """The file of a store without its guards until the end; one of them may stay away."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        triggers = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            db.execute(f"DROP TRIGGER {name}")
        db.execute("PRAGMA ignore_check_constraints = ON")
        yield db
        for name, sql in triggers:
            if name != without:
                db.execute(sql)


def changed(value: Any) -> Any:
    """The value with one byte or unit changed."""
    if isinstance(value, bytes):
        return value[:-1] + bytes([value[-1] ^ 1])
    if isinstance(value, str) and value:
        return value[:-1] + chr(ord(value[-1]) ^ 1)
    return value + 1_000_000 if isinstance(value, int) else "1"
