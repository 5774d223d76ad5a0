"""What the streams of OpenAI's chat and legacy completions have in common.

May import the plugin API.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec
from headgate_plugin_api import (
    Event,
    Finished,
    FinishReason,
    JsonValue,
    TextDelta,
    ToolCallDelta,
    UpstreamFailed,
    Usage,
    UsageReport,
)

from headgate_dialects import openai_usage
from headgate_dialects.decoded import AnswerMeta
from headgate_dialects.fields import read_answer
from headgate_dialects.sse import DONE, Splitter, error_frame

_PIECES: Final = (TextDelta, ToolCallDelta)
_REASONS: Final[dict[str, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


class StreamOptions(msgspec.Struct):
    """`stream_options` of a request."""

    include_usage: bool | None = None


def finish_reason(wire: str | None) -> FinishReason:
    """An upstream's reason in our words; reasons that we do not know mean that it stopped."""
    return _REASONS.get(wire or "stop", "stop")


def stop_strings(wire: str | list[str] | None) -> tuple[str, ...]:
    """`stop` as a tuple; empty strings would stop everything and are left out."""
    stops = [wire] if isinstance(wire, str) else wire or []
    return tuple(stop for stop in stops if stop)


class _ChunkLike(Protocol):
    error: Any


C = TypeVar("C", bound=_ChunkLike)


class StreamReader(ABC, Generic[C]):
    """Reads an upstream's SSE stream, cut at any byte.

    Attributes:
        done: Whether the upstream said that it was finished; a stream that just ends was cut off.
    """

    _decoder: msgspec.json.Decoder[C]

    def __init__(self) -> None:
        self._splitter = Splitter()
        self.done = False

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that `chunk` completes. What follows the end of the stream is ignored.

        Raises:
            UpstreamFailed: The upstream reports an error, or sends what is not of this dialect.
        """
        return self._read(self._splitter.feed(chunk))

    def end(self) -> Iterator[Event]:
        """The connection was closed: events whose last line had no end."""
        return self._read(self._splitter.end())

    def _read(self, data: list[bytes]) -> Iterator[Event]:
        for item in data:
            if self.done:
                return
            if item.strip() == b"[DONE]":
                self.done = True
                return
            chunk = read_answer(item, self._decoder)
            if chunk.error is not None:
                raise UpstreamFailed(f"the upstream reports an error: {error_text(chunk.error)}")
            yield from self._events(chunk)

    @abstractmethod
    def _events(self, chunk: C) -> Iterable[Event]:
        """What a chunk says, in canonical events."""


def error_text(error: JsonValue) -> str:
    """What an upstream says of its error, in one bounded line."""
    message = error.get("message") if isinstance(error, dict) else error
    return " ".join(str(message).split())[:500]


class StreamWriter(ABC):
    """Writes the SSE stream that a client reads.

    The last `Finished` is held back until `final`: it is the closing chunk, and the charge must stand on disk
    before that leaves. The cost travels in the usage chunk where the client asked for one
    (`stream_options.include_usage`), else in the closing chunk.
    """

    _object: str

    def __init__(self, meta: AnswerMeta) -> None:
        self._meta = meta
        top = {"id": meta.id, "object": self._object, "created": meta.created, "model": meta.model}
        self._head = b"data: " + msgspec.json.encode(top)[:-1] + b',"choices":'
        self._held: Finished | None = None
        self._report: UsageReport | None = None

    def encode(self, event: Event) -> bytes:
        """The bytes for one event; empty for those that are held back."""
        if isinstance(event, UsageReport):
            self._report = event
            return b""
        before = b""
        if self._held is not None:
            before = self._chunk([self._finish(self._held)])
            self._held = None
        if isinstance(event, Finished):
            self._held = event
            return before
        if isinstance(event, _PIECES):
            return before + self._delta(event) if before else self._delta(event)
        return before

    def final(self, usage: Usage, cost: str | None) -> bytes:
        """The closing chunk, the usage chunk where it was asked for, and the end."""
        extra = self._report.extra if self._report is not None else {}
        closing = [self._finish(self._held or Finished(reason="stop"))]
        document = openai_usage.encode(usage, cost)
        if self._meta.include_usage:
            return self._chunk(closing) + self._chunk([], usage=document, **extra) + DONE
        return self._chunk(closing, usage=document, **extra) + DONE

    def error(self, document: Any) -> bytes:
        """An error after bytes went out. Nothing follows it."""
        return error_frame(document)

    def _chunk(self, choices: list[dict[str, Any]], **top: Any) -> bytes:
        body = self._head + msgspec.json.encode(choices)
        if top:
            body += b"," + msgspec.json.encode(top)[1:-1]
        return body + b"}\n\n"

    @abstractmethod
    def _delta(self, event: TextDelta | ToolCallDelta) -> bytes:
        """The chunk of a piece of text or of a tool call."""

    @abstractmethod
    def _finish(self, event: Finished) -> dict[str, Any]:
        """The choice that ends with this event."""
