"""Sending answers as raw ASGI messages: what the hot path does instead of building response objects.

May import headers.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec
from litestar.types import HTTPResponseBodyEvent, HTTPResponseStartEvent, Message, Send

from headgate_gateway.http import headers
from headgate_gateway.http.headers import Pairs


async def send_document(send: Send, status: int, document: Any, pairs: Pairs) -> None:
    """Send a JSON document."""
    await send_bytes(send, status, msgspec.json.encode(document), pairs)


async def send_bytes(send: Send, status: int, body: bytes, pairs: Pairs) -> None:
    """Send a whole body."""
    await send_start(send, status, [*pairs, (headers.CONTENT_LENGTH, b"%d" % len(body))])
    await send_chunk(send, body, more=False)


async def send_start(send: Send, status: int, pairs: Pairs) -> None:
    """Send the status line and headers."""
    start: HTTPResponseStartEvent = {"type": "http.response.start", "status": status, "headers": pairs}
    await send(cast("Message", start))


async def send_chunk(send: Send, data: bytes, *, more: bool) -> None:
    """Send a piece of the body; waits while the client does not read."""
    body: HTTPResponseBodyEvent = {"type": "http.response.body", "body": data, "more_body": more}
    await send(cast("Message", body))
