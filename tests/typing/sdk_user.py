"""What a user's type checker sees; checked by mypy and pyright in strict mode, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager
from typing import assert_type

import numpy as np
from headgate import AsyncHeadgate, AsyncStream, Budget, Cost, Headgate, Meter, QuotaExceeded, Stream, tool
from headgate.testing import Cassette, FakeGateway, Refuse
from headgate.types import (
    AsyncSend,
    AsyncStreaming,
    CallInfo,
    ChatCompletion,
    ChatCompletionChunk,
    ChatParams,
    Completion,
    EmbeddingsResponse,
    InferResponse,
    KeyCreated,
    MessageParam,
    ModelList,
    ParsedChatCompletion,
    Quote,
    Received,
    Request,
    RerankResponse,
    Response,
    Send,
    Streaming,
    Usage,
)
from pydantic import BaseModel


class City(BaseModel):
    name: str


def sync(client: Headgate) -> None:
    messages: list[MessageParam] = [{"role": "user", "content": "hi"}]
    answer = client.chat.completions.create(model="m", messages=messages, max_tokens=5, tags={"a": "b"})
    assert_type(answer, ChatCompletion)
    assert_type(answer.cost, Cost | None)
    assert_type(answer.usage, Usage | None)
    assert_type(answer.text, str)
    client.chat.completions.create(model="m", messages=[*messages, answer.choices[0].message])
    stream = client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "hi"}], stream=True, resumable=30
    )
    assert_type(stream, Stream[ChatCompletionChunk, ChatCompletion])
    assert_type(stream.text, Iterator[str])
    with client.chat.completions.stream(model="m", messages=messages) as opened:
        assert_type(opened, Stream[ChatCompletionChunk, ChatCompletion])
        assert_type(opened.final(), ChatCompletion)
    parsed = client.chat.completions.parse(model="m", messages=messages, response_format=City)
    assert_type(parsed, ParsedChatCompletion[City])
    assert_type(parsed.parsed, City)
    assert_type(parsed.choices[0].message.parsed, City)
    assert_type(client.completions.create(model="m", prompt="x"), Completion)
    assert_type(client.responses.create(model="m", input="x"), Response)
    assert_type(client.embeddings.create(model="m", input=["a"], batch_size=3), EmbeddingsResponse)
    assert_type(client.infer.create(model="m", inputs={"x": [1, 2]}), InferResponse)
    array = np.zeros((2, 2), dtype=np.float32)
    assert_type(client.quotes.create(model="m", inputs={"x": array}), Quote)
    assert_type(client.quotes.create(model="m", query="q", documents=["a"]), Quote)
    assert_type(client.quotes.create(model="m", messages=messages, max_tokens=5), Quote)
    assert_type(client.rerank.create(model="m", query="q", documents=["a"]), RerankResponse)
    assert_type(client.models.list(), ModelList)
    assert_type(client.admin.keys.create(project="p", budget="1/month"), KeyCreated)
    with client.meter(tags={"a": "b"}) as meter, client.budget(max_cost="1") as budget:
        assert_type(meter, Meter)
        assert_type(budget, Budget)


async def asynchronous(client: AsyncHeadgate) -> None:
    params: ChatParams = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    assert_type(await client.chat.completions.create(**params), ChatCompletion)
    stream = await client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "hi"}], stream=True
    )
    assert_type(stream, AsyncStream[ChatCompletionChunk, ChatCompletion])
    assert_type(stream.text, AsyncIterator[str])
    async with client.chat.completions.stream(model="m", messages=[]) as opened:
        async for chunk in opened:
            assert_type(chunk, ChatCompletionChunk)
        assert_type(await opened.final(), ChatCompletion)
    keys = await client.admin.keys.list()
    async for key in keys:
        assert_type(key.id, str)


@tool
def weather(city: str, days: int = 1) -> str:
    """The weather in a city."""
    return f"{city} {days}"


def tools(client: Headgate) -> None:
    client.chat.completions.create(model="m", messages=[], tools=[weather.param])
    assert_type(weather.run("{}"), str)
    assert_type(weather("Vienna", days=2), str)
    weather(5)  # type: ignore[arg-type]  # pyright: ignore


def signing(request: Request, send: Send) -> Received | Streaming:
    return send(request)


async def signing_async(request: Request, send: AsyncSend) -> Received | AsyncStreaming:
    return await send(request)


@contextmanager
def span(call: CallInfo) -> Generator[None]:
    assert_type(call.model, str | None)
    yield


def around() -> None:
    cassette = Cassette("talk.jsonl")
    Headgate(middleware=[signing, cassette.record], observers=[span], pace=True)
    AsyncHeadgate(middleware=[signing_async, cassette.record_async], observers=[span])
    Headgate(middleware=[signing_async])  # type: ignore[list-item]  # pyright: ignore
    assert_type(cassette.client(), Headgate)


def wrong(client: Headgate) -> None:
    client.chat.completions.create(model="m", messages=[{"role": "pirate"}])  # type: ignore[list-item]  # pyright: ignore
    client.embeddings.create(model="m", input="x", batch_siez=3)  # type: ignore[call-arg]  # pyright: ignore
    client.rerank.create(model="m", query="q")  # type: ignore[call-arg]  # pyright: ignore


def testing(gateway: FakeGateway) -> None:
    gateway.script(Refuse(402, "budget_exhausted"))
    assert_type(gateway.client(), Headgate)
    assert_type(gateway.async_client(), AsyncHeadgate)


def errors(error: QuotaExceeded) -> None:
    assert_type(error.limit, Cost | None)
    assert_type(error.retryable, bool)
