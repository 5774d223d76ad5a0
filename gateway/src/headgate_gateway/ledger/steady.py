"""The ledger's time: the machine's, but that it never goes back nor stands still. May import domain.clock."""

from __future__ import annotations

from typing import Final

from headgate_gateway.domain.clock import Clock

BEHIND_US: Final = 500_000
"""How far the ledger's time goes in a second while the machine's is behind: half as fast, until they meet."""


class SteadyTime:
    """A clock may be set back, and one that was wrong for a moment leaves commits of the future.

    If time stood still until then, limits per minute would give nothing back: requests that could be paid
    would be refused for as long as the clock had been ahead.

    Args:
        clock: The machine's.
        from_us: What was committed last; not before that.
    """

    def __init__(self, clock: Clock, from_us: int) -> None:
        self._clock = clock
        self._at_us = from_us
        self._since_s = clock.monotonic()

    def now_us(self) -> int:
        """Microseconds since 1970 UTC, as the ledger counts them."""
        now_us, now_s = self._clock.now_us(), self._clock.monotonic()
        steady_us = self._at_us + int((now_s - self._since_s) * BEHIND_US)
        if now_us < steady_us:
            return steady_us
        self._at_us, self._since_s = now_us, now_s
        return now_us
