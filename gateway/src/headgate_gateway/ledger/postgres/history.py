"""What an audit reads of PostgreSQL: every node's chains. May import the ledger's history, schema and psycopg.

Slices are read one by one outside any transaction; only the last read is one snapshot, so that the vacuum is not
kept waiting for the length of a history.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import psycopg

from headgate_gateway.ledger import rows
from headgate_gateway.ledger.book import Hold
from headgate_gateway.ledger.history import (
    ARCHIVES,
    CHECKS,
    HOLD,
    ORGANIZATION,
    SET_ASIDE,
    SLICE,
    WINDOW,
    Row,
    noted,
    slice_of,
)
from headgate_gateway.ledger.personal import Place
from headgate_gateway.ledger.postgres import schema
from headgate_gateway.ledger.postgres.lane import chain_key_of
from headgate_gateway.ledger.postgres.slices import Counters, RateCell
from headgate_gateway.ledger.replay import Differs
from headgate_gateway.ledger.rows import Archive
from headgate_gateway.ledger.seal import SealRow
from headgate_gateway.ledger.store.recent import RateRow

_ORDER: Final = {
    "usage_records": "seq", "voids": "seq", "prices": "seq", "limits": "id", "audit_log": "id", "seals": "seq",
    "archives": "seq",
}  # fmt: skip
"""What the rows of a table are numbered by; of one chain, in the order they were committed."""

_BODIES: Final = {
    "headgate_append_only": (
        "BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation'; END"
    ),
    "headgate_archived_only": (
        "DECLARE number bigint; "
        "BEGIN IF TG_TABLE_NAME = 'links' THEN number := OLD.number; ELSE number := OLD.batch; END IF; "
        "IF number > (SELECT coalesce(max(until), 0) FROM archives WHERE covers = OLD.chain) THEN "
        "RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation'; END IF; "
        "RETURN OLD; END"
    ),
}
"""The bodies of the triggers' functions."""

_ROW: Final = 1
_NO_UPDATE: Final = 16 + 32
_WHOLE: Final = 8 + _NO_UPDATE
"""Bits of `pg_trigger.tgtype`: for each row; on delete, update and truncate."""

_CHAINS_OF: Final = (
    "WITH RECURSIVE found AS (SELECT min(chain) AS chain FROM {table} UNION ALL "
    "SELECT (SELECT min(chain) FROM {table} WHERE chain > found.chain) FROM found WHERE found.chain IS NOT NULL) "
    "SELECT chain FROM found WHERE chain <> ALL(%s) LIMIT 1"
)
"""One look into the index for each chain, not one for each row."""


DRIFT_US: Final = 60_000_000
"""How far the times of records may run against their order: longer than any transaction of a ledger lasts."""

PROOF_DAYS: Final = 30
"""For how long what a lost node may still prove is kept from the archive."""

_RATES: Final = ("requests", "tokens", "concurrency")
_COUNTERS: Final = msgspec.msgpack.Decoder(Counters)


class PostgresHistory:
    """See `ledger.history.History`.

    Args:
        db: A connection in autocommit.
        key: From `chain.chain_key`.
        folder: A node's data folder; the heads that it noted are compared with its chains.
    """

    gapless = False

    def __init__(self, db: psycopg.Connection, key: bytes, folder: Path) -> None:
        self._db = db
        self._key = key
        self._folder = folder
        self._slices = {
            name: (
                f"SELECT {_ORDER[name]}, {slice_of(name, columns)} WHERE chain = %s AND {_ORDER[name]} > %s "
                f"ORDER BY {_ORDER[name]} LIMIT {SLICE}"
            ).encode()
            for name, columns in rows.CHAINED.items()
        }

    def check_schema(self) -> int:
        """See `History`."""
        guards = self._guards()
        for table in schema.APPEND_ONLY:
            forbidden = guards.get((table, f"{table}_append_only"), 0)
            let_go = guards.get((table, f"{table}_archived_only"), 0) if table in rows.LEAVING else 0
            if (forbidden | let_go) & _WHOLE != _WHOLE or forbidden & _ROW or (let_go and not let_go & _ROW):
                raise Differs(f"the trigger that makes {table} append-only is missing or disabled")
        if guards.get(("personal", "personal_append_only"), 0) & (_NO_UPDATE | _ROW) != _NO_UPDATE:
            raise Differs("the trigger that forbids UPDATE on personal is missing or disabled")
        for name, body in _BODIES.items():
            found = self._db.execute("SELECT prosrc FROM pg_proc WHERE oid = to_regproc(%s)", (name,)).fetchone()
            if found is not None and " ".join(found[0].rstrip(" ;\n").split()) != body:
                raise Differs("the trigger that makes tables append-only does nothing")
        checks: dict[str, str] = dict(
            self._db.execute(
                "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint "
                "WHERE contype = 'c' AND convalidated"
            ).fetchall()
        )
        for name, says in CHECKS.items():
            if _bare(checks.get(name, "")) != _bare(f"CHECK {says}"):
                raise Differs(f"the CHECK {name} is missing")
        return len(schema.APPEND_ONLY) + 1 + len(CHECKS)

    def _guards(self) -> dict[tuple[str, str], int]:
        """What triggers of ours do, by table and name, as `pg_trigger.tgtype` says it."""
        return {
            (table, name): kind
            for table, name, kind in self._db.execute(
                "SELECT tgrelid::regclass::text, tgname, tgtype FROM pg_trigger "
                "WHERE tgfoid IN (to_regproc('headgate_append_only'), to_regproc('headgate_archived_only')) "
                "AND tgfoid::regproc::text = 'headgate' || substr(tgname, length(tgrelid::regclass::text) + 1) "
                "AND NOT tgisinternal AND tgenabled = 'O' AND tgqual IS NULL AND (tgtype & 2) = 2"
            )
        }

    def begin(self) -> None:
        """See `History`."""
        self._db.execute("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")

    def chains(self) -> Sequence[int]:
        """See `History`."""
        return [chain for (chain,) in self._db.execute("SELECT id FROM chains ORDER BY id")]

    def chain_key(self, chain: int) -> bytes:
        """See `History`."""
        return chain_key_of(self._key, chain)

    def chain_name(self, chain: int) -> str:
        """See `History`."""
        return f"chain {chain}: "

    def noted(self, chain: int) -> tuple[int, bytes] | None:
        """See `History`."""
        return noted(self._folder / f"chain-{chain}.head")

    def links(self, chain: int, after: int, until: int) -> list[Row]:
        """See `History`."""
        return self._db.execute(
            "SELECT number, at_us, admitted, extended, recorded, voided, link FROM links "
            "WHERE chain = %s AND number > %s AND number <= %s ORDER BY number LIMIT %s",
            (chain, after, until, SLICE),
        ).fetchall()

    def rows(self, table: str, chain: int, after: int) -> list[Row]:
        """See `History`."""
        return self._db.execute(self._slices[table], (chain, after)).fetchall()

    def prices(self, after: int) -> list[Row]:
        """See `History`."""
        found = f"SELECT seq, {slice_of('prices', rows.PRICE)} WHERE seq > %s ORDER BY seq"
        return self._db.execute(found.encode(), (after,)).fetchall()

    def claimed(self, chain: int, after: int, until: int) -> list[Row]:
        """See `History`."""
        return self._db.execute(
            "SELECT seq, project_id, claim, admitted_us FROM usage_records WHERE chain = %s AND seq > %s "
            "AND seq <= %s AND billed <> 0 AND claim IS NOT NULL ORDER BY seq LIMIT %s",
            (chain, after, until, SLICE),
        ).fetchall()

    def set_aside(self, after: Place) -> list[Row]:
        """See `History`."""
        return self._db.execute(SET_ASIDE.format("%s", "true").encode(), after).fetchall()

    def how_many_set_aside(self) -> int:
        """See `History`."""
        return self._number("SELECT count(*) FROM personal") or 0

    def holds(self) -> Iterable[Hold]:
        """See `History`."""
        return (HOLD.decode(packed) for (packed,) in self._db.execute("SELECT packed FROM holds"))

    def rates(self) -> Iterable[RateRow]:
        """See `History`."""
        for id_, packed in self._db.execute("SELECT account, packed FROM counters ORDER BY account"):
            counters = _COUNTERS.decode(packed)
            yield (id_, *_cells(counters.requests), *_cells(counters.tokens))

    def organization(self, key: str) -> str | None:
        """See `History`."""
        found = self._db.execute(ORGANIZATION.format("%s").encode(), (key,)).fetchone()
        return None if found is None else found[0]

    def opening(self, window: int) -> Row | None:
        """See `History`."""
        found = self.window(window)
        return None if found is None else found[1:5]

    def windows(self, since_us: int) -> Iterable[Row]:
        """See `History`."""
        found = f"SELECT {WINDOW} FROM windows WHERE end_us > %s ORDER BY id"  # noqa: S608 - our own schema
        return self._db.execute(found.encode(), (since_us,))

    def window(self, id_: int) -> Row | None:
        """See `History`."""
        found = f"SELECT {WINDOW} FROM windows WHERE id = %s"  # noqa: S608 - our own schema
        return self._db.execute(found.encode(), (id_,)).fetchone()

    def next_seal(self, after: int) -> int | None:
        """See `History`."""
        return self._number("SELECT min(seal) FROM seals WHERE seal > %s", after)

    def last_seal(self, before: int) -> int | None:
        """See `History`."""
        return self._number("SELECT max(seal) FROM seals WHERE seal < %s", before)

    def _number(self, sql: str, *given: int) -> int | None:
        row = self._db.execute(sql.encode(), given).fetchone()
        return None if row is None else row[0]

    def seal(self, number: int) -> list[SealRow]:
        """See `History`."""
        found = self._db.execute(
            "SELECT seal, part, parts, body, mac FROM seals WHERE seal = %s ORDER BY part", (number,)
        )
        return [SealRow(*row) for row in found]

    def unsealed_since(self) -> int | None:
        """See `History`."""
        sealed = self._number("SELECT at_us FROM seals WHERE part = parts - 1 ORDER BY seal DESC LIMIT 1")
        return sealed if sealed is not None else self._number("SELECT min(at_us) FROM links WHERE number = 1")

    def alone(self) -> bool:
        """See `History`; for as long as the session lasts."""
        return self._db.execute("SELECT pg_try_advisory_lock(%s, %s)", schema.SEAL_LOCK).fetchone() == (True,)

    def archives(self) -> list[Archive]:
        """See `History`."""
        return [Archive(*row) for row in self._db.execute(ARCHIVES.encode())]

    def swept(self) -> bool:
        """See `History`; the last link of a chain that has written nothing since stays."""
        left = self._db.execute(
            "SELECT FROM (SELECT covers, max(until) AS until FROM archives GROUP BY covers) AS a, LATERAL ("
            "SELECT FROM links WHERE chain = a.covers AND number <= a.until "
            "AND number < (SELECT max(number) FROM links WHERE chain = a.covers) LIMIT 1) AS l LIMIT 1"
        )
        return left.fetchone() is None

    def needed(self) -> list[tuple[int, str]]:
        """See `History`; a lost node may return and prove what it had delivered, see `late`."""
        if self._number("SELECT count(*) FROM pg_trigger WHERE tgname = 'links_archived_only'") == 0:
            return [(0, "programs of before must be able to audit it until `headgate migrate --contract`")]
        late = self._db.execute(
            "SELECT finished_us, consumer FROM cursors AS c, LATERAL (SELECT finished_us FROM usage_records AS r "
            "WHERE r.position > c.position ORDER BY r.position LIMIT 1) AS next ORDER BY finished_us LIMIT 1"
        ).fetchall()
        waiting = [(at_us - DRIFT_US, f"the consumer {name} has not had it yet") for at_us, name in late]
        lost = self._db.execute(
            "SELECT (extract(epoch FROM heartbeat) * 1000000)::bigint, id FROM nodes WHERE lost "
            "AND heartbeat > clock_timestamp() - make_interval(days => %s)",
            (PROOF_DAYS,),
        )
        return [
            *waiting,
            *((at_us, f"the lost node {id_} may return and prove what it had delivered") for at_us, id_ in lost),
        ]

    def more(self, checked: Counter[str], limits: Mapping[int, dict[str, Any]]) -> None:
        """What accounts have in force follows from the limits, and what is in flight from the holds."""
        checked["chains"] = len(known := self.chains())
        for table in (*rows.CHAINED, "links"):
            stray = self._db.execute(_CHAINS_OF.format(table=table).encode(), (list(known),)).fetchone()
            if stray is not None:
                raise Differs(f"{table} has rows of chain {stray[0]}, which is not there")
        in_force: dict[str, dict[str, tuple[int, int, bool, str]]] = defaultdict(dict)
        for id_, row in sorted(limits.items()):
            in_force[row["account"]].pop(row["kind"], None)
            if row["amount"] is not None:
                in_force[row["account"]][row["kind"]] = (id_, row["amount"], bool(row["hard"]), row["timezone"])
        in_flight: Counter[str] = Counter()
        for path in self._db.execute(
            "SELECT h.key_id, p.id, p.parent FROM holds h JOIN accounts k ON k.id = h.key_id "
            "JOIN accounts p ON p.id = k.parent"
        ):
            in_flight.update(path)
        for id_, packed in self._db.execute("SELECT account, packed FROM counters ORDER BY account"):
            _account(id_, _COUNTERS.decode(packed), in_force.pop(id_, {}), in_flight.pop(id_, 0))
            checked["accounts"] += 1
        if lost := [id_ for id_ in (*in_force, *in_flight) if in_force.get(id_) or in_flight.get(id_)]:
            raise Differs(f"the counters of account {lost[0]} are missing")


def _cells(rate: RateCell | None) -> tuple[int | None, str | None]:
    return (None, None) if rate is None else (rate.limit, rate.state)


def _bare(check: str) -> str:
    """Without spaces and parentheses, of which the database adds some."""
    return re.sub(r"[\s()]", "", check)


def _account(id_: str, counters: Counters, limits: dict[str, tuple[int, int, bool, str]], open_: int) -> None:
    if counters.in_flight != open_:
        raise Differs(f"account {id_} says {counters.in_flight} requests in flight, {open_} are open")
    stored: dict[str, object] = {
        cell.kind: (cell.limit_id, cell.limit, cell.hard, cell.timezone) for cell in counters.budgets
    }
    rates = (counters.requests and counters.requests.limit, counters.tokens and counters.tokens.limit)
    for kind, limit in zip(_RATES, (*rates, counters.concurrency), strict=True):
        derived = limits.pop(kind, None)
        if limit != (derived and derived[1]):
            raise Differs(f"account {id_} says {kind} {limit}, the limits give {derived and derived[1]}")
    if stored != limits:
        raise Differs(f"account {id_} says budgets {stored}, the limits give {limits}")
