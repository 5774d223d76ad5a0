"""When to try again what failed. Pure: randomness is handed in, time is an argument. Imports nothing of ours."""

from __future__ import annotations

from random import Random
from typing import Final

FIRST_S: Final = 0.1
MOST_S: Final = 30.0
STABLE_S: Final = 60.0
"""What went well for this long was well; the next failure counts as the first."""


class Backoff:
    """Exponential backoff with jitter: between half and all of 0.1, 0.2, 0.4 ... 30 seconds."""

    def __init__(
        self, random: Random, *, first_s: float = FIRST_S, most_s: float = MOST_S, stable_s: float = STABLE_S
    ) -> None:
        self._random = random
        self._first_s = first_s
        self._most_s = most_s
        self._stable_s = stable_s
        self._in_a_row = 0
        self.count = 0

    def delay(self, lived_s: float = 0.0) -> float:
        """Seconds to wait after a failure, before which it went well for `lived_s` seconds."""
        if lived_s >= self._stable_s:
            self.forget()
        # The exponent is capped so that what fails for weeks does not overflow a float.
        ceiling = min(self._most_s, self._first_s * 2.0 ** min(self._in_a_row, 32))
        self._in_a_row += 1
        self.count += 1
        return ceiling * (0.5 + 0.5 * self._random.random())

    def forget(self) -> None:
        """It goes well: the next failure counts as the first."""
        self._in_a_row = 0
