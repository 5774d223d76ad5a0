"""The stock `openai` client runs unchanged: answers, streams, vectors, models, typed errors."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello big wide world"}]


@pytest.fixture
def stock(gateway: Any, key: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) as client:
        yield client


def test_chat(stock: openai.OpenAI) -> None:
    raw = stock.chat.completions.with_raw_response.create(model="echo", messages=HELLO)
    answer = raw.parse()
    assert answer.choices[0].message.content == "hello big wide world"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 8
    assert answer.usage.cost == "0.000012"  # type: ignore[attr-defined]
    assert raw.headers["headgate-cost"] == "0.000012"
    assert raw.headers["x-request-id"] == answer.id
    assert raw.headers["headgate-backend"] == "echo"
    assert raw.headers["headgate-attempts"] == "1"
    assert float(raw.headers["headgate-overhead-ms"]) >= 0
    assert raw.headers["headgate-price"].startswith("prc_")
    assert raw.headers["headgate-version"]


def test_chat_stream(stock: openai.OpenAI) -> None:
    chunks = list(stock.chat.completions.create(model="echo", messages=HELLO, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "hello big wide world"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None, "the cost travels in the last chunk, asked for or not"
    assert chunks[-1].usage.cost == "0.000012"  # type: ignore[attr-defined]


def test_chat_stream_with_usage(stock: openai.OpenAI) -> None:
    chunks = list(
        stock.chat.completions.create(
            model="echo", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4


def test_max_tokens_and_choices(stock: openai.OpenAI) -> None:
    answer = stock.chat.completions.create(model="echo", messages=HELLO, max_completion_tokens=2, n=2)
    assert [choice.message.content for choice in answer.choices] == ["hello big"] * 2
    assert [choice.finish_reason for choice in answer.choices] == ["length"] * 2


def test_completions(stock: openai.OpenAI) -> None:
    assert stock.completions.create(model="org/words", prompt="one two").choices[0].text == "one two"
    stream = stock.completions.create(model="words", prompt="one two three", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices) == "one two three"


def test_embeddings_float_and_base64_are_the_same_numbers(stock: openai.OpenAI) -> None:
    floats = stock.embeddings.create(model="vectors", input=["a b", "c"], encoding_format="float")
    default = stock.embeddings.create(model="vectors", input=["a b", "c"])
    coded = stock.embeddings.with_raw_response.create(
        model="vectors", input=["a b", "c"], encoding_format="base64"
    )
    assert [item.embedding for item in floats.data] == [item.embedding for item in default.data]
    raw = coded.http_response.json()["data"][0]["embedding"]
    values = struct.unpack("<64f", base64.b64decode(raw))
    assert list(values) == floats.data[0].embedding
    assert floats.usage.prompt_tokens == 3
    assert coded.headers["headgate-fingerprint"]


def test_models(stock: openai.OpenAI) -> None:
    assert [model.id for model in stock.models.list()] == ["echo", "org/words", "vectors", "tensors"]
    assert stock.models.retrieve("org/words").id == "org/words"
    with pytest.raises(openai.NotFoundError):
        stock.models.retrieve("nobody")


def test_errors_are_typed(gateway: Any, stock: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        stock.chat.completions.create(model="nobody", messages=HELLO)
    assert missing.value.code == "model_not_found"
    assert missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as bad:
        stock.chat.completions.create(model="echo", messages=HELLO, max_tokens=-1)
    assert bad.value.param == "max_tokens"
    with (
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="hg_wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def test_a_spent_budget_is_402(gateway: Any) -> None:
    key = gateway.key(budget="0.000013/total")
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) as client:
        client.chat.completions.create(model="echo", messages=HELLO, max_tokens=4)
        with pytest.raises(openai.APIStatusError) as spent:
            client.chat.completions.create(model="echo", messages=HELLO, max_tokens=4)
    assert spent.value.status_code == 402
    assert spent.value.code in {"budget_exhausted", "request_exceeds_budget"}
    assert spent.value.response.headers["x-should-retry"] == "false"


def test_a_rate_limit_is_429_with_an_exact_wait(gateway: Any) -> None:
    key = gateway.key(rpm=1)
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) as client:
        first = client.chat.completions.with_raw_response.create(model="echo", messages=HELLO)
        with pytest.raises(openai.RateLimitError) as limited:
            client.chat.completions.create(model="echo", messages=HELLO)
    assert first.headers["x-ratelimit-limit-requests"] == "1"
    assert first.headers["x-ratelimit-remaining-requests"] == "0"
    assert first.headers["ratelimit-policy"] == '"requests-key";q=1;w=60'
    assert limited.value.code == "rate_limit_exceeded"
    headers = limited.value.response.headers
    assert 1 <= int(headers["retry-after"]) <= 60
    assert 0 < int(headers["retry-after-ms"]) <= 60_000
