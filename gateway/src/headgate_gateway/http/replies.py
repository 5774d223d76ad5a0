"""Finished answers as ASGI applications, for handlers that have a document to give.

May import headers, problems, sending.
"""

from __future__ import annotations

from typing import Any

from litestar.types import ASGIApp, Receive, Scope, Send

from headgate_gateway.http import headers
from headgate_gateway.http.problems import OK
from headgate_gateway.http.sending import send_bytes, send_document


def document(content: Any, status: int = OK) -> ASGIApp:
    """A JSON document."""

    async def reply(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send_document(send, status, content, [headers.JSON])

    return reply


def body(content: bytes, media_type: str) -> ASGIApp:
    """Bytes of any kind."""

    async def reply(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send_bytes(send, OK, content, [(b"content-type", media_type.encode())])

    return reply
