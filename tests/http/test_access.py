"""What the access log says of real requests, and what it never says."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

CHAT = "/v1/chat/completions"
HELLO = {"model": "echo", "messages": [{"role": "user", "content": "a secret word"}]}


def lines(gateway: Any) -> list[dict[str, Any]]:
    text = (gateway.folder / "worker-0.log").read_text()
    return [json.loads(line) for line in text.splitlines() if '"event":"request"' in line]


def line_of(gateway: Any, request_id: str, wait_for: Callable[..., Any]) -> dict[str, Any]:
    def found() -> Any:
        return next((line for line in lines(gateway) if line["request_id"] == request_id), None)

    line: dict[str, Any] = wait_for(found, f"a line about {request_id}")
    return line


def test_whole_answers_streams_and_errors_have_a_line(gateway: Any, wait_for: Any) -> None:
    made = gateway.admin("POST", "keys", json={"project": "tests"})
    with gateway.client(made["key"]) as client:
        whole = client.post(f"{CHAT}?key=in-the-query", json=HELLO)
        stream = client.post(CHAT, json={**HELLO, "stream": True})
        wrong = client.post(CHAT, json={**HELLO, "model": "nobody"})
        for answer, status, code, cost in (
            (whole, 200, "ok", "0.000009"),
            (stream, 200, "ok", "0.000009"),
            (wrong, 404, "model_not_found", None),
        ):
            line = line_of(gateway, answer.headers["x-request-id"], wait_for)
            assert (line["status"], line["code"], line.get("cost")) == (status, code, cost)
            assert (line["method"], line["path"], line["key"]) == ("POST", CHAT, made["id"])
            assert (line["process"], line["client"]) == ("worker 0", "127.0.0.1")
            assert line["duration_ms"] > 0
        client.get("/health/live")
        last = client.get("/v1/models")
    line_of(gateway, last.headers["x-request-id"], wait_for)
    text = (gateway.folder / "worker-0.log").read_text()
    assert not [secret for secret in ("secret", "in-the-query", made["key"], "/health/live") if secret in text]


def test_a_proxy_is_believed_where_the_config_says_so(run_gateway: Any, wait_for: Any) -> None:
    forwarded = {"x-forwarded-for": "203.0.113.7, 10.0.0.9"}
    settings = {"server": {"trusted_proxies": ["127.0.0.1", "10.0.0.0/8"]}}
    with run_gateway(settings) as gateway, gateway.client() as client:
        asked = client.get("/v1/models", headers=forwarded)
        assert line_of(gateway, asked.headers["x-request-id"], wait_for)["client"] == "203.0.113.7"


def test_nobody_is_believed_by_default(gateway: Any, wait_for: Any) -> None:
    with gateway.client() as client:
        asked = client.get("/v1/models", headers={"x-forwarded-for": "203.0.113.7"})
    assert line_of(gateway, asked.headers["x-request-id"], wait_for)["client"] == "127.0.0.1"


def test_it_can_be_switched_off(run_gateway: Any) -> None:
    with run_gateway({"log": {"access": False}}) as gateway:
        with gateway.client() as client:
            client.get("/v1/models")
        gateway.stop("worker-0")
        assert lines(gateway) == []
