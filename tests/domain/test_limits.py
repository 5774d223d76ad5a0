"""GCRA: never more than the limit in a burst, exact waits, refunds that credit no time twice."""

from headgate_gateway.domain.limits import refund, remaining, rescale, reset_us, take
from hypothesis import given
from hypothesis import strategies as st

SECOND = 1_000_000


def test_a_naive_refund_would_let_114_through() -> None:
    a_left, wait = take(0, 60, 60, 0)
    assert wait is None
    tat, wait = take(a_left, 60, 60, 60 * SECOND)
    assert wait is None
    tat = refund(tat, a_left, 60, 54, 61 * SECOND)
    assert remaining(tat, 60, 61 * SECOND) == 1


def test_a_refund_at_once_gives_everything_back() -> None:
    left, _ = take(0, 60, 60, 0)
    assert remaining(refund(left, left, 60, 60, 0), 60, 0) == 60


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
        tat = refund(after, after, limit, units, now) if back else after
        if not back:
            used.append((now, units))
    for start, _ in used:
        assert sum(units for at, units in used if start <= at < start + 60 * SECOND) <= 2 * limit


def test_rescale_keeps_the_moment() -> None:
    assert rescale(60 * SECOND * 100, 60, 30) == 60 * SECOND * 50
