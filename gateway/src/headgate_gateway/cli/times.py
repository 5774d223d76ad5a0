"""Times as the command line takes and shows them: ISO 8601 outside, microseconds UTC inside."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from headgate_gateway.cli.options import BAD_INPUT, fail

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def when(moment_us: int | None) -> str | None:
    """Microseconds UTC as ISO 8601, to the second."""
    if moment_us is None:
        return None
    return datetime.fromtimestamp(moment_us // 1_000_000, UTC).isoformat().replace("+00:00", "Z")


def exactly(moment_us: int) -> str:
    """Microseconds UTC as ISO 8601, all of them."""
    seconds, fraction = divmod(moment_us, 1_000_000)
    text = datetime.fromtimestamp(seconds, UTC).replace(microsecond=fraction).isoformat()
    return text.replace("+00:00", "Z")


def moment(text: str | None, option: str) -> int | None:
    """ISO 8601 as microseconds UTC; a bad one ends the command and names the option."""
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        fail(f'{option}: expected a date such as 2027-01-31 or 2027-01-31T12:00:00Z, not "{text}"', BAD_INPUT)
    found = found if found.tzinfo else found.replace(tzinfo=UTC)
    return (found - _EPOCH) // timedelta(microseconds=1)
