"""What can go wrong, as data. A fault meets the next inference request and is then used up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Refuse:
    """The gateway refuses before any work.

    Attributes:
        status: HTTP status.
        code: The problem's code.
        retry_after: Seconds, sent as `retry-after-ms`.
        headers: More headers: `{"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}`.
        members: More members of the problem document.
    """

    status: int
    code: str | None = None
    retry_after: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    members: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Disconnect:
    """The connection fails: in phase `connect` nothing was delivered, in `first_byte` nobody knows."""

    phase: str = "connect"


@dataclass(frozen=True, slots=True)
class Stall:
    """Silence: before the first byte, or after so many events of a stream."""

    after: int | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection breaks after so many events; `tidy` ends the body without an error or an end mark."""

    after: int
    tidy: bool = False


@dataclass(frozen=True, slots=True)
class ErrorEvent:
    """The backend fails after so many events: an SSE `error` event, then the end."""

    after: int
    code: str = "upstream_error"


@dataclass(frozen=True, slots=True)
class FailAfterCommit:
    """The work is done and billed, and the answer is lost: a 5xx, or a broken connection for status None."""

    status: int | None = 500


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Every event of a resumable stream is delivered twice; without ids nobody could tell."""


@dataclass(frozen=True, slots=True)
class Split:
    """The body comes in pieces of so many bytes."""

    size: int = 1


@dataclass(frozen=True, slots=True)
class Garble:
    """A success whose body is not what the contract says."""

    body: bytes = b'{"unexpected": true}'
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class LoseOwner:
    """The worker that keeps the stream is gone: its resume is refused with `stream_lost`."""


Fault = Refuse | Disconnect | Stall | Cut | ErrorEvent | FailAfterCommit | Duplicate | Split | Garble | LoseOwner
