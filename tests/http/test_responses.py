"""`/v1/responses` with the stock OpenAI client and with ours."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from headgate import Headgate

WORDS = "hello brave new world"


@pytest.fixture
def stock(gateway: Any, key: str) -> Any:
    with openai.OpenAI(api_key=key, base_url=f"{gateway.url}/v1", max_retries=0) as client:
        yield client


def test_a_whole_response(stock: openai.OpenAI) -> None:
    answer = stock.responses.create(model="echo", input=WORDS, metadata={"team": "web"})
    assert answer.output_text == WORDS
    assert answer.status == "completed"
    assert answer.usage is not None
    assert answer.usage.output_tokens == 4
    assert answer.usage.cost == "0.000012"  # type: ignore[attr-defined]
    assert answer.metadata == {"team": "web"}


def test_a_streamed_response(stock: openai.OpenAI) -> None:
    events = list(stock.responses.create(model="echo", input=WORDS, stream=True))
    assert [event.type for event in events][:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == WORDS
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == WORDS
    assert last.response.usage.output_tokens == 4
    with stock.responses.stream(model="echo", input=WORDS) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == WORDS


def test_a_limit_leaves_it_incomplete(stock: openai.OpenAI) -> None:
    answer = stock.responses.create(model="echo", input=WORDS, max_output_tokens=2)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    (event,) = [
        event
        for event in stock.responses.create(model="echo", input=WORDS, max_output_tokens=2, stream=True)
        if event.type == "response.incomplete"
    ]
    assert event.response.usage is not None
    assert event.response.usage.output_tokens == 2


def test_what_is_stored_elsewhere_is_refused(stock: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        stock.responses.create(model="echo", input=WORDS, previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"


def test_our_client_bills_and_replays(gateway: Any, key: str) -> None:
    with Headgate(api_key=key, base_url=gateway.url) as client:
        first = client.responses.create(model="echo", input=WORDS, idempotency_key="resp-1")
        again = client.responses.create(model="echo", input=WORDS, idempotency_key="resp-1")
        assert (first.output_text, again.output_text) == (WORDS, WORDS)
        assert again.replayed
        assert again.output[0].id == first.output[0].id
        assert first.cost is not None
        with client.responses.stream(model="echo", input=WORDS) as stream:
            assert "".join(stream.text) == WORDS
        assert stream.cost is not None
        assert stream.cost.nano == first.cost.nano
        assert client.usage.retrieve(first.request_id or "").cost == str(first.cost)
        quote = client.quotes.create(model="echo", input=WORDS, max_output_tokens=4)
        assert quote.most is not None
        assert quote.most.nano >= first.cost.nano
