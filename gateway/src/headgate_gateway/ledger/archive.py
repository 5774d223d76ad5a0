"""A file of the archive: the history between two seals, an SQLite file of its own.

May import history, seal and disk.

Each table is as the ledger has it, with the chain and the number of each row before it; `ends` has the rows of
the seal that the file ends at, `windows` what began the windows that its rows name. So a file says by itself
what happened in its time, to any program that reads SQLite, and can be derived again with nothing but the pepper.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from collections import Counter
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from headgate_gateway.crashpoints import reach
from headgate_gateway.disk import sync
from headgate_gateway.ledger import rows
from headgate_gateway.ledger.book import Detail
from headgate_gateway.ledger.history import SLICE, History, Row
from headgate_gateway.ledger.replay import Differs
from headgate_gateway.ledger.seal import Seal, SealRow

FORMAT: Final = 1

_LINK: Final = ("number", "at_us", "admitted", "extended", "recorded", "voided", "link")
_DETAIL: Final = msgspec.msgpack.Decoder(Detail)


def name_of(seal: int) -> str:
    """The name of the file that ends at a seal; files sort by it."""
    return f"headgate-{seal:06d}.sqlite"


def partial(path: Path) -> Path:
    """Where a file is written before it is whole."""
    return path.with_suffix(".partial")


# -- writing


def write(history: History, path: Path, *, begins: int, begin: Seal | None, ends: int, end: Seal) -> None:
    """Write what lies between two seals, and leave it on disk.

    Args:
        history: What to read.
        path: The file, which must not be there yet.
        begins: The number of the first seal, 0 for the beginning.
        begin: That seal.
        ends: The number of the second.
        end: That seal.

    Raises:
        OSError: It cannot be written.
    """
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with _writing(path) as db:
        db.execute("PRAGMA journal_mode = OFF")
        db.execute("PRAGMA synchronous = OFF")
        db.execute("BEGIN")
        _create(db)
        named = {window.id for window in end.windows}
        for chain, last in end.places.items():
            first = begin.places.get(chain) if begin is not None else None
            after, until = (first.rows if first else {}), last.rows
            _copy_links(history, db, chain, first.number if first else 0, last.number)
            for table in rows.CHAINED:
                place = (after.get(table, 0), until.get(table, 0))
                _copy(history, db, table, chain, place, named)
        db.executemany("INSERT INTO chains VALUES (?)", [(chain,) for chain in end.places])
        db.executemany("INSERT INTO ends VALUES (?, ?, ?, ?, ?)", map(_seal_values, history.seal(ends)))
        windows = ((id_, history.opening(id_)) for id_ in sorted(named))
        db.executemany("INSERT INTO windows VALUES (?, ?, ?, ?, ?)", [(id_, *w) for id_, w in windows if w])
        about = {"format": FORMAT, "begins": begins, "ends": ends, "gapless": int(history.gapless)}
        db.executemany("INSERT INTO about VALUES (?, ?)", about.items())
        db.execute("COMMIT")
    reach("archive.before_whole")
    sync(path)


@contextlib.contextmanager
def _writing(path: Path) -> Generator[sqlite3.Connection]:
    """A connection to a new file, whose errors are those of any file."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        try:
            yield db
        except sqlite3.OperationalError as error:
            raise OSError(f"{path}: {error}") from error


def _create(db: sqlite3.Connection) -> None:
    for table in (*rows.CHAINED, "links"):
        columns = _LINK[1:] if table == "links" else (*rows.CHAINED[table], "digest")
        keyed = f"chain, number, {', '.join(columns)}, PRIMARY KEY (chain, number)"
        db.execute(f"CREATE TABLE {table} ({keyed}) WITHOUT ROWID")
    db.execute("CREATE TABLE chains (id INTEGER PRIMARY KEY)")
    db.execute("CREATE TABLE ends (seal, part, parts, body, mac)")
    db.execute("CREATE TABLE windows (id INTEGER PRIMARY KEY, account, kind, limit_id, end_us)")
    db.execute("CREATE TABLE about (name TEXT PRIMARY KEY, value)")


def _copy_links(history: History, db: sqlite3.Connection, chain: int, after: int, until: int) -> None:
    insert = f"INSERT INTO links VALUES (?{', ?' * len(_LINK)})"  # noqa: S608 - as many as there are columns
    while links := history.links(chain, after, until):
        db.executemany(insert, [(chain, *link) for link in links])
        after = links[-1][0]


def _copy(
    history: History, db: sqlite3.Connection, table: str, chain: int, place: tuple[int, int], named: set[int]
) -> None:
    """Copy the rows of a table between two places, and note the windows that they name."""
    (after, until), columns = place, ("number", *rows.CHAINED[table])
    detail = columns.index("detail") if table in ("usage_records", "voids") else None
    window = columns.index("window_id") if table == "limits" else None
    insert = f"INSERT INTO {table} VALUES (?, ?{', ?' * len(columns)})"  # noqa: S608 - our own tables
    while found := [row for row in history.rows(table, chain, after) if row[0] <= until]:
        db.executemany(insert, [(chain, *row) for row in found])
        if detail is not None:
            named.update(part.window for row in found for part in _DETAIL.decode(row[detail]).parts)
        if window is not None:
            named.update(row[window] for row in found if row[window] is not None)
        after = found[-1][0]


def _seal_values(row: SealRow) -> tuple[Any, ...]:
    return row.seal, row.part, row.parts, row.body, row.mac


# -- reading


class ArchivedHistory:
    """A file as it is followed, see `history.Past` and `derivation.ArchivedPast`.

    Args:
        db: A connection to it.
        history: Whose chains' keys and names these are.
    """

    def __init__(self, db: sqlite3.Connection, history: History) -> None:
        self._db = db
        self._history = history
        about = dict(db.execute("SELECT name, value FROM about"))
        if about.get("format") != FORMAT:
            raise Differs(f"it has format {about.get('format')}, this program reads {FORMAT}")
        self.gapless = bool(about["gapless"])
        self.begins: int = about["begins"]
        self.ends: int = about["ends"]

    def counts(self) -> dict[int, int]:
        """How many rows of each chain there are."""
        found: Counter[int] = Counter()
        for table in (*rows.CHAINED, "links"):
            counted = self._db.execute(f"SELECT chain, count(*) FROM {table} GROUP BY chain")  # noqa: S608
            found.update(dict(counted.fetchall()))
        return dict(found)

    def chains(self) -> Sequence[int]:
        """See `Past`."""
        return [chain for (chain,) in self._db.execute("SELECT id FROM chains ORDER BY id")]

    def chain_key(self, chain: int) -> bytes:
        """See `Past`."""
        return self._history.chain_key(chain)

    def chain_name(self, chain: int) -> str:
        """See `Past`."""
        return self._history.chain_name(chain)

    def noted(self, chain: int) -> tuple[int, bytes] | None:
        """Nothing: files of the archive have no heads outside."""
        del chain
        return None

    def links(self, chain: int, after: int, until: int) -> list[Row]:
        """See `Past`."""
        return self._db.execute(
            f"SELECT {', '.join(_LINK)} FROM links WHERE chain = ? AND number > ? AND number <= ? "  # noqa: S608
            f"ORDER BY number LIMIT {SLICE}",
            (chain, after, until),
        ).fetchall()

    def rows(self, table: str, chain: int, after: int) -> list[Row]:
        """See `Past`."""
        return self._db.execute(
            f"SELECT number, {', '.join(rows.CHAINED[table])}, digest FROM {table} "  # noqa: S608 - our own tables
            f"WHERE chain = ? AND number > ? ORDER BY number LIMIT {SLICE}",
            (chain, after),
        ).fetchall()

    def prices(self, after: int) -> list[Row]:
        """See `Past`."""
        return self._db.execute(
            f"SELECT number, {', '.join(rows.PRICE)}, digest FROM prices WHERE number > ? ORDER BY number",  # noqa: S608
            (after,),
        ).fetchall()

    def claimed(self, chain: int, after: int, until: int) -> list[Row]:
        """Nothing: what was billed before the file lies in the one before it."""
        del chain, after, until
        return []

    def opening(self, window: int) -> Row | None:
        """See `Past`."""
        found: Row | None = self._db.execute(
            "SELECT account, kind, limit_id, end_us FROM windows WHERE id = ?", (window,)
        ).fetchone()
        return found

    def next_seal(self, after: int) -> int | None:
        """See `Past`."""
        return self.ends if after < self.ends else None

    def last_seal(self, before: int) -> int | None:
        """See `Past`."""
        return self.ends if before > self.ends else None

    def seal(self, number: int) -> list[SealRow]:
        """See `Past`."""
        table = "ends" if number == self.ends else "seals"
        found = self._db.execute(
            f"SELECT seal, part, parts, body, mac FROM {table} WHERE seal = ? ORDER BY part",  # noqa: S608
            (number,),
        )
        return [SealRow(*row) for row in found]


@contextlib.contextmanager
def opened(path: Path, history: History) -> Generator[ArchivedHistory]:
    """A file of the archive; what is wrong with it is said with its name.

    Raises:
        Differs: It is not there, or does not say what it must.
    """
    if not path.is_file():
        raise Differs(f"the archived file {path.name} is not in {path.parent}")
    try:
        uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
        with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as db:
            yield ArchivedHistory(db, history)
    except Differs as difference:
        raise Differs(f"{path.name}: {difference}") from None
    except (sqlite3.Error, msgspec.MsgspecError, LookupError, TypeError, ValueError) as error:
        raise Differs(f"{path.name} was changed: {error}") from error


def fingerprint(path: Path) -> tuple[bytes, int]:
    """The SHA-256 and the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest(), os.fstat(file.fileno()).st_size


@contextlib.contextmanager
def checked(history: History, row: rows.Archive, folder: Path) -> Generator[ArchivedHistory]:
    """A file that a store notes; compared with its note in the end, once it has been followed.

    Args:
        history: The store.
        row: The note.
        folder: Where the file lies now.

    Raises:
        Differs: It is not there, or was changed.
    """
    path = folder / Path(row.file).name
    with opened(path, history) as file:
        if file.ends != row.seal:
            raise Differs(f"it ends at seal {file.ends}, not at {row.seal}")
        yield file
    if fingerprint(path) != (row.hash, row.size):
        raise Differs(f"{path.name} was changed: it is not the file that was archived")


def files(history: History, folder: Path) -> list[contextlib.AbstractContextManager[ArchivedHistory]]:
    """All files that a store notes, in order; each is opened when it is entered."""
    noted = {row.seal: row for row in history.archives()}
    return [checked(history, row, folder) for row in noted.values()]
