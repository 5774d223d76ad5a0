"""What every answer has: usage, cost, the facts of its headers. Imports pydantic and the core's money."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from pydantic import BaseModel, ConfigDict, PrivateAttr

from headgate._core.money import Cost
from headgate._transport.types import Timeout
from headgate.errors import Attempt


class RequestOptions(TypedDict, total=False):
    """What any single call may override.

    Attributes:
        timeout: Other clocks; a number is the call's deadline.
        deadline: Seconds that the whole call may take: attempts and pauses together.
        max_retries: Tries after the first.
        idempotency_key: Your own key; one is made when you give none.
        extra_headers: Headers to add.
        extra_body: Fields to add to the body, or to put over it.
        tags: Pairs that the usage record keeps; added to the client's and the meters'.
    """

    timeout: Timeout | float | None
    deadline: float | None
    max_retries: int
    idempotency_key: str
    extra_headers: Mapping[str, str]
    extra_body: Mapping[str, Any]
    tags: Mapping[str, str]


OPTION_NAMES = frozenset(RequestOptions.__annotations__)


class Wire(BaseModel):
    """A part of an answer: what is known is checked, what is unknown is kept."""

    model_config = ConfigDict(extra="allow", frozen=False, protected_namespaces=())


class PromptTokensDetails(Wire):
    """The prompt's tokens by kind."""

    cached_tokens: int | None = None
    audio_tokens: int | None = None


class CompletionTokensDetails(Wire):
    """The completion's tokens by kind."""

    reasoning_tokens: int | None = None
    audio_tokens: int | None = None


class Usage(Wire):
    """What a request consumed; the shape of OpenAI's, with the cost beside it."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None
    cost: str | None = None

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that came from a cache."""
        details = self.prompt_tokens_details
        return (details.cached_tokens or 0) if details else 0


@dataclass(frozen=True, slots=True)
class RateLimit:
    """One limit as the gateway's headers show it."""

    limit: int | None
    remaining: int | None
    reset: str | None


@dataclass(slots=True)
class Raw:
    """The answer as it came: one class for both colours.

    Attributes:
        status: HTTP status.
        headers: Names in lower case.
        body: The bytes; empty for streams and for answers folded from several.
        attempts: Every try of the call, the successful one last.
        idempotency_key: The key that went with it.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    attempts: Sequence[Attempt]
    idempotency_key: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """An answer can be copied and pickled, whatever the transport's headers are."""
        parts = self.status, dict(self.headers), self.body, tuple(self.attempts), self.idempotency_key
        return Raw, parts


_NO_RAW = Raw(0, {}, b"", ())


class Answer(Wire):
    """An answer of the gateway."""

    # A factory, because a plain default is deep-copied for every answer.
    _raw: Raw = PrivateAttr(default_factory=lambda: _NO_RAW)

    @property
    def raw(self) -> Raw:
        """Status, headers, bytes and attempts."""
        return self._raw

    def attach(self, raw: Raw) -> None:
        """Give the answer the facts that it came with; the client does this."""
        self._raw = raw

    @property
    def request_id(self) -> str | None:
        """The gateway's id of the request: `client.usage.retrieve(...)` finds its record."""
        return self._raw.headers.get("x-request-id")

    @property
    def cost(self) -> Cost | None:
        """What the request cost; None where the gateway does not say."""
        headers = self._raw.headers
        usage = getattr(self, "usage", None)
        value = getattr(usage, "cost", None)
        if value is None:
            value = headers.get("headgate-cost")
        return Cost.parse(value, currency=headers.get("headgate-currency"), price=headers.get("headgate-price"))

    @property
    def attempts(self) -> Sequence[Attempt]:
        """Every try of the call, the successful one last."""
        return self._raw.attempts

    @property
    def idempotency_key(self) -> str | None:
        """The key that went with the call."""
        return self._raw.idempotency_key

    @property
    def replayed(self) -> bool:
        """Whether this is the stored answer of an earlier try, free of charge."""
        return self._raw.headers.get("idempotency-replayed", "").lower() == "true"

    @property
    def backend(self) -> str | None:
        """The backend that answered."""
        return self._raw.headers.get("headgate-backend")

    @property
    def fingerprint(self) -> str | None:
        """Names what made an embedding: answers with equal fingerprints may share an index."""
        return self._raw.headers.get("headgate-fingerprint")

    @property
    def limits(self) -> Mapping[str, RateLimit]:
        """State of the rate limits after this request: `requests` and `tokens`."""
        headers = self._raw.headers
        found: dict[str, RateLimit] = {}
        for kind in ("requests", "tokens"):
            limit = headers.get(f"x-ratelimit-limit-{kind}")
            if limit is not None:
                remaining = headers.get(f"x-ratelimit-remaining-{kind}")
                found[kind] = RateLimit(_int(limit), _int(remaining), headers.get(f"x-ratelimit-reset-{kind}"))
        return found


def _int(value: str | None) -> int | None:
    return int(value) if value is not None and value.isascii() and value.isdigit() else None
