"""Sending answers as raw ASGI messages: what the hot path does instead of building response objects.

May import headers.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from litestar.types import HTTPResponseBodyEvent, HTTPResponseStartEvent, Send

from headgate_gateway.http.headers import Pairs

ANSWER: Final = "headgate.answer"
"""A message of our own beside those of ASGI: status, headers and the whole body, to be written at once."""


async def send_document(send: Send, status: int, document: Any, pairs: Pairs) -> None:
    """Send a JSON document."""
    await send_bytes(send, status, msgspec.json.encode(document), pairs)


async def send_bytes(send: Send, status: int, body: bytes, pairs: Pairs) -> None:
    """Send a whole answer."""
    answer: Any = {"type": ANSWER, "status": status, "headers": pairs, "body": body}
    await send(answer)


async def send_start(send: Send, status: int, pairs: Pairs) -> None:
    """Send the status line and headers."""
    start: HTTPResponseStartEvent = {"type": "http.response.start", "status": status, "headers": pairs}
    await send(start)


async def send_chunk(send: Send, data: bytes, *, more: bool) -> None:
    """Send a piece of the body; waits while the client does not read."""
    body: HTTPResponseBodyEvent = {"type": "http.response.body", "body": data, "more_body": more}
    await send(body)
