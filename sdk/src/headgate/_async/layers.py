"""What a user puts around each attempt: middleware, as a transport around the transport."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from headgate._async import colour
from headgate._transport.types import AsyncStreaming, AsyncTransport, Received, Request

AsyncSend = Callable[[Request], Awaitable[Received | AsyncStreaming]]
"""Sends one attempt; what comes back has `status` and `headers`, errors of the gateway included. It raises
`ConnectionFailed` or `TimedOut` where there is no answer."""

AsyncMiddleware = Callable[[Request, AsyncSend], Awaitable[Received | AsyncStreaming]]
"""Runs once per attempt, inside the retries: may change the request, look at the answer, or answer itself. A
whole answer is a `Received`, a stream is a `Streaming`."""


class AsyncLayers:
    """A transport with middleware around it, the first outermost."""

    def __init__(self, inner: AsyncTransport, middleware: Sequence[AsyncMiddleware]) -> None:
        self._inner = inner
        fetch: AsyncSend = inner.fetch
        start: AsyncSend = inner.open
        for layer in reversed(middleware):
            colour.check(layer)
            fetch, start = _around(layer, fetch), _around(layer, start)
        self._fetch, self._start = fetch, start

    async def fetch(self, request: Request) -> Received:
        """Send and return the whole answer."""
        answer = await self._fetch(request)
        if not isinstance(answer, Received):
            raise TypeError("a middleware answered a whole call with a stream; expected a Received")
        return answer

    async def open(self, request: Request) -> AsyncStreaming:
        """Send and return when the headers have come."""
        answer = await self._start(request)
        if isinstance(answer, Received):
            raise TypeError("a middleware answered a stream with a whole answer; expected a Streaming")
        return answer

    async def close(self) -> None:
        """Close every connection."""
        await self._inner.close()


def _around(layer: AsyncMiddleware, send: AsyncSend) -> AsyncSend:
    return lambda request: layer(request, send)
