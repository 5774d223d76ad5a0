"""The derivation: replays a store's append-only history and compares what it comes to with the present.

It shares no arithmetic with the rules it checks: prices are computed as fractions (`repricing`), windows are
replayed change by change in the order of their versions (`replay`). May import rows, chain, book, history,
personal_check, reading, replay, repricing and seal.

History is read in short slices; only the newest rows and the balances are compared inside one last, short read.
"""

from __future__ import annotations

import bisect
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from math import ceil
from typing import Any, Final

import msgspec

from headgate_gateway.ledger import rows, seal
from headgate_gateway.ledger.book import Detail, Hold
from headgate_gateway.ledger.chain import next_link, row_digest
from headgate_gateway.ledger.history import History
from headgate_gateway.ledger.personal_check import PersonalCheck
from headgate_gateway.ledger.price_history import DEFAULTS, PriceHistory
from headgate_gateway.ledger.reading import Chain, cut_off, missing
from headgate_gateway.ledger.replay import Change, Differs, Replay, stray
from headgate_gateway.ledger.repricing import Repriced

CLAIM_US: Final = 24 * 3600 * 1_000_000

LATE_US: Final = 2 * 3600 * 1_000_000
"""How much earlier than a seal a window may have ended that the seal still has: clocks are set back at times, and
nodes differ. Longer than any request."""

REMEMBERED_US: Final = CLAIM_US + LATE_US
"""How far before a seal the request may have ended whose idempotency key is used again after it."""

_DETAIL: Final = msgspec.msgpack.Decoder(Detail)
_END: Final = 2**62


class Derivation:
    """Replays a history row by row, and compares what it comes to with the present.

    Args:
        history: What to read.
        key: From `chain.chain_key`; seals are keyed with it.
    """

    def __init__(self, history: History, key: bytes) -> None:
        self._history = history
        self._key = key
        self.checked: Counter[str] = Counter()
        self.began = "the beginning"
        self._chains: dict[int, Chain] = {}
        self._places: Mapping[int, seal.Place] = {}
        self._since_us = 0
        self._marks: list[tuple[int, dict[int, int]]] = []
        self._prices = PriceHistory()
        self._price_rows: list[tuple[Any, ...]] = []
        self._last_price = 0
        self._link_us = 0
        self.limits: dict[int, dict[str, Any]] = {}
        self._windows: dict[int, Replay] = {}
        self._touched: set[int] = set()
        self._open: dict[int, list[tuple[int, int, str]]] = defaultdict(list)
        self._pinned: set[str | None] = set()
        self._oldest_us = _END
        self._claims: dict[tuple[str, str], list[int]] = defaultdict(list)
        self._totals: Counter[str] = Counter()
        self._personal = PersonalCheck(history)

    def everything(self, *, full: bool) -> None:
        """Check all there is, or what came after the last seal that verifies.

        Raises:
            Differs: At the first difference.
        """
        self.checked["triggers and checks"] = self._history.check_schema()
        if full:
            self._by_all_seals()
        else:
            self._from_last_seal()
        self._advance()
        self._personal.advance()
        # First in slices; then what came meanwhile, and the balances, in one consistent read.
        self._history.begin()
        self._advance()
        self._personal.advance()
        for chain in self._chains.values():
            if chain.noted is not None and chain.noted[0] > chain.number:
                raise Differs(f"{self._history.chain_name(chain.id)}{cut_off(chain.number, chain.noted[0])}")
            for table in chain.tables.values():
                table.rest()
        self._balances()
        self._personal.compare()
        self.checked["personal"] = self._personal.rows
        self._history.more(self.checked, self.limits)

    # -- seals

    def _from_last_seal(self) -> None:
        number = self._history.last_seal(_END)
        while number is not None:
            found = seal.joined(self._history.seal(number), self._key)
            if found is not None and found.personal is not None:
                made = datetime.fromtimestamp(found.at_us // 1_000_000, UTC)
                self.began = f"seal {number} of {made:%Y-%m-%dT%H:%M:%SZ}"
                self._resume(found, found.personal)
                return
            number = self._history.last_seal(number)

    def _resume(self, found: seal.Seal, personal: int) -> None:
        self._personal.resume(personal, found.at_us - LATE_US)
        self._places = found.places
        self._link_us = found.at_us
        self._since_us = found.at_us - LATE_US
        self._marks = _marks_after(found)
        self._totals.update(admitted=found.open, extended=found.steps)
        for price in found.prices:
            self._price(price)
        self._last_price = max((place.rows["prices"] for place in found.places.values()), default=0)
        for limit in found.limits:
            row = dict(zip(rows.LIMIT, limit, strict=True))
            self.limits[row["id"]] = row
        self._windows = {window.id: Replay.resumed(window) for window in found.windows}
        self._follow_chains()
        older = [records for at_us, records in found.marks if at_us <= found.at_us - REMEMBERED_US]
        self._recall(older[-1] if older else {}, seal.sequences(found.places))

    def _recall(self, after: Mapping[int, int], until: Mapping[int, int]) -> None:
        """Claims that were billed shortly before a seal: none may be billed again after it."""
        for chain, last in until.items():
            seq = after.get(chain, 0)
            while found := self._history.claimed(chain, seq, last):
                for _, project, claim, admitted_us in found:
                    bisect.insort(self._claims[project, claim], admitted_us)
                seq = found[-1][0]

    def _by_all_seals(self) -> None:
        number = self._history.next_seal(0)
        while number is not None:
            # One that does not verify is named when the chain comes to its rows.
            if (found := seal.joined(self._history.seal(number), self._key)) is not None:
                self._advance(found.places)
                self._agree(number, found)
                self.checked["agreeing seals"] += 1
            number = self._history.next_seal(number)

    def _agree(self, number: int, found: seal.Seal) -> None:
        """A seal must say what history comes to at its place."""
        for id_, place in found.places.items():
            self._agree_on_place(number, id_, place)
        totals = self._totals
        open_, steps = totals["admitted"] - totals["ended"], totals["extended"] - totals["steps"]
        for what, sealed, derived in (
            ("open requests", found.open, open_), ("extensions", found.steps, steps),
            ("limits", found.limits, self._limits_in_force()),
            ("personal fields", found.personal, None if found.personal is None else self._personal.ended),
        ):  # fmt: skip
            if sealed != derived:
                raise Differs(f"seal {number} says {what} {sealed}, the history gives {derived}")
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
        name = self._history.chain_name(id_)
        if chain is None or chain.number < place.number:
            raise Differs(f"{name}seal {number} was made at link {place.number}, which is not there any more")
        if chain.place() != place:
            raise Differs(f"{name}seal {number} says {place}, the history gives {chain.place()}")

    def sealed(self) -> seal.Seal:
        """What this came to, after `everything` found no difference; for a later audit to begin at.

        Its time is the last link's: what can still change follows from the ledger's time, and the clock of
        whoever makes the seal may be days ahead of that.
        """
        now_us = self._link_us
        horizon = min(now_us - LATE_US, self._oldest_us)
        windows = [
            replay.sealed(sorted(self._open[id_]))
            for id_, replay in sorted(self._windows.items())
            if replay.end_us > now_us - LATE_US or replay.held
        ]
        return seal.Seal(
            now_us, self._totals["open"], self._totals["open steps"],
            {chain.id: chain.place() for chain in self._chains.values()},
            self._marks, self._prices_from(horizon), self._limits_in_force(), windows,
            self._personal.ended,
        )  # fmt: skip

    def _limits_in_force(self) -> list[tuple[Any, ...]]:
        latest = {(row["account"], row["kind"]): row for _, row in sorted(self.limits.items())}
        found = [row for row in latest.values() if row["amount"] is not None]
        return sorted(tuple(row[name] for name in rows.LIMIT) for row in found)

    def _prices_from(self, horizon_us: int) -> list[tuple[Any, ...]]:
        """Versions that were in force at some time after the horizon, or will be, or are pinned by open holds."""
        places: dict[tuple[Any, ...], list[tuple[Any, ...]]] = defaultdict(list)
        for row in self._price_rows:
            _, _, model, scope, source, _, _ = row
            places[scope, model, source in DEFAULTS].append(row)
        found = []
        for versions in places.values():
            versions.sort(key=lambda row: row[-1])
            begun = bisect.bisect_left(versions, horizon_us, key=lambda row: row[-1])
            found += [row for row in versions[: max(0, begun - 1)] if row[0] in self._pinned]
            found += versions[max(0, begun - 1) :]
        return found

    # -- history

    def _follow_chains(self) -> None:
        for id_ in self._history.chains():
            if id_ not in self._chains:
                chain = self._chains[id_] = Chain(self._history, id_, self._places.get(id_))
                chain.check_noted()

    def _advance(self, to: Mapping[int, seal.Place] | None = None) -> None:
        """Follow every chain to a place, or as far as it goes."""
        self._follow_chains()
        self._read_prices()
        for chain in self._chains.values():
            until = _END if to is None else to[chain.id].number if chain.id in to else 0
            try:
                self._follow(chain, until)
            except Differs as difference:
                raise Differs(f"{self._history.chain_name(chain.id)}{difference}") from None

    def _follow(self, chain: Chain, until: int) -> None:
        while links := self._history.links(chain.id, chain.number, until):
            for *facts, stored in links:
                if facts[0] != chain.number + 1:
                    raise Differs(missing(chain.number + 1, facts[0] - 1))
                self._link(chain, tuple(facts), stored)
                chain.number, chain.link = facts[0], stored
                chain.check_noted()
                self.checked["links"] += 1
            self._fold()

    def _link(self, chain: Chain, facts: tuple[int, ...], stored: bytes) -> None:
        number, at_us, admitted, extended, recorded, voided = facts
        self._link_us = max(self._link_us, at_us)
        digests = []
        begin: list[tuple[str, int]] = []
        counts: Counter[str] = Counter()
        for table in chain.tables.values():
            for n, values, digest in table.of_batch(number):
                if row_digest(values) != digest:
                    raise Differs(f"{table.name} row {n} ({_name(table.name, values)}) was changed")
                digests.append(digest)
                counts[table.name] += 1
                if table.name == "prices":
                    begin.append((values[0], values[-1]))
                self._row(chain, table.name, values)
        if (counts["usage_records"], counts["voids"]) != (recorded, voided):
            raise Differs(
                f"link {number} covers {recorded} records and {voided} voids, the tables have "
                f"{counts['usage_records']} and {counts['voids']}"
            )
        if next_link(chain.key, chain.link, facts, digests) != stored:
            raise Differs(f"link {number} of the chain does not follow from its rows")
        if early := [price for price, begins_us in begin if begins_us < at_us]:
            raise Differs(f"the price {early[0]} begins before it was made")
        self._totals["admitted"] += admitted
        self._totals["extended"] += extended

    def _row(self, chain: Chain, table: str, values: tuple[Any, ...]) -> None:
        row = dict(zip(rows.CHAINED[table], values, strict=True))
        self.checked[table] += 1
        if table == "usage_records":
            chain.seq += 1
            if row["seq"] != chain.seq:
                raise Differs(f"usage record {chain.seq} is missing; {row['request_id']} has number {row['seq']}")
            self._record(row)
        elif table == "voids":
            self._ended(row["request_id"], _DETAIL.decode(row["detail"]), 0, "void")
        elif table == "audit_log":
            self._personal.entry(row["action"], row["detail"])
        elif table == "limits":
            self.limits[row["id"]] = row
            if row["window_id"] is not None and row["amount"] is not None:
                change = Change("limit", row["amount"], row["hard"], "limits")
                self._change(row["window_id"], row["window_version"], change)

    def _read_prices(self) -> None:
        """Prices are known before what pins them, of whatever chain it is; each is verified with its own."""
        for number, *price, digest in self._history.prices(self._last_price):
            if row_digest(tuple(price)) != digest:
                raise Differs(f"prices row {number} ({price[0]}) was changed")
            self._price(tuple(price))
            self._last_price = number

    def _price(self, price: Sequence[Any]) -> None:
        row = dict(zip(rows.PRICE, price, strict=True))
        self._price_rows.append(tuple(price))
        self._prices.add(row)

    def _record(self, row: dict[str, Any]) -> None:
        who = row["request_id"]
        detail = _DETAIL.decode(row["detail"])
        held = sum(detail.steps)
        free = row["claim"] is None and detail.retry_of is not None
        price = self._price_of(
            who, row["price"], row["key_id"], row["organization_id"], row["model"], row["admitted_us"], free=free
        )
        if held != row["held"] or held != ceil(price.dearest(detail.bound)):
            raise Differs(f"the hold of {who} was {row['held']}, its steps and bound give {held}")
        actual = round(price.cost(row)) if row["billed"] else 0
        cost = min(actual, held)
        if (cost, actual - cost) != (row["cost"], row["overrun"]):
            raise Differs(
                f"{who} was charged {row['cost']} (overrun {row['overrun']}), its pinned price gives {cost} "
                f"(overrun {actual - cost})"
            )
        if row["claim"] is not None and row["billed"]:
            self._claimed(row)
        self._ended(who, detail, cost, "record")

    def _claimed(self, row: dict[str, Any]) -> None:
        times = self._claims[row["project_id"], row["claim"]]
        n = bisect.bisect(times, row["admitted_us"])
        if any(abs(row["admitted_us"] - near) < CLAIM_US for near in times[max(0, n - 1) : n + 1]):
            raise Differs(f"{row['request_id']} was billed although its idempotency claim had been billed before")
        times.insert(n, row["admitted_us"])

    def _price_of(
        self, who: str, pinned: str | None, key: str, organization: str, model: str, admitted_us: int, *,
        free: bool,
    ) -> Repriced:  # fmt: skip
        """What a request pinned, which must be what was in force; a rerun of a claim may be free."""
        if self._prices.find(pinned) is None:
            self._read_prices()
        price = self._prices.find(pinned)
        if price is None:
            raise Differs(f"the price {pinned} is pinned by a request but is not in the history")
        due = self._prices.due(key, organization, model, admitted_us)
        if pinned not in due and not (pinned is None and free):
            raise Differs(f"{who} pinned the price {pinned}, in force was {_any_of(due)}")
        return price

    def _ended(self, who: str, detail: Detail, captured: int, what: str) -> None:
        self._personal.end(who, detail.personal)
        self._totals["ended"] += 1
        self._totals["steps"] += len(detail.steps) - 1
        held = sum(detail.steps)
        drawn = taken = 0
        for part in detail.parts:
            amounts = detail.steps if part.amounts is None else part.amounts
            if len(part.versions) != len(amounts) + 1:
                raise Differs(f"{who} has {len(part.versions)} changes of window {part.window} recorded")
            for version, amount in zip(part.versions, amounts, strict=False):
                self._change(part.window, version, Change("hold", amount, 0, who))
            share = captured if part.amounts is None else part.captured or 0
            self._change(part.window, part.versions[-1], Change(what, -sum(amounts), share, who))
            if part.amounts is not None:
                drawn, taken = drawn + sum(amounts), taken + share
        if not any((drawn, taken) == (purses * held, purses * captured) for purses in range(4)):
            raise Differs(
                f"{who} drew {drawn} of credit and captured {taken} for a hold of {held} and {captured}"
            )

    # -- windows

    def _replay(self, window: int) -> Replay:
        found = self._windows.get(window)
        if found is None:
            found = self._windows[window] = Replay(window)
        return found

    def _change(self, window: int, version: int, change: Change) -> None:
        self._replay(window).add(version, change)
        self._touched.add(window)

    def _fold(self) -> None:
        """Fold what the last slice brought; a window whose limit stands in another chain waits for it."""
        waiting = set()
        for window in self._touched:
            replay = self._windows[window]
            if self._opened(replay):
                replay.fold()
            else:
                waiting.add(window)
        self._touched = waiting

    def _opened(self, replay: Replay) -> bool:
        """Learn under what a window began, which its row says and the limit's must agree with."""
        if replay.limit is not None:
            return True
        found = self._history.opening(replay.id)
        if found is None:
            raise Differs(f"window {replay.id} is named by the history but is not there")
        account, kind, limit_id, end_us = found
        limit = self.limits.get(limit_id)
        if limit is None:
            return False
        if (limit["account"], limit["kind"]) != (account, kind) or limit["amount"] is None:
            raise Differs(stray(replay.id, kind, account, limit_id))
        replay.opened(account, kind, limit_id, end_us, limit["amount"], hard=bool(limit["hard"]))
        return True

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
        seen = set()
        for row in self._history.windows(self._since_us):
            seen.add(row[0])
            self._window(*row)
        for id_ in sorted(self._windows.keys() - seen):  # those that ended before the seal but were still held
            found = self._history.window(id_)
            if found is None:
                raise Differs(f"window {id_} is named by the history but is not there")
            self._window(*found)

    def _hold(self, hold: Hold) -> None:
        self._personal.open(hold.request_id, hold.personal)
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


def _any_of(prices: set[str | None]) -> str:
    return " or ".join(sorted(price or "none" for price in prices))


def _marks_after(found: seal.Seal) -> list[tuple[int, dict[int, int]]]:
    """What the next seal must say of those before it."""
    marks = [*found.marks, (found.at_us, seal.sequences(found.places))]
    older = [at_us for at_us, _ in marks if at_us <= found.at_us - REMEMBERED_US]
    return [mark for mark in marks if not older or mark[0] >= older[-1]]


def _name(table: str, values: tuple[Any, ...]) -> str:
    row = dict(zip(rows.CHAINED[table], values, strict=True))
    return str(
        row.get("request_id") or row.get("target") or row.get("account") or row.get("id") or row.get("seal")
    )
