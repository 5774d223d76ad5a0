"""Copies of SQLite's store: one made at one moment while a ledger serves, and one put back. Both are audited.

The file has no secrets: keys are hashed with the pepper, which lies apart. May import audit, history, store
and disk.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headgate_gateway.disk import sync
from headgate_gateway.layout import Layout
from headgate_gateway.ledger.audit import AuditReport, report
from headgate_gateway.ledger.history import SqliteHistory
from headgate_gateway.ledger.store.read_only import open_readonly
from headgate_gateway.ledger.store.sqlite import HEAD, prepare

SIDE_FILES: Final = ("-wal", "-shm")


class BadCopy(Exception):
    """A copy is not whole, or does not re-derive; the message says how."""


@dataclass(frozen=True)
class Copied:
    """A copy that re-derives.

    Attributes:
        size: Bytes.
        audit: What was checked.
    """

    size: int
    audit: AuditReport


def back_up(layout: Layout, key: bytes, to: Path) -> Copied:
    """Copy the store as it stands at one moment; whoever serves it goes on meanwhile.

    Args:
        layout: Where the store lies.
        key: The chain's, see `chain.chain_key`.
        to: The file that is made, whole or not at all.

    Raises:
        FileExistsError: It is there already.
        BadCopy: The store does not re-derive.
        OSError, sqlite3.Error: It cannot be read or written.
    """
    if to.exists():
        raise FileExistsError(f"{to} exists already")
    with _draft_of(to) as draft, contextlib.closing(open_readonly(layout.store)) as store:
        # What was noted until now must be in the copy; what is noted while it is made need not be.
        with contextlib.suppress(FileNotFoundError):
            _head_of(draft).write_bytes(layout.chain_head.read_bytes())
        _copy(store, draft)
        copied = Copied(draft.stat().st_size, _audited(draft, key))
        _move(draft, to)
    return copied


def put_back(layout: Layout, key: bytes, source: Path, aside: Path) -> Copied:
    """Make a copy the store again. Nobody may serve the folder; the lock must be held.

    Args:
        layout: Where the store lies.
        key: The chain's.
        source: The copy; it stays.
        aside: A folder to be made for what is replaced: the store, its flight files, the note of its last link.

    Raises:
        BadCopy: It does not re-derive with this key.
        OSError, sqlite3.Error: It cannot be read or written.
    """
    with _draft_of(layout.store) as draft:
        with contextlib.closing(open_readonly(source)) as store:
            _copy(store, draft)
        prepare(draft)
        draft.with_name(f"{draft.name}.before-{HEAD}").unlink(missing_ok=True)
        copied = Copied(draft.stat().st_size, _audited(draft, key))
        _set_aside(layout, aside)
        _move(draft, layout.store)
    return copied


def _set_aside(layout: Layout, aside: Path) -> None:
    """All of it, because a log or a flight file of another store beside this one would be believed."""
    if not layout.store.exists():
        return
    aside.mkdir(mode=0o700)
    # With an empty log the store is one file, which stays in its place until the other one takes it.
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(layout.store)) as store:
        store.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    (aside / layout.store.name).hardlink_to(layout.store)
    logs = [layout.store.with_name(layout.store.name + suffix) for suffix in SIDE_FILES]
    for path in (*logs, layout.chain_head, layout.flight(0).parent):
        with contextlib.suppress(FileNotFoundError):
            path.rename(aside / path.name)


@contextlib.contextmanager
def _draft_of(file: Path) -> Generator[Path]:
    """A private file beside it, gone afterwards."""
    draft = file.with_name(f"{file.name}.part")
    draft.unlink(missing_ok=True)  # of a run that was killed
    draft.touch(mode=0o600, exist_ok=False)
    try:
        yield draft
    finally:
        draft.unlink(missing_ok=True)
        _head_of(draft).unlink(missing_ok=True)


def _move(draft: Path, to: Path) -> None:
    """Give a draft its name; both are on disk when this returns."""
    draft.replace(to)
    sync(to)
    sync(to.parent)


def _copy(store: sqlite3.Connection, to: Path) -> None:
    """In one read transaction, and so that the copy needs no log beside it."""
    with contextlib.closing(sqlite3.connect(to)) as copy:
        store.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")


def _audited(copy: Path, key: bytes) -> AuditReport:
    with contextlib.closing(open_readonly(copy)) as db:
        (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise BadCopy(f"the file is damaged: {found}")
        audit = report(SqliteHistory(db, key, _head_of(copy)), key, full=False, archived=None)
    if not audit.ok:
        raise BadCopy(f"the first difference: {audit.first_difference}")
    return audit


def _head_of(copy: Path) -> Path:
    return copy.with_name(f"{copy.name}.head")
