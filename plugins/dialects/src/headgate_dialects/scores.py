"""Rerank and classify: Headgate's own dialects of scores. Backends give logits; what a client sees is made here.

May import the plugin API.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import exp
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from headgate_plugin_api import (
    ClassifyPayload,
    ClassifyResult,
    Event,
    InvalidRequest,
    JsonValue,
    RerankPayload,
    RerankResult,
    Usage,
    UsageReport,
)

from headgate_dialects import openai_usage
from headgate_dialects.decoded import AnswerMeta, Decoded
from headgate_dialects.fields import MAX_LIMIT, beyond, known_fields, read_request, read_tags

RERANK: Final = "rerank"
CLASSIFY: Final = "classify"

R = TypeVar("R")


class _Document(msgspec.Struct):
    text: str


class RerankRequest(msgspec.Struct):
    """The body of a request as it stands on the wire."""

    model: str
    query: Annotated[str, msgspec.Meta(min_length=1)]
    documents: Annotated[list[str | _Document], msgspec.Meta(min_length=1)]
    top_n: Annotated[int, msgspec.Meta(ge=1, le=MAX_LIMIT)] | None = None
    return_documents: bool | None = None
    raw_scores: bool | None = None
    truncate: Literal["END", "START"] | None = None
    metadata: dict[str, Any] | None = None
    options: dict[str, Any] | None = None


_RERANK_FIELDS: Final = known_fields(RerankRequest, "user")


def decode_rerank(document: Any) -> Decoded:
    """Read a client's rerank request.

    Raises:
        InvalidRequest: With the path of the field at fault.
    """
    wire = read_request(document, RerankRequest)
    return Decoded(
        model=wire.model,
        payload=RerankPayload(
            query=wire.query,
            documents=tuple(item if isinstance(item, str) else item.text for item in wire.documents),
            truncate=wire.truncate,
        ),
        options=wire.options or {},
        tags=read_tags(wire.metadata),
        show={
            "top_n": wire.top_n,
            "return_documents": bool(wire.return_documents),
            "raw_scores": bool(wire.raw_scores),
        },
        beyond=beyond(document, _RERANK_FIELDS),
    )


def encode_rerank(events: Iterable[Event], meta: AnswerMeta) -> bytes:
    """The body of a rerank answer: best first, sigmoid unless raw."""
    scores, usage = _result(events, RerankResult)
    raw = scores.scores if scores is not None else ()
    shown = raw if meta.show.get("raw_scores") else tuple(map(sigmoid, raw))
    order = sorted(range(len(raw)), key=lambda index: (-raw[index], index))[: meta.show.get("top_n")]
    documents = meta.payload.documents if isinstance(meta.payload, RerankPayload) else ()
    results: list[dict[str, Any]] = []
    for index in order:
        result: dict[str, Any] = {"index": index, "relevance_score": shown[index]}
        if meta.show.get("return_documents"):
            result["document"] = {"text": documents[index]}
        results.append(result)
    return msgspec.json.encode(
        {
            "id": meta.id,
            "model": meta.model,
            "results": results,
            "usage": openai_usage.encode_input_only(usage, meta.cost),
        }
    )


class ClassifyRequest(msgspec.Struct):
    """The body of a request as it stands on the wire."""

    model: str
    input: str | Annotated[list[Any], msgspec.Meta(min_length=1)]
    top_k: Annotated[int, msgspec.Meta(ge=1, le=MAX_LIMIT)] | None = None
    raw_scores: bool | None = None
    explain: bool | None = None
    truncate: Literal["END", "START"] | None = None
    metadata: dict[str, Any] | None = None
    options: dict[str, Any] | None = None


_CLASSIFY_FIELDS: Final = known_fields(ClassifyRequest, "user")


def decode_classify(document: Any) -> Decoded:
    """Read a client's classify request.

    Raises:
        InvalidRequest: With the path of the field at fault.
    """
    wire = read_request(document, ClassifyRequest)
    if wire.explain:
        raise InvalidRequest("explain: is not supported by this model", path="explain")
    items = [wire.input] if isinstance(wire.input, str) else wire.input
    return Decoded(
        model=wire.model,
        payload=ClassifyPayload(
            inputs=tuple(_classify_input(item, f"input[{index}]") for index, item in enumerate(items)),
            truncate=wire.truncate,
        ),
        options=wire.options or {},
        tags=read_tags(wire.metadata),
        show={"top_k": wire.top_k, "raw_scores": bool(wire.raw_scores)},
        beyond=beyond(document, _CLASSIFY_FIELDS),
    )


def _classify_input(item: JsonValue, path: str) -> str | tuple[str, str]:
    if isinstance(item, str):
        if not item:
            raise InvalidRequest(f"{path}: must not be empty", path=path)
        return item
    if isinstance(item, list) and len(item) == 2:
        first, second = item
        if isinstance(first, str) and isinstance(second, str):
            return first, second
    raise InvalidRequest(f"{path}: expected a string or a pair of strings", path=path)


def encode_classify(events: Iterable[Event], meta: AnswerMeta) -> bytes:
    """The body of a classify answer: per input the best label and the `top_k` scores, best first."""
    result, usage = _result(events, ClassifyResult)
    data: list[dict[str, Any]] = []
    for index, logits in enumerate(result.scores if result is not None else ()):
        assert result is not None
        probabilities = tuple(map(sigmoid, logits)) if result.multi_label else softmax(logits)
        shown = logits if meta.show.get("raw_scores") else probabilities
        order = sorted(range(len(logits)), key=lambda label: (-logits[label], label))
        labels = result.labels
        data.append(
            {
                "index": index,
                "label": labels[order[0]],
                "score": shown[order[0]],
                "probs": list(probabilities),
                "num_classes": len(labels),
                "scores": [
                    {"label": labels[label], "score": shown[label]} for label in order[: meta.show.get("top_k")]
                ],
            }
        )
    return msgspec.json.encode(
        {
            "id": meta.id,
            "object": "list",
            "created": meta.created,
            "model": meta.model,
            "data": data,
            "usage": openai_usage.encode_input_only(usage, meta.cost),
        }
    )


def _result(events: Iterable[Event], kind: type[R]) -> tuple[R | None, Usage]:
    found: R | None = None
    usage = Usage()
    for event in events:
        if isinstance(event, kind):
            found = event
        elif isinstance(event, UsageReport):
            usage = event.usage
    return found, usage


def sigmoid(logit: float) -> float:
    """A logit as a probability, without overflow at either end."""
    return 1 / (1 + exp(-logit)) if logit >= 0 else exp(logit) / (1 + exp(logit))


def softmax(logits: Sequence[float]) -> tuple[float, ...]:
    """Logits as probabilities that sum to 1."""
    top = max(logits)
    powers = [exp(logit - top) for logit in logits]
    total = sum(powers)
    return tuple(power / total for power in powers)
