"""What the fake gateway's models answer, as wire documents. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import unquote

from headgate._core import tensors
from headgate._core.infer_wire import BINARY_HEADER
from headgate._core.money import format_nano
from headgate.testing.faults import Fault, Split
from headgate.testing.models import (
    FakeModel,
    count_input,
    encoded,
    last_user_text,
    overlap,
    vector,
    words,
)


@dataclass(frozen=True, slots=True)
class Bad:
    """The request is at fault."""

    message: str
    path: str


@dataclass(slots=True)
class Made:
    """An answer: its tokens, and how to write it whole or as events once its id and cost are known."""

    tokens_in: int
    tokens_out: int
    encode: Callable[[str, str], bytes]
    events: Callable[[str, str], list[bytes]] = lambda _id, _cost: []
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict[str, str])


def default_models() -> dict[str, FakeModel]:
    """The models of a gateway that names none."""
    return {
        "echo": FakeModel("chat"),
        "embed": FakeModel("embed", {"input": "0.02"}),
        "rerank": FakeModel("rerank", {"input": "0.1"}),
        "classify": FakeModel("classify", {"input": "0.1"}),
        "double": FakeModel("infer", {"request": "0.000001"}),
    }


def model_of(path: str, document: Mapping[str, Any]) -> str:
    """The model that a request asks for: its own field, or the path under /v2."""
    if path.startswith("/v2/models/"):
        return unquote(path.removeprefix("/v2/models/").removesuffix("/infer").split("/versions/")[0])
    return str(document.get("model"))


def json_length(headers: Mapping[str, str], body: bytes) -> int:
    """How much of a body is JSON."""
    value = headers.get(BINARY_HEADER)
    return int(value) if value else len(body)


def tags_of(headers: Mapping[str, str]) -> dict[str, str]:
    """The tags that came with a request."""
    pairs = (item.partition("=") for item in headers.get("headgate-tags", "").split(", ") if item)
    return {unquote(name): unquote(value) for name, _, value in pairs}


def make(
    path: str, document: Mapping[str, Any], body: bytes, headers: Mapping[str, str], model: FakeModel
) -> Made | Bad:
    """The answer of a model."""
    if path.startswith("/v2/"):
        return _infer(document, body, headers)
    makers: dict[str, Callable[[Mapping[str, Any], FakeModel], Made | Bad]] = {
        "/v1/chat/completions": _chat,
        "/v1/completions": _completion,
        "/v1/responses": _response,
        "/v1/embeddings": _embed,
        "/v1/rerank": _rerank,
        "/v1/classify": _classify,
    }
    maker = makers.get(path)
    return Bad(f"there is no route {path}", "path") if maker is None else maker(document, model)


def _usage(tokens_in: int, tokens_out: int, cost: str) -> dict[str, Any]:
    return {
        "prompt_tokens": tokens_in,
        "completion_tokens": tokens_out,
        "total_tokens": tokens_in + tokens_out,
        "cost": cost,
    }


def _tokens(document: Mapping[str, Any], model: FakeModel) -> tuple[list[str], str]:
    """The words of an answer within the asked limit, and why it ended."""
    text = (model.answer or last_user_text)(document)
    made = words(text)
    asked = document.get("max_completion_tokens") or document.get("max_tokens")
    return (made[:asked], "length") if asked is not None and asked < len(made) else (made, "stop")


def _event(document: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


_DONE = b"data: [DONE]\n\n"


def _chat(document: Mapping[str, Any], model: FakeModel) -> Made | Bad:
    messages = document.get("messages")
    if not isinstance(messages, list) or not messages:
        return Bad("messages: expected a list with at least one message", "messages")
    tokens, finish = _tokens(document, model)
    count = document.get("n") or 1
    used = (count_input(document), len(tokens) * count)

    def encode(request_id: str, cost: str) -> bytes:
        message = {"role": "assistant", "content": "".join(tokens)}
        choices = [{"index": at, "message": message, "finish_reason": finish} for at in range(count)]
        head = {"id": request_id, "object": "chat.completion", "created": 0, "model": document["model"]}
        return json.dumps({**head, "choices": choices, "usage": _usage(*used, cost)}).encode()

    def events(request_id: str, cost: str) -> list[bytes]:
        head = {
            "id": request_id, "object": "chat.completion.chunk", "created": 0, "model": document["model"],
        }  # fmt: skip
        made = [
            _event({**head, "choices": [{"index": at, "delta": {"content": token}}]})
            for token in tokens
            for at in range(count)
        ]
        made.extend(
            _event({**head, "choices": [{"index": at, "delta": {}, "finish_reason": finish}]})
            for at in range(count)
        )
        made.append(_event({**head, "choices": [], "usage": _usage(*used, cost)}))
        return [*made, _DONE]

    return Made(*used, encode, events)


def _completion(document: Mapping[str, Any], model: FakeModel) -> Made | Bad:
    tokens, finish = _tokens(document, model)
    used = (count_input(document), len(tokens))
    head = {"object": "text_completion", "created": 0, "model": document["model"]}

    def encode(request_id: str, cost: str) -> bytes:
        choices = [{"index": 0, "text": "".join(tokens), "finish_reason": finish}]
        return json.dumps({"id": request_id, **head, "choices": choices, "usage": _usage(*used, cost)}).encode()

    def events(request_id: str, cost: str) -> list[bytes]:
        made = [_event({"id": request_id, **head, "choices": [{"index": 0, "text": token}]}) for token in tokens]
        end = {"index": 0, "text": "", "finish_reason": finish}
        made.append(_event({"id": request_id, **head, "choices": [end]}))
        made.append(_event({"id": request_id, **head, "choices": [], "usage": _usage(*used, cost)}))
        return [*made, _DONE]

    return Made(*used, encode, events)


def _response(document: Mapping[str, Any], model: FakeModel) -> Made | Bad:
    tokens, _ = _tokens({**document, "max_tokens": document.get("max_output_tokens")}, model)
    used = (count_input(document), len(tokens))

    def whole(request_id: str, cost: str) -> dict[str, Any]:
        usage = {"input_tokens": used[0], "output_tokens": used[1], "total_tokens": sum(used), "cost": cost}
        part = {"type": "output_text", "text": "".join(tokens)}
        item = {"type": "message", "id": "msg_1", "role": "assistant", "content": [part]}
        head = {"id": request_id, "object": "response", "model": document["model"], "status": "completed"}
        return {**head, "output": [item], "usage": usage}

    def events(request_id: str, cost: str) -> list[bytes]:
        made = [_event({"type": "response.output_text.delta", "delta": token}) for token in tokens]
        made.append(_event({"type": "response.completed", "response": whole(request_id, cost)}))
        return made

    return Made(*used, lambda request_id, cost: json.dumps(whole(request_id, cost)).encode(), events)


def _embed(document: Mapping[str, Any], model: FakeModel) -> Made | Bad:
    given: Any = document.get("input")
    texts: list[Any] = []
    if isinstance(given, str | list):
        texts += [given] if isinstance(given, str) else given
    if not any(texts):
        return Bad("input: expected a text or a list of texts", "input")
    used = (count_input(document), 0)
    size = document.get("dimensions") or model.dimensions
    base64 = document.get("encoding_format") == "base64"

    def encode(_request_id: str, cost: str) -> bytes:
        vectors = [vector(str(text), size) for text in texts]
        data = [
            {"object": "embedding", "index": at, "embedding": encoded(item) if base64 else item}
            for at, item in enumerate(vectors)
        ]
        head = {"object": "list", "model": document["model"]}
        return json.dumps({**head, "data": data, "usage": _usage(*used, cost)}).encode()

    return Made(*used, encode, headers={"headgate-fingerprint": f"fake-{size}"})


def _rerank(document: Mapping[str, Any], model: FakeModel) -> Made | Bad:  # noqa: ARG001  one shape for all
    given = cast("list[str | dict[str, str]]", document.get("documents") or [])
    texts = [item if isinstance(item, str) else item["text"] for item in given]
    used = (count_input(document), 0)
    scored = sorted(
        ((overlap(str(document.get("query", "")), text), -at) for at, text in enumerate(texts)), reverse=True
    )

    def encode(request_id: str, cost: str) -> bytes:
        results: list[dict[str, Any]] = [{"index": -at, "relevance_score": score} for score, at in scored]
        top: list[dict[str, Any]] = results[: document.get("top_n") or len(results)]
        if document.get("return_documents"):
            top = [{**item, "document": {"text": texts[int(item["index"])]}} for item in top]
        head = {"id": request_id, "model": document["model"]}
        return json.dumps({**head, "results": top, "usage": _usage(*used, cost)}).encode()

    return Made(*used, encode)


def _classify(document: Mapping[str, Any], model: FakeModel) -> Made | Bad:  # noqa: ARG001  one shape for all
    given = document.get("input")
    texts: Sequence[Any] = [given] if isinstance(given, str) else given or []
    used = (count_input(document), 0)

    def encode(request_id: str, cost: str) -> bytes:
        data: list[dict[str, Any]] = []
        for at, text in enumerate(texts):
            long = len(str(text).split()) > 3
            scores: list[dict[str, Any]] = [{"label": "long", "score": 0.9 if long else 0.1}]
            scores.append({"label": "short", "score": 0.1 if long else 0.9})
            scores.sort(key=lambda item: -item["score"])
            best = scores[0]
            probs = [0.9, 0.1] if long else [0.1, 0.9]
            data.append({"index": at, **best, "probs": probs, "num_classes": 2, "scores": scores})
        head = {"id": request_id, "model": document["model"]}
        return json.dumps({**head, "data": data, "usage": _usage(*used, cost)}).encode()

    return Made(*used, encode)


def _infer(document: Mapping[str, Any], body: bytes, headers: Mapping[str, str]) -> Made | Bad:
    """Twice every number; text comes back as it is. Answers in the form that was asked for."""
    offset = json_length(headers, body)
    outputs: list[tuple[dict[str, Any], Any]] = []
    for at, tensor in enumerate(cast("list[dict[str, Any]]", document.get("inputs") or [])):
        described: dict[str, Any] = tensor.get("parameters") or {}
        size: int | None = described.get("binary_data_size")
        if size is None:
            flat = list(tensors.leaves(tensor.get("data")))
        else:
            raw = body[offset : offset + size]
            offset += size
            flat = tensors.from_bytes(tensor["name"], tensor["datatype"], tensor["shape"], raw)
        count = 1
        for side in tensor["shape"]:
            count *= side
        if len(flat) != count:
            return Bad(f"inputs[{at}].data: expected {count} values, got {len(flat)}", f"inputs[{at}].data")
        numbers = tensor["datatype"] not in {"BYTES", "BOOL"}
        values = [value * 2 if numbers else value for value in flat]
        entry = {"name": tensor["name"], "datatype": tensor["datatype"], "shape": tensor["shape"]}
        outputs.append((entry, values))
    parameters = cast("dict[str, Any]", document.get("parameters") or {})
    binary = bool(parameters.get("binary_data_output"))
    made = Made(0, 0, lambda request_id, _cost: _infer_bytes(document, outputs, request_id, binary)[1])
    if binary:
        head = _infer_bytes(document, outputs, "req_" + "0" * 32, binary)[0]
        made.headers[BINARY_HEADER] = str(head)
        made.content_type = "application/octet-stream"
    return made


def _infer_bytes(
    document: Mapping[str, Any], outputs: list[tuple[dict[str, Any], Any]], request_id: str, binary: bool
) -> tuple[int, bytes]:
    entries: list[dict[str, Any]] = []
    tail = b""
    for entry, values in outputs:
        if binary:
            raw = tensors.to_bytes(entry["name"], entry["datatype"], values)
            entries.append({**entry, "parameters": {"binary_data_size": len(raw)}})
            tail += raw
        else:
            entries.append({**entry, "data": tensors.to_json(entry["name"], entry["datatype"], values)})
    head = json.dumps(
        {
            "id": document.get("id", request_id),
            "model_name": document["model"],
            "model_version": "1",
            "outputs": entries,
        }
    ).encode()
    return len(head), head + tail


def card(name: str, model: FakeModel) -> dict[str, Any]:
    """A model as the list of models has it."""
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "fake",
        "task": model.task,
        "price": dict(model.price),
    }


def quote(
    name: str, model: FakeModel, document: Mapping[str, Any], price: Callable[[FakeModel, int, int], int]
) -> dict[str, Any]:
    """What a request would cost at most."""
    tokens_in = count_input(document)
    makes_text = model.task in {"chat", "completion"}
    asked = document.get("max_completion_tokens") or document.get("max_tokens") or 4096
    tokens_out = asked * (document.get("n") or 1) if makes_text else 0
    bound = {"input": tokens_in, "output": tokens_out, "requests": 1}
    return {
        "object": "quote",
        "model": name,
        "price": "price_fake",
        "upper": format_nano(price(model, tokens_in, tokens_out)),
        "bound": {dimension: count for dimension, count in bound.items() if count},
        "rates": dict(model.price),
        "max_output_tokens": asked if makes_text else None,
    }


def error_event(code: str) -> bytes:
    """The event of a backend that fails in the middle of a stream."""
    problem = {"status": 502, "code": code, "detail": "scripted failure of the backend"}
    document = {**problem, "error": {"message": problem["detail"], "code": code}}
    return b"event: error\ndata: " + json.dumps(document).encode() + b"\n\n"


def pieces(events: list[bytes], fault: Fault | None) -> list[bytes]:
    """A body as it arrives."""
    if not isinstance(fault, Split):
        return list(events)
    body = b"".join(events)
    return [body[at : at + fault.size] for at in range(0, len(body), fault.size)]
