"""What an answer must look like, and when two answers are the same. May import the plugin API."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Final

from headgate_plugin_api.events import (
    ClassifyResult,
    EmbedResult,
    Event,
    Finished,
    InferResult,
    RerankResult,
    TextDelta,
    ToolCallDelta,
    UsageReport,
)
from headgate_plugin_api.requests import (
    ChatPayload,
    ClassifyPayload,
    CompletionPayload,
    EmbedPayload,
    InferenceRequest,
    InferPayload,
    RerankPayload,
    Tensor,
)
from headgate_plugin_api.usage import DIMENSIONS, Usage

_FLOATS: Final = {"FP32": "f", "FP64": "d"}
_RESULTS: Final = {
    "embed": EmbedResult,
    "rerank": RerankResult,
    "classify": ClassifyResult,
    "infer": InferResult,
}


def choices_of(request: InferenceRequest) -> int:
    """How many choices a text request asks for; 0 for other tasks."""
    payload = request.payload
    if isinstance(payload, ChatPayload):
        return payload.n
    if isinstance(payload, CompletionPayload):
        return payload.n * len(payload.prompts)
    return 0


def usage_of(events: Sequence[Event]) -> Usage:
    """The usage that an answer reports."""
    report = events[-1]
    assert isinstance(report, UsageReport), f"the last event is {type(report).__name__}, expected UsageReport"
    return report.usage


def text_of(events: Sequence[Event], index: int) -> str:
    """The text of one choice."""
    return "".join(event.text for event in events if isinstance(event, TextDelta) and event.index == index)


def check_answer(request: InferenceRequest, events: Sequence[Event]) -> None:
    """Assert that the events are one complete answer to the request."""
    assert events, "an answer has at least its UsageReport"
    usage = usage_of(events)
    if isinstance(events[0], UsageReport) and len(events) > 1:
        _check_early(request, events[0].usage, usage)
        events = events[1:]
    assert sum(isinstance(event, UsageReport) for event in events) == 1, "usage comes last, and perhaps first"
    for name in DIMENSIONS:
        assert getattr(usage, name) >= 0, f"usage.{name} is negative"
    if choices_of(request):
        _check_text(request, events[:-1], usage)
    else:
        _check_result(request, events[:-1])


def _check_early(request: InferenceRequest, early: Usage, final: Usage) -> None:
    assert choices_of(request), "an answer in one piece reports its usage once"
    assert early.completion_tokens == 0, "a report before the first delta knows only what went in"
    for name in DIMENSIONS:
        assert getattr(early, name) <= getattr(final, name), f"the early usage.{name} is above the last"


def _check_text(request: InferenceRequest, events: Sequence[Event], usage: Usage) -> None:
    open_choices = set(range(choices_of(request)))
    counted = 0
    for event in events:
        assert isinstance(event, TextDelta | ToolCallDelta | Finished), f"{type(event).__name__} in a text answer"
        assert event.index in open_choices, f"choice {event.index} does not exist or is finished: {event}"
        if isinstance(event, Finished):
            open_choices.remove(event.index)
        else:
            counted += event.tokens or 0
    assert not open_choices, f"choices {sorted(open_choices)} were never finished"
    made = usage.completion_tokens
    assert counted <= made, f"deltas stand for {counted} tokens, usage says {made}"


def _check_result(request: InferenceRequest, events: Sequence[Event]) -> None:
    expected = _RESULTS[request.task]
    assert [type(event) for event in events] == [expected], f"expected one {expected.__name__}, got {events}"
    (result,) = events
    payload = request.payload
    if isinstance(result, EmbedResult) and isinstance(payload, EmbedPayload):
        assert len(result.vectors) == len(payload.inputs), "one vector for each input"
        lengths = {len(vector) for vector in result.vectors}
        assert len(lengths) == 1, f"vectors of different lengths: {sorted(lengths)} bytes"
        assert lengths.pop() % 4 == 0, "vectors are float32"
    if isinstance(result, RerankResult) and isinstance(payload, RerankPayload):
        assert len(result.scores) == len(payload.documents), "one score for each document"
    if isinstance(result, ClassifyResult) and isinstance(payload, ClassifyPayload):
        assert len(result.scores) == len(payload.inputs), "one row of scores for each input"
        assert all(len(row) == len(result.labels) for row in result.scores), "one score for each label"
    if isinstance(result, InferResult) and isinstance(payload, InferPayload) and payload.outputs:
        assert tuple(tensor.name for tensor in result.outputs) == payload.outputs, (
            "the outputs that were asked for"
        )


def same_answer(one: Sequence[Event], other: Sequence[Event], tolerance: float) -> bool:
    """Whether two answers are the same: texts and counts exactly, numbers within the tolerance.

    How a text is cut into deltas is not part of it.
    """
    return _facts(one) == _facts(other) and _close(_numbers(one), _numbers(other), tolerance)


def _facts(events: Sequence[Event]) -> list[object]:
    indexes = sorted({event.index for event in events if isinstance(event, TextDelta)})
    facts: list[object] = [(index, text_of(events, index)) for index in indexes]
    facts += sorted((event.index, event.reason) for event in events if isinstance(event, Finished))
    facts.append(usage_of(events))
    for event in events:
        if isinstance(event, ClassifyResult):
            facts.append(event.labels)
        if isinstance(event, InferResult):
            facts += [_tensor_facts(tensor) for tensor in event.outputs]
    return facts


def _tensor_facts(tensor: Tensor) -> tuple[object, ...]:
    exact = None if tensor.datatype in _FLOATS else tensor.data
    return (tensor.name, tensor.datatype, tensor.shape, exact)


def _numbers(events: Sequence[Event]) -> list[float]:
    numbers: list[float] = []
    for event in events:
        if isinstance(event, EmbedResult):
            for vector in event.vectors:
                numbers += struct.unpack(f"<{len(vector) // 4}f", vector)
        if isinstance(event, RerankResult):
            numbers += event.scores
        if isinstance(event, ClassifyResult):
            numbers += [score for row in event.scores for score in row]
        if isinstance(event, InferResult):
            for tensor in event.outputs:
                if letter := _FLOATS.get(tensor.datatype):
                    numbers += [number for (number,) in struct.iter_unpack(f"<{letter}", tensor.data)]
    return numbers


def _close(one: Sequence[float], other: Sequence[float], tolerance: float) -> bool:
    return len(one) == len(other) and all(
        math.isclose(left, right, rel_tol=tolerance, abs_tol=tolerance)
        for left, right in zip(one, other, strict=True)
    )
