"""A circuit breaker: after failures in a row a target is left alone for a while, then probed by one request.

Pure state, time handed in. Imports nothing of ours.
"""

from __future__ import annotations

from typing import Literal

BreakerState = Literal["closed", "open", "half_open"]


class Breaker:
    """The breaker of one target.

    Args:
        failures: Failures in a row that open it.
        cooldown_s: Seconds it stays open at first; doubled each time a probe fails.
        cooldown_max_s: The longest that it stays open.
    """

    __slots__ = ("_cooldown_max_s", "_cooldown_s", "_failed", "_failures", "_opened_for_s", "_probing", "_until")

    def __init__(self, *, failures: int = 5, cooldown_s: float = 5.0, cooldown_max_s: float = 60.0) -> None:
        self._failures = failures
        self._cooldown_s = cooldown_s
        self._cooldown_max_s = cooldown_max_s
        self._failed = 0
        self._opened_for_s = 0.0
        self._until: float | None = None
        self._probing = False

    @property
    def failed(self) -> int:
        """Failures in a row so far."""
        return self._failed

    def state(self, now: float) -> BreakerState:
        """Where it stands at monotonic time `now`."""
        if self._until is None:
            return "closed"
        return "open" if now < self._until else "half_open"

    def wait_s(self, now: float) -> float:
        """Seconds until a request may be tried; 0 when one may be tried now."""
        return 0.0 if self._until is None else max(0.0, self._until - now)

    def admits(self, now: float) -> bool:
        """Whether a request could be sent now."""
        return self._until is None or (now >= self._until and not self._probing)

    def enter(self, now: float) -> bool:
        """Take a request's place; False when none may be sent. A half-open breaker lets one through.

        Every True is to be followed by one of `succeeded`, `failed_at` or `released`.
        """
        if not self.admits(now):
            return False
        if self._until is not None:
            self._probing = True
        return True

    def succeeded(self) -> None:
        """The target answered: it is well."""
        self._failed = 0
        self._until = None
        self._opened_for_s = 0.0
        self._probing = False

    def failed_at(self, now: float) -> None:
        """The target failed."""
        self._failed += 1
        if self._probing or (self._until is None and self._failed >= self._failures):
            longer = self._opened_for_s * 2 or self._cooldown_s
            self._opened_for_s = min(longer, self._cooldown_max_s)
            self._until = now + self._opened_for_s
        self._probing = False

    def released(self) -> None:
        """The request ended without saying anything of the target's health."""
        self._probing = False
