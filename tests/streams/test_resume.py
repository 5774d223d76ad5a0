"""Streams that go on over another connection, at the same worker and at another."""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import Event, speech


def words(events: list[Event]) -> list[str]:
    return "".join(event.text for event in events).split()


def numbers(events: list[Event]) -> list[int]:
    return [int(str(event.id).rpartition(":")[2]) for event in events]


def spoken(count: int) -> list[str]:
    return [f"w{number}" for number in range(count)]


def cost_of(events: list[Event]) -> str:
    return str(next(e.document["usage"]["cost"] for e in events if e.data != "[DONE]" and "usage" in e.document))


@pytest.mark.parametrize("back", [0, 1], ids=["same worker", "other worker"])
@pytest.mark.parametrize("include_usage", [False, True])
async def test_goes_on_where_it_was_cut(deployment: Any, ask: Any, back: int, include_usage: bool) -> None:
    key, mine = deployment.key(), f"mine-{back}-{include_usage}"
    document = speech(200, 5, stream_options={"include_usage": include_usage})
    first = await ask(deployment.urls[0], key, document, headgate_resumable="20", idempotency_key=mine)
    assert first.status == 200
    assert first.headers["headgate-resumable"] == "20"
    request_id = first.headers["x-request-id"]
    before = await first.events(10)
    first.cut()
    assert before[-1].id == f"{request_id}:9"
    then = await ask(
        deployment.urls[back], key, document,
        headgate_resumable="20", idempotency_key=mine, last_event_id=str(before[-1].id),
    )  # fmt: skip
    assert then.status == 200, await then.body()
    assert then.headers["x-request-id"] == request_id
    assert "idempotency-replayed" not in then.headers
    after = await then.events()
    assert then.whole
    events = [*before, *after]
    assert numbers(events) == list(range(len(events)))
    assert words(events) == spoken(200)
    assert events[-1].data == "[DONE]"
    record = deployment.record(request_id)
    assert record["outcome"] == "ok"
    assert record["usage"]["output"] == 200
    assert record["cost"] == cost_of(events) == "0.0006"
    assert [r["request_id"] for r in deployment.records()].count(request_id) == 1
