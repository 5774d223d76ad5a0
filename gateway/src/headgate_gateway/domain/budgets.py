"""Budgets: amounts over calendar-aligned windows. Imports money only."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final, Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from headgate_gateway.domain.admission import Nano
from headgate_gateway.domain.money import InvalidAmount, parse_amount

WindowKind = Literal["total", "hour", "day", "week", "month"]
WINDOW_KINDS: Final[tuple[WindowKind, ...]] = get_args(WindowKind)

FOREVER: Final = 2**62
"""End of the window of a `total` budget, microseconds."""

LATEST_US: Final = 253_370_764_800 * 1_000_000
"""The year 9999, microseconds UTC: no calendar of ours goes further, so that no later time could be shown."""


class InvalidBudget(ValueError):
    """A budget is not AMOUNT/WINDOW, or names no known time zone."""


class UnknownZone(InvalidBudget):
    """There is no such time zone."""


def parse_budget(text: str) -> tuple[Nano, WindowKind]:
    """A budget as commands take it: `1.00/month`.

    Raises:
        InvalidBudget: It has another form, a negative amount or an unknown window.
    """
    amount, slash, window = text.partition("/")
    if not slash or window not in WINDOW_KINDS:
        raise InvalidBudget(f"{text[:40]!r} is not a budget; expected AMOUNT/{'|'.join(WINDOW_KINDS)}")
    try:
        nano = parse_amount(amount)
    except InvalidAmount as error:
        raise InvalidBudget(str(error)) from None
    if nano < 0:
        raise InvalidBudget(f"the budget {text[:40]!r} is negative")
    return nano, window


@lru_cache(maxsize=256)
def zone(name: str) -> ZoneInfo:
    """An IANA time zone. Raises `UnknownZone` when there is none of that name."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise UnknownZone(f"{name[:60]!r} is not an IANA time zone such as Europe/Berlin") from None


def _micro(moment: datetime) -> int:
    return (moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def window_of(kind: WindowKind, timezone: str, now_us: int) -> tuple[int, int]:
    """Start and end (exclusive), microseconds UTC, of the window that a moment falls into.

    Hours, days, weeks (from Monday) and months begin where the calendar of the zone says: a day in which clocks
    change has 23 or 25 hours. Hours are real hours: the one that a clock shows twice is two windows.
    """
    if kind == "total":
        return 0, FOREVER
    tz = zone(timezone)
    now = datetime.fromtimestamp(now_us // 1_000_000, tz)
    if kind == "hour":
        into = timedelta(minutes=now.minute, seconds=now.second)
        start = now_us // 1_000_000 - int(into.total_seconds())
        return start * 1_000_000, (start + 3600) * 1_000_000
    midnight = datetime(now.year, now.month, now.day, tzinfo=tz)
    if kind == "day":
        first = midnight
        after = (midnight.replace(tzinfo=None) + timedelta(days=1)).replace(tzinfo=tz)
    elif kind == "week":
        naive = midnight.replace(tzinfo=None) - timedelta(days=midnight.weekday())
        first, after = naive.replace(tzinfo=tz), (naive + timedelta(days=7)).replace(tzinfo=tz)
    else:
        first = midnight.replace(day=1)
        year, month = (now.year + 1, 1) if now.month == 12 else (now.year, now.month + 1)
        after = datetime(year, month, 1, tzinfo=tz)
    return _micro(first), _micro(after)
