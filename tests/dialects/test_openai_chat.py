"""OpenAI chat: errors name the path, passthrough keeps fields, directions agree, streams may be cut anywhere."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from headgate_dialects import openai_chat
from headgate_dialects.decoded import AnswerMeta
from headgate_dialects.fold import condense
from headgate_plugin_api import (
    ChatPayload,
    Event,
    FilePart,
    Finished,
    InferenceRequest,
    InvalidRequest,
    Message,
    Native,
    Sampling,
    TextDelta,
    TextPart,
    Tool,
    ToolCall,
    ToolCallDelta,
    UpstreamFailed,
    Usage,
    UsageReport,
)
from hypothesis import given
from hypothesis import strategies as st

META = AnswerMeta(id="req_1", model="m", created=1_700_000_000)
USER = {"role": "user", "content": "hello"}


def document(**more: object) -> dict[str, object]:
    return {"model": "m", "messages": [USER], **more}


@pytest.mark.parametrize(
    ("bad", "path"),
    [
        ({"messages": [USER]}, "model"),
        ({"model": 7, "messages": [USER]}, "model"),
        ({"model": "m"}, "messages"),
        (document(messages=[]), "messages"),
        (document(messages=[USER, {"role": "user", "content": 5}]), "messages[1].content"),
        (document(messages=[{"role": "user"}]), "messages[0].content"),
        (document(messages=[{"role": "robot", "content": "x"}]), "messages[0].role"),
        (document(messages=[{"role": "tool", "content": "x"}]), "messages[0].tool_call_id"),
        (document(messages=[{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0].text"),
        (document(messages=[{"role": "user", "content": [{"type": "video"}]}]), "messages[0].content[0].type"),
        (document(messages=[{"role": "user", "content": [{"type": "file"}]}]), "messages[0].content[0].file"),
        (document(max_tokens=-1), "max_tokens"),
        (document(max_tokens=0), "max_tokens"),
        (document(max_tokens="5"), "max_tokens"),
        (document(max_completion_tokens=1.5), "max_completion_tokens"),
        (document(n=0), "n"),
        (document(n=129), "n"),
        (document(temperature=-0.1), "temperature"),
        (document(temperature="hot"), "temperature"),
        (document(stop=[1]), "stop[0]"),
        (document(stream="yes"), "stream"),
        (document(stream_options={"include_usage": 1}), "stream_options.include_usage"),
        (document(tools=[{"type": "function"}]), "tools[0].function"),
        (document(metadata={"a": 1}), "metadata.a"),
        (document(options=[]), "options"),
    ],
)
def test_a_bad_field_is_named(bad: object, path: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        openai_chat.decode_request(bad)
    assert error.value.path == path
    assert path in str(error.value)


@pytest.mark.parametrize("bad", [[], "text", None, 5])
def test_a_document_must_be_an_object(bad: object) -> None:
    with pytest.raises(InvalidRequest, match="expected `object`"):
        openai_chat.decode_request(bad)


def test_unknown_fields_survive_to_an_upstream_of_the_same_dialect() -> None:
    native = document(
        reasoning_effort="low",
        max_completion_tokens=900,
        stream=True,
        stream_options={"x": 1},
        logit_bias={"1": 2},
    )
    request = InferenceRequest(
        id="req_1",
        model="m",
        payload=openai_chat.decode_request(native).payload,
        max_output=7,
        stream=True,
        native=Native(dialect=openai_chat.NAME, document=native),
    )
    sent = openai_chat.encode_request(request, "upstream-name")
    assert sent == {
        **native,
        "model": "upstream-name",
        "max_completion_tokens": 7,
        "stream_options": {"x": 1, "include_usage": True},
    }
    assert native["model"] == "m", "the client's document is not touched"


def test_a_file_reaches_an_upstream() -> None:
    file = {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}
    content = [{"type": "text", "text": "what is in it?"}, {"type": "file", "file": file}]
    decoded = openai_chat.decode_request(document(messages=[{"role": "user", "content": content}]))
    assert decoded.payload.messages[0].content == (TextPart("what is in it?"), FilePart(file))
    assert decoded.payload.messages[0].text == "what is in it?"
    request = InferenceRequest(id="r", model="m", payload=decoded.payload, max_output=5)
    assert openai_chat.encode_request(request, "m")["messages"][0]["content"] == content


def test_both_limit_fields_are_overwritten() -> None:
    native = document(max_completion_tokens=900, max_tokens=9000)
    decoded = openai_chat.decode_request(native)
    assert decoded.max_output == 900
    request = InferenceRequest(
        id="r",
        model="m",
        payload=decoded.payload,
        max_output=3,
        native=Native(dialect="openai_chat", document=native),
    )
    sent = openai_chat.encode_request(request, "m")
    assert "max_tokens" not in sent
    assert sent["max_completion_tokens"] == 3


texts = st.text(max_size=20)
messages = st.one_of(
    st.builds(Message, role=st.sampled_from(["system", "user", "developer"]), content=texts),
    st.builds(
        Message,
        role=st.just("assistant"),
        content=texts,
        tool_calls=st.lists(st.builds(ToolCall, id=texts, name=texts, arguments=texts), max_size=2).map(tuple),
    ),
    st.builds(Message, role=st.just("tool"), content=texts, tool_call_id=texts),
)
payloads = st.builds(
    ChatPayload,
    messages=st.lists(messages, min_size=1, max_size=4).map(tuple),
    n=st.integers(1, 4),
    sampling=st.builds(
        Sampling,
        temperature=st.none() | st.floats(0, 2),
        seed=st.none() | st.integers(-(2**63), 2**63 - 1),
        stop=st.lists(st.text(min_size=1, max_size=3), max_size=2).map(tuple),
    ),
    tools=st.lists(st.builds(Tool, name=texts, description=st.none() | texts), max_size=2).map(tuple),
)


@given(payload=payloads, limit=st.none() | st.integers(1, 10_000), stream=st.booleans())
def test_what_is_encoded_decodes_to_the_same(payload: ChatPayload, limit: int | None, stream: bool) -> None:
    request = InferenceRequest(id="r", model="m", payload=payload, max_output=limit, stream=stream)
    wire = msgspec.json.decode(msgspec.json.encode(openai_chat.encode_request(request, "m")))
    decoded = openai_chat.decode_request(wire)
    assert (decoded.payload, decoded.max_output, decoded.stream) == (payload, limit, stream)
    assert decoded.include_usage is stream


usages = st.builds(
    Usage,
    input=st.integers(0, 999),
    cache_read=st.integers(0, 9),
    output=st.integers(0, 999),
    reasoning=st.integers(0, 9),
)
deltas = st.one_of(
    st.builds(TextDelta, text=st.text(min_size=1, max_size=8), index=st.integers(0, 2), reasoning=st.booleans()),
    st.builds(
        ToolCallDelta, index=st.integers(0, 2), call=st.integers(0, 1), id=texts, name=texts, arguments=texts
    ),
)


@st.composite
def answers(draw: st.DrawFn) -> list[Event]:
    events: list[Event] = draw(st.lists(deltas, max_size=8))
    indexes = sorted({0} | {e.index for e in events if not isinstance(e, UsageReport)})  # type: ignore[union-attr]
    events += [Finished(reason=draw(st.sampled_from(["stop", "length"])), index=i) for i in indexes]
    return [*events, UsageReport(usage=draw(usages), source="upstream")]


@given(events=answers(), cuts=st.lists(st.integers(0, 4000), max_size=12), crlf=st.booleans())
def test_a_stream_cut_anywhere_gives_the_same_events(events: list[Event], cuts: list[int], crlf: bool) -> None:
    writer = openai_chat.StreamEncoder(META)
    report = events[-1]
    assert isinstance(report, UsageReport)
    wire = b"".join(map(writer.encode, events)) + writer.final(report.usage, "0.5")
    if crlf:
        wire = wire.replace(b"\n", b"\r\n")
    edges = sorted({0, len(wire), *(cut % (len(wire) + 1) for cut in cuts)})
    reader = openai_chat.StreamDecoder()
    read = [e for a, b in itertools.pairwise(edges) for e in reader.feed(wire[a:b])]
    assert reader.done
    assert read == events


@given(events=answers())
def test_a_whole_answer_reads_back_as_the_same_fold(events: list[Event]) -> None:
    whole = condense(events)
    assert openai_chat.decode_answer(openai_chat.encode_answer(events, META)) == whole
    assert condense(whole) == whole


def test_what_a_provider_cites_reaches_the_client_whole_and_streamed() -> None:
    cited = [{"type": "url_citation", "url_citation": {"url": "https://a.example", "start_index": 0}}]
    choice = {"index": 0, "finish_reason": "stop"}
    whole = openai_chat.decode_answer(
        msgspec.json.encode({"choices": [{**choice, "message": {"content": "so", "annotations": cited}}]})
    )
    reader = openai_chat.StreamDecoder()
    chunk = msgspec.json.encode({"choices": [{**choice, "delta": {"content": "so", "annotations": cited}}]})
    streamed = [*reader.feed(b"data: " + chunk + b"\n\ndata: [DONE]\n\n"), *reader.end()]
    for events in (whole, streamed, condense(streamed)):
        message = msgspec.json.decode(openai_chat.encode_answer(events, META))["choices"][0]["message"]
        assert (message["content"], message["annotations"]) == ("so", cited)
    assert b'"annotations":[{"type":"url_citation"' in openai_chat.StreamEncoder(META).encode(streamed[0])


def test_the_cost_travels_in_the_last_chunk_and_nothing_closes_before_it() -> None:
    for include_usage in (False, True):
        writer = openai_chat.StreamEncoder(msgspec.structs.replace(META, include_usage=include_usage))
        body = writer.encode(TextDelta(text="a")) + writer.encode(Finished(reason="stop"))
        assert b'"stop"' not in body
        last = writer.final(Usage(input=1, output=2), "0.000003")
        chunks = [msgspec.json.decode(line[6:]) for line in last.split(b"\n\n")[:-2]]
        assert last.endswith(b"data: [DONE]\n\n")
        assert chunks[-1]["usage"]["cost"] == "0.000003"
        assert bool(chunks[-1]["choices"]) is not include_usage


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"prompt_tokens": -1, "completion_tokens": 2},
        {"prompt_tokens": 1, "completion_tokens": 2**60},
        {"prompt_tokens": True, "completion_tokens": 2},
        {"prompt_tokens": 1, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 5}},
        {"prompt_tokens": "1"},
        [],
    ],
)
def test_usage_that_cannot_be_true_is_left_out(usage: object) -> None:
    answer = {"choices": [{"message": {"content": "x"}, "finish_reason": "odd"}], "usage": usage}
    assert openai_chat.decode_answer(msgspec.json.encode(answer)) == (
        TextDelta(text="x"),
        Finished(reason="stop"),
    )


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"choices":5}', b"[" * 100_000, b'{"choices":null}'])
def test_an_answer_of_another_form_is_the_upstreams_fault(body: bytes) -> None:
    with pytest.raises(UpstreamFailed, match="malformed"):
        openai_chat.decode_answer(body)


def test_an_error_in_the_stream_is_raised_after_what_came_before_it() -> None:
    reader = openai_chat.StreamDecoder()
    events = reader.feed(
        b': hello\n\ndata: {"choices":[{"delta":{"content":"a"}}]}\n\ndata: {"error":{"message":"no\\nmore"}}\n\n'
    )
    assert next(events) == TextDelta(text="a")
    with pytest.raises(UpstreamFailed, match="no more"):
        next(events)


def test_a_line_that_never_ends_is_refused() -> None:
    reader = openai_chat.StreamDecoder()
    with pytest.raises(UpstreamFailed, match="line of more than"):
        _feed_for_ever(reader)


def _feed_for_ever(reader: openai_chat.StreamDecoder) -> None:
    for _ in range(10):
        list(reader.feed(b"x" * 1_000_000))
