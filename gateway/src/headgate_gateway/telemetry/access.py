"""The access log: a line for each request, of who asked for what, how it ended and what it cost.

Bodies, query strings and credentials never stand in it. A line is made in a few microseconds, kept, and written
with the others ten times a second by a thread. May import lines.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from headgate_gateway.telemetry.lines import LineWriter

FLUSH_S: Final = 0.1
MAX_TEXT: Final = 200
"""Characters of an address or a model; what a client sends is not ours to repeat at any length."""

_encoder = msgspec.json.Encoder()


class Line(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A request that is over.

    Attributes:
        request_id: `req_...`.
        method: Its method.
        path: Its address, without the query.
        status: None where the client left before an answer.
        code: `ok`, `client_gone` or the error code.
        model: What it asked.
        key: Id of the key, never the key.
        cost: What was charged, a decimal string; empty where nothing was, or where it settled later.
        duration_ms: How long it took, to the last byte.
        client: The address that it came from; behind a trusted proxy, the one that the proxy names.
    """

    event: str
    level: str
    process: str
    timestamp: str
    request_id: str
    method: str
    path: str
    status: int | None = None
    code: str
    model: str = ""
    key: str = ""
    cost: str = ""
    duration_ms: float
    client: str = ""


_TOLD: Final = Line.__struct_fields__[2:3] + Line.__struct_fields__[4:]
"""What stands in a line of text behind its time, level and event."""


class AccessLog:
    """Writes a line for each request.

    Args:
        process: What each line names.
        text: Whether a person reads, not a program.
        later: Calls something after so many seconds: an event loop's `call_later`.
        writer: Where lines go.
    """

    def __init__(
        self, process: str, *, text: bool, later: Callable[..., Any], writer: LineWriter | None = None
    ) -> None:
        self._process = process
        self._form = _texts if text else _documents
        self._later = later
        self._writer = writer or LineWriter()
        self._lines: list[Line] = []

    def note(
        self,
        request_id: str,
        method: str,
        path: str,
        *,
        status: int | None,
        code: str,
        seconds: float,
        model: str = "",
        key: str = "",
        cost: str = "",
        client: str = "",
    ) -> None:
        """A request is over; see `Line`."""
        line = Line(
            event="request",
            level="info",
            process=self._process,
            timestamp=_now(),
            request_id=request_id,
            method=method,
            path=path[:MAX_TEXT],
            status=status,
            code=code,
            model=model[:MAX_TEXT],
            key=key,
            cost=cost,
            duration_ms=int(seconds * 100_000 + 0.5) / 100,  # round() with digits takes five times as long
            client=client,
        )
        if not self._lines:
            self._later(FLUSH_S, self._flush)
        self._lines.append(line)

    def close(self) -> None:
        """Write what is left."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._lines:
            lines, self._lines = self._lines, []
            self._writer.write(self._form(lines))


def _documents(lines: list[Line]) -> str:
    return _encoder.encode_lines(lines).decode()


def _texts(lines: list[Line]) -> str:
    return "".join(map(_text, lines))


def _text(line: Line) -> str:
    facts = [(name, getattr(line, name)) for name in _TOLD]
    told = " ".join(f"{name}={_shown(value)}" for name, value in facts if value not in ("", None))
    return f"{line.timestamp} [{line.level:<9}] {line.event} {told}\n"


def _shown(value: Any) -> str:
    """Plain where it is plain: a client's text must not make lines or colours of its own."""
    text = str(value)
    return text if text.isprintable() and " " not in text else repr(text)


_MILLISECONDS: Final = tuple(f".{number:03d}Z" for number in range(1000))
_second = (0, "")
"""The last second that was written, and how: most lines share it with the one before."""


def _now() -> str:
    """UTC, to the millisecond."""
    global _second
    second, rest = divmod(time.time_ns(), 1_000_000_000)
    if second != _second[0]:
        _second = (second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)))
    return _second[1] + _MILLISECONDS[rest // 1_000_000]
