"""Connections to the SQLite file that only read: for queries, audits and lookouts. Imports nothing of ours."""

from __future__ import annotations

import sqlite3
from pathlib import Path


def open_readonly(path: Path) -> sqlite3.Connection:
    """A connection that can neither write nor checkpoint; for one thread at a time."""
    address = f"{path.resolve().as_uri()}?mode=ro"
    return sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False)
