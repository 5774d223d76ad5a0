"""A store as programs of before left it."""

from __future__ import annotations

import sqlite3

_SINCE = {"seals": "0002", "recent": "0003", "personal": "0004", "archives": "0005", "cursors": "0006"}
"""Tables, by the revision that made them."""


def make_older(db: sqlite3.Connection, revision: str) -> None:
    """Take what came after a revision away again."""
    for table, since in _SINCE.items():
        if since > revision:
            db.execute(f"DROP TABLE {table}")
    if revision < "0002":
        db.execute("DROP INDEX windows_by_end")
    db.execute("UPDATE alembic_version SET version_num = ?", (revision,))
