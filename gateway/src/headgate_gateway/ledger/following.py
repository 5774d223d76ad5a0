"""Following history row by row: what each row says must be so, and what windows come to by it.

The part of the audit that only looks at what is append-only; `derivation` says where it begins and holds it
against seals and the present. It shares no arithmetic with the rules it checks: prices are computed as fractions
(`repricing`), windows are replayed change by change in the order of their versions (`replay`). May import rows,
chain, book, history, personal_audit, reading, replay, rate_audit, repricing and seal.
"""

from __future__ import annotations

import bisect
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, Final

import msgspec

from headgate_gateway.ledger import rows, seal
from headgate_gateway.ledger.book import Detail
from headgate_gateway.ledger.chain import next_link, row_digest
from headgate_gateway.ledger.history import Past
from headgate_gateway.ledger.personal_audit import PersonalAudit
from headgate_gateway.ledger.price_history import PriceHistory
from headgate_gateway.ledger.rate_audit import RateAudit
from headgate_gateway.ledger.reading import Chain
from headgate_gateway.ledger.replay import Change, Differs, Replay
from headgate_gateway.ledger.repricing import Repriced

CLAIM_US: Final = 24 * 3600 * 1_000_000
END: Final = 2**62

_DETAIL: Final = msgspec.msgpack.Decoder(Detail)


class Following:
    """Follows a history, and keeps what it has come to.

    Args:
        past: What to read.
    """

    def __init__(self, past: Past) -> None:
        self._past = past
        self.checked: Counter[str] = Counter()
        self._chains: dict[int, Chain] = {}
        self._places: Mapping[int, seal.Place] = {}
        self._prices = PriceHistory()
        self._price_rows: list[tuple[Any, ...]] = []
        self._last_price = 0
        self._link_us = 0
        self.limits: dict[int, dict[str, Any]] = {}
        self._windows: dict[int, Replay] = {}
        self._touched: set[int] = set()
        self._claims: dict[tuple[str, str], list[int]] = defaultdict(list)
        self._totals: Counter[str] = Counter()
        self._rates = RateAudit()
        self.archived: dict[tuple[int, int], rows.Archive] = {}
        self._personal = PersonalAudit()

    # -- history

    def _follow_chains(self) -> None:
        for id_ in self._past.chains():
            if id_ not in self._chains:
                chain = self._chains[id_] = Chain(self._past, id_, self._places.get(id_))
                chain.check_noted()

    def _advance(self, to: Mapping[int, seal.Place] | None = None) -> None:
        """Follow every chain to a place, or as far as it goes."""
        self._follow_chains()
        self._read_prices()
        for chain in self._chains.values():
            until = END if to is None else to[chain.id].number if chain.id in to else 0
            try:
                self._follow(chain, until)
            except Differs as difference:
                raise Differs(f"{self._past.chain_name(chain.id)}{difference}") from None

    def _follow(self, chain: Chain, until: int) -> None:
        while links := self._past.links(chain.id, chain.number, until):
            for *facts, stored in links:
                if facts[0] != chain.number + 1:
                    raise Differs(_missing(chain.number + 1, facts[0] - 1))
                self._link(chain, tuple(facts), stored)
                chain.number, chain.link = facts[0], stored
                chain.check_noted()
                self.checked["links"] += 1
            self._fold()

    def _link(self, chain: Chain, facts: tuple[int, ...], stored: bytes) -> None:
        number, at_us, admitted, extended, recorded, voided = facts
        self._link_us = max(self._link_us, at_us)
        digests: list[bytes] = []
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
        self._rates.saw(table, row)
        if table == "usage_records":
            chain.seq += 1
            if row["seq"] != chain.seq:
                raise Differs(f"usage record {chain.seq} is missing; {row['request_id']} has number {row['seq']}")
            self._record(row)
        elif table == "voids":
            self._ended(row["request_id"], _DETAIL.decode(row["detail"]), 0, "void")
        elif table == "limits":
            self.limits[row["id"]] = row
            if row["window_id"] is not None and row["amount"] is not None:
                change = Change("limit", row["amount"], row["hard"], "limits")
                self._change(row["window_id"], row["window_version"], change)
        elif table == "audit_log":
            self._personal.entry(row["action"], row["detail"])
        elif table == "archives":
            self.archived[row["seal"], row["covers"]] = rows.Archive(*values)

    def _read_prices(self) -> None:
        """Prices are known before what pins them, of whatever chain it is; each is verified with its own."""
        for number, *price, digest in self._past.prices(self._last_price):
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
        waiting: set[int] = set()
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
        found = self._past.opening(replay.id)
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


def _any_of(prices: set[str | None]) -> str:
    return " or ".join(sorted(price or "none" for price in prices))


def _name(table: str, values: tuple[Any, ...]) -> str:
    row = dict(zip(rows.CHAINED[table], values, strict=True))
    return str(
        row.get("request_id") or row.get("target") or row.get("account") or row.get("id") or row.get("seal")
    )


def stray(window: int, kind: str, account: str, limit_id: int) -> str:
    """What is said of a window that no limit of its account opened."""
    return f"window {window} ({kind} of {account}) was opened under limit {limit_id}, not one of its account"


def _missing(first: int, last: int) -> str:
    if first < last:
        return f"links {first} to {last} of the chain are missing"
    return f"link {first} of the chain is missing"
