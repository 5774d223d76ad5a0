"""The audit: derives the store's present from its append-only history, and names the first difference.

Read-only, while the ledger serves or offline. It shares no arithmetic with the rules it checks: prices are
computed as fractions (`repricing`), windows are replayed change by change in the order of their versions. May
import rows, chain, book.

History is read in short slices, because one long read would keep the write-ahead log from being reset; only the
newest rows and the balances are compared inside one last, short read.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any, Final

import msgspec

from headgate_gateway.layout import Layout
from headgate_gateway.ledger import rows
from headgate_gateway.ledger.book import Detail, Hold
from headgate_gateway.ledger.chain import chain_key, next_link, row_digest
from headgate_gateway.ledger.price_history import PriceHistory
from headgate_gateway.ledger.repricing import Repriced
from headgate_gateway.ledger.store.schema import APPEND_ONLY

SLICE: Final = 2000
"""Rows of a table that are read at once."""

CLAIM_US: Final = 24 * 3600 * 1_000_000

_DETAIL: Final = msgspec.msgpack.Decoder(Detail)
_HOLD: Final = msgspec.msgpack.Decoder(Hold)
_CHECKS: Final = ("windows_not_negative", "windows_within_cap", "records_within_hold")


@dataclass(frozen=True)
class AuditReport:
    """What an audit found.

    Attributes:
        ok: Everything re-derives.
        checked: How many of what were checked.
        first_difference: Where the store's present differs from its history; None when it does not.
    """

    ok: bool
    checked: dict[str, int] = field(default_factory=dict)
    first_difference: str | None = None


class _Differs(Exception):
    """The first difference."""


def audit(layout: Layout, *, full: bool = True, pepper: bytes | None = None) -> AuditReport:
    """Check a deployment's store.

    Args:
        layout: Where it lies.
        full: Begin at the beginning. There are no daily seals yet, so that an audit always does.
        pepper: Keys the chain; the data folder's own when None.
    """
    del full
    if not layout.store.exists():
        return AuditReport(False, {}, f"there is no store at {layout.store}")
    run: Derivation | None = None
    try:
        secret = pepper if pepper is not None else layout.pepper.read_text(encoding="utf-8").strip().encode()
        with contextlib.closing(open_readonly(layout.store)) as db:
            run = Derivation(db, chain_key(secret))
            run.everything(layout.data_dir / "chain.head")
    except _Differs as difference:
        return AuditReport(False, dict(run.checked) if run else {}, str(difference))
    except (sqlite3.Error, OSError, msgspec.DecodeError) as error:
        return AuditReport(False, dict(run.checked) if run else {}, f"the store cannot be read: {error}")
    return AuditReport(True, dict(run.checked))


def open_readonly(path: Path) -> sqlite3.Connection:
    """A connection that can neither write nor checkpoint."""
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None)


class _Table:
    """An append-only table, read in the order it was written."""

    def __init__(self, db: sqlite3.Connection, name: str, columns: Sequence[str]) -> None:
        self._db = db
        self.name = name
        self._sql = (
            f"SELECT rowid, {', '.join(columns)}, digest FROM {name} "  # noqa: S608 - names of our own schema
            f"WHERE rowid > ? ORDER BY rowid LIMIT {SLICE}"
        )
        self._batch = columns.index("batch") + 1
        self._last = 0
        self._waiting: list[tuple[Any, ...]] = []

    def of_batch(self, number: int) -> Iterator[tuple[int, tuple[Any, ...], bytes]]:
        """(rowid, values, digest) of a batch's rows; batches are asked for in order."""
        while True:
            if not self._waiting:
                self._waiting = self._db.execute(self._sql, (self._last,)).fetchall()[::-1]
                if not self._waiting:
                    return
                self._last = self._waiting[0][0]
            row = self._waiting[-1]
            if row[self._batch] > number:
                return
            self._waiting.pop()
            if row[self._batch] < number:
                raise _Differs(
                    f"{self.name} row {row[0]} claims batch {row[self._batch]}, which is not in the chain"
                )
            yield row[0], row[1:-1], row[-1]

    def rest(self) -> None:
        """Nothing may follow the last link."""
        if self._waiting or (left := self._db.execute(self._sql, (self._last,)).fetchone()):
            row = self._waiting[-1] if self._waiting else left
            raise _Differs(f"{self.name} row {row[0]} belongs to no link of the chain")


class _Replay:
    """The history of one window: what each of its versions did."""

    def __init__(self) -> None:
        self.changes: dict[int, tuple[str, int, int, str]] = {}
        """version → (what, change of held, change of spent, who); a limit's `held` is its amount."""


class Derivation:
    """Replays a history row by row, and compares what it comes to with the present.

    Reads SQLite; `postgres.audit` reads several chains instead of one.
    """

    def __init__(self, db: sqlite3.Connection, key: bytes) -> None:
        self._db = db
        self._key = key
        self.checked: Counter[str] = Counter()
        self._tables = {name: _Table(db, name, columns) for name, columns in rows.CHAINED.items()}
        self._prices = PriceHistory()
        self._link_us = 0
        self._limits: dict[int, dict[str, Any]] = {}
        self._windows: dict[int, _Replay] = defaultdict(_Replay)
        self._claims: dict[tuple[str, str], int] = {}
        self._totals: Counter[str] = Counter()
        self._seq = 0

    def everything(self, head_file: Path) -> None:
        """Check all there is. Raises `_Differs` at the first difference."""
        self._schema()
        noted = _noted(head_file)
        number, link = 0, b""
        for _ in range(2):
            # First in slices; then what came meanwhile, and the balances, in one consistent read.
            number, link = self._chain(number, link, noted)
            if self._db.in_transaction:
                break
            self._db.execute("BEGIN")
        if noted is not None and noted[0] > number:
            raise _Differs(
                f"the chain ends at link {number}, but link {noted[0]} was committed: its tail was cut off"
            )
        for table in self._tables.values():
            table.rest()
        self._balances()
        self._db.execute("COMMIT")

    def _schema(self) -> None:
        found = dict(self._db.execute("SELECT name, sql FROM sqlite_master WHERE type IN ('trigger', 'table')"))
        for table in APPEND_ONLY:
            for verb in ("UPDATE", "DELETE"):
                sql = found.get(f"{table}_no_{verb.lower()}") or ""
                if "RAISE(ABORT" not in sql or f"BEFORE {verb} ON {table}" not in sql:
                    raise _Differs(f"the trigger that forbids {verb} on {table} is missing")
        schema = " ".join(sql or "" for sql in found.values())
        for name in _CHECKS:
            if name not in schema:
                raise _Differs(f"the CHECK {name} is missing")
        self.checked["triggers and checks"] = 2 * len(APPEND_ONLY) + len(_CHECKS)

    # -- history

    def _chain(self, number: int, link: bytes, noted: tuple[int, bytes] | None) -> tuple[int, bytes]:
        while True:
            links = self._links(number)
            if not links:
                return number, link
            for *facts, stored in links:
                if facts[0] != number + 1:
                    raise _Differs(f"link {number + 1} of the chain is missing")
                link = self._link(tuple(facts), link, stored)
                number = facts[0]
                if noted is not None and noted[0] == number and noted[1] != link:
                    raise _Differs(f"link {number} is not the one that was noted when it was committed")
                self.checked["links"] += 1

    def _links(self, after: int) -> list[tuple[Any, ...]]:
        return self._db.execute(
            "SELECT number, at_us, admitted, extended, recorded, voided, link FROM links WHERE number > ? "
            "ORDER BY number LIMIT ?",
            (after, SLICE),
        ).fetchall()

    def _link(self, facts: tuple[int, ...], before: bytes, stored: bytes) -> bytes:
        number, self._link_us, admitted, extended, recorded, voided = facts
        digests = []
        counts: Counter[str] = Counter()
        for table in self._tables.values():
            for rowid, values, digest in table.of_batch(number):
                if row_digest(values) != digest:
                    raise _Differs(f"{table.name} row {rowid} ({_name(table.name, values)}) was changed")
                digests.append(digest)
                counts[table.name] += 1
                self._row(table.name, values)
        if (counts["usage_records"], counts["voids"]) != (recorded, voided):
            raise _Differs(
                f"link {number} covers {recorded} records and {voided} voids, the tables have "
                f"{counts['usage_records']} and {counts['voids']}"
            )
        if next_link(self._key, before, facts, digests) != stored:
            raise _Differs(f"link {number} of the chain does not follow from its rows")
        self._totals["admitted"] += admitted
        self._totals["extended"] += extended
        return stored

    def _row(self, table: str, values: tuple[Any, ...]) -> None:
        row = dict(zip(rows.CHAINED[table], values, strict=True))
        self.checked[table] += 1
        if table == "usage_records":
            self._record(row)
        elif table == "voids":
            self._ended(row["request_id"], _DETAIL.decode(row["detail"]), 0, "void")
        elif table == "prices":
            if row["at_us"] < self._link_us:
                raise _Differs(f"the price {row['id']} begins before it was made")
            self._prices.add(row)
        elif table == "limits":
            self._limits[row["id"]] = row
            if row["window_id"] is not None and row["amount"] is not None:
                self._change(
                    row["window_id"], row["window_version"], ("limit", row["amount"], row["hard"], "limits")
                )

    def _record(self, row: dict[str, Any]) -> None:
        who = row["request_id"]
        self._seq += 1
        if row["seq"] != self._seq:
            raise _Differs(f"usage record {self._seq} is missing; {who} has number {row['seq']}")
        detail = _DETAIL.decode(row["detail"])
        held = sum(detail.steps)
        price = self._price(row, free=row["claim"] is None and detail.retry_of is not None)
        if held != row["held"] or held != ceil(price.dearest(detail.bound)):
            raise _Differs(f"the hold of {who} was {row['held']}, its steps and bound give {held}")
        actual = round(price.cost(row)) if row["billed"] else 0
        cost = min(actual, held)
        if (cost, actual - cost) != (row["cost"], row["overrun"]):
            raise _Differs(
                f"{who} was charged {row['cost']} (overrun {row['overrun']}), its pinned price gives {cost} "
                f"(overrun {actual - cost})"
            )
        if row["claim"] is not None and row["billed"]:
            self._claimed(row)
        self._ended(who, detail, cost, "record")

    def _claimed(self, row: dict[str, Any]) -> None:
        place = (row["project_id"], row["claim"])
        before = self._claims.get(place)
        if before is not None and row["admitted_us"] - before < CLAIM_US:
            raise _Differs(
                f"{row['request_id']} was billed although its idempotency claim had been billed before"
            )
        self._claims[place] = row["admitted_us"]

    def _price(self, row: dict[str, Any], *, free: bool) -> Repriced:
        """What a record pinned, which must be what was in force; a rerun of a claim may be free."""
        pinned = row["price"]
        price = self._prices.find(pinned)
        if price is None:
            raise _Differs(f"the price {pinned} is pinned by a request but is not in the history")
        due = self._prices.due(row["key_id"], row["organization_id"], row["model"], row["admitted_us"])
        if pinned not in due and not (pinned is None and free):
            raise _Differs(f"{row['request_id']} pinned the price {pinned}, in force was {_any_of(due)}")
        return price

    def _ended(self, who: str, detail: Detail, captured: int, what: str) -> None:
        self._totals["ended"] += 1
        self._totals["steps"] += len(detail.steps) - 1
        held = sum(detail.steps)
        drawn = taken = 0
        for part in detail.parts:
            amounts = detail.steps if part.amounts is None else part.amounts
            if len(part.versions) != len(amounts) + 1:
                raise _Differs(f"{who} has {len(part.versions)} changes of window {part.window} recorded")
            for version, amount in zip(part.versions, amounts, strict=False):
                self._change(part.window, version, ("hold", amount, 0, who))
            share = captured if part.amounts is None else part.captured or 0
            self._change(part.window, part.versions[-1], (what, -sum(amounts), share, who))
            if part.amounts is not None:
                drawn, taken = drawn + sum(amounts), taken + share
        if not any((drawn, taken) == (purses * held, purses * captured) for purses in range(4)):
            raise _Differs(
                f"{who} drew {drawn} of credit and captured {taken} for a hold of {held} and {captured}"
            )

    def _change(self, window: int, version: int, change: tuple[str, int, int, str]) -> None:
        changes = self._windows[window].changes
        if version in changes:
            raise _Differs(
                f"change {version} of window {window} is claimed by {changes[version][3]} and {change[3]}"
            )
        changes[version] = change

    # -- the present

    def _balances(self) -> None:
        open_holds = 0
        for (packed,) in self._db.execute("SELECT packed FROM holds"):
            hold = _HOLD.decode(packed)
            open_holds += 1
            self._totals["steps"] += len(hold.steps) - 1
            if sum(hold.steps) != hold.held:
                raise _Differs(
                    f"the open hold of {hold.request_id} is {hold.held}, its steps sum to {sum(hold.steps)}"
                )
            for part in hold.parts:
                amounts = hold.steps if part.amounts is None else part.amounts
                for version, amount in zip(part.versions, amounts, strict=True):
                    self._change(part.window, version, ("hold", amount, 0, hold.request_id))
        self.checked["open holds"] = open_holds
        if self._totals["admitted"] != self._totals["ended"] + open_holds:
            raise _Differs(
                f"{self._totals['admitted']} requests were admitted, {self._totals['ended']} have ended and "
                f"{open_holds} are open"
            )
        if self._totals["extended"] != self._totals["steps"]:
            raise _Differs(
                f"{self._totals['extended']} holds were extended, {self._totals['steps']} extensions show"
            )
        seen = set()
        for row in self._db.execute(
            "SELECT id, account, kind, limit_id, amount, hard, spent, held, cap, version FROM windows ORDER BY id"
        ):
            seen.add(row[0])
            self._window(*row)
        if lost := [id_ for id_, replay in self._windows.items() if replay.changes and id_ not in seen]:
            raise _Differs(f"window {lost[0]} is named by the history but is not there")

    def _window(self, id_: int, account: str, kind: str, limit_id: int, amount: int, hard: int, spent: int,
                held: int, cap: int, version: int) -> None:  # fmt: skip
        self.checked["windows"] += 1
        name = f"window {id_} ({kind} of {account})"
        opened = self._limits.get(limit_id)
        if opened is None or opened["account"] != account or opened["kind"] != kind:
            raise _Differs(f"{name} was opened under limit {limit_id}, which is not one of its account")
        limit, is_hard = opened["amount"], bool(opened["hard"])
        changes = self._windows[id_].changes
        at_held = at_spent = 0
        for number in range(1, version + 1):
            if number not in changes:
                raise _Differs(f"change {number} of {name} has left no trace")
            what, by_held, by_spent, who = changes[number]
            if what == "limit":
                limit, is_hard = by_held, bool(by_spent)
                continue
            at_held, at_spent = at_held + by_held, at_spent + by_spent
            if what == "hold" and is_hard and at_held + at_spent > limit:
                raise _Differs(
                    f"{who} was admitted to {name} although {at_spent} spent and {at_held} held exceed {limit}"
                )
            if at_held < 0 or at_spent < 0:
                raise _Differs(f"{name} falls below nothing at change {number}, {who}")
        if len(changes) != version:
            raise _Differs(f"{name} has {version} changes, the history {len(changes)}")
        for what, stored, derived in (
            ("spent", spent, at_spent), ("held", held, at_held), ("limit", amount, limit),
            ("hard", bool(hard), is_hard), ("cap", cap, max(limit, at_spent + at_held)),
        ):  # fmt: skip
            if stored != derived:
                raise _Differs(f"{name} says {what} {stored}, its history gives {derived}")


def _name(table: str, values: tuple[Any, ...]) -> str:
    row = dict(zip(rows.CHAINED[table], values, strict=True))
    return str(row.get("request_id") or row.get("target") or row.get("account") or row.get("id"))


def _any_of(prices: set[str | None]) -> str:
    return " or ".join(sorted(price or "none" for price in prices))


def _noted(path: Path) -> tuple[int, bytes] | None:
    """The link that was noted outside the store when it was committed."""
    try:
        number, link = path.read_text(encoding="ascii").split()
        return int(number), bytes.fromhex(link)
    except (FileNotFoundError, ValueError):
        return None
