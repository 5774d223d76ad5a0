"""What the last batches changed of windows, rates and holds: one packed row a batch, in a ring. May import book.

Every request moves counters of three accounts or more, and opens or ends a hold. As rows of their own these lie
in pages all over the store, and were most of what a commit wrote. So a batch writes them as one row into a ring
of `SLOTS` rows, and the tables follow later: when a slot is used again, what it was the last to say goes into its
table. A counter that changes often is thus seldom written there, and the hold of a request that ends soon never;
and as each batch hands on what one batch left, nothing piles up.

Whoever reads `windows`, `rates` or `holds` lays the ring over them. A store that was closed has an empty one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from headgate_gateway.domain.money import MAX
from headgate_gateway.ledger.book import Account, Hold, Writes
from headgate_gateway.ledger.packing import pack
from headgate_gateway.ledger.store.contract import StoreRefused

SLOTS: Final = 512
"""Rows of the ring. Another number needs a migration that hands everything to the tables first."""

WindowRow = tuple[int, int, bool, int, int, int, int]
"""id, amount, hard, spent, held, cap, version."""

RateRow = tuple[str, int | None, str | None, int | None, str | None]
"""account, limit and state of requests, limit and state of tokens (`book.Rate`)."""


class Changes(msgspec.Struct, array_like=True):
    """What one batch changed, or what of it is due for the tables.

    Attributes:
        batch: Its number.
        windows: Windows as it left them; those that it opened are rows of their table at once.
        rates: Accounts' rates as it left them.
        holds: Holds that it opened or extended.
        closed: Requests that it ended.
    """

    batch: int
    windows: list[WindowRow]
    rates: list[RateRow]
    holds: list[Hold]
    closed: list[str]


_WINDOWS: Final = (
    "SELECT id, account, kind, start_us, end_us, limit_id, amount, hard, spent, held, cap, version FROM windows"
)
_HELD: Final = 9
_CHANGES: Final = msgspec.msgpack.Decoder(Changes)
_HOLD: Final = msgspec.msgpack.Decoder(Hold)


def changes_of(batch: int, writes: Writes) -> Changes:
    """What a batch says.

    Raises:
        StoreRefused: A window breaks a CHECK of its table, which would find that out when it is too late.
    """
    for window in writes.windows.values():
        if window.spent < 0 or window.held < 0 or not window.spent + window.held <= window.cap <= MAX:
            raise StoreRefused(f"window {window.id} would be beyond its cap or below nothing")
    windows = [
        (w.id, w.limit, w.hard, w.spent, w.held, w.cap, w.version)
        for w in writes.windows.values()
        if w.id not in writes.opened
    ]
    rates = [_rate_row(account) for account in writes.rates.values()]
    return Changes(batch, windows, rates, list(writes.holds.values()), writes.closed)


def _rate_row(account: Account) -> RateRow:
    requests, tokens = account.requests, account.tokens
    return (
        account.id,
        None if requests is None else requests.limit,
        None if requests is None else requests.state,
        None if tokens is None else tokens.limit,
        None if tokens is None else tokens.state,
    )


class Recent:
    """The ring as its writer knows it: what each row says, and which batch was the last to say something of what.

    Args:
        ring: What it has, the oldest first.
        tabled: Requests whose hold is a row of its table.
    """

    def __init__(self, ring: Iterable[Changes], tabled: Iterable[str] = ()) -> None:
        # Rows stay packed: tens of thousands of small objects would be walked by the collector again and again.
        self._slots: dict[int, tuple[int, list[int | str], bytes]] = {}
        self._last: dict[int | str, int] = {}  # ids of windows are numbers, of accounts and requests texts
        self.tabled = set(tabled)
        for changes in ring:
            self.add(changes, pack(changes))

    def due(self, batch: int, writes: Writes | None = None) -> Changes:
        """What goes into the tables when a batch takes its slot.

        Args:
            batch: Its number.
            writes: What it says something newer of.
        """
        number, ids, packed = self._slots.get(batch % SLOTS, (0, (), b""))
        last = self._last
        left = {id_ for id_ in ids if last.get(id_) == number}
        if left and writes is not None:
            left.difference_update(writes.windows, writes.rates, writes.holds, writes.closed)
        if not left:
            return Changes(number, [], [], [], [])
        old = _CHANGES.decode(packed)
        return Changes(
            number,
            [window for window in old.windows if window[0] in left],
            [rate for rate in old.rates if rate[0] in left],
            [hold for hold in old.holds if hold.request_id in left],
            [],
        )

    def add(self, changes: Changes, packed: bytes, due: Changes | None = None) -> None:
        """A batch was committed, and what was due went into the tables with it."""
        last, number = self._last, changes.batch
        if due is not None:
            for id_ in _ids(due):
                del last[id_]
            self.tabled.update([hold.request_id for hold in due.holds])
        ids = _ids(changes)
        last.update(dict.fromkeys(ids, number))
        for request_id in changes.closed:
            last.pop(request_id, None)
        self.tabled.difference_update(changes.closed)
        self._slots[number % SLOTS] = (number, ids, packed)

    def awaits(self, window: int) -> bool:
        """Whether the table of windows has yet to learn of a change of this one."""
        return window in self._last

    def everything(self) -> Iterator[Changes]:
        """All that is not in the tables yet."""
        return map(self.due, self._slots)


def _ids(changes: Changes) -> list[int | str]:
    """What a batch says something of."""
    ids: list[int | str] = [window[0] for window in changes.windows]
    ids += [rate[0] for rate in changes.rates]
    ids += [hold.request_id for hold in changes.holds]
    return ids


class Present:
    """Windows, rates and holds as they are: the tables, with the ring laid over them.

    Args:
        db: The ring is read at once; the tables must be read in the same transaction.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        found = [_CHANGES.decode(packed) for (packed,) in db.execute("SELECT changes FROM recent")]
        self.ring = sorted(found, key=lambda changes: changes.batch)
        """What each batch said, the oldest first."""
        self._newest = {row[0]: row[1:] for changes in self.ring for row in changes.windows}

    def windows(self, since_us: int) -> Iterator[tuple[Any, ...]]:
        """Rows of `windows` that end later than a time, by id."""
        return map(self._now, self._db.execute(f"{_WINDOWS} WHERE end_us > ? ORDER BY id", (since_us,)))

    def ended(self, at_us: int) -> list[tuple[Any, ...]]:
        """Rows of those that have ended by a time and still hold something."""
        changed = msgspec.json.encode(list(self._newest)).decode()
        where = "end_us <= ? AND (held > 0 OR id IN (SELECT value FROM json_each(?)))"
        rows = map(self._now, self._db.execute(f"{_WINDOWS} WHERE {where}", (at_us, changed)))
        return [row for row in rows if row[_HELD] > 0]

    def window(self, id_: int) -> tuple[Any, ...] | None:
        """One of them."""
        found = self._db.execute(f"{_WINDOWS} WHERE id = ?", (id_,)).fetchone()
        return None if found is None else self._now(found)

    def _now(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        changed = self._newest.get(row[0])
        return row if changed is None else (*row[:6], *changed)

    def rates(self) -> Iterable[RateRow]:
        """Rows of `rates`."""
        rows = self._db.execute(
            "SELECT account, requests_limit, requests_tat, tokens_limit, tokens_tat FROM rates"
        )
        found: dict[str, RateRow] = {row[0]: row for row in rows}
        found.update({row[0]: row for changes in self.ring for row in changes.rates})
        return found.values()

    def holds(self) -> list[Hold]:
        """Open holds, by request."""
        rows = self._db.execute("SELECT request_id, packed FROM holds")
        found = {request_id: _HOLD.decode(packed) for request_id, packed in rows}
        for changes in self.ring:
            found.update({hold.request_id: hold for hold in changes.holds})
            for request_id in changes.closed:
                found.pop(request_id, None)
        return [found[request_id] for request_id in sorted(found)]
