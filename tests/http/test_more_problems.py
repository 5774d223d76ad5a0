"""Rows of the error table that need a situation: budgets in flight, spent claims, failing upstreams."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from headgate_gateway.http import bodies
from headgate_gateway.http.problems import Problem

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "word"}]


@contextlib.contextmanager
def stream_in_flight(gateway: Any, key: str, words: int) -> Iterator[None]:
    """A stream of `words` words that has begun and takes long."""
    body = {
        "model": "echo",
        "messages": USER,
        "stream": True,
        "max_tokens": words,
        "options": {"tokens": words, "delay_ms": 200},
    }
    with gateway.client(key) as client, client.stream("POST", CHAT, json=body) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()  # kept: when it is collected, the stream is closed
        assert next(lines).startswith("data: ")
        yield


def test_a_budget_held_by_a_request_in_flight_is_429(gateway: Any) -> None:
    key = gateway.key(budget="0.0001/total")
    with stream_in_flight(gateway, key, 40), gateway.client(key) as client:
        body = {"model": "echo", "messages": USER, "max_tokens": 40, "options": {"tokens": 40}}
        answer = client.post(CHAT, json=body)
    assert answer.status_code == 429, answer.text
    problem = answer.json()
    assert problem["code"] == "budget_in_flight"
    assert float(problem["held"]) > 0
    assert int(answer.headers["retry-after"]) >= 1
    assert "x-should-retry" not in answer.headers


def test_concurrency_is_429(gateway: Any) -> None:
    key = gateway.key(concurrency=1)
    with stream_in_flight(gateway, key, 40), gateway.client(key) as client:
        answer = client.post(CHAT, json={"model": "echo", "messages": USER, "max_tokens": 4})
    assert answer.status_code == 429, answer.text
    assert answer.json()["code"] == "rate_limit_exceeded"
    assert int(answer.headers["retry-after"]) >= 1


def test_an_unpriced_model_on_a_budgeted_key_is_refused(gateway: Any) -> None:
    with gateway.client(gateway.key(budget="1/total")) as client:
        answer = client.post("/v1/completions", json={"model": "words", "prompt": "a"})
    assert answer.status_code == 402, answer.text
    assert answer.json()["code"] == "unpriced_model"
    assert answer.headers["x-should-retry"] == "false"


def test_an_answer_too_large_to_keep_is_consumed(gateway: Any, key: str) -> None:
    body = {
        "model": "echo",
        "messages": [{"role": "user", "content": "w" * 1000}],
        "max_tokens": 100,
        "options": {"tokens": 100},
    }
    with gateway.client(key) as client:
        headers = {"idempotency-key": "large"}
        first = client.post(CHAT, json=body, headers=headers)
        assert first.status_code == 200
        again = client.post(CHAT, json=body, headers=headers)
    assert again.status_code == 409, again.text
    assert again.json()["code"] == "idempotency_consumed"
    assert again.json()["record_id"] == first.json()["id"]
    assert again.headers["x-should-retry"] == "false"


@pytest.fixture(scope="module")
def remotes(run_gateway: Any) -> Iterator[Any]:
    """A gateway whose providers are gone, silent, or talk nonsense."""
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as gone:
        address = "http://127.0.0.1:{}/v1"
        urls = {
            "silent": address.format(silent.getsockname()[1]),
            "gone": address.format(gone.getsockname()[1]),
        }
        gone.close()
        models = [
            {
                "id": name,
                "task": "chat",
                "timeout_s": 0.5,
                "targets": [{"backend": "openai", "model": "m", "base_url": url}],
            }
            for name, url in urls.items()
        ]
        with run_gateway({"models": models}) as started:
            yield started


@pytest.mark.parametrize(
    ("model", "status", "code"), [("gone", 502, "upstream_error"), ("silent", 504, "upstream_timeout")]
)
@pytest.mark.parametrize("stream", [False, True])
def test_upstreams_that_fail(remotes: Any, model: str, status: int, code: str, stream: bool) -> None:
    with remotes.client(remotes.key()) as client:
        answer = client.post(CHAT, json={"model": model, "messages": USER, "stream": stream})
        assert answer.status_code == status, answer.text
        assert answer.json()["code"] == code
        facts = {name: answer.headers[f"headgate-{name}"] for name in ("backend", "attempts", "cost")}
        assert facts == {"backend": "openai", "attempts": "1", "cost": "0"}
        record = client.get(f"/v1/usage/{answer.headers['x-request-id']}").json()
        totals = client.get("/v1/usage?group_by=model").json()["data"]
    assert [total["cost"] for total in totals if total["model"] == model] in ([], ["0"])
    # Where a provider is reached is the operator's to know.
    assert f"'openai:m' of model '{model}'" in answer.json()["detail"]
    assert "127.0.0.1" not in answer.text
    assert [tried["target"] for tried in record["attempts"]] == ["openai:m"]
    told = remotes.admin("GET", f"usage/{answer.headers['x-request-id']}")["attempts"][0]["target"]
    assert told.startswith("openai:m@127.0.0.1:")
    assert told in remotes.log("worker-0")


async def test_a_slow_body_is_408() -> None:
    async def receive() -> Any:
        await asyncio.Event().wait()

    with pytest.raises(Problem) as error:
        await bodies.read_body({"headers": []}, receive, max_bytes=10, seconds=0.01)  # type: ignore[arg-type]
    assert error.value.status == 408
    assert error.value.close


async def test_a_body_that_trickles_is_408() -> None:
    first = asyncio.Event()

    async def receive() -> Any:
        if not first.is_set():
            first.set()
            return {"type": "http.request", "body": b"{", "more_body": True}
        await asyncio.Event().wait()
        return None

    with pytest.raises(Problem) as error:
        await bodies.read_body({"headers": []}, receive, max_bytes=10, seconds=0.01)  # type: ignore[arg-type]
    assert error.value.status == 408


async def test_a_client_that_leaves_before_its_body_is_whole_is_answered_nothing() -> None:
    async def receive() -> Any:
        return {"type": "http.disconnect"}

    with pytest.raises(bodies.ClientGone):
        await bodies.read_body({"headers": []}, receive, max_bytes=10)  # type: ignore[arg-type]


def test_the_stock_client_raises_an_error_that_comes_in_the_stream(run_gateway: Any) -> None:
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(run_gateway({"models": [{"id": "echo", "task": "chat", "backend": "echo"}]}))
        client = stack.enter_context(openai.OpenAI(base_url=f"{own.url}/v1", api_key=own.key(), max_retries=0))
        stream = client.chat.completions.create(
            model="echo",
            messages=[{"role": "user", "content": "word"}],
            stream=True,
            max_tokens=5000,
            extra_body={"options": {"tokens": 5000, "delay_ms": 5}},
        )
        assert next(stream).choices
        own.stop("engine-echo", signal.SIGKILL)
        with pytest.raises(openai.APIError) as error:
            list(stream)
    assert error.value.code == "upstream_error"


def test_replays_do_not_cross_routes_or_bodies_that_differ_in_order_only(gateway: Any, key: str) -> None:
    headers = {"idempotency-key": "canonical", "content-type": "application/json"}
    one = {"model": "echo", "messages": USER, "max_tokens": 3}
    other = dict(reversed(list(one.items())))
    with gateway.client(key) as client:
        first = client.post(CHAT, content=json.dumps(one), headers=headers)
        again = client.post(CHAT, content=json.dumps(other, indent=2), headers=headers)
        elsewhere = client.post("/v1/completions", json={"model": "words", "prompt": "a"}, headers=headers)
    assert first.status_code == 200
    assert again.headers["idempotency-replayed"] == "true"
    assert elsewhere.status_code == 422
