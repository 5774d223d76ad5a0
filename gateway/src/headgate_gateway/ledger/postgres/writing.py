"""What a batch changed, as one statement with a part of arrays for each table. May import book, rows and slices.

Each statement that is sent costs the driver and the server about 0.1 ms, whatever it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import psycopg

from headgate_gateway.ledger import cursors, personal, rows
from headgate_gateway.ledger.book import Hold, Writes
from headgate_gateway.ledger.packing import pack
from headgate_gateway.ledger.postgres import arrays
from headgate_gateway.ledger.postgres.schema import POSITION_FROM
from headgate_gateway.ledger.postgres.slices import pack_counters
from headgate_gateway.ledger.state import State
from headgate_gateway.ledger.store.contract import StoreRefused

_Encoder = Callable[[Iterable[Any]], str]
_NUMBERS: Final[tuple[str, _Encoder]] = ("bigint", arrays.integers)
_TEXT: Final[tuple[str, _Encoder]] = ("text", arrays.texts)
_BYTES: Final[tuple[str, _Encoder]] = ("bytea", arrays.blobs)

_BYTE_COLUMNS: Final = frozenset(
    {"digest", "detail", "packed", "fingerprint", "answer", "body", "mac", "hash", "salt", "fields"}
)
_TEXT_COLUMNS: Final = frozenset(
    {
        "id", "request_id", "organization_id", "project_id", "key_id", "model", "task", "backend", "outcome",
        "source", "price", "claim", "scope", "rates", "account", "kind", "timezone", "actor", "action", "target",
        "name", "parent", "prefix", "scopes", "models", "project", "key", "state", "file",
    }
)  # fmt: skip
_NUMBERED: Final = frozenset({"limits", "windows", "audit_log"})
"""Tables whose `id` is a number."""

_TABLES: Final[Mapping[str, tuple[str, ...]]] = {
    "accounts": ("id", "kind", "name", "parent", "created_us"),
    "api_keys": ("id", "digest", "prefix", "scopes", "models", "max_output", "expires_us", "revoked_us"),
    "personal": personal.COLUMNS,
    **{table: (*columns, "digest") for table, columns in rows.CHAINED.items()},
}
"""Tables that rows are only added to, with their columns as `Writes` has them."""

_WINDOW: Final = (
    "id", "account", "kind", "start_us", "end_us", "limit_id", "amount", "hard", "spent", "held", "cap",
    "version",
)  # fmt: skip
_CLAIM: Final = ("project", "key", "fingerprint", "request_id", "state", "expires_us", "reruns")


def _column(table: str, name: str) -> tuple[str, _Encoder]:
    if name in _BYTE_COLUMNS and not (table == "audit_log" and name == "detail"):
        return _BYTES
    if name in _TEXT_COLUMNS and not (name == "id" and table in _NUMBERED):
        return _TEXT
    return _TEXT if (table, name) == ("audit_log", "detail") else _NUMBERS


class Statement:
    """Changes to different tables that are sent as one: each but the last becomes a part of its WITH.

    All parts see the database as it was before; checks and foreign keys are looked at when all are done.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._given: list[Any] = []

    def execute(self, sql: bytes, given: Iterable[Any]) -> None:
        """Add a change."""
        self._parts.append(sql)
        self._given += given

    def run(self, db: psycopg.Connection) -> None:
        """Send them."""
        *parts, last = self._parts
        named = b", ".join(b"w%d AS (%s)" % (number, part) for number, part in enumerate(parts))
        db.execute(b"WITH " + named + b" " + last if parts else last, self._given)


class _Insert:
    """An INSERT of many rows as arrays, one parameter per column."""

    def __init__(self, table: str, columns: Sequence[str], *, chained: bool = False, then: str = "") -> None:
        kinds = [_column(table, name) for name in columns]
        self._encoders = [encode for _, encode in kinds]
        self._chained = chained
        names, values = list(columns), [f"r.c{n}" for n in range(len(columns))]
        if chained:
            names.append("chain")
            values.append("%s::integer")
        if table == "usage_records":
            names.append("position")
            values.append(f"({POSITION_FROM}) + pg_current_xact_id()::text::bigint * 256 + r.place")
        slots = ", ".join(f"%s::{kind}[]" for kind, _ in kinds)
        labels = ", ".join(f"c{n}" for n in range(len(columns)))
        # Names come from our own schema, values are parameters.
        self._sql = (
            f"INSERT INTO {table} ({', '.join(names)}) SELECT {', '.join(values)} "  # noqa: S608
            f"FROM unnest({slots}) WITH ORDINALITY AS r ({labels}, place) ORDER BY place {then}"
        ).encode()

    def run(self, into: Statement, found: Sequence[tuple[Any, ...]], chain: int = 0) -> None:
        columns = zip(*found, strict=True)
        given = [encode(column) for encode, column in zip(self._encoders, columns, strict=True)]
        into.execute(self._sql, (chain, *given) if self._chained else given)


def _replacing(key: str, columns: Iterable[str]) -> str:
    return f"ON CONFLICT ({key}) DO UPDATE SET " + ", ".join(f"{name} = excluded.{name}" for name in columns)


_INSERTS: Final = {
    table: _Insert(table, columns, chained=table in rows.CHAINED) for table, columns in _TABLES.items()
}
_WINDOWS: Final = _Insert(
    "windows", _WINDOW, then=_replacing("id", ("amount", "hard", "spent", "held", "cap", "version"))
)
_CLAIMS: Final = _Insert("claims", _CLAIM, then=_replacing("project, key", _CLAIM[2:]))
_ANSWERS: Final = _Insert("answers", ("request_id", "answer", "expires_us"))
_HOLDS: Final = (
    b"INSERT INTO holds (request_id, key_id, project, claim, node, incarnation, windows, packed) "
    b"SELECT r, k, p, c, %s, i, w::bigint[], b FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], "
    b"%s::text[], %s::text[], %s::bytea[]) AS t (r, k, p, c, i, w, b) "
    b"ON CONFLICT (request_id) DO UPDATE SET windows = excluded.windows, packed = excluded.packed"
)
_COUNTERS: Final = (
    b"INSERT INTO counters (account, packed, windows) SELECT a, p, w::bigint[] "
    b"FROM unnest(%s::text[], %s::bytea[], %s::text[]) AS t (a, p, w) "
    b"ON CONFLICT (account) DO UPDATE SET packed = excluded.packed, windows = excluded.windows"
)
_ERASE: Final = (
    b"DELETE FROM personal USING unnest(%s::bigint[], %s::text[]) AS gone (at_us, request_id) "
    b"WHERE personal.at_us = gone.at_us AND personal.request_id = gone.request_id"
)
_LINK: Final = (
    b"INSERT INTO links (chain, number, at_us, admitted, extended, recorded, voided, link) "
    b"VALUES (%s, %s, %s, %s, %s, %s, %s, %s)"
)


def write(into: Statement, state: State, *, before: Mapping[str, bytes], chain: int, node: str) -> None:
    """Say what a state's batch changed.

    Args:
        into: The statement to be sent.
        state: The rules after the batch.
        before: Counters as they were read, packed, by account.
        chain: Whose history it becomes.
        node: Whose the new holds are.

    Raises:
        StoreRefused: The batch has rows of a table that this store does not know.
    """
    writes = state.writes
    if unknown := writes.rows.keys() - _TABLES.keys():
        raise StoreRefused(f"the PostgreSQL store has no tables {sorted(unknown)}")
    for table, insert in _INSERTS.items():
        if new := writes.rows.get(table):
            insert.run(into, new, chain)
    _write_organizations(into, state, writes)
    if writes.windows:
        _WINDOWS.run(
            into,
            [
                (w.id, w.account, w.kind, w.start_us, w.end_us, w.limit_id, w.limit, w.hard, w.spent, w.held,
                 w.cap, w.version)
                for w in writes.windows.values()
            ],
        )  # fmt: skip
    if writes.holds:
        _write_holds(into, state, list(writes.holds.values()), node)
    if writes.closed:
        into.execute(b"DELETE FROM holds WHERE request_id = ANY(%s::text[])", (arrays.texts(writes.closed),))
    if writes.claims:
        _CLAIMS.run(
            into,
            [
                (c.project, c.key, c.fingerprint, c.request_id, c.state, c.expires_us, c.reruns)
                for c in writes.claims.values()
            ],
        )
    if writes.answers:
        _ANSWERS.run(into, [(request_id, *answer) for request_id, answer in writes.answers.items()])
    if writes.erased:
        times, requests = zip(*writes.erased, strict=True)
        into.execute(_ERASE, (arrays.integers(times), arrays.texts(requests)))
    for at_us, key_id in writes.revoked:
        into.execute(b"UPDATE api_keys SET revoked_us = %s WHERE id = %s", (at_us, key_id))
    for consumer, move in writes.cursors.items():
        sql, given = cursors.move("%s", consumer, *move)
        into.execute(sql.encode(), given)
    _write_counters(into, state, before)


def write_link(into: Statement, chain: int, facts: tuple[int, ...], link: bytes) -> None:
    """Add a batch's link to its chain."""
    into.execute(_LINK, (chain, *facts, link))


def _write_organizations(into: Statement, state: State, writes: Writes) -> None:
    new = [row[0] for row in writes.rows.get("accounts", ()) if row[1] == "organization"]
    if new:
        into.execute(
            b"INSERT INTO organizations SELECT id, %s FROM unnest(%s::text[]) AS id",
            (state.now_us, arrays.texts(new)),
        )


def _write_holds(into: Statement, state: State, holds: Sequence[Hold], node: str) -> None:
    into.execute(
        _HOLDS,
        (
            node,
            arrays.texts([hold.request_id for hold in holds]),
            arrays.texts([hold.key_id for hold in holds]),
            arrays.texts([state.keys[hold.key_id].path[1].id for hold in holds]),
            arrays.texts([hold.claim for hold in holds]),
            arrays.texts([hold.incarnation for hold in holds]),
            arrays.texts([arrays.integers([part.window for part in hold.parts]) for hold in holds]),
            arrays.blobs([pack(hold) for hold in holds]),
        ),
    )


def _write_counters(into: Statement, state: State, before: Mapping[str, bytes]) -> None:
    changed = [
        (id_, packed, windows)
        for id_, (packed, windows) in ((id_, pack_counters(account)) for id_, account in state.accounts.items())
        if before.get(id_) != packed
    ]
    if changed:
        ids, packed, windows = zip(*changed, strict=True)
        into.execute(
            _COUNTERS, (arrays.texts(ids), arrays.blobs(packed), arrays.texts(map(arrays.integers, windows)))
        )
