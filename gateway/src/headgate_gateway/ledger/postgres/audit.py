"""The audit on PostgreSQL: the same derivation over every node's chains, inside one read-only snapshot.

May import the ledger's audit, schema and psycopg. A snapshot holds nothing up here: writers go on, and only the
vacuum waits for it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec
import psycopg

from headgate_gateway.ledger import rows
from headgate_gateway.ledger.audit import (
    CLAIM_US,
    SLICE,
    AuditReport,
    Derivation,
    _Differs,
    _noted,
    _Table,
)
from headgate_gateway.ledger.book import Hold
from headgate_gateway.ledger.chain import chain_key
from headgate_gateway.ledger.postgres import schema
from headgate_gateway.ledger.postgres.lane import chain_key_of
from headgate_gateway.ledger.postgres.slices import Counters

_CHECKS: Final = ("windows_not_negative", "windows_within_cap", "records_within_hold")
_ORDER: Final = {"usage_records": "seq", "voids": "seq", "prices": "seq", "limits": "id", "audit_log": "id"}
_RATES: Final = ("requests", "tokens", "concurrency")
_HOLD: Final = msgspec.msgpack.Decoder(Hold)
_COUNTERS: Final = msgspec.msgpack.Decoder(Counters)


def audit(url: str, folder: Path, *, pepper: bytes) -> AuditReport:
    """Check everything that is in a database.

    Args:
        url: The database.
        folder: A node's data folder; the heads that it noted are compared with its chains.
        pepper: Keys the chains.
    """
    run: _Derivation | None = None
    try:
        with psycopg.connect(url) as db:
            db.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            schema.check(db)
            run = _Derivation(db, chain_key(pepper))
            run.everything(folder)
    except _Differs as difference:
        return AuditReport(False, dict(run.checked) if run else {}, str(difference))
    except (psycopg.Error, schema.WrongSchema, OSError, msgspec.DecodeError) as error:
        return AuditReport(False, dict(run.checked) if run else {}, f"the store cannot be read: {error}")
    return AuditReport(True, dict(run.checked))


class _ChainTable(_Table):
    """The rows of one chain."""

    def __init__(self, db: psycopg.Connection, name: str, columns: Sequence[str], chain: int) -> None:
        super().__init__(db, name, columns)  # type: ignore[arg-type]  # it only executes
        order = _ORDER[name]
        self._sql = (
            f"SELECT {order}, {', '.join(columns)}, digest FROM {name} "  # noqa: S608 - our own schema, a number
            f"WHERE chain = {chain:d} AND {order} > %s ORDER BY {order} LIMIT {SLICE}"
        )


class _Derivation(Derivation):
    def __init__(self, db: psycopg.Connection, key: bytes) -> None:
        super().__init__(db, key)  # type: ignore[arg-type]  # what it runs on SQLite alone is overridden
        self._pg = db
        self._root = key
        self._chain_id = 0
        self._billed: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)

    def everything(self, folder: Path) -> None:
        """Check all there is. Raises `_Differs` at the first difference."""
        self._schema()
        prices = f"SELECT {', '.join(rows.PRICE)} FROM prices ORDER BY seq"  # noqa: S608 - our own schema
        for row in self._pg.execute(prices.encode()):
            self._row("prices", row)  # a request may pin a price of any chain; each is verified with its own
        del self.checked["prices"]
        for (chain,) in self._pg.execute("SELECT id FROM chains ORDER BY id").fetchall():
            self._whole_chain(chain, _noted(folder / f"chain-{chain}.head"))
        self._claims_once()
        self._balances()
        self._counters()

    def _whole_chain(self, chain: int, noted: tuple[int, bytes] | None) -> None:
        self._chain_id, self._seq = chain, 0
        self._key = chain_key_of(self._root, chain)
        self._tables = {
            name: _ChainTable(self._pg, name, columns, chain) for name, columns in rows.CHAINED.items()
        }
        try:
            number, _ = self._chain(0, b"", noted)
            if noted is not None and noted[0] > number:
                raise _Differs(
                    f"it ends at link {number}, but link {noted[0]} was committed: its tail was cut off"
                )
            for table in self._tables.values():
                table.rest()
        except _Differs as difference:
            raise _Differs(f"chain {chain}: {difference}") from None
        self.checked["chains"] += 1

    def _schema(self) -> None:
        found = {
            (table, enabled)
            for table, enabled in self._pg.execute(
                "SELECT tgrelid::regclass::text, tgenabled::text FROM pg_trigger "
                "WHERE tgname = tgrelid::regclass::text || '_append_only' AND NOT tgisinternal "
                "AND tgfoid = 'headgate_append_only'::regproc AND (tgtype & 56) = 56"  # update, delete, truncate
            )
        }
        for table in schema.APPEND_ONLY:
            if (table, "O") not in found:
                raise _Differs(f"the trigger that makes {table} append-only is missing or disabled")
        body = self._pg.execute(
            "SELECT prosrc FROM pg_proc WHERE oid = 'headgate_append_only'::regproc"
        ).fetchone()
        if body is None or "RAISE EXCEPTION" not in body[0]:
            raise _Differs("the trigger that makes tables append-only does nothing")
        checks = {
            name
            for (name,) in self._pg.execute(
                "SELECT conname FROM pg_constraint WHERE contype = 'c' AND convalidated"
            )
        }
        if missing := [name for name in _CHECKS if name not in checks]:
            raise _Differs(f"the CHECK {missing[0]} is missing")
        self.checked["triggers and checks"] = len(schema.APPEND_ONLY) + len(_CHECKS)

    def _links(self, after: int) -> list[tuple[Any, ...]]:
        return self._pg.execute(
            "SELECT number, at_us, admitted, extended, recorded, voided, link FROM links "
            "WHERE chain = %s AND number > %s ORDER BY number LIMIT %s",
            (self._chain_id, after, SLICE),
        ).fetchall()

    def _open_holds(self) -> Iterator[Hold]:
        for (packed,) in self._pg.execute("SELECT packed FROM holds"):
            yield _HOLD.decode(packed)

    def _present_windows(self) -> Iterable[tuple[Any, ...]]:
        return self._pg.execute(
            "SELECT id, account, kind, start_us, end_us, limit_id, amount, hard, spent, held, cap, version "
            "FROM windows ORDER BY id"
        )

    def _claimed(self, row: dict[str, Any]) -> None:
        self._billed[row["project_id"], row["claim"]].append((row["admitted_us"], row["request_id"]))

    def _claims_once(self) -> None:
        for times in self._billed.values():
            times.sort()
            for (before, _), (at, who) in pairwise(times):
                if at - before < CLAIM_US:
                    raise _Differs(f"{who} was billed although its idempotency claim had been billed before")

    def _counters(self) -> None:
        """What accounts have in force follows from the limits, and what is in flight from the holds."""
        in_force: dict[str, dict[str, tuple[int, int, bool, str]]] = defaultdict(dict)
        for id_, row in sorted(self._limits.items()):
            in_force[row["account"]].pop(row["kind"], None)
            if row["amount"] is not None:
                in_force[row["account"]][row["kind"]] = (id_, row["amount"], bool(row["hard"]), row["timezone"])
        in_flight: Counter[str] = Counter()
        for path in self._pg.execute(
            "SELECT h.key_id, p.id, p.parent FROM holds h JOIN accounts k ON k.id = h.key_id "
            "JOIN accounts p ON p.id = k.parent"
        ):
            in_flight.update(path)
        for id_, packed in self._pg.execute("SELECT account, packed FROM counters ORDER BY account"):
            self._account(id_, _COUNTERS.decode(packed), in_force.pop(id_, {}), in_flight.pop(id_, 0))
        if lost := [id_ for id_ in (*in_force, *in_flight) if in_force.get(id_) or in_flight.get(id_)]:
            raise _Differs(f"the counters of account {lost[0]} are missing")

    def _account(
        self, id_: str, counters: Counters, limits: dict[str, tuple[int, int, bool, str]], open_: int
    ) -> None:
        self.checked["accounts"] += 1
        if counters.in_flight != open_:
            raise _Differs(f"account {id_} says {counters.in_flight} requests in flight, {open_} are open")
        stored: dict[str, object] = {
            cell.kind: (cell.limit_id, cell.limit, cell.hard, cell.timezone) for cell in counters.budgets
        }
        rates = (counters.requests and counters.requests.limit, counters.tokens and counters.tokens.limit)
        for kind, limit in zip(_RATES, (*rates, counters.concurrency), strict=True):
            derived = limits.pop(kind, None)
            if limit != (derived and derived[1]):
                raise _Differs(f"account {id_} says {kind} {limit}, the limits give {derived and derived[1]}")
        if stored != limits:
            raise _Differs(f"account {id_} says budgets {stored}, the limits give {limits}")
