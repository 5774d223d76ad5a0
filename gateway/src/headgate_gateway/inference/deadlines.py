"""When the time of what is under way is over. May import nothing of ours.

One timer for all: one for each request, set and nearly always cancelled, is a hundredth of what a request costs.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import Final, Protocol

GRAIN_S: Final = 0.01
"""How often it is looked at most, because each look is at everything; whoever is late hears it so much later."""


class Late(Protocol):
    """What may be late."""

    def late(self) -> None:
        """Its time is over. Called once, on the loop."""
        ...


class Deadlines:
    """Tells everything under way on the running loop when it is late.

    Attributes:
        now: The loop's time.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self._due: dict[Late, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._looks_at = inf

    def watch(self, what: Late, due: float) -> None:
        """Have it told at `due`, in loop time, unless it is forgotten before."""
        self._due[what] = due
        if due < self._looks_at:
            self._plan(due)

    def forget(self, what: Late) -> None:
        """It is over, late or not."""
        self._due.pop(what, None)

    def _plan(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._looks_at = max(due, self.now() + GRAIN_S)
        self._timer = self._loop.call_at(self._looks_at, self._look)

    def _look(self) -> None:
        self._timer, self._looks_at = None, inf
        now = self.now()
        for what in [what for what, due in self._due.items() if due <= now]:
            del self._due[what]
            what.late()
        if self._due:
            self._plan(min(self._due.values()))
