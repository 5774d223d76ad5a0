"""Chains as an audit reads them: link by link, with the rows that each covers. May import history, rows, seal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from headgate_gateway.ledger import rows
from headgate_gateway.ledger.history import Past
from headgate_gateway.ledger.replay import Differs
from headgate_gateway.ledger.seal import Place


class Table:
    """An append-only table of one chain, read in the order it was written.

    Attributes:
        last: The row that was handed out last.
    """

    def __init__(self, past: Past, chain: int, name: str, after: int) -> None:
        self._past = past
        self._chain = chain
        self.name = name
        self._batch = rows.CHAINED[name].index("batch") + 1
        self.last = self._read = after
        self._waiting: list[tuple[Any, ...]] = []

    def _next(self) -> tuple[Any, ...] | None:
        if not self._waiting:
            self._waiting = self._past.rows(self.name, self._chain, self._read)[::-1]
            if not self._waiting:
                return None
            self._read = self._waiting[0][0]
        return self._waiting[-1]

    def of_batch(self, number: int) -> Iterator[tuple[int, tuple[Any, ...], bytes]]:
        """(row number, values, digest) of a batch's rows; batches are asked for in order."""
        while (row := self._next()) is not None and row[self._batch] <= number:
            self._waiting.pop()
            if self._past.gapless and row[0] != self.last + 1:
                raise Differs(f"{self.name} row {self.last + 1} is missing")
            if row[self._batch] < number:
                raise Differs(
                    f"{self.name} row {row[0]} claims batch {row[self._batch]}, which is not in the chain"
                )
            self.last = row[0]
            yield row[0], row[1:-1], row[-1]

    def rest(self) -> None:
        """Nothing may follow the last link."""
        if (row := self._next()) is not None:
            raise Differs(f"{self.name} row {row[0]} belongs to no link of the chain")


class Chain:
    """Where the derivation stands in one chain."""

    def __init__(self, past: Past, id_: int, place: Place | None) -> None:
        self.id = id_
        self.key = past.chain_key(id_)
        self.noted = past.noted(id_)
        self.number, self.link, self.seq = (place.number, place.link, place.seq) if place else (0, b"", 0)
        after = place.rows if place else {}
        self.tables = {name: Table(past, id_, name, after.get(name, 0)) for name in rows.CHAINED}

    def check_noted(self) -> None:
        """The link that was noted when it was committed must be the one that is there."""
        if self.noted is not None and self.noted[0] == self.number and self.noted[1] != self.link:
            raise Differs(f"link {self.number} is not the one that was noted when it was committed")

    def place(self) -> Place:
        """For a seal."""
        return Place(self.number, self.link, self.seq, {name: table.last for name, table in self.tables.items()})
