"""The Headgate client: typed, sync and async, with retries, cost and budgets.

    from headgate import Headgate

    client = Headgate()
    answer = client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "hi"}])
    print(answer.text, answer.cost)

Names are loaded when they are first used: importing this package costs a few milliseconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from headgate._version import __version__

if TYPE_CHECKING:
    from headgate._async.client import AsyncHeadgate
    from headgate._async.stream import AsyncStream
    from headgate._core.metering import Budget, Meter
    from headgate._core.money import Cost
    from headgate._core.retry import RetryPolicy
    from headgate._core.tensors import TensorError
    from headgate._sync.client import Headgate
    from headgate._sync.stream import Stream
    from headgate._transport.types import Limits, Timeout, Wiring
    from headgate.errors import (
        BackendFailed,
        BudgetExceeded,
        BudgetInFlight,
        ConfigurationError,
        Conflict,
        ConnectionFailed,
        Forbidden,
        HeadgateError,
        IdempotencyConsumed,
        IdempotencyInProgress,
        IdempotencyMismatch,
        InvalidRequest,
        ModelOverloaded,
        NotFound,
        OfflineError,
        QuotaExceeded,
        RateLimited,
        ResponseShapeError,
        ServerError,
        StatusError,
        StreamInterrupted,
        StreamLost,
        TimedOut,
        TooLarge,
        Unauthenticated,
    )
    from headgate.tools import Tool, tool

_ERRORS = (
    "BackendFailed", "BudgetExceeded", "BudgetInFlight", "ConfigurationError", "Conflict", "ConnectionFailed",
    "Forbidden", "HeadgateError", "IdempotencyConsumed", "IdempotencyInProgress", "IdempotencyMismatch",
    "InvalidRequest", "ModelOverloaded", "NotFound", "OfflineError", "QuotaExceeded", "RateLimited",
    "ResponseShapeError", "ServerError", "StatusError", "StreamInterrupted", "StreamLost", "TimedOut", "TooLarge",
    "Unauthenticated",
)  # fmt: skip

_HOMES = {
    "AsyncHeadgate": "_async.client",
    "AsyncStream": "_async.stream",
    "Budget": "_core.metering",
    "Cost": "_core.money",
    "Headgate": "_sync.client",
    "Limits": "_transport.types",
    "Meter": "_core.metering",
    "RetryPolicy": "_core.retry",
    "Stream": "_sync.stream",
    "TensorError": "_core.tensors",
    "Timeout": "_transport.types",
    "Tool": "tools",
    "Wiring": "_transport.types",
    "tool": "tools",
    **dict.fromkeys(_ERRORS, "errors"),
}

__all__ = [
    "AsyncHeadgate",
    "AsyncStream",
    "BackendFailed",
    "Budget",
    "BudgetExceeded",
    "BudgetInFlight",
    "ConfigurationError",
    "Conflict",
    "ConnectionFailed",
    "Cost",
    "Forbidden",
    "Headgate",
    "HeadgateError",
    "IdempotencyConsumed",
    "IdempotencyInProgress",
    "IdempotencyMismatch",
    "InvalidRequest",
    "Limits",
    "Meter",
    "ModelOverloaded",
    "NotFound",
    "OfflineError",
    "QuotaExceeded",
    "RateLimited",
    "ResponseShapeError",
    "RetryPolicy",
    "ServerError",
    "StatusError",
    "Stream",
    "StreamInterrupted",
    "StreamLost",
    "TensorError",
    "TimedOut",
    "Timeout",
    "TooLarge",
    "Tool",
    "Unauthenticated",
    "Wiring",
    "__version__",
    "tool",
]


def __getattr__(name: str) -> object:
    """Load a public name when it is first used."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'headgate' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"headgate.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
