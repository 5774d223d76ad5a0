"""GCRA: never more than the limit in a burst, exact waits, refunds that credit no time twice."""

from __future__ import annotations

from random import Random
from typing import Any

from headgate_gateway.domain.limits import MOST_LOWS, Low, note_low, refund, remaining, rescale, reset_us, take
from hypothesis import given
from hypothesis import strategies as st

SECOND = 1_000_000


class Limit:
    """A limit as the ledger keeps it, beside all that was ever used of it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.tat = 0
        self.lows: list[Low] = []
        self.used: list[list[int]] = []

    def take(self, units: int, now: int) -> Any:
        """What was taken, None where it does not fit."""
        tat, wait = take(self.tat, self.limit, units, now)
        if wait is not None:
            return None
        note_low(self.lows, self.tat, self.limit, now)
        self.tat = tat
        self.used.append([now, units])
        return self.used[-1]

    def give_back(self, taken: list[int], units: int, now: int) -> None:
        self.tat = refund(self.tat, self.lows, self.limit, units, taken[0], now)
        taken[1] -= units

    def ahead(self, now: int) -> int:
        return max(0, self.tat - now * self.limit)

    def ideal(self, now: int) -> int:
        """How far it would be ahead, had each only taken what it used in the end."""
        tat = 0
        for at, units in self.used:
            tat = max(tat, at * self.limit) + units * 60 * SECOND
        return max(0, tat - now * self.limit)


def test_a_naive_refund_would_let_114_through() -> None:
    limit = Limit(60)
    a = limit.take(60, 0)
    limit.take(60, 60 * SECOND)
    limit.give_back(a, 54, 61 * SECOND)
    assert remaining(limit.tat, 60, 61 * SECOND) == 1


def test_what_comes_back_behind_others_refunds_is_not_credited_twice() -> None:
    """Of 60 a minute, 30 that were used at 28 s are in the way of all but 31 at 29 s."""
    limit = Limit(60)
    a, b = limit.take(30, 0), limit.take(30, 0)
    limit.give_back(a, 30, 0)
    limit.take(30, 28 * SECOND)
    limit.give_back(b, 30, 29 * SECOND)
    assert remaining(limit.tat, 60, 29 * SECOND) == 31


def test_what_comes_back_after_a_moment_of_rest_counts_for_nothing_however_busy_it_was_since() -> None:
    limit = Limit(60)
    a = limit.take(60, 0)
    limit.take(30, 60 * SECOND)  # nobody is ahead of these
    limit.take(20, 61 * SECOND)
    limit.give_back(a, 60, 61 * SECOND)
    assert remaining(limit.tat, 60, 61 * SECOND) == 60 - 29 - 20


def test_what_comes_back_late_counts_as_far_as_others_were_behind_it() -> None:
    limit = Limit(60)
    b = limit.take(30, 0)
    limit.take(30, 28 * SECOND)  # two of the first thirty are still ahead of these
    limit.give_back(b, 30, 40 * SECOND)
    assert limit.tat == 60 * 58 * SECOND


@given(st.integers(1, 100), st.lists(st.tuples(st.integers(0, 20), st.integers(0, 60), st.integers(0, 5))))
def test_what_was_not_used_is_as_if_it_had_never_been_taken(
    units_a_minute: int, steps: list[tuple[int, int, int]]
) -> None:
    limit, open_, now = Limit(units_a_minute), [], 10**15
    for pause, units, which in steps:
        now += pause * SECOND
        if which and open_:
            taken = open_.pop(which % len(open_))
            limit.give_back(taken, min(units, taken[1]), now)
        elif units and (found := limit.take(units, now)) is not None:
            open_.append(found)
        assert limit.lows == sorted(limit.lows)
        assert limit.ahead(now) >= limit.ideal(now)
        if len(limit.used) <= MOST_LOWS:
            assert limit.ahead(now) == limit.ideal(now)


def test_too_many_lows_give_back_less_and_never_more() -> None:
    random = Random(5)
    limit, now = Limit(100_000), 10**15
    open_ = []
    for _ in range(2_000):
        now += random.randrange(SECOND // 2)
        if random.random() < 0.5 and open_:
            taken = open_.pop(random.randrange(len(open_)))
            limit.give_back(taken, random.randrange(taken[1] + 1), now)
        elif (found := limit.take(random.randrange(1, 5_000), now)) is not None:
            open_.append(found)
        assert len(limit.lows) <= MOST_LOWS
        assert limit.ahead(now) >= limit.ideal(now)


def test_a_refund_at_once_gives_everything_back() -> None:
    limit = Limit(60)
    limit.give_back(limit.take(60, 0), 60, 0)
    assert remaining(limit.tat, 60, 0) == 60


def test_more_than_the_limit_never_fits() -> None:
    assert take(0, 60, 61, 0) == (0, -1)


@given(st.integers(1, 10**6), st.integers(0, 2 * 10**15), st.data())
def test_the_wait_is_exact(limit: int, now: int, data: st.DataObject) -> None:
    tat = now * limit + data.draw(st.integers(0, 60 * SECOND * limit))
    units = data.draw(st.integers(1, limit))
    same, wait = take(tat, limit, units, now)
    if wait is None:
        return
    assert same == tat
    assert take(tat, limit, units, now + wait)[1] is None
    assert take(tat, limit, units, now + wait - 1)[1] == 1
    assert 0 <= remaining(tat, limit, now) < units
    assert reset_us(tat, limit, now) <= 60 * SECOND


@given(st.integers(1, 1000), st.lists(st.tuples(st.integers(0, 5 * SECOND), st.integers(1, 50), st.booleans())))
def test_never_more_than_twice_the_limit_in_a_minute(limit: int, steps: list[tuple[int, int, bool]]) -> None:
    """With refunds, used units in any minute stay within burst plus refill."""
    now, tat, used = 10**15, 0, []
    for pause, units, back in steps:
        now += pause
        after, wait = take(tat, limit, units, now)
        if wait is not None:
            continue
        tat = refund(after, [], limit, units, now, now) if back else after
        if not back:
            used.append((now, units))
    for start, _ in used:
        assert sum(units for at, units in used if start <= at < start + 60 * SECOND) <= 2 * limit


def test_rescale_keeps_the_moment() -> None:
    assert rescale(60 * SECOND * 100, 60, 30) == 60 * SECOND * 50
