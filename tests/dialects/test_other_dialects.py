"""Completions, embeddings, tensors and scores: paths of errors, round trips, golden documents."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest
from headgate_dialects import kserve, openai_chat, openai_completions, openai_embeddings, scores
from headgate_dialects.decoded import AnswerMeta, Decoded
from headgate_plugin_api import (
    ClassifyResult,
    CompletionPayload,
    EmbedPayload,
    EmbedResult,
    Event,
    Finished,
    InferenceRequest,
    InferPayload,
    InferResult,
    InvalidRequest,
    RerankPayload,
    RerankResult,
    Tensor,
    TextDelta,
    UpstreamFailed,
    Usage,
    UsageReport,
)
from hypothesis import given
from hypothesis import strategies as st

META = AnswerMeta(id="req_1", model="m", created=1_700_000_000, cost="0.00002")
GOLDEN = Path(__file__).parent / "golden"

DECODERS = {
    "chat": openai_chat.decode_request,
    "completions": openai_completions.decode_request,
    "embeddings": openai_embeddings.decode_request,
    "infer": kserve.decode_request,
    "rerank": scores.decode_rerank,
    "classify": scores.decode_classify,
}
ENCODERS = {
    "chat": openai_chat.encode_answer,
    "completions": openai_completions.encode_answer,
    "embeddings": openai_embeddings.encode_answer,
    "infer": kserve.encode_answer,
    "rerank": scores.encode_rerank,
    "classify": scores.encode_classify,
}


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_golden_documents_mean_what_they_meant(path: Path) -> None:
    """Each file holds a request with what it decodes to, and events with the answer they encode to."""
    golden: dict[str, Any] = msgspec.json.decode(path.read_bytes())
    name = path.stem.split("-")[0]
    decoded = DECODERS[name](golden["request"])
    assert msgspec.json.decode(msgspec.json.encode(decoded)) == golden["decoded"]
    events = msgspec.convert(golden["events"], tuple[Event, ...])
    meta = msgspec.structs.replace(META, show=decoded.show, payload=decoded.payload)
    assert msgspec.json.decode(ENCODERS[name](events, meta)) == golden["answer"]


def test_every_dialect_has_a_golden_document() -> None:
    assert {path.stem.split("-")[0] for path in GOLDEN.glob("*.json")} == set(DECODERS)


def tensor(**more: object) -> dict[str, object]:
    return {"inputs": [{"name": "x", "datatype": "INT32", "shape": [2], "data": [1, 2], **more}]}


@pytest.mark.parametrize(
    ("dialect", "bad", "path"),
    [
        ("completions", {"model": "m"}, "prompt"),
        ("completions", {"model": "m", "prompt": []}, "prompt"),
        ("completions", {"model": "m", "prompt": [1, 2]}, "prompt[0]"),
        ("completions", {"model": "m", "prompt": "a", "best_of": 3}, "best_of"),
        ("completions", {"model": "m", "prompt": "a", "max_tokens": -4}, "max_tokens"),
        ("embeddings", {"model": "m", "input": ""}, "input"),
        ("embeddings", {"model": "m", "input": []}, "input"),
        ("embeddings", {"model": "m", "input": ["a", ""]}, "input[1]"),
        ("embeddings", {"model": "m", "input": ["a", 5]}, "input[1]"),
        ("embeddings", {"model": "m", "input": [[1], [2, -1]]}, "input[1][1]"),
        ("embeddings", {"model": "m", "input": [1, "a"]}, "input[1]"),
        ("embeddings", {"model": "m", "input": "a", "dimensions": 0}, "dimensions"),
        ("embeddings", {"model": "m", "input": "a", "encoding_format": "hex"}, "encoding_format"),
        ("embeddings", {"model": "m", "input": "a", "truncate": "MIDDLE"}, "truncate"),
        ("infer", {}, "inputs"),
        ("infer", {"inputs": []}, "inputs"),
        ("infer", tensor(datatype="INT4"), "inputs[0].datatype"),
        ("infer", tensor(datatype="FP16", data=[1.0, 2.0]), "inputs[0].data"),
        ("infer", tensor(shape=[-2]), "inputs[0].shape[0]"),
        ("infer", tensor(shape=[3]), "inputs[0].data"),
        ("infer", tensor(data=[1, 2.5]), "inputs[0].data[1]"),
        ("infer", tensor(data=[1, True]), "inputs[0].data[1]"),
        ("infer", tensor(data=[1, 2**31]), "inputs[0].data[1]"),
        ("infer", tensor(datatype="UINT8", data=[1, -1]), "inputs[0].data[1]"),
        ("infer", tensor(datatype="FP32", data=[1, 1e39]), "inputs[0].data[1]"),
        ("infer", tensor(datatype="BOOL", data=[True, 1]), "inputs[0].data[1]"),
        ("infer", tensor(datatype="BYTES", data=["a", None]), "inputs[0].data[1]"),
        ("infer", tensor(shape=[2, 2], data=[[1, 2], [3]]), "inputs[0].data[1]"),
        ("infer", tensor(shape=[2, 1, 2], data=[[[1, 2]], [[3]]]), "inputs[0].data[1][0]"),
        ("infer", tensor(shape=[2, 2], data=[[1, 2], 3]), "inputs[0].data[1]"),
        ("infer", {"inputs": tensor()["inputs"] * 2}, "inputs[1].name"),  # type: ignore[operator]
        ("rerank", {"model": "m", "query": "q", "documents": []}, "documents"),
        ("rerank", {"model": "m", "query": "q", "documents": ["a", 5]}, "documents[1]"),
        ("rerank", {"model": "m", "query": "q", "documents": ["a"], "top_n": 0}, "top_n"),
        ("classify", {"model": "m", "input": [["a", "b", "c"]]}, "input[0]"),
    ],
)
def test_a_bad_field_is_named(dialect: str, bad: object, path: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        DECODERS[dialect](bad)
    assert error.value.path == path


def test_nested_and_flat_data_are_the_same_tensor() -> None:
    flat = kserve.decode_request(tensor(shape=[2, 3], data=[1, 2, 3, 4, 5, 6]))
    nested = kserve.decode_request(tensor(shape=[2, 3], data=[[1, 2, 3], [4, 5, 6]]))
    assert flat == nested
    assert isinstance(flat.payload, InferPayload)
    assert flat.payload.inputs[0].data == struct.pack("<6i", 1, 2, 3, 4, 5, 6)


INTEGERS = {"UINT8": (0, 2**8), "UINT16": (0, 2**16), "UINT32": (0, 2**32), "UINT64": (0, 2**64)} | {
    f"INT{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1)) for bits in (8, 16, 32, 64)
}


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    shape = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    datatype = draw(st.sampled_from([*INTEGERS, "BOOL", "FP32", "FP64", "BYTES"]))
    elements: st.SearchStrategy[Any]
    if datatype in INTEGERS:
        low, high = INTEGERS[datatype]
        elements = st.integers(low, high - 1)
    elif datatype == "BOOL":
        elements = st.booleans()
    elif datatype == "BYTES":
        elements = st.text(max_size=5)
    else:
        elements = st.floats(width=32 if datatype == "FP32" else 64, allow_nan=False, allow_infinity=False)
    count = math.prod(shape)
    data = draw(st.lists(elements, min_size=count, max_size=count))
    return {"name": "x", "datatype": datatype, "shape": shape, "data": data}


@given(wire=documents())
def test_tensors_come_back_as_they_went(wire: dict[str, Any]) -> None:
    decoded = kserve.decode_request({"inputs": [wire]})
    assert isinstance(decoded.payload, InferPayload)
    request = InferenceRequest(id="r", model="m", payload=decoded.payload)
    assert kserve.decode_request(kserve.encode_request(request)).payload == decoded.payload
    result = InferResult(outputs=decoded.payload.inputs)
    answer = kserve.encode_answer([result], META)
    assert msgspec.json.decode(answer)["outputs"] == [wire]
    assert kserve.decode_answer(answer) == (result,)


def test_outputs_that_json_cannot_say() -> None:
    half = Tensor(name="y", datatype="FP16", shape=(1,), data=b"\0\0")
    with pytest.raises(InvalidRequest, match="FP16"):
        kserve.encode_answer([InferResult(outputs=(half,))], META)
    short = Tensor(name="y", datatype="INT32", shape=(2,), data=b"\0" * 4)
    with pytest.raises(UpstreamFailed, match="needs 2"):
        kserve.encode_answer([InferResult(outputs=(short,))], META)


vectors = st.integers(0, 5).flatmap(
    lambda size: st.lists(
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=size, max_size=size),
        min_size=1,
        max_size=3,
    )
)


@given(values=vectors, form=st.sampled_from(["float", "base64"]), tokens=st.integers(0, 99))
def test_vectors_come_back_bit_by_bit(values: list[list[float]], form: str, tokens: int) -> None:
    events = (
        EmbedResult(vectors=tuple(struct.pack(f"<{len(v)}f", *v) for v in values)),
        UsageReport(usage=Usage(input=tokens), source="upstream"),
    )
    meta = msgspec.structs.replace(META, show={"encoding_format": form})
    assert openai_embeddings.decode_answer(openai_embeddings.encode_answer(events, meta)) == events


@pytest.mark.parametrize(
    "answer",
    [
        {"data": [{"embedding": [1], "index": 1}]},
        {"data": [{"embedding": [1]}, {"embedding": [1, 2]}]},
        {"data": [{"embedding": "!!"}]},
        {"data": [{"embedding": "AAA="}]},
        {"data": "x"},
        {"data": [{"embedding": [1], "index": 0}, {"embedding": [1], "index": 0}]},
    ],
)
def test_embeddings_that_do_not_add_up_are_the_upstreams_fault(answer: object) -> None:
    with pytest.raises(UpstreamFailed):
        openai_embeddings.decode_answer(msgspec.json.encode(answer))


@given(
    payload=st.builds(
        EmbedPayload,
        inputs=st.lists(
            st.text(min_size=1, max_size=5) | st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple),
            min_size=1,
            max_size=3,
        ).map(tuple),
        dimensions=st.none() | st.integers(1, 9),
        truncate=st.sampled_from([None, "END", "START"]),
    )
)
def test_embedding_requests_round_trip(payload: EmbedPayload) -> None:
    request = InferenceRequest(id="r", model="m", payload=payload)
    assert openai_embeddings.decode_request(openai_embeddings.encode_request(request, "m")).payload == payload


@given(
    prompts=st.lists(st.text(max_size=5), min_size=1, max_size=3).map(tuple),
    n=st.integers(1, 3),
    echo=st.booleans(),
    limit=st.none() | st.integers(1, 99),
)
def test_completion_requests_round_trip(prompts: tuple[str, ...], n: int, echo: bool, limit: int | None) -> None:
    payload = CompletionPayload(prompts=prompts, n=n, echo=echo)
    request = InferenceRequest(id="r", model="m", payload=payload, max_output=limit)
    decoded = openai_completions.decode_request(openai_completions.encode_request(request, "m"))
    assert (decoded.payload, decoded.max_output) == (payload, limit)


@given(parts=st.lists(st.text(min_size=1, max_size=6), max_size=5), size=st.integers(1, 50))
def test_completion_streams_read_back(parts: list[str], size: int) -> None:
    events: list[Event] = [*(TextDelta(text=text) for text in parts), Finished(reason="length")]
    writer = openai_completions.StreamEncoder(META)
    wire = b"".join(map(writer.encode, events)) + writer.final(Usage(input=3, output=4), "1")
    reader = openai_completions.StreamDecoder()
    read = [event for at in range(0, len(wire), size) for event in reader.feed(wire[at : at + size])]
    assert read == [*events, UsageReport(usage=Usage(input=3, output=4), source="upstream")]


def test_rerank_orders_by_score_and_breaks_ties_by_place() -> None:
    decoded: Decoded = scores.decode_rerank(
        {"model": "m", "query": "q", "documents": ["a", {"text": "b"}, "c"], "top_n": 2, "return_documents": True}
    )
    assert isinstance(decoded.payload, RerankPayload)
    meta = msgspec.structs.replace(META, show=decoded.show, payload=decoded.payload)
    answer = msgspec.json.decode(scores.encode_rerank([RerankResult(scores=(-800.0, 2.0, 2.0))], meta))
    assert [r["index"] for r in answer["results"]] == [1, 2]
    assert answer["results"][0]["document"] == {"text": "b"}
    assert answer["results"][0]["relevance_score"] == pytest.approx(1 / (1 + math.exp(-2)))


def test_classify_softmax_sums_to_one_and_sigmoid_stands_alone() -> None:
    result = ClassifyResult(labels=("x", "y"), scores=((1000.0, 0.0),))
    answer = msgspec.json.decode(scores.encode_classify([result], META))
    assert answer["data"][0]["label"] == "x"
    assert sum(answer["data"][0]["probs"]) == pytest.approx(1)
    free = ClassifyResult(labels=("x", "y"), scores=((3.0, 3.0),), multi_label=True)
    assert sum(msgspec.json.decode(scores.encode_classify([free], META))["data"][0]["probs"]) > 1.9
