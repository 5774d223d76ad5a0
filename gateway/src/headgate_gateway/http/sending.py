"""Sending answers as raw ASGI messages: what the hot path does instead of building response objects.

May import headers.
"""

from __future__ import annotations

from typing import Any, Final, cast

import msgspec
from litestar.types import HTTPResponseBodyEvent, HTTPResponseStartEvent, Message, Send

from headgate_gateway.http import headers
from headgate_gateway.http.headers import Pairs

ANSWER: Final = "headgate.answer"
"""A message of our own beside those of ASGI: status, headers and the whole body, to be written at once. A server
that knows it says so in the scope's extensions; for any other the edge turns it into two messages."""


async def send_document(send: Send, status: int, document: Any, pairs: Pairs) -> None:
    """Send a JSON document."""
    await send_bytes(send, status, msgspec.json.encode(document), pairs)


async def send_bytes(send: Send, status: int, body: bytes, pairs: Pairs) -> None:
    """Send a whole answer."""
    answer: Any = {"type": ANSWER, "status": status, "headers": pairs, "body": body}
    await send(answer)


async def send_parts(send: Send, answer: Message) -> None:
    """Send an `ANSWER` to a server that does not know it."""
    whole = cast("dict[str, Any]", answer)
    body = whole["body"]
    await send_start(send, whole["status"], [*whole["headers"], (headers.CONTENT_LENGTH, b"%d" % len(body))])
    await send_chunk(send, body, more=False)


async def send_start(send: Send, status: int, pairs: Pairs) -> None:
    """Send the status line and headers."""
    start: HTTPResponseStartEvent = {"type": "http.response.start", "status": status, "headers": pairs}
    await send(start)


async def send_chunk(send: Send, data: bytes, *, more: bool) -> None:
    """Send a piece of the body; waits while the client does not read."""
    body: HTTPResponseBodyEvent = {"type": "http.response.body", "body": data, "more_body": more}
    await send(body)
