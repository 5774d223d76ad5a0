"""What only the sync colour has: its retry loop, doing several things in turn. Written by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from headgate._core.clock import Clock
from headgate._core.forks import inherited
from headgate._core.observing import is_async
from headgate._core.retry import Rules
from headgate.errors import ConfigurationError

if TYPE_CHECKING:
    from tenacity import RetryCallState, Retrying

T = TypeVar("T")


def retrying(clock: Clock, rules: Rules, paused: Callable[[RetryCallState], None]) -> Retrying:
    """The retry loop of this colour around the pure rules; its library is loaded with the first failure."""
    from tenacity import Retrying

    return Retrying(
        sleep=clock.sleep,
        retry=rules.retry,
        wait=rules.wait,
        stop=rules.stop,
        before_sleep=paused,
        reraise=True,
    )


def sleep(clock: Clock, seconds: float) -> None:
    """Let time pass."""
    clock.sleep(seconds)


class Turn:
    """One at a time."""

    def __init__(self) -> None:
        self.forked()
        inherited(self)

    def forked(self) -> None:
        """In a forked child nobody has it."""
        self._lock = threading.Lock()

    def lock(self) -> threading.Lock:
        """To be held for the turn."""
        return self._lock


def check(middleware: object) -> None:
    """Refuse middleware of the other colour.

    Raises:
        ConfigurationError: It is a coroutine function.
    """
    if is_async(middleware):
        raise ConfigurationError(f"middleware of Headgate is a plain function; {middleware!r} is `async def`")


def gather(tasks: Sequence[Callable[[], T]], *, at_once: int) -> list[T]:  # noqa: ARG001  the twin needs it
    """Results in order, one after the other."""
    return [task() for task in tasks]
