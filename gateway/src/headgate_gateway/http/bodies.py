"""Reading a request's body: bounded in size, in time and in depth; and JSON with an error that says where.

May import problems and headers.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec
from headgate_plugin_api import JsonValue
from litestar.types import Receive, Scope

from headgate_gateway.http import headers
from headgate_gateway.http.problems import Problem, body_problem

MAX_DEPTH: Final = 64
"""Levels of nesting. No dialect needs more, and a document that came in must also go out again."""

BODY_S: Final = 60.0
"""A body that takes longer than this, plus a second for every 64 KiB, comes too slowly."""

CLIENT: Final = "headgate.client"
"""Stands in the scope of a request: the `Client` that it came from."""

_RATE: Final = 64 * 1024

_LEAST: Final = -(2**63)
_MOST: Final = 2**64 - 1
_LONG: Final = 19
_LONG_NUMBER: Final = re.compile(rb"[0-9]{%d}" % _LONG)
_TELLING: Final = b"[{0123456789"
_OTHERS: Final = bytes(byte for byte in range(256) if byte not in _TELLING)

_decoder = msgspec.json.Decoder()


class ClientGone(Exception):
    """The client left before its request was answered; there is nobody to answer."""


class Client(Protocol):
    """A request's client, as its connection knows it.

    Attributes:
        more_body: Whether some of its body is still to come.
        left: Called when it closes its connection; see `watch`.
    """

    more_body: bool
    left: Callable[[], None] | None

    def take(self) -> bytes:
        """The body, once all of it has come. Raises `ClientGone`."""
        ...

    def watch(self, left: Callable[[], None]) -> None:
        """Have something called when it leaves. Raises `ClientGone` if it has."""
        ...


async def read_body(scope: Scope, receive: Receive, *, max_bytes: int, seconds: float = BODY_S) -> bytes:
    """The whole body.

    Raises:
        Problem: It is packed, over `max_bytes`, or comes too slowly.
        ClientGone: The connection closed first.
    """
    if (packed := headers.find(scope, headers.CONTENT_ENCODING)) and packed.lower() != b"identity":
        raise Problem("invalid_request", "content-encoding: send the body as it is", path="content-encoding")
    # The usual body has come with its headers; then there is nothing to wait for, and no watch to set.
    client: Client | None = scope.get(CLIENT)  # type: ignore[assignment]
    if client is not None and not client.more_body:
        if len(body := client.take()) > max_bytes:
            raise _too_large(max_bytes)
        return body
    announced = headers.find(scope, headers.CONTENT_LENGTH)
    if announced is not None and announced.isdigit() and int(announced[:18]) > max_bytes:
        raise _too_large(max_bytes)
    message: Any = await _within(receive, seconds)
    if message["type"] == "http.disconnect":
        raise ClientGone
    first: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        if len(first) > max_bytes:
            raise _too_large(max_bytes)
        return first
    return await _read_rest(bytearray(first), receive, max_bytes, seconds)


async def _read_rest(body: bytearray, receive: Receive, max_bytes: int, seconds: float) -> bytes:
    loop = asyncio.get_running_loop()
    began = loop.time()
    while True:
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        left = began + seconds + len(body) / _RATE - loop.time()
        message: Any = await _within(receive, left)
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        if not message.get("more_body", False):
            if len(body) > max_bytes:
                raise _too_large(max_bytes)
            return bytes(body)


async def _within(receive: Receive, seconds: float) -> Any:
    try:
        async with asyncio.timeout(seconds):
            return await receive()
    except TimeoutError:
        raise body_problem("too_slow", "the body came too slowly") from None


def _too_large(max_bytes: int) -> Problem:
    return body_problem("too_large", f"the body is larger than {max_bytes} bytes")


def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        Problem: It is not JSON (the message gives the byte), no object, or nested too deeply.
    """
    try:
        document: JsonValue = _decoder.decode(body)
    except RecursionError:
        raise _too_deep() from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if not body.strip():
            raise Problem("invalid_request", "the body is empty, expected a JSON object") from None
        raise Problem("invalid_request", f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise Problem("invalid_request", "the body must be a JSON object")
    # Few brackets and digits, and there is nothing to look for; of short bodies that is cheaply said.
    if len(body.translate(None, _OTHERS)) >= _LONG:
        if body.count(b"[") + body.count(b"{") > MAX_DEPTH:
            _check_depth(document)
        if _LONG_NUMBER.search(body):
            _check_integers(document)
    return document


def _check_depth(document: dict[str, JsonValue]) -> None:
    level: list[dict[str, JsonValue] | list[JsonValue]] = [document]
    for _ in range(MAX_DEPTH):
        below: list[JsonValue] = []
        for item in level:
            below += item.values() if isinstance(item, dict) else item
        level = [item for item in below if isinstance(item, dict | list)]
        if not level:
            return
    raise _too_deep()


def _check_integers(document: dict[str, JsonValue]) -> None:
    """Integers that no wire behind this one can carry are refused here, with their path."""
    left: list[tuple[str, JsonValue]] = [("", document)]
    while left:
        path, value = left.pop()
        if isinstance(value, dict):
            left += [(f"{path}.{name}" if path else name, item) for name, item in value.items()]
        elif isinstance(value, list):
            left += [(f"{path}[{index}]", item) for index, item in enumerate(value)]
        elif type(value) is int and not _LEAST <= value <= _MOST:
            raise Problem("invalid_request", f"{path}: the integer is beyond 64 bits", path=path)


def _too_deep() -> Problem:
    return Problem("invalid_request", f"the body is nested deeper than {MAX_DEPTH} levels")
