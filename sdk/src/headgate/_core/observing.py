"""What a user puts around each call, attempts and pauses together: context managers. Pure."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

from headgate._core.request import Call
from headgate.errors import Attempt


@dataclass(frozen=True, slots=True)
class CallInfo:
    """A call as an observer sees it.

    Attributes:
        method: HTTP method.
        url: Absolute.
        model: The model that was asked for, if any.
        idempotency_key: The key that goes with every attempt.
        attempts: Every try so far; all of them once the call has ended.
    """

    method: str
    url: str
    model: str | None
    idempotency_key: str | None
    attempts: Sequence[Attempt]


def is_async(function: object) -> bool:
    """Whether a function, or an object that can be called, has to be awaited."""
    return any(map(inspect.iscoroutinefunction, (function, getattr(type(function), "__call__", None))))  # noqa: B004


Observer = Callable[[CallInfo], AbstractContextManager[Any]]
"""Makes what is entered around each call: a span of a tracer, a timer, a log line. Of a stream, its opening.
The same for both colours."""


def around(observers: Sequence[Observer], call: Call) -> ExitStack:
    """Everything around a call, entered, the first outermost."""
    info = CallInfo(call.method, call.url, call.model, call.key, call.attempts)
    with ExitStack() as stack:
        for observer in observers:
            stack.enter_context(observer(info))
        return stack.pop_all()
