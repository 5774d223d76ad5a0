"""Answers of OpenAI chat completions, both directions, whole and streamed.

May import the plugin API.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from headgate_plugin_api import (
    Event,
    Finished,
    TextDelta,
    ToolCallDelta,
    UsageReport,
)

from headgate_dialects import openai_usage
from headgate_dialects.decoded import AnswerMeta
from headgate_dialects.fields import read_answer
from headgate_dialects.fold import Choice, Fold
from headgate_dialects.openai_chat_requests import call_document
from headgate_dialects.openai_stream import StreamReader, StreamWriter, finish_reason

# -- whole answers


def encode_answer(events: Iterable[Event], meta: AnswerMeta) -> bytes:
    """The body of a whole answer."""
    fold = Fold(events)
    document: dict[str, Any] = {
        "id": meta.id,
        "object": "chat.completion",
        "created": meta.created,
        "model": meta.model,
        "choices": [_choice_document(index, choice) for index, choice in fold.choices.items()],
    }
    if fold.report is not None:
        document["usage"] = openai_usage.encode(fold.report.usage, meta.cost)
        document |= fold.report.extra
    return msgspec.json.encode(document)


def _choice_document(index: int, choice: Choice) -> dict[str, Any]:
    text, calls = choice.text, choice.calls
    content = text if text or not calls else None
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if reasoning := choice.reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [call_document(call) for call in calls]
    logprobs = None
    if choice.extra:
        logprobs = choice.extra.get("logprobs")
        message |= {name: value for name, value in choice.extra.items() if name != "logprobs"}
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": choice.finish}


class _AnswerCallFunction(msgspec.Struct):
    name: str = ""
    arguments: str = ""


class _AnswerCall(msgspec.Struct):
    id: str | None = None
    function: _AnswerCallFunction = msgspec.field(default_factory=_AnswerCallFunction)


class _AnswerMessage(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    annotations: Any = None
    tool_calls: list[_AnswerCall] | None = None


class _AnswerChoice(msgspec.Struct):
    index: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 0
    message: _AnswerMessage = msgspec.field(default_factory=_AnswerMessage)
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None


class _Answer(msgspec.Struct):
    choices: list[_AnswerChoice]
    usage: Any = None
    system_fingerprint: str | None = None
    service_tier: str | None = None


_answers = msgspec.json.Decoder(_Answer)


def decode_answer(data: bytes) -> tuple[Event, ...]:
    """The events of an upstream's whole answer. A usage that is missing or cannot be true is left out.

    Raises:
        UpstreamFailed: The body is not an answer of this dialect.
    """
    answer = read_answer(data, _answers)
    events: list[Event] = []
    for choice in answer.choices:
        message, index = choice.message, choice.index
        if reasoning := message.reasoning_content or message.reasoning:
            events.append(TextDelta(text=reasoning, index=index, reasoning=True))
        extra: dict[str, Any] = {} if choice.logprobs is None else {"logprobs": choice.logprobs}
        if message.refusal:
            extra["refusal"] = message.refusal
        if message.annotations:
            extra["annotations"] = message.annotations
        if message.content or extra:
            events.append(TextDelta(text=message.content or "", index=index, extra=extra))
        for number, call in enumerate(message.tool_calls or ()):
            function = call.function
            events.append(
                ToolCallDelta(
                    index=index, call=number, id=call.id, name=function.name, arguments=function.arguments
                )
            )
        events.append(Finished(reason=finish_reason(choice.finish_reason), index=index))
    return (*events, *openai_report(answer.usage, answer.system_fingerprint, answer.service_tier))


def openai_report(usage: Any, fingerprint: str | None, tier: str | None) -> tuple[Event, ...]:
    """The usage report of an upstream's `usage`, if there is one to believe."""
    decoded = openai_usage.decode(usage)
    if decoded is None:
        return ()
    extra: dict[str, Any] = {}
    if fingerprint is not None:
        extra["system_fingerprint"] = fingerprint
    if tier is not None:
        extra["service_tier"] = tier
    return (UsageReport(usage=decoded, source="upstream", extra=extra),)


# -- streams


class _DeltaFunction(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _DeltaCall(msgspec.Struct):
    index: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 0
    id: str | None = None
    function: _DeltaFunction = msgspec.field(default_factory=_DeltaFunction)


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    annotations: Any = None
    tool_calls: list[_DeltaCall] | None = None


class _ChunkChoice(msgspec.Struct):
    index: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 0
    delta: _Delta | None = None
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None


class _Chunk(msgspec.Struct):
    choices: list[_ChunkChoice] = []
    usage: Any = None
    error: Any = None
    system_fingerprint: str | None = None
    service_tier: str | None = None


class StreamDecoder(StreamReader[_Chunk]):
    """Reads an upstream's SSE stream; see `StreamReader`."""

    _decoder = msgspec.json.Decoder(_Chunk)

    def _events(self, chunk: _Chunk) -> Iterable[Event]:
        for choice in chunk.choices:
            index, delta = choice.index, choice.delta or _Delta()
            if reasoning := delta.reasoning_content or delta.reasoning:
                yield TextDelta(text=reasoning, index=index, reasoning=True)
            extra: dict[str, Any] = {} if choice.logprobs is None else {"logprobs": choice.logprobs}
            if delta.refusal:
                extra["refusal"] = delta.refusal
            if delta.annotations:
                extra["annotations"] = delta.annotations
            if delta.content or extra:
                yield TextDelta(text=delta.content or "", index=index, extra=extra)
            for call in delta.tool_calls or ():
                yield ToolCallDelta(
                    index=index,
                    call=call.index,
                    id=call.id,
                    name=call.function.name,
                    arguments=call.function.arguments or "",
                )
            if choice.finish_reason is not None:
                yield Finished(reason=finish_reason(choice.finish_reason), index=index)
        yield from openai_report(chunk.usage, chunk.system_fingerprint, chunk.service_tier)


class StreamEncoder(StreamWriter):
    """Writes the SSE stream that a client reads; see `StreamWriter`."""

    _object = "chat.completion.chunk"

    def __init__(self, meta: AnswerMeta) -> None:
        super().__init__(meta)
        self._started: set[int] = set()

    def _delta(self, event: TextDelta | ToolCallDelta) -> bytes:
        index = event.index
        if index in self._started and isinstance(event, TextDelta) and not event.extra and not event.reasoning:
            return b"".join(
                (
                    self._head,
                    b'[{"index":%d,"delta":{"content":' % index,
                    msgspec.json.encode(event.text),
                    b'},"logprobs":null,"finish_reason":null}]}\n\n',
                )
            )
        delta: dict[str, Any] = {}
        if index not in self._started:
            self._started.add(index)
            delta["role"] = "assistant"
        logprobs = None
        if isinstance(event, ToolCallDelta):
            delta["tool_calls"] = [_call_delta(event)]
        else:
            delta["reasoning_content" if event.reasoning else "content"] = event.text
            extra = dict(event.extra)
            logprobs = extra.pop("logprobs", None)
            delta |= extra
        return self._chunk([{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}])

    def _finish(self, event: Finished) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if event.index not in self._started:
            self._started.add(event.index)
            delta = {"role": "assistant", "content": ""}
        return {"index": event.index, "delta": delta, "logprobs": None, "finish_reason": event.reason}


def _call_delta(event: ToolCallDelta) -> dict[str, Any]:
    function = (
        {"arguments": event.arguments}
        if event.name is None
        else {"name": event.name, "arguments": event.arguments}
    )
    document: dict[str, Any] = {"index": event.call, "function": function}
    if event.id is not None:
        document = {"index": event.call, "id": event.id, "type": "function", "function": function}
    return document
