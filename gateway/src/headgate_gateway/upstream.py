"""The HTTP client that remote backends are lent: one connection pool per worker. The only user of pyreqwest.

What a provider sends is hostile: redirects are not followed (they would carry the credential elsewhere), bodies
are read to a limit, and no error text repeats an address with credentials in it. May import the plugin API.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from functools import cached_property
from typing import Final
from urllib.parse import urlsplit

from headgate_plugin_api import UpstreamFailed, UpstreamResponse, UpstreamTimeout
from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import BuilderError, PyreqwestError, RequestTimeoutError
from pyreqwest.request import StreamRequest
from pyreqwest.response import Response

CONNECT_S: Final = 10.0
"""Seconds to a connection. A provider that cannot be reached should cost little before the fallback."""

IDLE_S: Final = 60.0
"""Seconds that an idle connection is kept."""

IDLE_PER_HOST: Final = 256
"""Idle connections kept for one provider."""

READ_AHEAD: Final = 0
"""Bytes of a body that are read before `send` returns. Anything above 0 would hold back the start of a stream."""

CAUSE_LENGTH: Final = 200
"""Characters of a cause that an error repeats."""


class HttpUpstream:
    """The worker's HTTP client; implements the plugin API's `Upstream`."""

    def __init__(self, *, connect_s: float = CONNECT_S) -> None:
        self._connect_s = connect_s
        self._client: Client | None = None

    async def send(
        self, method: str, url: str, *, headers: Mapping[str, str], body: bytes | None, timeout_s: float
    ) -> UpstreamResponse:
        """See `Upstream`. `timeout_s` bounds the whole answer, its body included.

        Cancelled before the headers, pyreqwest (0.15) lets the call run on and drops the connection when the
        body begins, or at `timeout_s`. From the headers on, closing is seen by the provider at once.
        """
        try:
            builder = self._opened().request(method, url).headers(headers).timeout(timedelta(seconds=timeout_s))
            if body is not None:
                builder = builder.body_bytes(body)
            request = builder.streamed_read_buffer_limit(READ_AHEAD).build_streamed()
        except (BuilderError, ValueError) as error:
            # The text of these errors may repeat a header's value.
            raise UpstreamFailed(f"{_place(url)}: the request could not be built", retryable=False) from error
        asked = _cancellations()
        try:
            response = await request.__aenter__()
        except PyreqwestError as error:
            raise _mapped(error, url) from error
        opened = HttpResponse(request, response, url)
        if _cancellations() > asked:
            await opened.close()
            raise asyncio.CancelledError
        return opened

    async def close(self) -> None:
        """Close every connection."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()

    def _opened(self) -> Client:
        if self._client is None:
            self._client = (
                ClientBuilder()
                .follow_redirects(False)
                .referer(False)
                .connect_timeout(timedelta(seconds=self._connect_s))
                .pool_idle_timeout(timedelta(seconds=IDLE_S))
                .pool_max_idle_per_host(IDLE_PER_HOST)
                .tcp_nodelay(True)
                .user_agent("headgate")
                .build()
            )
        return self._client


class HttpResponse:
    """An answer whose body is still to come; implements the plugin API's `UpstreamResponse`."""

    def __init__(self, request: StreamRequest, response: Response, url: str) -> None:
        self._request = request
        self._response = response
        self._reader = response.body_reader
        self._url = url
        self._closed = False
        self.status: int = response.status

    @cached_property
    def headers(self) -> Mapping[str, str]:
        """See `UpstreamResponse`. Made when asked for: of an answer that went well nobody asks."""
        return {name.lower(): value for name, value in self._response.headers.items()}

    async def read(self, limit: int) -> bytes:
        """See `UpstreamResponse`."""
        body = bytearray()
        try:
            while (chunk := await self._read_chunk()) is not None:
                body += chunk
                if len(body) > limit:
                    raise UpstreamFailed(f"{_place(self._url)}: the answer is longer than {limit} bytes")
        finally:
            await self.close()
        return bytes(body)

    async def chunks(self) -> AsyncIterator[bytes]:
        """See `UpstreamResponse`."""
        while (chunk := await self._read_chunk()) is not None:
            yield chunk

    async def _read_chunk(self) -> bytes | None:
        """The next piece of the body, None after the last."""
        asked = _cancellations()
        try:
            chunk = await self._reader.read_chunk()
        except PyreqwestError as error:
            raise _mapped(error, self._url) from error
        if _cancellations() > asked:
            raise asyncio.CancelledError
        return None if chunk is None else bytes(chunk)

    async def close(self) -> None:
        """See `UpstreamResponse`."""
        if not self._closed:
            self._closed = True
            with contextlib.suppress(PyreqwestError):
                await self._request.__aexit__(None, None, None)


def _cancellations() -> int:
    """How often this task was asked to end.

    A cancellation that comes when the answer of pyreqwest (0.15) has just arrived is lost: its awaitables return
    the answer all the same. So it is looked for after each of them.
    """
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


def _mapped(error: PyreqwestError, url: str) -> UpstreamFailed | UpstreamTimeout:
    what = _place(url)
    if isinstance(error, RequestTimeoutError):
        return UpstreamTimeout(f"{what}: no answer in time")
    details = getattr(error, "details", None)
    causes = details.get("causes") if isinstance(details, dict) else None
    cause = causes[-1]["message"] if causes else type(error).__name__
    return UpstreamFailed(f"{what}: {cause[:CAUSE_LENGTH]}")


def _place(url: str) -> str:
    """Host and port of an address, without the credentials that may stand in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
