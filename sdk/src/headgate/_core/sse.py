"""Server-sent events: bytes in, events out, wherever the bytes were split. Imports the standard library only."""

from __future__ import annotations

from dataclasses import dataclass

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event of a stream: its `data` lines joined by newlines, its type and the last id seen."""

    data: str
    event: str = "message"
    id: str | None = None


class EventTooLarge(ValueError):
    """A single event is larger than the decoder takes."""


class EventDecoder:
    """An incremental decoder of the WHATWG event stream format.

    Lines may end in LF, CR or CRLF; comments are skipped; an event that the end of the stream cuts is dropped.

    Args:
        largest: The most bytes that one event may have.
    """

    def __init__(self, *, largest: int = 64 * 1024 * 1024) -> None:
        self._rest = b""
        self._started = False
        self._largest = largest
        self._data: list[str] = []
        self._size = 0
        self._event = ""
        self.last_id: str | None = None
        self.retry_ms: int | None = None

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """Take bytes and return the events that they complete.

        Raises:
            EventTooLarge: An event grows past the limit.
        """
        buffer = self._rest + chunk if self._rest else chunk
        if not self._started:
            if len(buffer) < len(_BOM) and _BOM.startswith(buffer):
                self._rest = buffer
                return []
            self._started = True
            buffer = buffer.removeprefix(_BOM)
        # A CR at the very end may be the first half of CRLF: it waits for what follows.
        held = buffer.endswith(b"\r")
        body = buffer[:-1] if held else buffer
        if b"\r" in body:
            body = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, last = body.split(b"\n")
        self._rest = last + b"\r" if held else last
        if self._size + len(self._rest) > self._largest:
            raise EventTooLarge(f"an event is larger than {self._largest} bytes")
        events: list[ServerSentEvent] = []
        for line in lines:
            if line:
                self._field(line)
            elif (event := self._dispatch()) is not None:
                events.append(event)
        return events

    def _field(self, line: bytes) -> None:
        self._size += len(line)
        if self._size > self._largest:
            raise EventTooLarge(f"an event is larger than {self._largest} bytes")
        name, _, raw = line.partition(b":")
        value = raw.removeprefix(b" ").decode("utf-8", "replace")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._event = value
        elif name == b"id" and "\0" not in value:
            self.last_id = value
        elif name == b"retry" and value.isascii() and value.isdigit():
            self.retry_ms = int(value[:9])

    def _dispatch(self) -> ServerSentEvent | None:
        data, event = self._data, self._event
        self._data, self._event, self._size = [], "", 0
        if not data:
            return None
        return ServerSentEvent("\n".join(data), event or "message", self.last_id)
