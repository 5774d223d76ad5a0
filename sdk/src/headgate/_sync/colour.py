"""What only the sync colour has: its retry loop, doing several things in turn. Written by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from headgate._core.clock import Clock
from headgate._core.retry import Rules

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


def gather(tasks: Sequence[Callable[[], T]], *, at_once: int) -> list[T]:  # noqa: ARG001  the twin needs it
    """Results in order, one after the other."""
    return [task() for task in tasks]
