"""What a backend may raise. None carries an HTTP status: what a failure means on a wire is decided there.

BackendError
├── InvalidRequest      the caller's fault; names the field and what was expected
├── Overloaded          a bounded queue is full; try again after `retry_after_s`
├── NotReady            the model is loading, failed or was unloaded
├── LoadFailed          a model could not be loaded; names file and cause
├── UpstreamFailed      a remote provider or an engine broke
├── UpstreamTimeout     it took too long
└── Cancelled           the caller went away

Imports nothing of ours.
"""

from __future__ import annotations


class BackendError(Exception):
    """Anything a backend may raise on purpose.

    Attributes:
        code: The stable name of the failure, as it crosses process borders.
        inner: What only the operator's log is told: an address, the system's own words.
    """

    code = "backend_error"
    inner = ""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidRequest(BackendError):
    """The request itself is at fault.

    Attributes:
        path: Where, in the caller's terms: `messages[2].content`, `input[0]`.
    """

    code = "invalid_request"

    def __init__(self, message: str, *, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path


class Overloaded(BackendError):
    """A bounded queue is full.

    Attributes:
        retry_after_s: Seconds until room is expected, from the measured service rate.
    """

    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotReady(BackendError):
    """The model is loading, failed, or was unloaded.

    Attributes:
        retry_after_s: Seconds until another try makes sense.
    """

    code = "model_loading"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class LoadFailed(BackendError):
    """A model could not be loaded; the message names the file and the cause."""

    code = "load_failed"


class UpstreamFailed(BackendError):
    """A remote provider or an engine failed.

    Attributes:
        retryable: Whether another target may be tried with the same request.
        upstream_status: The provider's own status, for the record; None when there was no answer.
    """

    code = "upstream_error"

    def __init__(
        self, message: str, *, retryable: bool = True, upstream_status: int | None = None, inner: str = ""
    ) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.upstream_status = upstream_status
        self.inner = inner


class UpstreamTimeout(BackendError):
    """A remote provider or an engine took too long."""

    code = "upstream_timeout"

    def __init__(self, message: str, *, inner: str = "") -> None:
        super().__init__(message)
        self.inner = inner


class Cancelled(BackendError):
    """The caller went away, or the request was cut."""

    code = "cancelled"
