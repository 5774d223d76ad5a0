"""Everything the client may raise, named after what happened. Imports nothing but the core's money and typing.

HeadgateError
├── ConfigurationError          no key, a bad address, a transport that is not installed
│   └── OfflineError            HEADGATE_OFFLINE=1 forbids the network
├── ConnectionFailed            no answer: refused, reset, truncated
│   └── TimedOut                one of the clocks ran out: connect, pool, first_byte, idle, deadline
├── StreamInterrupted           a stream broke after its first event; has the part that came
├── StatusError                 the gateway answered with an error
│   ├── InvalidRequest          400, 408, 422: the request is at fault; `path` names the field
│   │   └── IdempotencyMismatch the key was used with another body
│   ├── Unauthenticated         401
│   ├── QuotaExceeded           402: money says no; never retried
│   ├── Forbidden               403
│   ├── NotFound                404
│   ├── Conflict                409
│   │   ├── IdempotencyInProgress  the same key runs right now
│   │   ├── IdempotencyConsumed    the key was billed and its answer is gone; has the record's id
│   │   └── StreamLost             (also StreamInterrupted) a stream's owner has gone; has the bill so far
│   ├── TooLarge                413
│   ├── RateLimited             429: come back after `retry_after` seconds
│   │   └── BudgetInFlight      the budget is full only because of requests in flight
│   ├── ModelOverloaded         503: queue full, model loading, ledger away
│   ├── BackendFailed           502, 504: the model's backend failed or was too slow
│   └── ServerError             any other 5xx
├── BudgetExceeded              the budget of `client.budget(...)` says no
└── ResponseShapeError          an answer that is not what the contract says; names the path
"""

from __future__ import annotations

import copyreg
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from headgate._core.money import Cost
    from headgate.types.shared import Usage


class Failure(Enum):
    """What a failure means for a retry; the key, not the network, decides."""

    NEVER_DELIVERED = "never delivered"
    REFUSED = "refused before work"
    KEY_IN_FLIGHT = "same key in flight"
    OUTCOME_UNKNOWN = "outcome unknown"
    INTERRUPTED = "interrupted stream"
    MONEY = "money says no"
    FINAL = "final"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a call: how it ended and how long was waited before the next.

    Attributes:
        status: The HTTP status, None where no answer came.
        error: The error's class name, None for success.
        elapsed: Seconds that the attempt took.
        waited: Seconds of pause after it.
    """

    status: int | None
    error: str | None
    elapsed: float
    waited: float = 0.0


class HeadgateError(Exception):
    """The root: catch it to catch all of ours.

    Attributes:
        message: What happened, for people.
        failure: What it means for a retry.
        should_retry: The server's word (`x-should-retry`), which wins over `failure`.
        retry_after: Seconds after which the server says the same request may fit.
        retry_at: The same as a moment.
        request_id: The gateway's id of the request, if it got that far.
        attempts: Every try of the call so far, in order.
        usage: What was consumed all the same, possibly partial.
        cost: What that costs, None if unknown.
    """

    failure: Failure = Failure.FINAL
    default_message: ClassVar[str] = ""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or self.default_message)
        self.message = message or self.default_message
        self.should_retry: bool | None = None
        self.retry_after: float | None = None
        self.retry_at: datetime | None = None
        self.request_id: str | None = None
        self.attempts: Sequence[Attempt] = ()
        self.usage: Usage | None = None
        self.cost: Cost | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors travel between processes: as they are, not by calling their class again."""
        return copyreg.__newobj__, (type(self), *self.args), vars(self)  # type: ignore[attr-defined]

    @property
    def retryable(self) -> bool:
        """Whether the same call, sent again with the same key, may succeed and cannot be billed twice."""
        if self.should_retry is not None:
            return self.should_retry
        return self.failure in _RETRYABLE


_RETRYABLE = frozenset({Failure.NEVER_DELIVERED, Failure.REFUSED, Failure.KEY_IN_FLIGHT, Failure.OUTCOME_UNKNOWN})


class ConfigurationError(HeadgateError):
    """The client was set up in a way that cannot work."""


class OfflineError(ConfigurationError):
    """HEADGATE_OFFLINE is set and the client would have opened a socket."""


class ConnectionFailed(HeadgateError):
    """No answer came.

    Attributes:
        phase: Where: `connect`, `pool`, `proxy`, `send`, `first_byte`, `idle`, `body`, `deadline`, `closed`.
    """

    def __init__(self, message: str, *, phase: str) -> None:
        super().__init__(message)
        self.phase = phase
        delivered = phase not in {"connect", "pool", "proxy"}
        self.failure = Failure.OUTCOME_UNKNOWN if delivered else Failure.NEVER_DELIVERED
        if phase in {"closed", "deadline"}:
            self.failure = Failure.FINAL


class TimedOut(ConnectionFailed):
    """One of the clocks ran out.

    Attributes:
        clock: Which: `connect`, `pool`, `first_byte`, `idle` or `deadline`.
        seconds: What it was set to.
    """

    def __init__(self, message: str, *, clock: str, seconds: float | None = None) -> None:
        super().__init__(message, phase=clock)
        self.clock = clock
        self.seconds = seconds


class StreamInterrupted(HeadgateError):
    """A stream broke after its first event. Nothing is run again behind your back.

    Attributes:
        partial: The text that came.
        last_event_id: Where a resume would go on, if the stream was resumable.
        code: The stable name of the case, if the gateway named one.
    """

    failure = Failure.INTERRUPTED

    def __init__(self, message: str, *, partial: str = "", last_event_id: str | None = None) -> None:
        super().__init__(message)
        self.partial = partial
        self.last_event_id = last_event_id
        self.code: str | None = None


class StatusError(HeadgateError):
    """The gateway answered with an error (RFC 9457).

    Attributes:
        status: The HTTP status.
        code: The stable name of the case: `budget_exhausted`, `model_not_found`, ...
        type: The problem type's URI.
        title: The problem's title.
        detail: What exactly.
        instance: Which occurrence.
        path: The field at fault: `messages[1].content`.
        problem: The whole document, unknown members included.
        headers: Of the answer; names in lower case.
    """

    def __init__(
        self, message: str, *, status: int, problem: Mapping[str, Any], headers: Mapping[str, str]
    ) -> None:
        super().__init__(message)
        self.status = status
        self.problem = problem
        self.headers = dict(headers)
        self.code = _text(problem, "code")
        self.type = _text(problem, "type")
        self.title = _text(problem, "title")
        self.detail = _text(problem, "detail")
        self.instance = _text(problem, "instance")
        self.path = _text(problem, "path") or _text(problem, "param")
        self.request_id = headers.get("x-request-id") or _text(problem, "request_id")


class InvalidRequest(StatusError):
    """The request is at fault."""


class IdempotencyMismatch(InvalidRequest):
    """The idempotency key was used with another body."""


class Unauthenticated(StatusError):
    """No, a bad or a revoked key."""


class Forbidden(StatusError):
    """The key may not do this."""


class NotFound(StatusError):
    """No such model, record or route."""


class TooLarge(StatusError):
    """The body is larger than the gateway takes."""


class QuotaExceeded(StatusError):
    """A hard budget or a credit is spent, or this one request is more than what is left. Never retried.

    Attributes:
        scope: Whose: `key`, `project`, `organization`.
        limit: The limit.
        spent: Captured in its window.
        held: Held in its window by requests in flight.
        resets_at: When the window ends, None for totals.
        largest_max_tokens: For `request_exceeds_budget`: the largest `max_tokens` that fits.
    """

    failure = Failure.MONEY

    def __init__(
        self, message: str, *, status: int, problem: Mapping[str, Any], headers: Mapping[str, str]
    ) -> None:
        super().__init__(message, status=status, problem=problem, headers=headers)
        self.scope = _text(problem, "scope")
        self.limit = _cost(problem.get("limit"))
        self.spent = _cost(problem.get("spent"))
        self.held = _cost(problem.get("held"))
        self.resets_at = _time(problem.get("resets_at"))
        self.largest_max_tokens = _whole(problem, "largest_max_tokens", "largest_output", "max_tokens")


class Conflict(StatusError):
    """The request meets another one."""


class IdempotencyInProgress(Conflict):
    """The same key runs right now; wait and the stored answer comes."""

    failure = Failure.KEY_IN_FLIGHT


class IdempotencyConsumed(Conflict):
    """The key was billed and its answer is not kept any more.

    Attributes:
        record: The id of the usage record: `client.usage.retrieve(error.record)`.
    """

    def __init__(
        self, message: str, *, status: int, problem: Mapping[str, Any], headers: Mapping[str, str]
    ) -> None:
        super().__init__(message, status=status, problem=problem, headers=headers)
        self.record = _text(problem, "record_id") or _text(problem, "record")


class StreamLost(Conflict, StreamInterrupted):
    """A stream was to be resumed and the worker that kept it has gone.

    Attributes:
        record: The id of the usage record with the bill so far.
    """

    failure = Failure.FINAL

    def __init__(
        self, message: str, *, status: int, problem: Mapping[str, Any], headers: Mapping[str, str]
    ) -> None:
        StatusError.__init__(self, message, status=status, problem=problem, headers=headers)
        self.record = _text(problem, "record_id") or _text(problem, "record")
        self.partial = ""
        self.last_event_id: str | None = None
        self.cost = _cost(problem.get("cost"))


class RateLimited(StatusError):
    """A limit on requests, tokens or concurrency; `retry_after` says when the same request fits."""

    failure = Failure.REFUSED


class BudgetInFlight(RateLimited):
    """The budget is full only because of requests in flight; their end may make room."""


class ModelOverloaded(StatusError):
    """Queue full, model loading, ledger away."""

    failure = Failure.REFUSED


class BackendFailed(StatusError):
    """The model's backend failed or was too slow."""

    failure = Failure.OUTCOME_UNKNOWN


class ServerError(StatusError):
    """The gateway itself failed."""

    failure = Failure.OUTCOME_UNKNOWN


class BudgetExceeded(HeadgateError):
    """The budget of `client.budget(...)` says no: before sending, or by cutting a stream that would cross it.

    Attributes:
        limit: The budget, in its own unit.
        spent: Spent under it so far.
        reserved: Reserved for calls in flight.
        needed: What this call could have cost at most, None if unknown.
        partial: For a stream that was cut: the text that came.
    """

    failure = Failure.MONEY

    def __init__(
        self,
        message: str,
        *,
        limit: object = None,
        spent: object = None,
        reserved: object = None,
        needed: object = None,
    ) -> None:
        super().__init__(message)
        self.limit = limit
        self.spent = spent
        self.reserved = reserved
        self.needed = needed
        self.partial = ""


class ResponseShapeError(HeadgateError):
    """The answer is not what the contract says.

    Attributes:
        path: Where it differs: `choices[0].message`.
        body: The first 2,000 bytes of the answer.
    """

    def __init__(self, message: str, *, path: str, body: bytes = b"") -> None:
        super().__init__(message)
        self.path = path
        self.body = body[:2000]


def _text(problem: Mapping[str, Any], name: str) -> str | None:
    value = problem.get(name)
    return value if isinstance(value, str) else None


def _whole(problem: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = problem.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _cost(value: object) -> Cost | None:
    from headgate._core.money import Cost

    return Cost.parse(value)


def _time(value: object) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        return None
