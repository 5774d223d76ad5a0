"""Stages of a history: from one seal, or the beginning, to a later one. May import following, seal and replay.

A stage can be begun at its seal without anything that came before, and must come to what the seal at its end
says. It lies in the store, or in a file of the archive.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from headgate_gateway.ledger import rows, seal
from headgate_gateway.ledger.following import CLAIM_US, Following
from headgate_gateway.ledger.history import Past
from headgate_gateway.ledger.replay import Differs, Replay

REMEMBERED_US: Final = CLAIM_US + rows.LATE_US
"""How far before a seal the request may have ended whose idempotency key is used again after it."""


class Stages(Following):
    """Follows a history from seal to seal.

    Args:
        past: What to read.
        key: From `chain.chain_key`; seals are keyed with it.
    """

    def __init__(self, past: Past, key: bytes) -> None:
        super().__init__(past)
        self._key = key
        self._since_us = 0
        self._marks: list[tuple[int, dict[int, int]]] = []

    def through(self, past: Past, begins: int, ends: int) -> seal.Seal:
        """Follow what lies between two seals and nowhere else; returns the second.

        Args:
            past: What to read; the rows of both seals are in it.
            begins: The first seal, where this has come to or will begin; 0 for the beginning.
            ends: The second.

        Raises:
            Differs: At the first difference.
        """
        fresh, self._past = not self._places and not self._chains, past
        begin, end = self._trusted(begins) if begins else None, self._trusted(ends)
        if begin is not None and fresh:
            self._resume(begin)
        elif (begin.places if begin is not None else {}) != self._places:
            raise Differs(f"it begins at seal {begins}, which is not where what came before it ends")
        self._go_on_at(self._places)
        self._advance(end.places)
        for chain in self._chains.values():
            for table in chain.tables.values():
                table.rest()
        self._agree(ends, end)
        self._places = end.places
        return end

    def _trusted(self, number: int) -> seal.Seal:
        found = seal.joined(self._past.seal(number), self._key)
        if found is None:
            raise Differs(f"seal {number} is missing or was changed")
        return found

    def _go_on_at(self, places: Mapping[int, seal.Place]) -> None:
        """Read what follows these places, in whatever there is to be read now."""
        self._places = places
        self._chains = {}
        self._follow_chains()

    def _resume(self, found: seal.Seal) -> None:
        self._personal.resume(found.personal, found.at_us - rows.LATE_US)
        self._places = found.places
        self._link_us = found.at_us
        self._since_us = found.at_us - rows.LATE_US
        self._marks = _marks_after(found)
        self._totals.update(admitted=found.open, extended=found.steps)
        for price in found.prices:
            self._price(price)
        self._last_price = max((place.rows["prices"] for place in found.places.values()), default=0)
        for limit in found.limits:
            row = dict(zip(rows.LIMIT, limit, strict=True))
            self.limits[row["id"]] = row
            self._rates.saw("limits", row)
        self._rates.since_us = found.at_us
        self._windows = {window.id: Replay.resumed(window) for window in found.windows}
        self._follow_chains()
        older = [records for at_us, records in found.marks if at_us <= found.at_us - REMEMBERED_US]
        self._recall(older[-1] if older else {}, seal.sequences(found.places))

    def _recall(self, after: Mapping[int, int], until: Mapping[int, int]) -> None:
        """Claims that were billed shortly before a seal: none may be billed again after it."""
        for chain, last in until.items():
            seq = after.get(chain, 0)
            while found := self._past.claimed(chain, seq, last):
                for _, project, claim, admitted_us in found:
                    bisect.insort(self._claims[project, claim], admitted_us)
                seq = found[-1][0]

    def _agree(self, number: int, found: seal.Seal) -> None:
        """A seal must say what history comes to at its place."""
        for id_, place in found.places.items():
            self._agree_on_place(number, id_, place)
        totals = self._totals
        open_, steps = totals["admitted"] - totals["ended"], totals["extended"] - totals["steps"]
        for what, sealed, derived in (
            ("open requests", found.open, open_), ("extensions", found.steps, steps),
            ("limits", found.limits, self._limits_in_force()),
        ):  # fmt: skip
            if sealed != derived:
                raise Differs(f"seal {number} says {what} {sealed}, the history gives {derived}")
        self._personal.agree(number, found.personal)
        for window in found.windows:
            replay = self._replay(window.id)
            if not self._opened(replay):
                raise Differs(f"seal {number} has window {window.id}, which has no limit")
            try:
                replay.agree(window)
            except Differs as difference:
                raise Differs(f"seal {number}: {difference}") from None
        self._marks = _marks_after(found)
        for claim, times in list(self._claims.items()):
            if times[-1] < found.at_us - REMEMBERED_US:
                del self._claims[claim]

    def _agree_on_place(self, number: int, id_: int, place: seal.Place) -> None:
        chain = self._chains.get(id_)
        name = self._past.chain_name(id_)
        if chain is None or chain.number < place.number:
            raise Differs(f"{name}seal {number} was made at link {place.number}, which is not there any more")
        known = {**dict.fromkeys(rows.CHAINED, 0), **place.rows}  # a seal of before does not know every table
        if chain.place() != msgspec.structs.replace(place, rows=known):
            raise Differs(f"{name}seal {number} says {place}, the history gives {chain.place()}")

    def _limits_in_force(self) -> list[tuple[Any, ...]]:
        latest = {(row["account"], row["kind"]): row for _, row in sorted(self.limits.items())}
        return sorted(_values(row) for row in latest.values() if row["amount"] is not None)

    def _limit_rows(self) -> set[tuple[Any, ...]]:
        return {_values(row) for row in self.limits.values()}


def _values(limit: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(limit[name] for name in rows.LIMIT)


def told(number: int, found: seal.Seal) -> str:
    """A seal for people."""
    return f"seal {number} of {datetime.fromtimestamp(found.at_us // 1_000_000, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _marks_after(found: seal.Seal) -> list[tuple[int, dict[int, int]]]:
    """What the next seal must say of those before it."""
    marks = [*found.marks, (found.at_us, seal.sequences(found.places))]
    older = [at_us for at_us, _ in marks if at_us <= found.at_us - REMEMBERED_US]
    return [mark for mark in marks if not older or mark[0] >= older[-1]]
