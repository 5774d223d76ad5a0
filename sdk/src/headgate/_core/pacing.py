"""Pacing instead of colliding: a client's own picture of the gateway's limit on requests. Pure; time is given.

The gateway's headers say how many requests are left and when all are back; between answers the picture refills at
that rate and shrinks with what is sent. Imports the core's forks.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping

from headgate._core.forks import inherited

_LIMIT = "x-ratelimit-limit-requests"
_REMAINING = "x-ratelimit-remaining-requests"
_RESET = "x-ratelimit-reset-requests"
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str | None) -> float | None:
    """A duration as OpenAI's headers write it, `12ms`, `1.5s`, `6m0s`; None for anything else."""
    if not text or _PART.sub("", text):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


class Pacer:
    """Says how long to wait before a request, so that the limit is met and not hit. Safe among threads."""

    def __init__(self) -> None:
        self.forked()
        inherited(self)
        self._interval = 0.0
        self._limit = 0
        self._free = float("inf")
        self._at = 0.0

    def forked(self) -> None:
        """A forked child has its own picture from here on."""
        self._lock = threading.Lock()

    def learn(self, headers: Mapping[str, str], now: float) -> None:
        """Take note of what an answer says. What was sent since the gateway counted stays counted."""
        limit, remaining = headers.get(_LIMIT, ""), headers.get(_REMAINING, "")
        reset = seconds(headers.get(_RESET))
        if not (limit.isdecimal() and remaining.isdecimal()) or reset is None or int(remaining) >= int(limit):
            return
        with self._lock:
            self._refill(now)
            self._limit = int(limit)
            self._interval = reset / (self._limit - int(remaining))
            self._free = min(self._free, int(remaining))

    def take(self, now: float, within: float) -> float:
        """Seconds to wait before one more request may go.

        0 where nothing is known, and where the wait would be longer than `within`: then the gateway may say so.
        """
        with self._lock:
            self._refill(now)
            wait = max(0.0, (1 - self._free) * self._interval)
            if wait >= within:
                return 0.0
            self._free -= 1
            return wait

    def _refill(self, now: float) -> None:
        if self._interval > 0:
            self._free = min(float(self._limit), self._free + (now - self._at) / self._interval)
        self._at = now
