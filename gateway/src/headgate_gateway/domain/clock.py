"""What time it is, as the rules see it: a protocol, so that time is always handed in. Imports nothing of ours."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """A source of time. The real one is `headgate_gateway.clock.SystemClock`."""

    def now_us(self) -> int:
        """Wall-clock time, microseconds since 1970 UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start that never go backwards; for waits only."""
        ...
