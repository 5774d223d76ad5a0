"""The real clock. Imports nothing of ours."""

from __future__ import annotations

import time


class SystemClock:
    """The machine's clock; implements `domain.clock.Clock`."""

    def now_us(self) -> int:
        """Wall-clock time, microseconds since 1970 UTC."""
        return time.time_ns() // 1000

    monotonic = staticmethod(time.monotonic)
    """Seconds that never go backwards."""
