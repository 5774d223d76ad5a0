"""OpenAI legacy completions, both directions, whole and streamed.

May import the plugin API.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Final

import msgspec
from headgate_plugin_api import (
    CompletionPayload,
    Event,
    Finished,
    InferenceRequest,
    InvalidRequest,
    Sampling,
    TextDelta,
    ToolCallDelta,
)

from headgate_dialects import openai_usage
from headgate_dialects.decoded import AnswerMeta, Decoded
from headgate_dialects.fields import MAX_LIMIT, beyond, known_fields, read_answer, read_request, read_tags
from headgate_dialects.fold import Fold
from headgate_dialects.openai_chat_answers import openai_report
from headgate_dialects.openai_chat_requests import sampling_document, set_stream
from headgate_dialects.openai_stream import StreamOptions, StreamReader, StreamWriter, finish_reason, stop_strings

NAME: Final = "openai_completions"


class CompletionRequest(msgspec.Struct):
    """The body of a request as it stands on the wire."""

    model: str
    prompt: str | Annotated[list[Any], msgspec.Meta(min_length=1, max_length=2048)]
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_LIMIT)] | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = None
    best_of: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=-1, le=MAX_LIMIT)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] | None = None
    stop: str | Annotated[list[str], msgspec.Meta(max_length=16)] | None = None
    echo: bool | None = None
    metadata: dict[str, Any] | None = None
    options: dict[str, Any] | None = None


_KNOWN: Final = known_fields(CompletionRequest, "user")


def decode_request(document: Any) -> Decoded:
    """Read a client's request.

    Raises:
        InvalidRequest: With the path of the field at fault.
    """
    wire = read_request(document, CompletionRequest)
    n = wire.n or 1
    if wire.best_of is not None and wire.best_of != n:
        raise InvalidRequest(
            f"best_of: candidates that are thrown away are not supported; leave it out or set it to n ({n})",
            path="best_of",
        )
    return Decoded(
        model=wire.model,
        payload=CompletionPayload(
            prompts=_prompts(wire.prompt),
            n=n,
            sampling=Sampling(
                temperature=wire.temperature,
                top_p=wire.top_p,
                top_k=wire.top_k,
                seed=wire.seed,
                presence_penalty=wire.presence_penalty,
                frequency_penalty=wire.frequency_penalty,
                stop=stop_strings(wire.stop),
            ),
            echo=bool(wire.echo),
        ),
        max_output=wire.max_tokens,
        stream=bool(wire.stream),
        include_usage=bool(wire.stream_options and wire.stream_options.include_usage),
        options=wire.options or {},
        tags=read_tags(wire.metadata),
        beyond=beyond(document, _KNOWN),
    )


def _prompts(wire: str | list[Any]) -> tuple[str, ...]:
    if isinstance(wire, str):
        return (wire,)
    for index, prompt in enumerate(wire):
        if not isinstance(prompt, str):
            path = f"prompt[{index}]"
            raise InvalidRequest(
                f"{path}: expected a string; token ids are not accepted, because they mean different text to "
                "every model",
                path=path,
            )
    return tuple(wire)


def encode_request(request: InferenceRequest, upstream_model: str) -> dict[str, Any]:
    """The body for an OpenAI-compatible upstream; see `openai_chat.encode_request`."""
    payload = request.payload
    assert isinstance(payload, CompletionPayload)
    native = request.native
    if native is not None and native.dialect == NAME:
        document: dict[str, Any] = dict(native.document)
    else:
        document = {"prompt": payload.prompts[0] if len(payload.prompts) == 1 else list(payload.prompts)}
        if payload.n != 1:
            document["n"] = payload.n
        document |= sampling_document(payload.sampling)
        if payload.echo:
            document["echo"] = True
        if request.options:
            document["options"] = request.options
    document["model"] = upstream_model
    document.pop("max_tokens", None)
    if request.max_output is not None:
        document["max_tokens"] = request.max_output
    set_stream(document, stream=request.stream)
    return document


def encode_answer(events: Iterable[Event], meta: AnswerMeta) -> bytes:
    """The body of a whole answer."""
    fold = Fold(events)
    document: dict[str, Any] = {
        "id": meta.id,
        "object": "text_completion",
        "created": meta.created,
        "model": meta.model,
        "choices": [
            {
                "text": choice.text,
                "index": index,
                "logprobs": choice.extra.get("logprobs"),
                "finish_reason": choice.finish,
            }
            for index, choice in fold.choices.items()
        ],
    }
    if fold.report is not None:
        document["usage"] = openai_usage.encode(fold.report.usage, meta.cost)
        document |= fold.report.extra
    return msgspec.json.encode(document)


class _Choice(msgspec.Struct):
    index: Annotated[int, msgspec.Meta(ge=0, le=2**20)] = 0
    text: str | None = None
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Any = None
    error: Any = None
    system_fingerprint: str | None = None
    service_tier: str | None = None


class _Answer(_Chunk):
    """A whole answer must have choices, a chunk need not."""

    choices: list[_Choice] = msgspec.field()


_answers = msgspec.json.Decoder(_Answer)


def decode_answer(data: bytes) -> tuple[Event, ...]:
    """The events of an upstream's whole answer.

    Raises:
        UpstreamFailed: The body is not an answer of this dialect.
    """
    answer = read_answer(data, _answers)
    events: list[Event] = []
    for choice in answer.choices:
        events += _text(choice)
        events.append(Finished(reason=finish_reason(choice.finish_reason), index=choice.index))
    return (*events, *openai_report(answer.usage, answer.system_fingerprint, answer.service_tier))


def _text(choice: _Choice) -> tuple[Event, ...]:
    if not choice.text and choice.logprobs is None:
        return ()
    extra = {} if choice.logprobs is None else {"logprobs": choice.logprobs}
    return (TextDelta(text=choice.text or "", index=choice.index, extra=extra),)


class StreamDecoder(StreamReader[_Chunk]):
    """Reads an upstream's SSE stream; see `StreamReader`."""

    _decoder = msgspec.json.Decoder(_Chunk)

    def _events(self, chunk: _Chunk) -> Iterable[Event]:
        for choice in chunk.choices:
            yield from _text(choice)
            if choice.finish_reason is not None:
                yield Finished(reason=finish_reason(choice.finish_reason), index=choice.index)
        yield from openai_report(chunk.usage, chunk.system_fingerprint, chunk.service_tier)


class StreamEncoder(StreamWriter):
    """Writes the SSE stream that a client reads; see `StreamWriter`."""

    _object = "text_completion"

    def _delta(self, event: TextDelta | ToolCallDelta) -> bytes:
        if isinstance(event, ToolCallDelta) or event.reasoning:
            return b""
        logprobs = event.extra.get("logprobs")
        choice = {"text": event.text, "index": event.index, "logprobs": logprobs, "finish_reason": None}
        return self._chunk([choice])

    def _finish(self, event: Finished) -> dict[str, Any]:
        return {"text": "", "index": event.index, "logprobs": None, "finish_reason": event.reason}
