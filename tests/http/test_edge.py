"""The edge: what nobody foresaw is a 500 that tells nothing, with a log line under the same request id."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import structlog
from headgate_gateway.clock import SystemClock
from headgate_gateway.domain.ids import IdSource
from headgate_gateway.http.cors import Cors
from headgate_gateway.http.edge import Edge
from headgate_gateway.telemetry.metrics import Metrics


async def answered_by(app: Any) -> list[Any]:
    """The messages that an edge around `app` sends for one request."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    edge = Edge(app, ids=IdSource(SystemClock(), Random(1)), metrics=Metrics([]), cors=Cors(()))
    scope: Any = {"type": "http", "path": "/v1/models", "method": "GET", "headers": []}
    await edge(scope, receive, send)
    return sent


async def test_the_unforeseen_is_logged_and_not_told() -> None:
    async def app(*_: Any) -> None:
        raise ZeroDivisionError("a secret")

    with structlog.testing.capture_logs() as lines:
        (answer,) = await answered_by(app)
    assert answer["status"] == 500
    document = json.loads(answer["body"])
    assert document["code"] == "internal_error"
    assert "secret" not in answer["body"].decode()
    (line,) = lines
    assert line["request_id"] == document["instance"] == dict(answer["headers"])[b"x-request-id"].decode()
    assert isinstance(line["exc_info"], ZeroDivisionError)


async def test_an_answer_that_has_begun_gets_no_second_one() -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError

    with structlog.testing.capture_logs() as lines:
        sent = await answered_by(app)
    assert [message["type"] for message in sent] == ["http.response.start"]
    assert [line["event"] for line in lines] == ["request failed", "answer cut"]
