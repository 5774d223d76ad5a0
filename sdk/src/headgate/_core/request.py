"""From a caller's parameters to the bytes, headers and clocks of an attempt; the header names we send live here.

Imports the core, the transport's types and pydantic-core's JSON writer.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, urlencode, urlsplit

from pydantic_core import PydanticSerializationError, to_json

from headgate._core import outcome
from headgate._core.clock import Clock
from headgate._core.pacing import Pacer
from headgate._core.retry import RetryPolicy, Rules
from headgate._transport.types import Received, Request, Timeout
from headgate._version import __version__
from headgate.errors import Attempt, ConfigurationError, HeadgateError, StatusError, TimedOut

if TYPE_CHECKING:
    from headgate._core.observing import Observer

DEFAULT_BASE_URL = "http://127.0.0.1:8080"
_NO_DEADLINE = float("inf")
_TAGS_AT_MOST = 16
_AT_ONCE = 256
_drawn: list[str] = []
# A forked child must not hand out its parent's keys; where processes do not fork, there is nothing to do.
getattr(os, "register_at_fork", dict)(after_in_child=_drawn.clear)
_TAG_SAFE = "!#$&'()*+-./:;<>?@[]^_`{|}~"
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*").fullmatch


def normalise_base_url(value: str) -> str:
    """An address without a trailing `/v1` or slash.

    Raises:
        ConfigurationError: It is no http or https address.
    """
    url = value.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        sound = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound or re.search(r"[\s?#]", url):
        raise ConfigurationError(f"base_url: {value!r} is not an http:// or https:// address")
    return url.removesuffix("/v1").rstrip("/")


def new_key() -> str:
    """A fresh idempotency key: 128 random bits of the operating system's.

    They are drawn many at a time, because the system call costs more than all else that a call does here.
    """
    try:
        return _drawn.pop()
    except IndexError:
        digits = os.urandom(16 * _AT_ONCE).hex()
        _drawn.extend(digits[at : at + 32] for at in range(32, len(digits), 32))
        return digits[:32]


def encode_json(document: Mapping[str, Any]) -> bytes:
    """A document as compact JSON.

    Raises:
        TypeError: It holds something that JSON has no form for.
    """
    try:
        return to_json(document)
    except PydanticSerializationError as error:
        raise TypeError(f"the request cannot be written as JSON: {error}") from error


def checked_headers(given: Mapping[str, str], where: str) -> dict[str, str]:
    """Headers that a caller gave, names in lower case.

    Raises:
        ValueError: One cannot be sent; the message names it, and not its value, which may be a secret.
    """
    for name, value in given.items():
        if not _HEADER_NAME(name) or not isinstance(cast("object", value), str) or not _HEADER_VALUE(value):
            raise ValueError(f"{where}: {name!r} is no header of printable ASCII text")
    return {name.lower(): value for name, value in given.items()}


def segment(name: str, value: str) -> str:
    """An id as a part of a path.

    Raises:
        ValueError: It is empty, which would ask for the list instead.
    """
    if not value:
        raise ValueError(f"{name}: empty")
    return quote(value, safe="")


def encode_tags(tags: Mapping[str, str]) -> str:
    """Tags as one header: `key=value` pairs with commas between, percent-encoded where they would mislead.

    Raises:
        ValueError: More than 16, or one that is no text.
    """
    if len(tags) > _TAGS_AT_MOST:
        raise ValueError(f"tags: {len(tags)} given, at most {_TAGS_AT_MOST} are kept")
    for name, value in tags.items():
        if not isinstance(cast("object", value), str):
            raise ValueError(f"tags: {name!r} is {value!r}; expected text")  # noqa: TRY004  as for other values
    return ", ".join(f"{quote(k, safe=_TAG_SAFE)}={quote(v, safe=_TAG_SAFE)}" for k, v in tags.items())


def encode_query(query: Mapping[str, Any]) -> str:
    """A query string with its question mark, without the Nones; times as ISO 8601, lists with commas.

    A time without a zone is local, as it is everywhere in Python.
    """
    pairs = {name: _query_text(value) for name, value in query.items() if value is not None}
    return f"?{urlencode(pairs)}" if pairs else ""


def _query_text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, cast("list[Any]", value)))
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return str(value.isoformat()) if hasattr(value, "isoformat") else str(value)


def split(
    params: Mapping[str, Any], fields: frozenset[str], options: frozenset[str], call: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters apart: the body's fields (without Nones) and what the call overrides.

    Raises:
        TypeError: A name is unknown; the message names the nearest one that is known.
    """
    body: dict[str, Any] = {}
    given: dict[str, Any] = {}
    for name, value in params.items():
        if name in fields:
            if value is not None:
                body[name] = value
        elif name in options:
            given[name] = value
        else:
            import difflib  # for mistakes only

            near = difflib.get_close_matches(name, fields | options, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; extra_body takes fields that we do not know"
            raise TypeError(f"{call}: unexpected parameter {name!r}{hint}")
    if extra := given.get("extra_body"):
        body.update(extra)
    return body, given


def require(body: Mapping[str, Any], call: str, *names: str) -> None:
    """Check that parameters are there.

    Raises:
        TypeError: One is missing.
    """
    for name in names:
        if name not in body:
            raise TypeError(f"{call}: {name!r} is missing")


def allowed(options: Mapping[str, Any], timeout: Timeout) -> float:
    """Seconds that a call may take, all in all; infinite without a deadline.

    Raises:
        ValueError: The deadline is no number.
    """
    total = options.get("deadline", timeout.total)
    if total is None:
        return _NO_DEADLINE
    if not isinstance(total, int | float) or total != total:
        raise ValueError(f"deadline: {total!r} is not a number of seconds")
    return total


class Session:
    """What a client knows, whatever its colour: address, key, defaults, and what it has learned of the server.

    Attributes:
        replays: Whether the server replays answers by idempotency key, so that a try whose outcome is unknown may
            be repeated. Believed until an answer comes that is not a Headgate's.
    """

    def __init__(
        self,
        *,
        base_url: str,
        api_key: str,
        timeout: Timeout,
        policy: RetryPolicy,
        clock: Clock,
        headers: Mapping[str, str],
        tags: Mapping[str, str],
        observers: Sequence[Observer] = (),
        pacer: Pacer | None = None,
    ) -> None:
        self.base_url = base_url
        self.timeout = timeout
        self.policy = policy
        self.clock = clock
        self.tags = dict(tags)
        encode_tags(self.tags)  # what cannot be sent is said now
        self.observers = tuple(observers)
        self.pacer = pacer
        self.replays = True
        self.extra_headers = checked_headers(headers, "default_headers")
        self.api_key = api_key
        self.headers = {
            "authorization": f"Bearer {api_key}",
            "user-agent": f"headgate-python/{__version__}",
            "accept": "application/json",
            **self.extra_headers,
        }

    def clocks(self, options: Mapping[str, Any]) -> Timeout:
        """The clocks of a call: its own, or the session's."""
        if "timeout" not in options:
            return self.timeout
        return Timeout.of(cast("Timeout | float | None", options["timeout"]), self.timeout)

    def learn(self, headers: Mapping[str, str]) -> None:
        """Take note of what a successful answer says about the server."""
        self.replays = "headgate-version" in headers
        self.feel(headers)

    def feel(self, headers: Mapping[str, str]) -> None:
        """Take note of what any answer says about limits."""
        if self.pacer is not None:
            self.pacer.learn(headers, self.clock.monotonic())


class Call:
    """One logical call: its bytes and key, minted once, its deadline, and the tries made so far.

    `repeatable` is False where the server keeps no answers by key (making a key, granting credit): then a try
    whose outcome is unknown is not repeated.
    """

    __slots__ = (
        "attempts", "body", "deadline", "headers", "key", "method", "model", "policy", "repeatable", "session",
        "started", "timeout", "url",
    )  # fmt: skip

    def __init__(
        self,
        session: Session,
        method: str,
        path: str,
        *,
        body: bytes | None,
        options: Mapping[str, Any],
        model: str | None = None,
        headers: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self.session = session
        self.method = method
        self.url = session.base_url + path
        self.body = body
        self.model = model
        self.repeatable = True
        self.attempts: list[Attempt] = []
        self.started = session.clock.monotonic()
        self._clocks(options)
        self.headers = dict(session.headers)
        self.key: str | None = None
        if body is not None:
            self.headers["content-type"] = "application/json"
        if method == "POST":
            if own := options.get("idempotency_key"):
                checked_headers({"idempotency-key": own}, "idempotency_key")
            self.key = self.headers["idempotency-key"] = own or new_key()
        self._tags(options, tags)
        if headers:
            self.headers.update(headers)
        if extra := options.get("extra_headers"):
            self.headers.update(checked_headers(extra, "extra_headers"))

    def _clocks(self, options: Mapping[str, Any]) -> None:
        session = self.session
        self.timeout = session.clocks(options)
        self.deadline = self.started + allowed(options, self.timeout)
        self.policy = session.policy
        if (retries := options.get("max_retries")) is not None:
            self.policy = RetryPolicy(
                retries, session.policy.base, session.policy.cap, session.policy.longest_pace
            )

    def _tags(self, options: Mapping[str, Any], scoped: Mapping[str, str] | None) -> None:
        own = options.get("tags")
        if self.session.tags or scoped or own:
            self.headers["headgate-tags"] = encode_tags({**self.session.tags, **(scoped or {}), **(own or {})})

    def remaining(self) -> float:
        """Seconds until the deadline; infinite without one."""
        return self.deadline - self.session.clock.monotonic()

    def pace(self) -> float:
        """Seconds to wait before the next attempt, so that it meets its limit and does not hit it."""
        pacer = self.session.pacer
        if pacer is None or self.method != "POST":
            return 0.0
        return pacer.take(self.session.clock.monotonic(), self.remaining())

    def rules(self) -> Rules:
        """The retry policy bound to this call."""
        return Rules(
            self.policy,
            self.remaining,
            self.session.clock.roll,
            lambda: self.method != "POST" or (self.repeatable and self.session.replays),
        )

    def request(self, extra: Mapping[str, str] | None = None) -> Request:
        """The next attempt: same key, same bytes, clocks clipped to what is left.

        Raises:
            TimedOut: Nothing is left.
        """
        remaining = self.remaining()
        if remaining <= 0:
            raise TimedOut(f"{self.url}: the deadline passed", clock="deadline")
        headers = self.headers
        if extra or self.attempts or remaining != _NO_DEADLINE:
            headers = dict(headers)
            if extra:
                headers.update(extra)
            if self.attempts:
                headers["headgate-attempt"] = str(len(self.attempts) + 1)
            if remaining != _NO_DEADLINE:
                headers["headgate-deadline-ms"] = str(max(1, int(remaining * 1000)))
        timeout = self.timeout
        return Request(
            self.method,
            self.url,
            headers,
            self.body,
            min(timeout.connect, remaining),
            min(timeout.first_byte, remaining),
            min(timeout.idle, remaining),
            remaining,
        )

    def accept(self, received: Received, begun: float) -> Received:
        """Take an answer if it is a success.

        Raises:
            StatusError: It is none; typed by its code.
        """
        if not outcome.is_success(received.status):
            raise self.refusal(received)
        self.session.learn(received.headers)
        self.attempts.append(Attempt(received.status, None, self.session.clock.monotonic() - begun))
        return received

    def refusal(self, received: Received) -> StatusError:
        """The typed error of an answer that is not a success."""
        self.session.feel(received.headers)
        return outcome.error_for(received.status, received.headers, received.body, now=self.session.clock.utc())

    def failed(self, error: HeadgateError, begun: float) -> None:
        """Book a failed attempt; the error carries all tries so far."""
        status = error.status if isinstance(error, StatusError) else None
        elapsed = self.session.clock.monotonic() - begun
        self.attempts.append(Attempt(status, type(error).__name__, elapsed))
        error.attempts = tuple(self.attempts)

    def paused(self, seconds: float) -> None:
        """Book the pause after the last attempt."""
        last = self.attempts[-1]
        self.attempts[-1] = Attempt(last.status, last.error, last.elapsed, seconds)
