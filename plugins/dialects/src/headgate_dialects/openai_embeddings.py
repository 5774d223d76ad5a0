"""OpenAI embeddings, both directions; with Headgate's `truncate`, `input_type` and `prompt_name`.

May import the plugin API.
"""

from __future__ import annotations

import base64
import binascii
import sys
from array import array
from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal

import msgspec
from headgate_plugin_api import (
    EmbedPayload,
    EmbedResult,
    Event,
    InferenceRequest,
    InvalidRequest,
    JsonValue,
    UpstreamFailed,
    Usage,
    UsageReport,
)

from headgate_dialects import openai_usage
from headgate_dialects.decoded import AnswerMeta, Decoded
from headgate_dialects.fields import MAX_LIMIT, beyond, known_fields, read_answer, read_request, read_tags

NAME: Final = "openai_embeddings"


class EmbeddingRequest(msgspec.Struct):
    """The body of a request as it stands on the wire."""

    model: str
    input: str | Annotated[list[Any], msgspec.Meta(min_length=1)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=MAX_LIMIT)] | None = None
    truncate: Literal["END", "START"] | None = None
    input_type: str | None = None
    prompt_name: str | None = None
    metadata: dict[str, Any] | None = None
    options: dict[str, Any] | None = None


_KNOWN: Final = known_fields(EmbeddingRequest, "user")


def decode_request(document: Any) -> Decoded:
    """Read a client's request.

    Raises:
        InvalidRequest: With the path of the field at fault.
    """
    wire = read_request(document, EmbeddingRequest)
    return Decoded(
        model=wire.model,
        payload=EmbedPayload(
            inputs=_inputs(wire.input),
            dimensions=wire.dimensions,
            truncate=wire.truncate,
            input_type=wire.input_type,
            prompt_name=wire.prompt_name,
        ),
        options=wire.options or {},
        tags=read_tags(wire.metadata),
        show={"encoding_format": wire.encoding_format} if wire.encoding_format else {},
        beyond=beyond(document, _KNOWN),
    )


def _inputs(wire: str | list[JsonValue]) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(wire, str):
        if not wire:
            raise InvalidRequest("input: must not be empty", path="input")
        return (wire,)
    if type(wire[0]) is int:
        return (_token_ids(wire, "input"),)
    return tuple(_input(item, f"input[{index}]") for index, item in enumerate(wire))


def _input(item: JsonValue, path: str) -> str | tuple[int, ...]:
    if isinstance(item, str):
        if not item:
            raise InvalidRequest(f"{path}: must not be empty", path=path)
        return item
    if isinstance(item, list) and item:
        return _token_ids(item, path)
    if isinstance(item, list):
        raise InvalidRequest(f"{path}: must not be empty", path=path)
    raise InvalidRequest(f"{path}: expected a string or an array of token ids, got {_json_name(item)}", path=path)


def _token_ids(items: list[Any], path: str) -> tuple[int, ...]:
    for index, item in enumerate(items):
        if type(item) is not int or not 0 <= item <= MAX_LIMIT:
            raise InvalidRequest(
                f"{path}[{index}]: expected a token id, got {_json_name(item)}", path=f"{path}[{index}]"
            )
    return tuple(items)


def _json_name(value: object) -> str:
    if value is None:
        return "null"
    names: dict[type[object], str] = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "an array",
    }
    return names.get(type(value), "an object")


def encode_request(request: InferenceRequest, upstream_model: str) -> dict[str, Any]:
    """The body for an OpenAI-compatible upstream. Vectors are asked for as base64: exact, and a third as long."""
    payload = request.payload
    assert isinstance(payload, EmbedPayload)
    native = request.native
    if native is not None and native.dialect == NAME:
        document: dict[str, Any] = dict(native.document)
    else:
        document = {"input": [item if isinstance(item, str) else list(item) for item in payload.inputs]}
        for name in ("dimensions", "truncate", "input_type", "prompt_name"):
            if (value := getattr(payload, name)) is not None:
                document[name] = value
        if request.options:
            document["options"] = request.options
    document["model"] = upstream_model
    document["encoding_format"] = "base64"
    return document


def encode_answer(events: Iterable[Event], meta: AnswerMeta) -> bytes:
    """The body of the answer, vectors as the client asked for them."""
    vectors: tuple[bytes, ...] = ()
    usage = Usage()
    for event in events:
        if isinstance(event, EmbedResult):
            vectors = event.vectors
        elif isinstance(event, UsageReport):
            usage = event.usage
    show = _base64 if meta.show.get("encoding_format") == "base64" else _floats
    return msgspec.json.encode(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": show(vector)}
                for index, vector in enumerate(vectors)
            ],
            "model": meta.model,
            "usage": openai_usage.encode_input_only(usage, meta.cost),
        }
    )


def _base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode("ascii")


def _floats(vector: bytes) -> list[float]:
    values = array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()


class _Item(msgspec.Struct):
    embedding: list[float] | str
    index: int | None = None


class _Answer(msgspec.Struct):
    data: list[_Item]
    usage: Any = None


_answers = msgspec.json.Decoder(_Answer)


def decode_answer(data: bytes) -> tuple[Event, ...]:
    """The events of an upstream's answer, vectors in input order.

    Raises:
        UpstreamFailed: The body is not an answer of this dialect, or its vectors differ in length.
    """
    answer = read_answer(data, _answers)
    count = len(answer.data)
    vectors: dict[int, bytes] = {}
    for position, item in enumerate(answer.data):
        vectors[position if item.index is None else item.index] = _vector(item.embedding)
    if sorted(vectors) != list(range(count)):
        raise UpstreamFailed("the upstream's embeddings are not numbered 0, 1, 2, ...")
    if len({len(vector) for vector in vectors.values()}) > 1:
        raise UpstreamFailed("the upstream's embeddings differ in length")
    result = EmbedResult(vectors=tuple(vectors[index] for index in range(count)))
    usage = openai_usage.decode(answer.usage)
    return (result,) if usage is None else (result, UsageReport(usage=usage, source="upstream"))


def _vector(embedding: list[float] | str) -> bytes:
    if isinstance(embedding, str):
        try:
            raw = base64.b64decode(embedding, validate=True)
        except (binascii.Error, ValueError):
            raise UpstreamFailed("the upstream's embedding is not base64") from None
        if len(raw) % 4:
            raise UpstreamFailed(f"the upstream's embedding has {len(raw)} bytes, no multiple of 4")
        return raw
    values = array("f", embedding)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()
