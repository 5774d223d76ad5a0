# Generated from headgate/_async/layers.py by sdk/scripts/unasync.py. Do not edit.
"""What a user puts around each attempt: middleware, as a transport around the transport."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from headgate._sync import colour
from headgate._transport.types import Received, Request, Streaming, Transport

Send = Callable[[Request], Received | Streaming]
"""Sends one attempt; what comes back has `status` and `headers`, errors of the gateway included. It raises
`ConnectionFailed` or `TimedOut` where there is no answer."""

Middleware = Callable[[Request, Send], Received | Streaming]
"""Runs once per attempt, inside the retries: may change the request, look at the answer, or answer itself. A
whole answer is a `Received`, a stream is a `Streaming`."""


class Layers:
    """A transport with middleware around it, the first outermost."""

    def __init__(self, inner: Transport, middleware: Sequence[Middleware]) -> None:
        self._inner = inner
        fetch: Send = inner.fetch
        start: Send = inner.open
        for layer in reversed(middleware):
            colour.check(layer)
            fetch, start = _around(layer, fetch), _around(layer, start)
        self._fetch, self._start = fetch, start

    def fetch(self, request: Request) -> Received:
        """Send and return the whole answer."""
        answer = self._fetch(request)
        if not isinstance(answer, Received):
            raise TypeError("a middleware answered a whole call with a stream; expected a Received")
        return answer

    def open(self, request: Request) -> Streaming:
        """Send and return when the headers have come."""
        answer = self._start(request)
        if isinstance(answer, Received):
            raise TypeError("a middleware answered a stream with a whole answer; expected a Streaming")
        return answer

    def close(self) -> None:
        """Close every connection."""
        self._inner.close()


def _around(layer: Middleware, send: Send) -> Send:
    return lambda request: layer(request, send)
