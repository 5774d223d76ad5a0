"""The types between the client and whatever moves its bytes. Imports the standard library only.

A transport of your own implements `Transport` or `AsyncTransport` and is handed to the client as `transport=`.
It raises `ConnectionFailed` or `TimedOut` of `headgate.errors` and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Generator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, cast


@dataclass(frozen=True, slots=True)
class Timeout:
    """Three clocks and one budget, in seconds.

    Attributes:
        connect: To reach the gateway.
        first_byte: From sending to the first byte of the answer.
        idle: The longest silence between bytes after that.
        total: The deadline of a whole call: attempts and pauses together. None sets none.
    """

    connect: float = 5.0
    first_byte: float = 120.0
    idle: float = 60.0
    total: float | None = 600.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("connect", "first_byte", "idle", "total"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and value > 0):
                raise ValueError(f"timeout.{name}: {value!r} is not a positive number of seconds")

    @classmethod
    def of(cls, value: Timeout | float | None, base: Timeout) -> Timeout:
        """Read what a caller gave: a number is the deadline, None is no deadline."""
        if isinstance(value, Timeout):
            return value
        return replace(base, total=value)


DEFAULT_TIMEOUT = Timeout()


@dataclass(frozen=True, slots=True)
class Limits:
    """How many connections a client may have.

    Attributes:
        connections: At most open at once; a request beyond waits for one.
        keepalive: At most kept idle.
        keepalive_s: Seconds that an idle one is kept.
        pool_wait_s: Seconds to wait for a free one.
    """

    connections: int = 1000
    keepalive: int = 100
    keepalive_s: float = 30.0
    pool_wait_s: float = 10.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least in (("connections", 1), ("keepalive", 0)):
            if not isinstance(value := getattr(self, name), int) or value < least:
                raise ValueError(f"limits.{name}: {value!r} is not a whole number from {least} on")
        for name in ("keepalive_s", "pool_wait_s"):
            if not isinstance(value := getattr(self, name), int | float) or not value >= 0:
                raise ValueError(f"limits.{name}: {value!r} is not a number of seconds")


@dataclass(frozen=True, slots=True)
class Wiring:
    """How to reach the gateway, apart from its address.

    Attributes:
        limits: The pool.
        http2: Offer HTTP/2.
        proxy: `http://user:password@host:port`; None takes HTTP_PROXY, HTTPS_PROXY, NO_PROXY, "" takes none.
        ca: A PEM file of authorities to trust: with httpx instead of the default ones, with pyreqwest besides.
        verify: False trusts anyone: for experiments only.
        uds: A Unix socket to connect to instead of the address's host.
    """

    limits: Limits = Limits()
    http2: bool = False
    proxy: str | None = field(default=None, repr=False)
    ca: str | Path | None = None
    verify: bool = True
    uds: str | None = None

    def __post_init__(self) -> None:
        """Check what can be known without asking anybody; a proxy's address may hold a password."""
        if not isinstance(cast("object", self.limits), Limits):
            raise ValueError(f"wiring.limits: {self.limits!r} is no Limits")  # noqa: TRY004  as for other values
        if self.proxy and not re.match(r"(https?|socks[45][ah]?)://[^/\s]", self.proxy):
            raise ValueError("wiring.proxy: is no address such as http://user:password@host:port")


@dataclass(slots=True)
class Request:
    """What goes out in one attempt.

    Attributes:
        method: HTTP method.
        url: Absolute.
        headers: Names in lower case. They hold the key, and are left out where a request is shown.
        body: The bytes, or None.
        connect: Seconds, already clipped to the deadline, as are the next two.
        first_byte: Seconds.
        idle: Seconds.
        remaining: Seconds until the call's deadline; infinity without one.
    """

    method: str
    url: str
    headers: dict[str, str] = field(repr=False)
    body: bytes | None
    connect: float
    first_byte: float
    idle: float
    remaining: float


@dataclass(slots=True)
class Received:
    """A whole answer. `headers` has names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Streaming(Protocol):
    """An answer whose body is still coming."""

    @property
    def status(self) -> int:
        """HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Names in lower case."""
        ...

    def chunks(self) -> Generator[bytes, None, None]:
        """The body as it arrives, decompressed."""
        ...

    def read(self) -> bytes:
        """The rest of the body."""
        ...

    def close(self) -> None:
        """Give the connection back, or drop it if the body was not read to its end. Idempotent."""
        ...


class AsyncStreaming(Protocol):
    """An answer whose body is still coming."""

    @property
    def status(self) -> int:
        """HTTP status."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """Names in lower case."""
        ...

    def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body as it arrives, decompressed."""
        ...

    async def read(self) -> bytes:
        """The rest of the body."""
        ...

    async def close(self) -> None:
        """Give the connection back, or drop it if the body was not read to its end. Idempotent."""
        ...


class Transport(Protocol):
    """Moves bytes for a `Headgate` client. Used from many threads at once."""

    def fetch(self, request: Request) -> Received:
        """Send a request and return its whole answer."""
        ...

    def open(self, request: Request) -> Streaming:
        """Send a request and return when the headers have come."""
        ...

    def close(self) -> None:
        """Close every connection. Idempotent."""
        ...


class AsyncTransport(Protocol):
    """Moves bytes for an `AsyncHeadgate` client."""

    async def fetch(self, request: Request) -> Received:
        """Send a request and return its whole answer."""
        ...

    async def open(self, request: Request) -> AsyncStreaming:
        """Send a request and return when the headers have come."""
        ...

    async def close(self) -> None:
        """Close every connection. Idempotent."""
        ...
