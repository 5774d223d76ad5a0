"""Server-sent events: framing on the way out, splitting at any byte on the way in.

May import the plugin API.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from headgate_plugin_api import UpstreamFailed

MAX_LINE: Final = 4 * 1024 * 1024
"""Bytes. A line that an upstream never ends must not fill the memory."""

DONE: Final = b"data: [DONE]\n\n"


def frame(document: Any) -> bytes:
    """One event with a JSON document as its data."""
    return b"data: " + msgspec.json.encode(document) + b"\n\n"


def error_frame(document: Any) -> bytes:
    """An `error` event. Nothing follows it."""
    return b"event: error\ndata: " + msgspec.json.encode(document) + b"\n\n"


class Splitter:
    """Finds the data of events in a stream of bytes, wherever it was cut.

    Lines may end in LF, CRLF or CR; comments and other fields are skipped; several `data` lines of
    one event are joined.
    """

    def __init__(self, max_line: int = MAX_LINE) -> None:
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._max_line = max_line
        self._after_cr = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of every event that `chunk` completes.

        Raises:
            UpstreamFailed: A line or an event is over the limit.
        """
        if self._after_cr and chunk:
            chunk = chunk.removeprefix(b"\n")
            self._after_cr = False
        if chunk.endswith(b"\r"):
            self._after_cr = True
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._rest += chunk
        if len(self._rest) > self._max_line and b"\n" not in self._rest[: self._max_line]:
            raise UpstreamFailed(f"the upstream sent a line of more than {self._max_line} bytes")
        if b"\n" not in chunk:
            return []
        *lines, rest = bytes(self._rest).split(b"\n")
        self._rest = bytearray(rest)
        events: list[bytes] = []
        for line in lines:
            if line:
                self._field(line)
            elif self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
                self._size = 0
        return events

    def end(self) -> list[bytes]:
        """The stream is over: an event without its closing empty line still counts (lax servers omit it)."""
        if self._rest:
            self._field(bytes(self._rest))
            self._rest.clear()
        events = [b"\n".join(self._data)] if self._data else []
        self._data.clear()
        return events

    def _field(self, line: bytes) -> None:
        if line.startswith(b"data: "):
            value = line[6:]
        elif line.startswith(b"data:"):
            value = line[5:]
        elif line == b"data":
            value = b""
        else:
            return
        self._size += len(value)
        if self._size > self._max_line:
            raise UpstreamFailed(f"the upstream sent an event of more than {self._max_line} bytes")
        self._data.append(value)
