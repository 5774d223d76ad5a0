"""The access log: a line for each request, of who asked for what, how it ended and what it cost.

Bodies, query strings and credentials never stand in it. A line is made in a few microseconds, kept, and written
with the others ten times a second by a thread. May import lines.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from headgate_gateway.telemetry.lines import LineWriter

FLUSH_S: Final = 0.1
MAX_TEXT: Final = 200
"""Characters of an address or a model; what a client sends is not ours to repeat at any length."""

_encoder = msgspec.json.Encoder()


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
        self._line = _text if text else _document
        self._later = later
        self._writer = writer or LineWriter()
        self._lines: list[str] = []

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
        """A request is over.

        Args:
            request_id: `req_...`.
            method: Its method.
            path: Its address, without the query.
            status: None where the client left before an answer.
            code: `ok`, `client_gone` or the error code.
            seconds: How long it took, to the last byte.
            model: What it asked.
            key: Id of the key, never the key.
            cost: What was charged, a decimal string; empty where nothing was, or where it settled later.
            client: The address that it came from; behind a trusted proxy, the one that the proxy names.
        """
        facts = {
            "process": self._process,
            "request_id": request_id,
            "method": method,
            "path": path[:MAX_TEXT],
            "status": status,
            "code": code,
            "model": model[:MAX_TEXT],
            "key": key,
            "cost": cost,
            "duration_ms": round(seconds * 1000, 2),
            "client": client,
        }
        if not self._lines:
            self._later(FLUSH_S, self._flush)
        self._lines.append(self._line(facts))

    def close(self) -> None:
        """Write what is left."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._lines:
            lines, self._lines = self._lines, []
            self._writer.write("".join(lines))


def _document(facts: dict[str, Any]) -> str:
    line: dict[str, Any] = {"event": "request", "level": "info", "timestamp": _now()}
    line.update((name, value) for name, value in facts.items() if value not in ("", None))
    return _encoder.encode(line).decode() + "\n"


def _text(facts: dict[str, Any]) -> str:
    told = " ".join(f"{name}={_shown(value)}" for name, value in facts.items() if value not in ("", None))
    return f"{_now()} [info     ] request {told}\n"


def _shown(value: Any) -> str:
    """Plain where it is plain: a client's text must not make lines or colours of its own."""
    text = str(value)
    return text if text.isprintable() and " " not in text else repr(text)


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
