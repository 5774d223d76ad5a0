"""Record the answers of a real gateway once, and play them back in tests: no sockets, no key, no cost.

    cassette = Cassette("tests/talk.jsonl")
    client = Headgate(middleware=[cassette.record])   # once; AsyncHeadgate takes cassette.record_async
    client = cassette.client()                        # ever after; or cassette.async_client()

What is kept is the answers and a digest of each request: neither keys nor headers of a request are written.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode, b64encode
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from headgate._transport.types import AsyncStreaming, Received, Request, Streaming
from headgate.errors import OfflineError
from headgate.testing.gateway import Reply

if TYPE_CHECKING:
    from headgate._async.client import AsyncHeadgate
    from headgate._async.layers import AsyncSend
    from headgate._sync.client import Headgate
    from headgate._sync.layers import Send


class Cassette:
    """A file of answers, one JSON document a line.

    Args:
        path: The file. Recording appends to it: delete it to record anew.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._left: dict[str, deque[dict[str, Any]]] | None = None

    def record(self, request: Request, send: Send) -> Received | Streaming:
        """Middleware of `Headgate` that writes down every answer."""
        answer = send(request)
        if isinstance(answer, Received):
            self.keep(request, answer, [answer.body])
            return answer
        return _Recording(self, request, answer)

    async def record_async(self, request: Request, send: AsyncSend) -> Received | AsyncStreaming:
        """Middleware of `AsyncHeadgate` that writes down every answer."""
        answer = await send(request)
        if isinstance(answer, Received):
            self.keep(request, answer, [answer.body])
            return answer
        return _AsyncRecording(self, request, answer)

    def client(self, **options: Any) -> Headgate:
        """A sync client that hears what was recorded."""
        from headgate._sync.client import Headgate
        from headgate.testing.transports import FakeTransport

        options.setdefault("api_key", "hg_cassette")
        return Headgate(**options, transport=FakeTransport(self))

    def async_client(self, **options: Any) -> AsyncHeadgate:
        """An async client that hears what was recorded."""
        from headgate._async.client import AsyncHeadgate
        from headgate.testing.transports import AsyncFakeTransport

        options.setdefault("api_key", "hg_cassette")
        return AsyncHeadgate(**options, transport=AsyncFakeTransport(self))

    def handle(self, request: Request) -> Reply:
        """The next answer that was recorded for a request.

        Raises:
            OfflineError: There is none left; the message names the request.
        """
        if self._left is None:
            self._left = defaultdict(deque)
            for line in self._path.read_text().splitlines():
                row = json.loads(line)
                self._left[row["request"]].append(row)
        name = _name(request)
        if not self._left[name]:
            raise OfflineError(f"{self._path}: nothing (more) was recorded for {name}")
        row = self._left[name].popleft()
        return Reply(row["status"], row["headers"], [b64decode(piece) for piece in row["body"]])

    def keep(self, request: Request, answer: Received | Streaming | AsyncStreaming, body: list[bytes]) -> None:
        """Write down an answer."""
        row = {
            "request": _name(request),
            "status": answer.status,
            "headers": dict(answer.headers),
            "body": [b64encode(piece).decode() for piece in body],
        }
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _name(request: Request) -> str:
    """A request without what changes from one run to the next: host, key, idempotency key."""
    split = urlsplit(request.url)
    path = split.path + (f"?{split.query}" if split.query else "")
    return f"{request.method} {path} {hashlib.sha256(request.body or b'').hexdigest()[:16]}"


class _Recording:
    """A stream that is written down as it is read; sync."""

    def __init__(self, cassette: Cassette, request: Request, inner: Streaming) -> None:
        self._cassette, self._request, self._inner = cassette, request, inner
        self._pieces: list[bytes] = []
        self.status: int = inner.status
        self.headers: Mapping[str, str] = inner.headers

    def chunks(self) -> Generator[bytes, None, None]:
        for piece in self._inner.chunks():
            self._pieces.append(piece)
            yield piece

    def read(self) -> bytes:
        return b"".join(self.chunks())

    def close(self) -> None:
        self._inner.close()
        pieces, self._pieces = self._pieces, []
        if pieces:
            self._cassette.keep(self._request, self._inner, pieces)


class _AsyncRecording:
    """A stream that is written down as it is read; async."""

    def __init__(self, cassette: Cassette, request: Request, inner: AsyncStreaming) -> None:
        self._cassette, self._request, self._inner = cassette, request, inner
        self._pieces: list[bytes] = []
        self.status: int = inner.status
        self.headers: Mapping[str, str] = inner.headers

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        async for piece in self._inner.chunks():
            self._pieces.append(piece)
            yield piece

    async def read(self) -> bytes:
        return b"".join([piece async for piece in self.chunks()])

    async def close(self) -> None:
        await self._inner.close()
        pieces, self._pieces = self._pieces, []
        if pieces:
            self._cassette.keep(self._request, self._inner, pieces)
