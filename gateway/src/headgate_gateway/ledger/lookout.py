"""What is new for consumers of usage records, and who may hand it to them; looked at often, so it costs little.

May import the store's contract and read_only.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from headgate_gateway.ledger.store.contract import StoreFailed
from headgate_gateway.ledger.store.read_only import open_readonly

LAST: Final = "SELECT coalesce(max(seq), 0) FROM usage_records"
CURSORS: Final = "SELECT consumer, position, epoch FROM cursors"


@dataclass(frozen=True)
class View:
    """What was seen at one moment.

    Attributes:
        last: The place of the last record that pages reach.
        cursors: Position and epoch, by consumer.
        mine: The consumers that this process may hand records to.
    """

    last: int
    cursors: Mapping[str, tuple[int, int]]
    mine: frozenset[str]


class Lookout(Protocol):
    """Looks at a store. Called from one thread at a time."""

    def look(self, consumers: Collection[str]) -> View:
        """What is new for these consumers.

        Raises:
            StoreFailed: The store cannot be asked.
        """
        ...

    def hang_up(self) -> None:
        """Let a look that takes too long fail; from another thread."""
        ...

    def close(self) -> None:
        """Look no more; where turns are taken, others' begin."""
        ...


class SqliteLookout:
    """See `Lookout`; nobody else hands over the records of this store.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None

    def look(self, consumers: Collection[str]) -> View:
        """See `Lookout`."""
        try:
            db = self._db = self._db or open_readonly(self._path)  # opening costs more than looking
            cursors = {name: (position, epoch) for name, position, epoch in db.execute(CURSORS)}
            return View(db.execute(LAST).fetchone()[0], cursors, frozenset(consumers))
        except sqlite3.Error as error:
            self.close()
            raise StoreFailed(f"{self._path}: {error}") from error

    def hang_up(self) -> None:
        """Nothing: a file answers or fails."""

    def close(self) -> None:
        """See `Lookout`."""
        if self._db is not None:
            self._db.close()
            self._db = None
