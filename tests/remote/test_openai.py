"""The backend `openai` against a provider that is honest, broken or hostile; over real sockets."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import pytest
from headgate_plugin_api import (
    ChatPayload,
    CompletionPayload,
    EmbedPayload,
    EmbedResult,
    Event,
    Finished,
    ImagePart,
    InferenceRequest,
    InvalidRequest,
    Message,
    Native,
    Overloaded,
    Payload,
    TargetSpec,
    TextDelta,
    UpstreamFailed,
    UpstreamTimeout,
    Usage,
    UsageReport,
)
from headgate_remote.answers import retry_after
from headgate_remote.openai import OpenAIBackend

SECRET = "sk-very-secret"

CHAT = ChatPayload(messages=(Message(role="user", content="hi"),))


def delta(text: str, **choice: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, **choice}]}


STOP = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
USAGE = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}}
DONE = b"data: [DONE]\n\n"


def request(payload: Payload = CHAT, *, stream: bool = True, **more: Any) -> InferenceRequest:
    limit = None if isinstance(payload, EmbedPayload) else 9
    return InferenceRequest(id="req_1", model="m", payload=payload, max_output=limit, stream=stream, **more)


@pytest.fixture
def ask(provider, upstream):
    """Run one request against the provider and collect its events."""

    async def run(request: InferenceRequest, **options: Any) -> list[Event]:
        spec = TargetSpec(
            model="m",
            task=request.task,
            backend="openai",
            upstream_model="their-name",
            base_url=provider.url + "/",
            api_key=SECRET,
            options=options,
            timeout_s=5.0,
        )
        return [event async for event in OpenAIBackend().connect(spec, upstream).run(request)]

    return run


# -- honest


async def test_a_stream(provider, ask):
    provider.streams(delta("he"), delta("llo"), STOP, USAGE, DONE)
    assert await ask(request()) == [
        TextDelta(text="he"),
        TextDelta(text="llo"),
        Finished(reason="stop"),
        UsageReport(usage=Usage(input=5, output=2), source="upstream"),
    ]
    seen = provider.seen[0]
    assert seen.line == "POST /v1/chat/completions HTTP/1.1"
    assert seen.headers["authorization"] == f"Bearer {SECRET}"
    assert seen.headers["idempotency-key"] == "req_1"
    assert seen.headers["content-type"] == "application/json"
    assert seen.json == {
        "model": "their-name",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 9,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_a_whole_answer(provider, ask):
    message = {"role": "assistant", "content": "hello"}
    provider.says_json(
        {"choices": [{"index": 0, "message": message, "finish_reason": "length"}], "usage": USAGE["usage"]}
    )
    events = await ask(request(stream=False))
    assert events == [
        TextDelta(text="hello"),
        Finished(reason="length"),
        UsageReport(usage=Usage(input=5, output=2), source="upstream"),
    ]
    assert "stream" not in provider.seen[0].json


async def test_unknown_fields_of_the_clients_document_survive(provider, ask):
    provider.streams(delta("x"), STOP, DONE)
    document = {
        "model": "m",
        "messages": [{"role": "user", "content": "hi", "cache_control": {"type": "ephemeral"}}],
        "max_completion_tokens": 500,
        "brand_new_field": [1, {"two": None}],
    }
    await ask(request(native=Native(dialect="openai_chat", document=document)))
    assert provider.seen[0].json == {
        **document,
        "model": "their-name",
        "max_completion_tokens": 9,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert document["model"] == "m"


async def test_completions(provider, ask):
    provider.streams({"choices": [{"index": 0, "text": "x", "finish_reason": "stop"}]}, USAGE, DONE)
    events = await ask(request(CompletionPayload(prompts=("p",))))
    assert events[0] == TextDelta(text="x")
    assert provider.seen[0].line == "POST /v1/completions HTTP/1.1"


async def test_embeddings(provider, ask):
    vector = [0.5, -1.0]
    provider.says_json(
        {"data": [{"index": 0, "embedding": vector}], "usage": {"prompt_tokens": 3, "total_tokens": 3}}
    )
    events = await ask(request(EmbedPayload(inputs=("x",)), stream=False))
    assert isinstance(events[0], EmbedResult)
    assert struct.unpack("<2f", events[0].vectors[0]) == (0.5, -1.0)
    assert events[1] == UsageReport(usage=Usage(input=3), source="upstream")


async def test_headers_of_the_operator(provider, ask):
    provider.streams(delta("x"), STOP, DONE)
    await ask(request(), headers={"X-Org": "us"})
    assert provider.seen[0].headers["x-org"] == "us"


# -- refusals


@pytest.mark.parametrize(
    ("status", "headers", "kind", "retryable"),
    [
        (400, "", InvalidRequest, None),
        (413, "", InvalidRequest, None),
        (422, "", InvalidRequest, None),
        (401, "", UpstreamFailed, True),
        (403, "", UpstreamFailed, True),
        (404, "", UpstreamFailed, True),
        (408, "", UpstreamTimeout, None),
        (504, "", UpstreamTimeout, None),
        (429, "retry-after: 7\r\n", Overloaded, None),
        (503, "", Overloaded, None),
        (529, "", Overloaded, None),
        (500, "", UpstreamFailed, True),
        (502, "", UpstreamFailed, True),
        (302, "location: http://127.0.0.1:1/\r\n", UpstreamFailed, False),
        (418, "", UpstreamFailed, False),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_what_a_status_means(provider, ask, status, headers, kind, retryable, stream):
    error = {"message": f"bad {SECRET}\nthing", "param": "messages[0]"}
    provider.says_json({"error": error}, status=status, headers=headers)
    with pytest.raises(kind) as caught:
        await ask(request(stream=stream))
    assert SECRET not in str(caught.value)
    assert getattr(caught.value, "retryable", None) is retryable
    if kind is InvalidRequest:
        assert caught.value.path == "messages[0]"
        assert caught.value.message == "bad *** thing"
    if status == 429:
        assert caught.value.retry_after_s == 7.0
    if status in (401, 403):
        assert "operator's credential" in caught.value.message


@pytest.mark.parametrize("body", [b"<html>no</html>", b"", b"[" * 5000, b'{"error": 7}', b'"x"', b"\xff\xfe"])
async def test_a_refusal_in_no_known_form(provider, ask, body):
    provider.says_json(body, status=400)
    with pytest.raises(InvalidRequest, match="refused the request"):
        await ask(request())


async def test_an_endless_refusal_is_not_read_to_its_end(provider, ask):
    provider.says(b"HTTP/1.1 500 X\r\n\r\n", b"x" * 200_000, close=False)
    with pytest.raises(UpstreamFailed, match="answered 500"):
        await ask(request())
    await asyncio.wait_for(provider.gone.wait(), 5)


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({}, 1),
        ({"retry-after": "20"}, 20),
        ({"retry-after-ms": "2500", "retry-after": "20"}, 2.5),
        (
            {"retry-after": "Sun, 22 Nov 2026 10:00:30 GMT", "date": "Sun, 22 Nov 2026 10:00:00 GMT"},
            30,
        ),
        ({"retry-after": "Sun, 22 Nov 2026 10:00:30 GMT"}, 1),
        ({"retry-after": "-5"}, 1),
        ({"retry-after": "1e30"}, 3600),
        ({"retry-after": "nan"}, 1),
        ({"retry-after": "soon"}, 1),
        ({"retry-after": "soon", "date": "x"}, 1),
    ],
)
def test_retry_after(headers, wait):
    assert retry_after(headers) == wait


# -- hostile


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": -1, "completion_tokens": 2},
        {"prompt_tokens": 10**30, "completion_tokens": 2},
        {"prompt_tokens": 1.5, "completion_tokens": 2},
        {"prompt_tokens": "5", "completion_tokens": 2},
        {"prompt_tokens": 5, "completion_tokens": 1, "completion_tokens_details": {"reasoning_tokens": 9}},
        [],
        None,
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_usage_that_cannot_be_true_is_no_usage(provider, ask, usage, stream):
    if stream:
        provider.streams(delta("x"), STOP, {"choices": [], "usage": usage}, DONE)
    else:
        choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
        provider.says_json({"choices": [choice], "usage": usage})
    events = await ask(request(stream=stream))
    assert TextDelta(text="x") in events
    assert not [event for event in events if isinstance(event, UsageReport)]


@pytest.mark.parametrize(
    "pieces",
    [
        (),
        (delta("x"),),
        (delta("x"), b'data: {"choices": [{"del'),
        (delta("x"), b"data: not json\n\n"),
        (delta("x"), b"data: [1, 2]\n\n"),
        (delta("x"), b"data: " + b"[" * 100_000 + b"\n\n"),
        (delta("x"), {"error": {"message": "overloaded"}}),
        (b"data: \xff\xfe\n\n",),
        (b"<html>hello</html>",),
    ],
    ids=["nothing", "no end", "half an event", "no JSON", "no object", "nested", "error event", "bytes", "html"],
)
async def test_a_stream_that_breaks_is_never_a_short_answer(provider, ask, pieces):
    provider.streams(*pieces)
    with pytest.raises(UpstreamFailed):
        await ask(request())


async def test_a_stream_without_the_end_mark_but_with_a_finish_is_complete(provider, ask):
    provider.streams(delta("x"), STOP)
    assert (await ask(request()))[-1] == Finished(reason="stop")


async def test_an_endless_line_is_bounded(provider, ask):
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\ndata: ")
        while True:
            writer.write(b"x" * 65_536)
            await writer.drain()

    provider.answer = answer
    with pytest.raises(UpstreamFailed, match="line of more than"):
        await ask(request())
    await asyncio.wait_for(provider.gone.wait(), 5)


@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b"{}", b'{"choices": 7}', b"[" * 100_000])
async def test_a_whole_answer_that_is_none(provider, ask, body):
    provider.says_json(body)
    with pytest.raises(UpstreamFailed):
        await ask(request(stream=False))


async def test_a_stall_times_out(provider, ask):
    provider.streams(delta("x"), close=False)
    with pytest.raises(UpstreamTimeout):
        await ask(request(timeout_ms=300))


async def test_leaving_early_is_seen_by_the_provider(provider, upstream):
    provider.streams(delta("x"), close=False)
    spec = TargetSpec(
        model="m", task="chat", backend="openai", upstream_model="u", base_url=provider.url, timeout_s=30
    )
    events = OpenAIBackend().connect(spec, upstream).run(request())
    assert await anext(events) == TextDelta(text="x")
    await events.aclose()  # type: ignore[attr-defined]
    await asyncio.wait_for(provider.gone.wait(), 5)


# -- bounds


def spec_for(task: Any, **options: Any) -> TargetSpec:
    return TargetSpec(
        model="m", task=task, backend="openai", upstream_model="u", base_url="http://x/v1", options=options
    )


def test_bounds():
    backend = OpenAIBackend()
    chat = backend.bound(request(ChatPayload(messages=CHAT.messages, n=2)), spec_for("chat"))
    assert chat is not None
    assert chat.output == 18
    assert 64 * 2 + 2 < chat.input < 64 * 2 + 200
    embed = EmbedPayload(inputs=("x" * 1000,))
    bound = backend.bound(request(embed), spec_for("embed"))
    assert bound is not None
    assert bound.input > 11_000
    bound = backend.bound(request(embed), spec_for("embed", tokens_per_byte=1))
    assert bound is not None
    assert 1_000 < bound.input < 1_500
    image = ChatPayload(messages=(Message(role="user", content=(ImagePart("https://x/y.png"),)),))
    assert backend.bound(request(image), spec_for("chat")) is None


def test_unknown_fields_count_in_the_bound():
    document = {"model": "m", "messages": [], "hidden_prompt": "x" * 5_000}
    bound = OpenAIBackend().bound(
        request(native=Native(dialect="openai_chat", document=document)), spec_for("chat")
    )
    assert bound is not None
    assert bound.input > 5_000
