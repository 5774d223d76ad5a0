"""The pulse of the thread that drives a model: is it alive, and how fast does it serve?

Written by the model's thread, read by the heartbeat on another one; every field is one assignment, so no lock.
Imports nothing of ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

HALF_LIFE_S: Final = 10.0
"""Busy seconds after which an old measurement counts half."""

LEAST_RETRY_S: Final = 0.1
MOST_RETRY_S: Final = 60.0


class Pulse:
    """Begin and end of each pass, and the rate at which requests are finished while busy."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began: float | None = None
        self._busy_s = 0.0
        self._finished = 0.0

    def begin(self) -> None:
        """A pass begins: the model is about to be called."""
        self._began = self._clock()

    def end(self, finished: int) -> None:
        """The pass is over; that many requests have their whole answer now."""
        if self._began is None:
            return
        busy_s = max(0.0, self._clock() - self._began)
        self._began = None
        decay = 0.5 ** (busy_s / HALF_LIFE_S)
        self._busy_s = self._busy_s * decay + busy_s
        self._finished = self._finished * decay + finished

    @property
    def stalled_ms(self) -> int:
        """Milliseconds that the present pass has taken; 0 between passes."""
        began = self._began
        return 0 if began is None else max(0, int((self._clock() - began) * 1000))

    @property
    def per_second(self) -> float:
        """Requests finished per busy second; 0 before any was."""
        return self._finished / self._busy_s if self._busy_s > 0 else 0.0

    def retry_after_s(self, ahead: int) -> float:
        """Seconds until that many requests will have been served; 1 before anything was measured."""
        rate = self.per_second
        if rate <= 0:
            return 1.0
        return min(MOST_RETRY_S, max(LEAST_RETRY_S, ahead / rate))
