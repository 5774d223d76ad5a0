"""The derivation: replays a store's append-only history and compares what it comes to with the present.

It begins at the last seal, where the archive ends, or at the very beginning; `stages` and `following` say how
history is followed. May import those, history, replay and seal.

History is read in short slices; only the newest rows and the balances are compared inside one last, short read.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from math import ceil
from typing import Any, Final, Protocol

from headgate_gateway.ledger import rows, seal
from headgate_gateway.ledger.book import Hold
from headgate_gateway.ledger.chain import row_digest
from headgate_gateway.ledger.following import END, stray
from headgate_gateway.ledger.history import History, Past
from headgate_gateway.ledger.price_history import DEFAULTS
from headgate_gateway.ledger.replay import Change, Differs
from headgate_gateway.ledger.stages import Stages, told

_STAYING: Final = ("prices", "limits", "archives")
"""Tables whose rows stay in the store when they are archived: windows and records to come name them."""


class ArchivedPast(Past, Protocol):
    """A file of the archive, see `archive.ArchivedHistory`.

    Attributes:
        begins: The seal that it begins at, 0 for the beginning.
        ends: The one that it ends at.
    """

    begins: int
    ends: int


Files = Iterable[AbstractContextManager[ArchivedPast]]


class ArchivedMeanwhile(Exception):
    """What was being followed has left the store: begin again."""


class Derivation(Stages):
    """Replays a history row by row, and compares what it comes to with the present.

    Args:
        history: What to read.
        key: From `chain.chain_key`; seals are keyed with it.
    """

    def __init__(self, history: History, key: bytes) -> None:
        super().__init__(history, key)
        self._history = history
        self.began = "the beginning"
        self._open: dict[int, list[tuple[int, int, str]]] = defaultdict(list)
        self._pinned: set[str | None] = set()
        self._oldest_us = END
        self._swept_us = 0
        """Windows that had ended by then may be gone."""

    def everything(self, *, full: bool, files: Files | None = None) -> None:
        """Check all there is, or what came after the last seal that verifies.

        Args:
            full: Begin at the end of the archive, or at the beginning where nothing was archived.
            files: With `full`: the files of the archive, in order; begin with them, at the beginning.

        Raises:
            Differs: At the first difference.
            ArchivedMeanwhile: What it was following was archived meanwhile.
        """
        noted = self._history.archives()
        self._personal.left_us = left_us = max((row.until_us for row in noted), default=-1)
        self._swept_us = left_us - rows.LATE_US
        try:
            self._everything(max((row.seal for row in noted), default=0), full=full, files=files)
        except Differs:
            if self._history.archives() != noted:
                raise ArchivedMeanwhile from None
            raise

    def _everything(self, archived: int, *, full: bool, files: Files | None) -> None:
        self.checked["triggers and checks"] = self._history.check_schema()
        if not full:
            self._from_last_seal(archived)
        else:
            if files is not None:
                self._from_files(files, archived)
            elif archived:
                self._from_archive(archived)
            self._by_all_seals(archived)
        self._advance()
        self._personal.advance(self._history)
        # First in slices; then what came meanwhile, and the balances, in one consistent read.
        self._history.begin()
        self._advance()
        self._personal.advance(self._history)
        for chain in self._chains.values():
            if chain.noted is not None and chain.noted[0] > chain.number:
                raise Differs(
                    f"{self._history.chain_name(chain.id)}the chain ends at link {chain.number}, but link "
                    f"{chain.noted[0]} was committed: its tail was cut off"
                )
            for table in chain.tables.values():
                table.rest()
        if full:
            self._check_notes(archived if files is None else 0)
        self._balances()
        self._personal.compare(self._history)
        self.checked["personal"] = self._personal.rows
        self._history.more(self.checked, self.limits)
        self._rates.compare(self._history.rates(), self._link_us)

    # -- where it begins

    def _from_last_seal(self, archived: int) -> None:
        number = self._history.last_seal(END)
        while number is not None and number >= archived:
            if (found := seal.joined(self._history.seal(number), self._key)) is not None:
                self.began = told(number, found)
                self._resume(found)
                return
            number = self._history.last_seal(number)
        if archived:
            raise Differs(f"no seal from {archived} on, at which the archive ends, verifies")

    def _from_archive(self, number: int) -> None:
        """Begin where the archive ends."""
        found = self._trusted(number)
        self.began = f"the end of the archive, {told(number, found)}"
        self._resume(found)
        self._agree_on_staying(found.places, whole=False)
        self._agree_on_archive(number, found.places)

    def _from_files(self, files: Files, archived: int) -> None:
        """Follow the archived files, and go on in the store where they end."""
        for opened in files:
            with opened as file:
                end = self.through(file, file.begins, file.ends)
                self._agree_on_archive(file.ends, end.places)
            self.checked["archived files"] += 1
        self._past = self._history
        if self._places:
            if self._trusted(archived).places != self._places:
                raise Differs(f"seal {archived} is not the one at which the archived files end")
            self._agree_on_staying(self._places, whole=True)
        self._go_on_at(self._places)

    def _agree_on_archive(self, number: int, places: Mapping[int, seal.Place]) -> None:
        """What is noted of the archive must be what the seal says that it ends at."""
        noted = {row.covers: row.until for row in self._history.archives() if row.seal == number}
        if noted != {chain: place.number for chain, place in places.items() if place.number}:
            raise Differs(f"the archive up to seal {number} is noted to end elsewhere than that seal says")

    def _check_notes(self, since: int) -> None:
        """Every note of an archive must have been met in the history after the seal that it names."""
        noted = {(row.seal, row.covers): row for row in self._history.archives() if row.seal >= since}
        met = {place: row for place, row in self.archived.items() if row.seal >= since}
        for place in noted.keys() | met.keys():
            if noted.get(place) != met.get(place):
                raise Differs(f"archives: what is noted of the archive up to seal {place[0]} was changed")

    def _agree_on_staying(self, places: Mapping[int, seal.Place], *, whole: bool) -> None:
        """Rows that were archived and stay must be what they were: all of them, or those that a seal names."""
        known: dict[str, set[tuple[Any, ...]]] = {
            "prices": set(self._price_rows),
            "limits": self._limit_rows(),
            "archives": set(self.archived.values()),
        }
        for table in _STAYING:
            for values in self._staying(table, places):
                if whole and values not in known[table]:
                    raise Differs(f"{table} row {values[0]} is not the one that was archived")
                known[table].discard(values)
            if known[table]:
                raise Differs(f"{table} row {min(known[table])[0]} is not there any more as it was archived")

    def _staying(self, table: str, places: Mapping[int, seal.Place]) -> Iterator[tuple[Any, ...]]:
        for chain, place in places.items():
            last, until = 0, place.rows.get(table, 0)
            while found := [row for row in self._history.rows(table, chain, last) if row[0] <= until]:
                for last, *values, digest in found:
                    if row_digest(tuple(values)) != digest:
                        raise Differs(f"{table} row {last} was changed")
                    yield tuple(values)

    def _by_all_seals(self, after: int) -> None:
        number = self._history.next_seal(after)
        while number is not None:
            # One that does not verify is named when the chain comes to its rows.
            if (found := seal.joined(self._history.seal(number), self._key)) is not None:
                self._advance(found.places)
                self._agree(number, found)
                self.checked["agreeing seals"] += 1
            number = self._history.next_seal(number)

    def sealed(self) -> seal.Seal:
        """What this came to, after `everything` found no difference; for a later audit to begin at.

        Its time is the last link's: what can still change follows from the ledger's time, and the clock of
        whoever makes the seal may be days ahead of that.
        """
        now_us = self._link_us
        horizon = min(now_us - rows.LATE_US, self._oldest_us)
        windows = [
            replay.sealed(sorted(self._open[id_]))
            for id_, replay in sorted(self._windows.items())
            if replay.end_us > now_us - rows.LATE_US or replay.held
        ]
        return seal.Seal(
            now_us, self._totals["open"], self._totals["open steps"],
            {chain.id: chain.place() for chain in self._chains.values()},
            self._marks, self._prices_from(horizon), self._limits_in_force(), windows,
            self._personal.ended,
        )  # fmt: skip

    def _prices_from(self, horizon_us: int) -> list[tuple[Any, ...]]:
        """Versions that were in force at some time after the horizon, or will be, or are pinned by open holds."""
        places: dict[tuple[Any, ...], list[tuple[Any, ...]]] = defaultdict(list)
        for row in self._price_rows:
            _, _, model, scope, source, _, _ = row
            places[scope, model, source in DEFAULTS].append(row)
        found: list[tuple[Any, ...]] = []
        for versions in places.values():
            versions.sort(key=lambda row: row[-1])
            begun = bisect.bisect_left(versions, horizon_us, key=lambda row: row[-1])
            found += [row for row in versions[: max(0, begun - 1)] if row[0] in self._pinned]
            found += versions[max(0, begun - 1) :]
        return found

    # -- the present

    def _balances(self) -> None:
        for hold in self._history.holds():
            self._hold(hold)
        totals = self._totals
        self.checked["open holds"] = totals["open"]
        if totals["admitted"] != totals["ended"] + totals["open"]:
            raise Differs(
                f"{totals['admitted']} requests were admitted, {totals['ended']} have ended and "
                f"{totals['open']} are open"
            )
        if totals["extended"] != totals["steps"] + totals["open steps"]:
            raise Differs(
                f"{totals['extended']} holds were extended, {totals['steps'] + totals['open steps']} extensions "
                "show"
            )
        seen: set[int] = set()
        for row in self._history.windows(self._since_us):
            seen.add(row[0])
            self._window(*row)
        for id_ in sorted(self._windows.keys() - seen):  # those that ended before the seal but were still held
            if (found := self._history.window(id_)) is not None:
                self._window(*found)
            elif self._windows[id_].held or self._windows[id_].end_us > self._swept_us:
                raise Differs(f"window {id_} is named by the history but is not there")

    def _hold(self, hold: Hold) -> None:
        self._personal.open(hold.request_id, hold.personal)
        self._rates.open(hold)
        self._totals["open"] += 1
        self._totals["open steps"] += len(hold.steps) - 1
        self._pinned.add(hold.price)
        self._oldest_us = min(self._oldest_us, hold.admitted_us)
        if sum(hold.steps) != hold.held:
            raise Differs(
                f"the open hold of {hold.request_id} is {hold.held}, its steps sum to {sum(hold.steps)}"
            )
        organization = self._history.organization(hold.key_id)
        if organization is None:
            raise Differs(f"{hold.request_id} is open for {hold.key_id}, which is not there")
        price = self._price_of(
            hold.request_id, hold.price, hold.key_id, organization, hold.model, hold.admitted_us,
            free=hold.claim is None and hold.retry_of is not None,
        )  # fmt: skip
        if hold.held != (due := ceil(price.dearest(hold.bound))):
            raise Differs(f"the open hold of {hold.request_id} is {hold.held}, its price and bound give {due}")
        for part in hold.parts:
            amounts = hold.steps if part.amounts is None else part.amounts
            for version, amount in zip(part.versions, amounts, strict=True):
                self._change(part.window, version, Change("hold", amount, 0, hold.request_id))
                self._open[part.window].append((version, amount, hold.request_id))

    def _window(self, id_: int, account: str, kind: str, limit_id: int, end_us: int, amount: int, hard: int,
                spent: int, held: int, cap: int, version: int) -> None:  # fmt: skip
        self.checked["windows"] += 1
        replay = self._replay(id_)
        if not self._opened(replay) or (replay.account, replay.kind, replay.limit_id, replay.end_us) != (
            account, kind, limit_id, end_us
        ):  # fmt: skip
            raise Differs(stray(id_, kind, account, limit_id))
        replay.fold()
        if replay.promised:
            version_, (_, who) = min(replay.promised.items())
            raise Differs(f"change {version_} of {replay.name}, held by {who}, has left no trace")
        replay.compare(amount, spent, held, version, hard=bool(hard), cap=cap)
