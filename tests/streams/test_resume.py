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


async def opened(ask: Any, url: str, key: str, document: Any, mine: str, seconds: str = "20") -> Any:
    reply = await ask(url, key, document, headgate_resumable=seconds, idempotency_key=mine)
    assert reply.status == 200, await reply.body()
    return reply


async def resumed(ask: Any, url: str, key: str, document: Any, mine: str, last: Any, seconds: str = "20") -> Any:
    return await ask(
        url, key, document, headgate_resumable=seconds, idempotency_key=mine, last_event_id=str(last)
    )


async def test_cut_again_and_again(deployment: Any, ask: Any) -> None:
    key, document = deployment.key(), speech(300, 2)
    reply = await opened(ask, deployment.urls[0], key, document, "often")
    events = []
    for turn in range(1, 12):
        events += await reply.events(turn * 3)
        reply.cut()
        reply = await resumed(ask, deployment.urls[turn % 2], key, document, "often", events[-1].id)
        assert reply.status == 200
    events += await reply.events()
    assert numbers(events) == list(range(len(events)))
    assert words(events) == spoken(300)
    assert deployment.record(reply.headers["x-request-id"])["usage"]["output"] == 300


async def test_events_that_were_sent_but_never_read_come_again(deployment: Any, ask: Any) -> None:
    key, document = deployment.key(), speech(60, 1)
    reply = await opened(ask, deployment.urls[0], key, document, "unread")
    everything = await reply.events()
    reply = await resumed(ask, deployment.urls[1], key, document, "unread", everything[3].id)
    again = await reply.events()
    assert [event.raw for event in again] == [event.raw for event in everything[4:]]


async def test_finished_while_nobody_read_is_continued_from_the_stored_answer(
    deployment: Any, ask: Any, wait_for: Any
) -> None:
    key, document = deployment.key(), speech(40, 5, stream_options={"include_usage": True})
    first = await opened(ask, deployment.urls[0], key, document, "stored")
    request_id = first.headers["x-request-id"]
    before = await first.events(5)
    first.cut()
    record = await wait_for(lambda: deployment.record(request_id), "the stream ends by itself")
    assert (record["outcome"], record["cost"]) == ("ok", "0.00012")
    for url in deployment.urls:
        then = await resumed(ask, url, key, document, "stored", before[-1].id)
        assert then.headers["idempotency-replayed"] == "true"
        assert then.headers["x-request-id"] == request_id
        assert then.headers["headgate-cost"] == "0.00012"
        events = [*before, *await then.events()]
        assert numbers(events) == list(range(len(events)))
        assert words(events) == spoken(40)
        assert cost_of(events) == "0.00012"
        future = await resumed(ask, url, key, document, "stored", f"{request_id}:{len(events)}")
        assert (future.status, (await future.document())["path"]) == (400, "last-event-id")
    assert [r["request_id"] for r in deployment.records()].count(request_id) == 1


@pytest.mark.parametrize("back", [0, 1], ids=["same worker", "other worker"])
async def test_finished_and_too_large_to_be_stored_is_continued_by_its_worker(
    deployment: Any, ask: Any, wait_for: Any, back: int
) -> None:
    key, mine = deployment.key(), f"large-{back}"
    document = speech(50, 0, max_tokens=20_000)
    document["messages"][0]["content"] = "ab" * 1000
    document["options"]["tokens"] = 100
    first = await opened(ask, deployment.urls[0], key, document, mine)
    request_id = first.headers["x-request-id"]
    before = await first.events(5)
    first.cut()
    await wait_for(lambda: deployment.record(request_id), "the stream ends by itself")
    then = await resumed(ask, deployment.urls[back], key, document, mine, before[-1].id)
    assert then.status == 200, await then.body()
    events = [*before, *await then.events()]
    assert numbers(events) == list(range(len(events)))
    assert words(events) == ["ab" * 1000] * 100
    assert events[-1].data == "[DONE]"


async def test_a_dialect_without_roles_goes_on_too(deployment: Any, ask: Any) -> None:
    key = deployment.key()
    document = {"model": "words", "prompt": "a b c d e f g h", "stream": True, "options": {"delay_ms": 5}}
    headers = {"headgate_resumable": "20", "idempotency_key": "completion"}
    first = await ask(deployment.urls[0], key, document, "/v1/completions", **headers)
    before = await first.events(3)
    first.cut()
    then = await ask(
        deployment.urls[1], key, document, "/v1/completions", **headers, last_event_id=str(before[-1].id)
    )
    events = [*before, *await then.events()]
    texts = [e.document["choices"][0]["text"] for e in events if e.data != "[DONE]" and e.document["choices"]]
    assert "".join(texts).split() == list("abcdefgh")


async def test_nobody_comes_back(deployment: Any, ask: Any, wait_for: Any) -> None:
    key, document = deployment.key(), speech(5000, 5)
    first = await opened(ask, deployment.urls[0], key, document, "never", "0.3")
    request_id = first.headers["x-request-id"]
    before = await first.events(5)
    first.cut()
    record = await wait_for(lambda: deployment.record(request_id), "the stream is given up")
    assert record["outcome"] == "client_gone"
    assert 5 < record["usage"]["output"] < 5000, "it ran on for a while"
    then = await resumed(ask, deployment.urls[1], key, document, "never", before[-1].id)
    assert then.status == 409
    problem = await then.document()
    assert problem["code"] == problem["error"]["code"] == "stream_lost"
    assert (problem["record_id"], problem["cost"]) == (request_id, record["cost"])
    assert then.headers["x-should-retry"] == "false"


async def test_without_the_header_a_disconnect_ends_it_at_once(deployment: Any, ask: Any, wait_for: Any) -> None:
    key = deployment.key()
    reply = await ask(deployment.urls[0], key, speech(5000, 5), idempotency_key="plain")
    assert "headgate-resumable" not in reply.headers
    events = await reply.events(5)
    assert [event.id for event in events] == [None] * 5
    reply.cut()
    record = await wait_for(lambda: deployment.record(reply.headers["x-request-id"]), "it ends")
    assert record["outcome"] == "client_gone"
    assert record["usage"]["output"] < 50


async def test_the_newest_reader_has_the_stream(deployment: Any, ask: Any) -> None:
    key, document = deployment.key(), speech(200, 4)
    first = await opened(ask, deployment.urls[0], key, document, "newest")
    before = await first.events(5)
    then = await resumed(ask, deployment.urls[1], key, document, "newest", before[-1].id)
    third = await resumed(ask, deployment.urls[0], key, document, "newest", before[-1].id)
    await first.events()
    await then.events()
    assert not first.whole
    assert not then.whole
    events = [*before, *await third.events()]
    assert words(events) == spoken(200)
    assert numbers(events) == list(range(len(events)))


async def test_lost_before_its_first_event_it_is_read_from_its_beginning(
    deployment: Any, ask: Any, wait_for: Any
) -> None:
    key, document = deployment.key(), speech(200, 4)
    first = await opened(ask, deployment.urls[0], key, document, "early")
    again = await ask(deployment.urls[1], key, document, headgate_resumable="20", idempotency_key="early")
    assert again.status == 409, "somebody reads it"
    assert (await again.document())["code"] == "idempotency_in_progress"
    first.cut()

    async def begun_again() -> Any:
        while True:
            reply = await ask(deployment.urls[1], key, document, headgate_resumable="20", idempotency_key="early")
            if reply.status == 200:
                return reply

    events = await (await begun_again()).events()
    assert numbers(events) == list(range(len(events)))
    assert words(events) == spoken(200)


async def test_it_runs_on_inside_its_budget(deployment: Any, ask: Any, wait_for: Any) -> None:
    # 3,000 words cost 9,000 micro-units; the budget holds the input and 1,500 words of output.
    key, document = deployment.key(budget="0.006/total"), speech(3000, 0)
    first = await opened(ask, deployment.urls[0], key, document, "budget")
    request_id = first.headers["x-request-id"]
    before = await first.events(3)
    first.cut()
    record = await wait_for(lambda: deployment.record(request_id), "it ends by itself")
    assert (record["outcome"], record["cost"]) == ("budget_stop", "0.006")
    then = await resumed(ask, deployment.urls[1], key, document, "budget", before[-1].id)
    events = [*before, *await then.events()]
    assert words(events) == spoken(1500)
    assert [e.document["choices"][0]["finish_reason"] for e in events if e.data != "[DONE]"][-1] == "length"


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({"headgate_resumable": "20"}, "Idempotency-Key"),
        ({"headgate_resumable": "soon", "idempotency_key": "x"}, "headgate-resumable"),
        ({"headgate_resumable": "-1", "idempotency_key": "x"}, "headgate-resumable"),
        ({"headgate_resumable": "nan", "idempotency_key": "x"}, "headgate-resumable"),
        ({"headgate_resumable": "inf", "idempotency_key": "x"}, "headgate-resumable"),
        ({"last_event_id": "7", "idempotency_key": "x"}, "last-event-id"),
        ({"last_event_id": "req_1:-7", "idempotency_key": "x"}, "last-event-id"),
        ({"last_event_id": "req_1:" + "9" * 30, "idempotency_key": "x"}, "last-event-id"),
    ],
)
async def test_malformed_headers(deployment: Any, ask: Any, headers: dict[str, str], says: str) -> None:
    reply = await ask(deployment.urls[0], deployment.key(), speech(3), **headers)
    assert reply.status == 400
    problem = await reply.document()
    assert (problem["code"], problem["path"]) == ("invalid_request", next(iter(headers)).replace("_", "-"))
    assert says in problem["detail"]


async def test_seconds_are_capped_and_whole_answers_do_not_care(deployment: Any, ask: Any) -> None:
    key = deployment.key()
    reply = await opened(ask, deployment.urls[0], key, speech(3), "capped", "1e9")
    assert reply.headers["headgate-resumable"] == "30"
    whole = {**speech(3), "stream": False}
    reply = await ask(deployment.urls[0], key, whole, headgate_resumable="nonsense", idempotency_key="whole")
    assert reply.status == 200
    assert "headgate-resumable" not in reply.headers


async def test_only_who_may(deployment: Any, ask: Any) -> None:
    key, document = deployment.key(), speech(200, 4)
    first = await opened(ask, deployment.urls[0], key, document, "whose")
    last = (await first.events(3))[-1].id
    other = deployment.key(project="strangers")
    lost = await resumed(ask, deployment.urls[1], other, document, "whose", last)
    assert lost.status == 409
    problem = await lost.document()
    assert problem["code"] == "stream_lost"
    assert "record_id" not in problem, "a stranger learns nothing"
    mismatch = await resumed(ask, deployment.urls[1], key, {**document, "seed": 1}, "whose", last)
    assert (mismatch.status, (await mismatch.document())["code"]) == (422, "idempotency_mismatch")
    narrow = deployment.key(models=["words"])
    forbidden = await resumed(ask, deployment.urls[1], narrow, document, "whose", last)
    assert (forbidden.status, (await forbidden.document())["code"]) == (403, "permission_denied")
    future = await resumed(ask, deployment.urls[1], key, document, "whose", f"{last.partition(':')[0]}:1000")
    assert future.status == 400
    missing = await resumed(ask, deployment.urls[1], key, document, "whose", "req_other:3")
    assert (missing.status, (await missing.document())["code"]) == (409, "stream_lost")
    assert len(await first.events()) == 199, "none of it disturbed the reader"
