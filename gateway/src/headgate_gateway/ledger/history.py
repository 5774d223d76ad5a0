"""What an audit reads of a store, and how SQLite gives it. May import rows, chain, replay, seal and the schema.

Rows are read in short slices, because one long read would keep the write-ahead log from being reset. Only after
`begin` is everything read from one and the same moment.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from headgate_gateway.ledger import rows
from headgate_gateway.ledger.book import Hold
from headgate_gateway.ledger.replay import Differs
from headgate_gateway.ledger.rows import Archive
from headgate_gateway.ledger.seal import SealRow
from headgate_gateway.ledger.store.recent import Present, RateRow
from headgate_gateway.ledger.store.schema import APPEND_ONLY, guard

SLICE: Final = 2000
"""Rows of a table that are read at once."""

CHECKS: Final = {
    "windows_not_negative": "spent >= 0 AND held >= 0",
    "windows_within_cap": "spent + held <= cap",
    "records_within_hold": "cost >= 0 AND overrun >= 0 AND cost <= held",
}
"""The CHECKs that must be there, and what they say."""

HOLD: Final = msgspec.msgpack.Decoder(Hold)

Row = tuple[Any, ...]

WINDOW: Final = "id, account, kind, limit_id, end_us, amount, hard, spent, held, cap, version"

ARCHIVES: Final = f"SELECT {', '.join(Archive._fields)} FROM archives ORDER BY seal, covers"  # noqa: S608

ORGANIZATION: Final = (
    "SELECT project.parent FROM accounts AS key JOIN accounts AS project ON project.id = key.parent "
    "WHERE key.id = {}"
)


class Past(Protocol):
    """History as it is followed, in a store or in a file of the archive; read-only.

    Attributes:
        gapless: The rows of its tables are numbered without gaps, so that a missing one shows by itself.
    """

    gapless: bool

    def chains(self) -> Sequence[int]:
        """The chains that there are."""
        ...

    def chain_key(self, chain: int) -> bytes:
        """What a chain's links are keyed with."""
        ...

    def chain_name(self, chain: int) -> str:
        """What differences in a chain begin with."""
        ...

    def noted(self, chain: int) -> tuple[int, bytes] | None:
        """The link that was noted outside the store when it was committed."""
        ...

    def links(self, chain: int, after: int, until: int) -> list[Row]:
        """A slice of a chain's links, in order."""
        ...

    def rows(self, table: str, chain: int, after: int) -> list[Row]:
        """A slice of a chained table in the order it was written: number, values as in `rows.CHAINED`, digest."""
        ...

    def prices(self, after: int) -> list[Row]:
        """Rows of `prices` of all chains after one: number, values as in `rows.PRICE`, digest."""
        ...

    def claimed(self, chain: int, after: int, until: int) -> list[Row]:
        """(seq, project, claim, time of admission) of a slice of billed records that had an idempotency key."""
        ...

    def opening(self, window: int) -> Row | None:
        """Account, kind, limit and end of a window, which never change."""
        ...

    def seal(self, number: int) -> list[SealRow]:
        """The rows of a seal, in the order of its parts."""
        ...


class History(Past, Protocol):
    """A store as an audit sees it: its history, and its present."""

    def check_schema(self) -> int:
        """See that nothing of what protects history is missing; returns how much was looked at.

        Raises:
            Differs: Something is.
        """
        ...

    def begin(self) -> None:
        """From here on everything that is read was true at one moment."""
        ...

    def holds(self) -> Iterable[Hold]:
        """Every open hold."""
        ...

    def rates(self) -> Iterable[RateRow]:
        """The state of every limit per minute."""
        ...

    def organization(self, key: str) -> str | None:
        """The organization that a key belongs to."""
        ...

    def windows(self, since_us: int) -> Iterable[Row]:
        """Windows, as `WINDOW` says, that end later than a time."""
        ...

    def window(self, id_: int) -> Row | None:
        """One of them."""
        ...

    def next_seal(self, after: int) -> int | None:
        """The number of the first seal after one."""
        ...

    def last_seal(self, before: int) -> int | None:
        """The number of the last seal before one."""
        ...

    def archives(self) -> list[Archive]:
        """What was archived, oldest first."""
        ...

    def swept(self) -> bool:
        """Whether all that was archived has left the store."""
        ...

    def needed(self) -> list[tuple[int, str]]:
        """Since when history is needed by whom, besides the idempotency keys that live."""
        ...

    def unsealed_since(self) -> int | None:
        """When the last whole seal was kept, else when history began; None when it has not."""
        ...

    def alone(self) -> bool:
        """Whether no other node makes a seal now."""
        ...

    def more(self, checked: Counter[str], limits: Mapping[int, dict[str, Any]]) -> None:
        """Compare what only this store keeps."""
        ...


def slice_of(table: str, columns: Sequence[str]) -> str:
    """The columns of a slice, after the row's number."""
    return f"{', '.join(columns)}, digest FROM {table}"


def noted(path: Path) -> tuple[int, bytes] | None:
    """What a head file says; None when there is none, or nothing that can be read."""
    try:
        number, link = path.read_text(encoding="ascii").split()
        return int(number), bytes.fromhex(link)
    except (FileNotFoundError, ValueError):
        return None


class SqliteHistory:
    """See `History`. The one chain of SQLite is number 0.

    Args:
        db: From `open_readonly`.
        key: The chain's.
        head_file: Where its last link is noted.
    """

    gapless = True

    def __init__(self, db: sqlite3.Connection, key: bytes, head_file: Path) -> None:
        self._db = db
        self._key = key
        self._head_file = head_file
        self._present: Present  # from `begin` on
        self._slices = {
            name: f"SELECT rowid, {slice_of(name, columns)} WHERE rowid > ? ORDER BY rowid LIMIT {SLICE}"
            for name, columns in rows.CHAINED.items()
        }

    def check_schema(self) -> int:
        """See `History`."""
        found = dict(self._db.execute("SELECT name, sql FROM sqlite_master WHERE type IN ('trigger', 'table')"))
        for table in APPEND_ONLY:
            for verb in ("UPDATE", "DELETE"):
                name, says = guard(table, verb)
                if " ".join((found.get(name) or "").split()) != says:
                    raise Differs(f"the trigger that forbids {verb} on {table} is missing")
        tables = " ".join(" ".join((sql or "").split()) for sql in found.values())
        for name, says in CHECKS.items():
            if f"CONSTRAINT {name} CHECK ({says})" not in tables:
                raise Differs(f"the CHECK {name} is missing")
        return 2 * len(APPEND_ONLY) + len(CHECKS)

    def begin(self) -> None:
        """See `History`."""
        self._db.execute("BEGIN")
        self._present = Present(self._db)

    def chains(self) -> Sequence[int]:
        """See `History`."""
        return (0,)

    def chain_key(self, chain: int) -> bytes:
        """See `History`."""
        del chain
        return self._key

    def chain_name(self, chain: int) -> str:
        """See `History`."""
        del chain
        return ""

    def noted(self, chain: int) -> tuple[int, bytes] | None:
        """See `History`."""
        del chain
        return noted(self._head_file)

    def links(self, chain: int, after: int, until: int) -> list[Row]:
        """See `History`."""
        del chain
        return self._db.execute(
            "SELECT number, at_us, admitted, extended, recorded, voided, link FROM links "
            "WHERE number > ? AND number <= ? ORDER BY number LIMIT ?",
            (after, until, SLICE),
        ).fetchall()

    def rows(self, table: str, chain: int, after: int) -> list[Row]:
        """See `History`."""
        del chain
        return self._db.execute(self._slices[table], (after,)).fetchall()

    def prices(self, after: int) -> list[Row]:
        """See `History`."""
        return self._db.execute(
            f"SELECT rowid, {slice_of('prices', rows.PRICE)} WHERE rowid > ? ORDER BY rowid",
            (after,),
        ).fetchall()

    def claimed(self, chain: int, after: int, until: int) -> list[Row]:
        """See `History`."""
        del chain
        return self._db.execute(
            "SELECT seq, project_id, claim, admitted_us FROM usage_records "
            "WHERE seq > ? AND seq <= ? AND billed AND claim IS NOT NULL ORDER BY seq LIMIT ?",
            (after, until, SLICE),
        ).fetchall()

    def holds(self) -> Iterable[Hold]:
        """See `History`."""
        return self._present.holds()

    def rates(self) -> Iterable[RateRow]:
        """See `History`."""
        return self._present.rates()

    def organization(self, key: str) -> str | None:
        """See `History`."""
        found = self._db.execute(ORGANIZATION.format("?"), (key,)).fetchone()
        return None if found is None else found[0]

    def opening(self, window: int) -> Row | None:
        """See `History`."""
        found: Row | None = self._db.execute(
            "SELECT account, kind, limit_id, end_us FROM windows WHERE id = ?", (window,)
        ).fetchone()
        return found

    def windows(self, since_us: int) -> Iterable[Row]:
        """See `History`."""
        return (
            (id_, account, kind, limit_id, end_us, *counters)
            for id_, account, kind, _, end_us, limit_id, *counters in self._present.windows(since_us)
        )

    def window(self, id_: int) -> Row | None:
        """See `History`."""
        found = self._present.window(id_)
        return None if found is None else (*found[:3], found[5], found[4], *found[6:])

    def next_seal(self, after: int) -> int | None:
        """See `History`."""
        return self._number("SELECT min(seal) FROM seals WHERE seal > ?", after)

    def last_seal(self, before: int) -> int | None:
        """See `History`."""
        return self._number("SELECT max(seal) FROM seals WHERE seal < ?", before)

    def _number(self, sql: str, *given: int) -> int | None:
        row = self._db.execute(sql, given).fetchone()
        found: int | None = None if row is None else row[0]
        return found

    def seal(self, number: int) -> list[SealRow]:
        """See `History`."""
        found = self._db.execute(
            "SELECT seal, part, parts, body, mac FROM seals WHERE seal = ? ORDER BY part", (number,)
        )
        return [SealRow(*row) for row in found]

    def unsealed_since(self) -> int | None:
        """See `History`."""
        row = (
            self._db.execute(
                "SELECT at_us FROM seals WHERE part = parts - 1 ORDER BY seal DESC LIMIT 1"
            ).fetchone()
            or self._db.execute("SELECT at_us FROM links ORDER BY number LIMIT 1").fetchone()
        )
        return None if row is None else row[0]

    def alone(self) -> bool:
        """There are no others."""
        return True

    def archives(self) -> list[Archive]:
        """See `History`."""
        return [Archive(*row) for row in self._db.execute(ARCHIVES)]

    def swept(self) -> bool:
        """See `History`."""
        left = "SELECT number FROM links WHERE number <= (SELECT max(until) FROM archives) LIMIT 1"
        return self._number(left) is None

    def needed(self) -> list[tuple[int, str]]:
        """See `History`; a consumer of usage records needs what it was not handed."""
        late = self._db.execute("SELECT position, consumer FROM cursors ORDER BY position LIMIT 1").fetchone()
        if late is None:
            return []
        found = self._number(
            "SELECT finished_us FROM usage_records WHERE seq > ? ORDER BY seq LIMIT 1", late[0]
        )  # fmt: skip
        return [] if found is None else [(found - 1, f"the consumer {late[1]} has not had it yet")]

    def more(self, checked: Counter[str], limits: Mapping[int, dict[str, Any]]) -> None:
        """Nothing: what accounts have in force is derived from the limits at each start."""
