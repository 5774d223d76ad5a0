"""Answers are what the API's description says: nothing missing, nothing unnamed, nothing of another type."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2 as httpx
import msgspec
import pytest
from headgate_gateway.http import book_answers, schema
from headgate_gateway.layout import Layout
from headgate_gateway.ledger.admin_client import admin_client

from tests.processes import ADMIN_KEY

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "a b c"}]}
INFER = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}
BODIES = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "words", "prompt": "a b"},
    "/v1/responses": {"model": "echo", "input": "a b"},
    "/v1/embeddings": {"model": "vectors", "input": ["a", "b"]},
    "/v1/quotes": CHAT,
    "/v2/models/{model_id}/infer": INFER,
    "/v2/models/{model_id}/versions/{version}/infer": INFER,
    "/admin/v1/keys": {"project": "described", "organization": "elsewhere", "budget": "1/day", "rpm": 60},
    "/admin/v1/keys/{key_id}/rotate": {"overlap_s": 60},
    "/admin/v1/organizations": {"name": "elsewhere"},
    "/admin/v1/projects": {"name": "described", "organization": "elsewhere"},
    "/admin/v1/budgets": {"account": "described", "amount": "1", "window": "day"},
    "/admin/v1/limits": {"account": "described", "kind": "tokens", "amount": 100},
    "/admin/v1/prices": {"model": "org/words", "rates": {"request": "0.1", "minimum": "0.2"}},
    "/admin/v1/credits": {"account": "described", "amount": "5"},
    "/admin/v1/tags/erase": {"tags": {"nobody": "has"}, "before": "2026-01-01T00:00:00Z"},
    "/admin/v1/consumers/{consumer}/reset": {"to": "now"},
}
ELSEWHERE = {
    "rerank": "needs a model with weights",
    "classify": "needs a model with weights",
    "load": "needs a supervisor: tests/cli/test_model_control.py",
}


@pytest.fixture(scope="module")
def facts(gateway: Any) -> dict[str, str]:
    """What stands for the parameters of a path."""
    with gateway.client(ADMIN_KEY) as admin:
        made = admin.post("/admin/v1/keys", json=BODIES["/admin/v1/keys"]).json()
        plan = {"model": "tensors", "rates": {"request": "1"}, "effective_from": "2100-01-01T00:00:00Z"}
        planned = admin.post("/admin/v1/prices", json=plan).json()["versions"][0]["id"]
    with gateway.client(made["key"]) as client:
        request = client.post("/v1/chat/completions", json=CHAT).json()["id"]
    asyncio.run(begin_taking(gateway.settings.layout))
    return {
        "organization": made["organization"],
        "{model_id}": "tensors",
        "{version}": "3",
        "{request_id}": request,
        "{account}": made["project"],
        "{key_id}": made["id"],
        "{price_id}": planned,
        "{consumer}": "taker",
    }


async def begin_taking(layout: Layout) -> None:
    """Have a consumer of usage records, as the outbox would."""
    async with admin_client(layout, actor="outbox") as ledger:
        await ledger.advance("taker", 0, None)


@pytest.mark.parametrize(
    ("method", "path"), [route for route in schema.ANSWERS if not any(name in route[1] for name in ELSEWHERE)]
)
def test_an_answer_is_what_was_described(gateway: Any, facts: dict[str, str], method: str, path: str) -> None:
    target = path
    for name in (part for part in path.split("/") if part.startswith("{")):
        target = target.replace(name, facts[name])
    body = BODIES.get(path) if method == "post" else None
    if path == "/admin/v1/prices" and body is not None:
        body = {**body, "scope": facts["organization"]}
    runs = method == "post" and not path.startswith("/admin")
    with gateway.client(gateway.key() if runs else ADMIN_KEY) as client:
        answer = client.request(method, target, **({} if body is None else {"json": body}))
    assert answer.is_success, answer.text
    msgspec.json.decode(answer.content, type=schema.ANSWERS[method, path][0])


def test_totals_are_what_was_described(client: httpx.Client) -> None:
    client.post("/v1/chat/completions", json=CHAT)
    for query in ("group_by=model", "group_by=key,tag:x&bucket=1h"):
        answer = client.get(f"/v1/usage?{query}")
        assert msgspec.json.decode(answer.content, type=book_answers.UsageTotals).data


def test_a_keys_limits_are_what_was_described(gateway: Any) -> None:
    with gateway.client(gateway.key(project="limited", budget="1/month", rpm=5, concurrency=2)) as client:
        answer = msgspec.json.decode(client.get("/v1/limits").content, type=book_answers.AccountLimits)
    assert answer.budgets
    assert {limit.kind for limit in answer.limits} == {"requests", "concurrency"}


@pytest.mark.parametrize("path", schema.EVENTS)
def test_events_are_what_was_described(client: httpx.Client, path: str) -> None:
    body = {**BODIES[path], "stream": True, "stream_options": {"include_usage": True}}
    lines = [line.removeprefix("data: ") for line in client.post(path, json=body).text.splitlines()]
    texts = [line for line in lines if line and line != "[DONE]" and not line.startswith("event: ")]
    chunks = [msgspec.json.decode(text, type=schema.EVENTS[path]) for text in texts]
    assert getattr(chunks[-1], "response", chunks[-1]).usage.cost is not None


def test_what_is_not_ready_is_described_as_well(run_gateway: Any) -> None:
    described = msgspec.json.decode(schema.openapi_bytes())["paths"]
    broken = {"id": "gone", "task": "embed", "backend": "echo", "options": {"dimensions": "many"}}
    with run_gateway({"models": [broken]}, wait=False) as started, started.client(started.key()) as client:
        for path in ("/v2/models/{model_id}/ready", "/health/ready"):
            answer = client.get(path.replace("{model_id}", "gone"))
            told = described[path]["get"]["responses"][str(answer.status_code)]["content"]
            assert answer.headers["content-type"] in told
            assert not msgspec.json.decode(answer.content, type=schema.ANSWERS["get", path][0]).ready


def test_every_route_that_answers_json_is_described() -> None:
    document = msgspec.json.decode(schema.openapi_bytes())
    bare = {
        (method, path)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if not any("content" in operation["responses"].get(status, {}) for status in ("200", "201"))
    }
    assert bare == {
        ("get", path) for path in ("/health/live", "/v2/health/live", "/v2/health/ready", "/metrics", "/schema")
    }
