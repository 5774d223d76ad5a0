"""Answers of OpenAI responses, whole and streamed.

Both are made by one builder: a whole answer is what a stream ends with. May import the plugin API.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec
from headgate_plugin_api import Event, Finished, FinishReason, TextDelta, ToolCallDelta, Usage, UsageReport

from headgate_dialects.decoded import AnswerMeta
from headgate_dialects.sse import error_frame

_INCOMPLETE: Final[dict[FinishReason, str]] = {
    "length": "max_output_tokens",
    "content_filter": "content_filter",
}
"""Why an answer is not complete, in OpenAI's words."""


def encode_answer(events: Iterable[Event], meta: AnswerMeta) -> bytes:
    """The body of a whole answer."""
    output, usage = _Output(meta), Usage()
    for event in events:
        if isinstance(event, UsageReport):
            usage = event.usage
        else:
            output.add(event)
    output.close()
    return msgspec.json.encode(output.response(usage, meta.cost))


class StreamEncoder:
    """Writes the events of a streamed response; the closing ones wait until its bill stands."""

    def __init__(self, meta: AnswerMeta) -> None:
        self._output = _Output(meta)
        self._number = 0
        self._begun = False

    def encode(self, event: Event) -> bytes:
        """The bytes for one event, maybe none."""
        return self._begin() + self._frames(self._output.add(event))

    def final(self, usage: Usage, cost: str | None) -> bytes:
        """What closes the open items, and the whole response."""
        frames = self._begin() + self._frames(self._output.close())
        response = self._output.response(usage, cost)
        return frames + self._frames([{"type": f"response.{response['status']}", "response": response}])

    def error(self, document: Any) -> bytes:
        """An error after bytes went out. Nothing follows it."""
        return error_frame(document)

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        response = self._output.response(None, None)
        return self._frames(
            [{"type": f"response.{word}", "response": response} for word in ("created", "in_progress")]
        )

    def _frames(self, events: list[dict[str, Any]]) -> bytes:
        frames = b""
        for event in events:
            event["sequence_number"] = self._number
            self._number += 1
            frames += b"event: %s\ndata: %s\n\n" % (event["type"].encode(), msgspec.json.encode(event))
        return frames


class _Item:
    """An item of the output that is being made: a message, a reasoning, or a function call."""

    __slots__ = ("closed", "index", "pieces", "place")

    def __init__(self, index: int, place: dict[str, Any]) -> None:
        self.index = index
        self.place = place
        self.pieces: list[str] = []
        self.closed = False


class _Output:
    """The items of a response, and the wire events that tell of every change to them."""

    def __init__(self, meta: AnswerMeta) -> None:
        self._meta = meta
        self._items: list[_Item] = []
        self._text: _Item | None = None
        self._calls: dict[int, _Item] = {}
        self._finish: FinishReason | None = None

    def add(self, event: Event) -> list[dict[str, Any]]:
        """Take an event of the answer."""
        if isinstance(event, TextDelta):
            return self._add_text(event) if event.text else []
        if isinstance(event, ToolCallDelta):
            return self._add_call(event)
        if isinstance(event, Finished):
            self._finish = event.reason
        return []

    def close(self) -> list[dict[str, Any]]:
        """Complete every item."""
        events = [] if self._items else self._open(self._message())
        for item in self._items:
            events += self._close(item)
        return events

    def response(self, usage: Usage | None, cost: str | None) -> dict[str, Any]:
        """The response as it stands; with `usage` it has ended."""
        show, why = self._meta.show, _INCOMPLETE.get(self._finish or "stop")
        status = "in_progress" if usage is None else "incomplete" if why else "completed"
        return {
            "id": self._meta.id,
            "object": "response",
            "created_at": self._meta.created,
            "status": status,
            "model": self._meta.model,
            "output": [] if usage is None else [item.place for item in self._items],
            "usage": None if usage is None else _usage(usage, cost),
            "error": None,
            "incomplete_details": {"reason": why} if status == "incomplete" else None,
            "store": False,
            "previous_response_id": None,
            "instructions": show.get("instructions"),
            "max_output_tokens": show.get("max_output_tokens"),
            "metadata": show.get("metadata", {}),
            "parallel_tool_calls": show.get("parallel_tool_calls", True),
            "reasoning": show.get("reasoning"),
            "temperature": show.get("temperature"),
            "text": show.get("text", {"format": {"type": "text"}}),
            "tool_choice": show.get("tool_choice", "auto"),
            "tools": show.get("tools", []),
            "top_p": show.get("top_p"),
            "truncation": "disabled",
            "user": show.get("user"),
        }

    def _add_text(self, event: TextDelta) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        kind = "reasoning" if event.reasoning else "message"
        if self._text is None or self._text.place["type"] != kind:
            if self._text is not None:
                events += self._close(self._text)
            events += self._open(self._reasoning() if event.reasoning else self._message())
            self._text = self._items[-1]
        self._text.pieces.append(event.text)
        word = "reasoning_text" if event.reasoning else "output_text"
        delta = self._event(f"response.{word}.delta", self._text, content_index=0, delta=event.text)
        if not event.reasoning:
            delta["logprobs"] = []
        return [*events, delta]

    def _add_call(self, event: ToolCallDelta) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        item = self._calls.get(event.call)
        if item is None:
            if self._text is not None:
                events += self._close(self._text)
                self._text = None
            number = len(self._items)
            place = {
                "type": "function_call",
                "id": self._name("fc", number),
                "call_id": event.id or self._name("call", number),
                "name": event.name or "",
                "arguments": "",
                "status": "in_progress",
            }
            events += self._open(place)
            item = self._calls[event.call] = self._items[-1]
        if event.arguments:
            item.pieces.append(event.arguments)
            events.append(self._event("response.function_call_arguments.delta", item, delta=event.arguments))
        return events

    def _open(self, place: dict[str, Any]) -> list[dict[str, Any]]:
        item = _Item(len(self._items), place)
        self._items.append(item)
        events = [{"type": "response.output_item.added", "output_index": item.index, "item": dict(place)}]
        if place["type"] != "function_call":
            events.append(
                self._event("response.content_part.added", item, content_index=0, part=_part(place, ""))
            )
        return events

    def _close(self, item: _Item) -> list[dict[str, Any]]:
        """The item is complete: its place gets its text, in one piece."""
        if item.closed:
            return []
        item.closed = True
        text, place = "".join(item.pieces), item.place
        place["status"] = "completed"
        if item is self._text and self._finish in _INCOMPLETE:
            place["status"] = "incomplete"
        if place["type"] == "function_call":
            place["arguments"] = text
            events = [
                self._event("response.function_call_arguments.done", item, arguments=text, name=place["name"])
            ]
        else:
            part = _part(place, text)
            place["content"] = [part]
            done = self._event(f"response.{part['type']}.done", item, content_index=0, text=text)
            if part["type"] == "output_text":
                done["logprobs"] = []
            events = [done, self._event("response.content_part.done", item, content_index=0, part=part)]
        events.append({"type": "response.output_item.done", "output_index": item.index, "item": place})
        return events

    def _event(self, kind: str, item: _Item, **more: Any) -> dict[str, Any]:
        return {"type": kind, "item_id": item.place["id"], "output_index": item.index, **more}

    def _message(self) -> dict[str, Any]:
        name = self._name("msg", len(self._items))
        return {"type": "message", "id": name, "role": "assistant", "status": "in_progress", "content": []}

    def _reasoning(self) -> dict[str, Any]:
        name = self._name("rs", len(self._items))
        return {"type": "reasoning", "id": name, "summary": [], "status": "in_progress", "content": []}

    def _name(self, prefix: str, number: int) -> str:
        """An id that is the same however often the answer is written."""
        return f"{prefix}_{self._meta.id.rpartition('_')[2]}_{number}"


def _part(place: dict[str, Any], text: str) -> dict[str, Any]:
    if place["type"] == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(usage: Usage, cost: str | None) -> dict[str, Any]:
    """Usage in the words of responses; cached and reasoning tokens stand inside the totals."""
    document: dict[str, Any] = {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cache_read, "cache_write_tokens": usage.cache_write},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
    if cost is not None:
        document["cost"] = cost
    return document
