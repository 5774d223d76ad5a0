"""Budget windows follow the calendar of their zone, and moments fall into exactly one."""

from datetime import UTC, datetime

import pytest
from headgate_gateway.domain.budgets import FOREVER, WINDOW_KINDS, InvalidBudget, parse_budget, window_of
from hypothesis import given
from hypothesis import strategies as st


def us(text: str) -> int:
    return int(datetime.fromisoformat(text).astimezone(UTC).timestamp()) * 1_000_000


@pytest.mark.parametrize(
    ("kind", "zone", "now", "start", "end"),
    [
        ("hour", "UTC", "2026-11-22T05:30:01Z", "2026-11-22T05:00:00Z", "2026-11-22T06:00:00Z"),
        ("hour", "Asia/Kolkata", "2026-11-22T05:45:00Z", "2026-11-22T05:30:00Z", "2026-11-22T06:30:00Z"),
        ("day", "Europe/Berlin", "2026-03-29T10:00:00Z", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"),  # 23 h
        ("day", "Europe/Berlin", "2026-10-25T10:00:00Z", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"),  # 25 h
        ("week", "UTC", "2026-11-22T05:30:00Z", "2026-11-16T00:00:00Z", "2026-11-23T00:00:00Z"),
        ("month", "UTC", "2026-12-31T23:59:59Z", "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"),
        ("month", "America/New_York", "2026-03-01T03:00:00Z", "2026-02-01T05:00:00Z", "2026-03-01T05:00:00Z"),
    ],
)
def test_windows(kind: str, zone: str, now: str, start: str, end: str) -> None:
    assert window_of(kind, zone, us(now)) == (us(start), us(end))  # type: ignore[arg-type]


@given(
    st.sampled_from(WINDOW_KINDS),
    st.sampled_from(
        ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Apia", "Australia/Lord_Howe"]
    ),
    st.integers(10**15, 4 * 10**15),
)
def test_a_moment_is_in_its_window_and_windows_meet(kind: str, zone: str, now: int) -> None:
    start, end = window_of(kind, zone, now)  # type: ignore[arg-type]
    assert start <= now < end
    assert window_of(kind, zone, start) == (start, end)  # type: ignore[arg-type]
    if end != FOREVER and kind != "hour":
        assert window_of(kind, zone, end)[0] == end  # type: ignore[arg-type]


def test_parse_budget() -> None:
    assert parse_budget("1.00/month") == (10**9, "month")
    assert parse_budget("0/total") == (0, "total")
    for bad in ("1.00", "1/year", "-1/day", "x/day", "/day"):
        with pytest.raises(InvalidBudget):
            parse_budget(bad)


def test_unknown_zone() -> None:
    with pytest.raises(InvalidBudget, match="IANA"):
        window_of("day", "Mars/Base", 10**15)
