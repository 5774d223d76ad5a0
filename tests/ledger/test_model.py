"""Random operations against a small independent ledger: same decisions, same balances, and the audit agrees."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

from headgate_gateway.domain import commands as c
from headgate_gateway.domain.erasing import Erased, ErasePersonal
from headgate_gateway.ledger import sealing, wire
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

HOUR = 3600 * 1_000_000
KEYS = 3


class Reference:
    """Budgets the obvious way: lists and fractions, no holds packed, no versions."""

    def __init__(self) -> None:
        self.limits: dict[str, int | None] = {}
        self.spent: dict[tuple[str, int], int] = {}
        self.open: dict[str, tuple[int, list[tuple[str, int]]]] = {}
        self.done: dict[str, int] = {}
        self.prices: list[tuple[int, str, Fraction]] = [(0, "", Fraction(3, 2))]

    def output(self, key: str, now_us: int) -> Fraction:
        """What an output token costs: the key's price before everyone's, of those that have begun the latest."""
        for scope in (key, ""):
            begun = [entry for entry in self.prices if entry[1] == scope and entry[0] <= now_us]
            if begun:
                return max(enumerate(begun), key=lambda place: (place[1][0], place[0]))[1][2]
        raise AssertionError

    def held(self, place: tuple[str, int]) -> int:
        return sum(amount for amount, places in self.open.values() if place in places)

    def admit(self, who: str, amount: int, accounts: list[str], hour: int) -> bool:
        places = [(account, hour) for account in accounts if self.limits.get(account) is not None]
        for place in places:
            limit = self.limits[place[0]]
            assert limit is not None
            if amount and self.spent.get(place, 0) + self.held(place) + amount > limit:
                return False
        self.open[who] = (amount, places)
        return True

    def end(self, who: str, actual: int) -> int:
        amount, places = self.open.pop(who)
        cost = min(actual, amount)
        for place in places if amount else ():
            self.spent[place] = self.spent.get(place, 0) + cost
        self.done[who] = cost
        return cost


class LedgerMachine(RuleBasedStateMachine):
    """Drives core and reference alike. All budgets are hourly; prices are 3 nano for 2 output tokens."""

    open_bench: Callable[[], Any]
    """Makes a bench with a store of its own; whoever gives this closes them."""

    @initialize()
    def begin(self) -> None:
        self.bench = type(self).open_bench()
        self.bench.price(output="0.0015", input="0.0002")
        self.reference = Reference()
        self.keys = [self.bench.key(project=f"p{n % 2}") for n in range(KEYS)]
        self.parents = {a.id: a.parent for a in self.bench.do(c.ListAccounts(limit=1000)).accounts}
        self.count = self.seals = 0
        self.ended: list[str] = []
        self.rates: dict[str, Fraction] = {}
        self.aside: set[str] = set()

    def accounts(self, key: str) -> list[str]:
        project = self.parents[key]
        return [key, project, self.parents[project]]

    @rule(which=st.integers(0, KEYS - 1), level=st.integers(0, 2), amount=st.none() | st.integers(0, 200))
    def set_budget(self, which: int, level: int, amount: int | None) -> None:
        account = self.accounts(self.keys[which])[level]
        if amount is None:
            # Lifting a budget forgets its window, which the reference cannot know: raised out of reach.
            amount = 10**9
        text = f"0.{amount:09d}" if amount < 10**9 else "1"
        done = self.bench.do(c.SetBudget(account=account, amount=text, window="hour"))
        assert isinstance(done, c.Done)
        self.reference.limits[account] = amount

    @rule(
        which=st.integers(-1, KEYS - 1), hours=st.integers(0, 20), minutes=st.integers(0, 59),
        nano=st.integers(1, 4000),
    )  # fmt: skip
    def set_price(self, which: int, hours: int, minutes: int, nano: int) -> None:
        """For everyone or a key, now or later: whoever is admitted from then on pays it, nobody before."""
        scope = self.keys[which] if which >= 0 else ""
        begins = self.bench.clock.us + hours * HOUR + minutes * HOUR // 60
        made = self.bench.do(
            c.SetPrice(
                model="m", rates={"output": f"0.{nano:06d}", "input": "0.0002"}, scope=scope,
                effective_from=begins if hours or minutes else None,
            )
        )  # fmt: skip
        if isinstance(made, c.PricesSet):
            self.reference.prices.append((begins, scope, Fraction(nano, 1000)))
        else:
            assert "planned there already" in made.message

    @rule(
        which=st.integers(0, KEYS - 1), output=st.integers(0, 60), prompt=st.integers(0, 30), again=st.booleans(),
        tags=st.sampled_from([{}, {"user": "a"}, {"user": "b", "x": "é"}]),
    )  # fmt: skip
    def admit(self, which: int, output: int, prompt: int, again: bool, tags: dict[str, str]) -> None:
        self.count += 1
        who = f"req_{self.count:05d}"
        key = self.keys[which]
        reply = self.bench.admit(key, output, prompt=prompt, request_id=who, tags=tags)
        rate = self.reference.output(key, self.bench.clock.us)
        amount = -(-(rate * output + Fraction(prompt, 5)) // 1)
        admitted = self.reference.admit(who, int(amount), self.accounts(key), self.bench.clock.us // HOUR)
        assert isinstance(reply, wire.Grant) == admitted, reply
        if admitted:
            assert reply.held == amount
            self.rates[who] = rate
            if tags:
                self.aside.add(who)
            if again:
                assert self.bench.admit(key, output, prompt=prompt, request_id=who, tags=tags) == reply

    @precondition(lambda self: self.reference.open)
    @rule(data=st.data(), output=st.integers(0, 80), billed=st.booleans(), again=st.booleans())
    def settle(self, data: st.DataObject, output: int, billed: bool, again: bool) -> None:
        who = data.draw(st.sampled_from(sorted(self.reference.open)))
        reply = self.bench.settle(who, output, billed=billed)
        assert reply.cost == self.reference.end(who, round(self.rates[who] * output) if billed else 0)
        self.ended.append(who)
        if again:
            assert self.bench.settle(who, output + 1) == reply

    @precondition(lambda self: self.reference.open)
    @rule(data=st.data())
    def void(self, data: st.DataObject) -> None:
        who = data.draw(st.sampled_from(sorted(self.reference.open)))
        self.bench.run(wire.Void(1, who))
        self.reference.end(who, 0)
        self.ended.append(who)

    @rule(data=st.data(), again=st.booleans())
    def erase(self, data: st.DataObject, again: bool) -> None:
        """Of open requests and ended ones alike; the rest stays as it is."""
        with self.bench.history() as history:
            places = {row[1]: row[:2] for row in history.set_aside((-1, ""))}
        assert places.keys() == self.aside
        gone = data.draw(st.sets(st.sampled_from(sorted(places)))) if places else set()
        for expected in (len(gone), 0) if again else (len(gone),):
            erased = self.bench.do(ErasePersonal(requests=tuple(places[who] for who in gone)))
            assert erased == Erased(rows=expected)
        self.aside -= gone

    @precondition(lambda self: self.ended)
    @rule(data=st.data())
    def resend(self, data: st.DataObject) -> None:
        who = data.draw(st.sampled_from(self.ended))
        assert self.bench.settle(who, 50).cost == self.reference.done[who]

    @rule(hours=st.integers(1, 30))
    def pass_time(self, hours: int) -> None:
        self.bench.clock.us += hours * HOUR

    @rule()
    def clock_goes_back(self) -> None:
        """Before anything is committed at the new time, the ledger's own time stands still."""
        before = self.time()
        self.bench.clock.us -= HOUR // 2
        assert self.time() >= before
        self.bench.clock.us = max(self.bench.clock.us + HOUR // 2, before)

    def time(self) -> int:
        """The ledger's own: when it makes a key."""
        made = self.bench.key(project="p0")
        return int(self.bench.do(c.GetAccount(id=made)).account.created_at)

    @rule()
    def seal(self) -> None:
        """As the ledger does when a day has ended, and at any other time."""
        assert self.bench.seal() >= 1
        with self.bench.history() as history:
            assert not sealing.due(history, self.bench.clock.us)
        self.seals += 1

    @rule()
    def restart(self) -> None:
        self.bench.restart()

    @invariant()
    def balances_agree(self) -> None:
        if not hasattr(self, "bench"):
            return
        hour = self.bench.clock.us // HOUR
        for account in self.bench.do(c.ListAccounts(limit=1000)).accounts:
            for budget in account.budgets:
                assert budget.spent == self.reference.spent.get((account.id, hour), 0)
                assert budget.held == self.reference.held((account.id, hour))

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        for full in (True, False):
            report = self.bench.audit(full=full)
            assert report.ok, report.first_difference
            begun = report.began == "the beginning"
            assert begun == (full or not self.seals), report.began
        checked = self.bench.audit().checked
        assert (checked.get("agreeing seals", 0), checked["personal"]) == (self.seals, len(self.aside))


def agree(open_bench: Callable[[], Any], *, examples: int) -> None:
    """Drive a ledger and the reference through random lives."""

    class Machine(LedgerMachine):
        pass

    Machine.open_bench = staticmethod(open_bench)
    case = Machine.TestCase
    case.settings = settings(
        max_examples=examples, stateful_step_count=30, deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip
    case().runTest()


def test_the_ledger_and_the_reference_agree(bench_class: Any, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stores:

        def open_bench() -> Any:
            bench = bench_class(Path(tempfile.mkdtemp(dir=tmp_path)))
            stores.callback(lambda: bench.core.close())
            return bench

        agree(open_bench, examples=12)
