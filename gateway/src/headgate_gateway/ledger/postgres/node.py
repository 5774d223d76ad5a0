"""A node: a ledger process among others on one database, known by an id that lies in its data folder.

Each start of a node is an epoch of its own. Every batch asserts its epoch, so that a process that was replaced or
declared lost can commit nothing any more, however long it was frozen. May import schema and psycopg.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import psycopg

from headgate_gateway.ledger.postgres import schema


@dataclass(frozen=True)
class Node:
    """This process's place among the nodes.

    Attributes:
        id: Kept in the data folder.
        number: Short, of this database.
        epoch: Which start of the node this is.
        chains: The chain of each of its lanes.
    """

    id: str
    number: int
    epoch: int
    chains: tuple[int, ...]


def node_id(path: Path, make: str) -> str:
    """The id that a data folder has; `make` becomes it when it has none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(make + "\n")
            file.flush()
            os.fsync(file.fileno())
    return path.read_text(encoding="ascii").strip()


def join(db: psycopg.Connection, id_: str, lanes: int) -> Node:
    """Begin a new epoch of a node; waits for batches of the one before to end."""
    db.execute(
        "INSERT INTO nodes VALUES (%s, DEFAULT, 0, false, clock_timestamp()) ON CONFLICT DO NOTHING", (id_,)
    )
    number, epoch = _next_epoch(db, id_, lost=False)
    db.execute(
        "INSERT INTO chains (node, lane) SELECT %s, lane FROM generate_series(0, %s) AS lane "
        "ON CONFLICT DO NOTHING",
        (id_, lanes - 1),
    )
    chains = db.execute(
        "SELECT id FROM chains WHERE node = %s AND lane < %s ORDER BY lane", (id_, lanes)
    ).fetchall()
    return Node(id_, number, epoch, tuple(chain for (chain,) in chains))


def beat(db: psycopg.Connection, node: Node) -> bool:
    """Say that the node is alive, by the database's time; False when it was replaced or given up."""
    beating = db.execute(
        "UPDATE nodes SET heartbeat = clock_timestamp() WHERE id = %s AND epoch = %s AND NOT lost",
        (node.id, node.epoch),
    )
    return beating.rowcount == 1


def fence(db: psycopg.Connection, node: Node, silent_s: float) -> list[str]:
    """Shut out nodes that have been silent for too long; returns the ids of those that became lost."""
    silent = db.execute(
        "SELECT id FROM nodes WHERE NOT lost AND id <> %s "
        "AND heartbeat < clock_timestamp() - make_interval(secs => %s)",
        (node.id, silent_s),
    ).fetchall()
    for (id_,) in silent:
        _next_epoch(db, id_, lost=True)
    return [id_ for (id_,) in silent]


def _next_epoch(db: psycopg.Connection, id_: str, *, lost: bool) -> tuple[int, int]:
    with _transaction(db):
        row = db.execute("SELECT number FROM nodes WHERE id = %s", (id_,)).fetchone()
        assert row is not None
        db.execute("SELECT pg_advisory_xact_lock(%s, %s)", (schema.NODE_LOCK, row[0]))
        found = db.execute(
            "UPDATE nodes SET epoch = epoch + 1, lost = %s, heartbeat = clock_timestamp() WHERE id = %s "
            "RETURNING number, epoch",
            (lost, id_),
        ).fetchone()
    assert found is not None
    return found[0], found[1]


@contextlib.contextmanager
def _transaction(db: psycopg.Connection) -> Generator[None]:
    with db.transaction():
        yield
