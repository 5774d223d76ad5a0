"""Streams whose worker, engine or server ends under them. Every deployment is audited when its test is over."""

from __future__ import annotations

import asyncio
import signal
from decimal import Decimal
from typing import Any

import pytest

from .conftest import speech

HEADERS = {"headgate_resumable": "20", "idempotency_key": "mine"}


@pytest.mark.parametrize(("reading", "restarted"), [(False, True), (True, False)], ids=["away", "reading"])
async def test_the_worker_is_killed(deploy: Any, ask: Any, wait_for: Any, restarted: bool, reading: bool) -> None:
    async with deploy() as deployment:
        key, document = deployment.key(), speech(2000, 5)
        first = await ask(deployment.urls[0], key, document, **HEADERS)
        request_id = first.headers["x-request-id"]
        before = await first.events(20)
        then = None
        if reading:
            # Somebody reads on through the other worker when it happens.
            then = await ask(deployment.urls[1], key, document, **HEADERS, last_event_id=str(before[-1].id))
            before += await then.events(20)
        else:
            first.cut()
        deployment.gateway.stop("worker-0", signal.SIGKILL)
        if restarted:
            deployment.start_worker(0)
        if then is not None:
            before += await then.events()
            assert not then.whole, "a cut connection, so that the client asks again and learns the bill"
        for url in deployment.urls[0 if restarted else 1 :]:
            lost = await ask(url, key, document, **HEADERS, last_event_id=str(before[-1].id))
            assert lost.status == 409, await lost.body()
            problem = await lost.document()
            assert problem["code"] == "stream_lost"
            record = deployment.record(request_id)
            assert (problem["record_id"], problem["cost"]) == (request_id, record["cost"])
            assert record["outcome"] == "gateway_crash"
        if reading:
            # Made as it was read: what is billed is what came, give or take the event under way.
            came = sum(bool(event.text) for event in before)
            assert came - 1 <= record["usage"]["output"] <= came
        billed = Decimal(record["usage"]["input"] + 2 * record["usage"]["output"]) / 1_000_000
        assert Decimal(record["cost"]) == billed


@pytest.mark.parametrize("headers", [HEADERS, {"idempotency_key": "mine"}], ids=["resumable", "plain"])
async def test_a_worker_that_is_killed_before_the_first_event_leaves_nothing_behind(
    deploy: Any, ask: Any, wait_for: Any, headers: dict[str, str]
) -> None:
    async with deploy() as deployment:
        key, document = deployment.key(), speech(3)
        engine = deployment.gateway.processes["engine-echo"]
        engine.send_signal(signal.SIGSTOP)
        try:
            first = asyncio.create_task(ask(deployment.urls[0], key, document, **headers))

            def in_flight() -> bool:
                accounts = deployment.gateway.admin("GET", "accounts?limit=1000")["data"]
                return any(account["in_flight"] for account in accounts)

            await wait_for(in_flight, "it is admitted")
            deployment.gateway.stop("worker-0", signal.SIGKILL)
            await asyncio.gather(first, return_exceptions=True)
            assert first.exception() is not None, "nothing of an answer came"
            (crashed,) = await wait_for(deployment.records, "its worker's death is known")
        finally:
            engine.send_signal(signal.SIGCONT)
        assert (crashed["outcome"], crashed["cost"]) == ("gateway_crash", "0")
        assert not any(crashed["usage"].values())
        await wait_for(lambda: deployment.ready(1), "the engine is back")
        again = await ask(deployment.urls[1], key, document, **headers)
        assert again.status == 200, await again.body()
        assert "idempotency-replayed" not in again.headers
        assert "".join(event.text for event in await again.events()).split() == ["w0", "w1", "w2"]
        assert again.whole
        records = {record["request_id"]: record for record in deployment.records()}
        billed = records.pop(again.headers["x-request-id"])
        assert (billed["outcome"], billed["usage"]["output"]) == ("ok", 3)
        assert Decimal(billed["cost"]) > 0
        assert list(records) == [crashed["request_id"]]


async def test_what_was_waived_is_not_run_again(deploy: Any, ask: Any, wait_for: Any) -> None:
    async with deploy() as deployment:
        key, document = deployment.key(), speech(2000, 5, model="waived")
        headers = {**HEADERS, "headgate_resumable": "0.2"}
        first = await ask(deployment.urls[0], key, document, **headers)
        request_id = first.headers["x-request-id"]
        before = await first.events(5)
        first.cut()
        await wait_for(lambda: deployment.record(request_id), "it is given up")
        lost = await ask(deployment.urls[1], key, document, **headers, last_event_id=str(before[-1].id))
        problem = await lost.document()
        assert (problem["code"], problem["cost"], problem["record_id"]) == ("stream_lost", "0", request_id)
        assert len(deployment.records()) == 1


async def test_a_draining_worker_is_read_through_its_sibling(deploy: Any, ask: Any, wait_for: Any) -> None:
    async with deploy(drain_s=20) as deployment:
        key, document = deployment.key(), speech(300, 10)
        first = await ask(deployment.urls[0], key, document, **HEADERS)
        before = await first.events(5)
        first.cut()
        process = deployment.gateway.processes.pop("worker-0")
        process.send_signal(signal.SIGTERM)
        then = await ask(deployment.urls[1], key, document, **HEADERS, last_event_id=str(before[-1].id))
        assert then.status == 200
        events = [*before, *await then.events()]
        assert then.whole
        assert "".join(event.text for event in events).split() == [f"w{number}" for number in range(300)]
        await wait_for(lambda: process.poll() is not None, "the worker ends")
        assert process.returncode == 0


@pytest.mark.parametrize("reading", [False, True], ids=["away", "reading"])
async def test_a_drain_that_is_over_cuts_it(deploy: Any, ask: Any, wait_for: Any, reading: bool) -> None:
    async with deploy(drain_s=0.5) as deployment:
        key, document = deployment.key(), speech(3000, 5)
        first = await ask(deployment.urls[0], key, document, **HEADERS)
        request_id = first.headers["x-request-id"]
        before = await first.events(5)
        first.cut()
        then = None
        if reading:
            then = await ask(deployment.urls[1], key, document, **HEADERS, last_event_id=str(before[-1].id))
        process = deployment.gateway.processes.pop("worker-0")
        process.send_signal(signal.SIGTERM)
        if then is not None:
            events = await then.events()
            assert events[-1].kind == "error"
            assert events[-1].document["code"] == "overloaded"
            assert then.whole
        await wait_for(lambda: process.poll() is not None, "the worker ends")
        assert process.returncode == 0
        record = deployment.record(request_id)
        assert record["outcome"] == ("gateway_stop" if reading else "client_gone")
        lost = await ask(deployment.urls[1], key, document, **HEADERS, last_event_id=str(before[-1].id))
        assert (await lost.document())["cost"] == record["cost"]


async def test_an_engine_that_dies_is_told_to_who_comes_back(deploy: Any, ask: Any, wait_for: Any) -> None:
    async with deploy() as deployment:
        key, document = deployment.key(), speech(3000, 5)
        first = await ask(deployment.urls[0], key, document, **HEADERS)
        request_id = first.headers["x-request-id"]
        before = await first.events(5)
        first.cut()
        deployment.gateway.stop("engine-echo", signal.SIGKILL)
        await wait_for(lambda: deployment.record(request_id), "it is settled")
        deployment.gateway.start_engine(deployment.gateway.settings.models[0])
        await wait_for(lambda: deployment.ready(1), "the engine is back")
        then = await ask(deployment.urls[1], key, document, **HEADERS, last_event_id=str(before[-1].id))
        events = await then.events()
        assert events[-1].kind == "error"
        assert events[-1].document["code"] == "upstream_error"
        assert [int(str(e.id).rpartition(":")[2]) for e in events] == list(range(5, 5 + len(events)))


async def test_the_ledger_is_killed_and_comes_back(deploy: Any, ask: Any, wait_for: Any) -> None:
    async with deploy() as deployment:
        key, document = deployment.key(), speech(300, 5)
        first = await ask(deployment.urls[0], key, document, **HEADERS)
        before = await first.events(5)
        first.cut()
        deployment.gateway.stop("ledger", signal.SIGKILL)
        await asyncio.to_thread(deployment.gateway.start_ledger)
        await wait_for(lambda: deployment.ready(1), "the worker has found the ledger")
        then = await ask(deployment.urls[1], key, document, **HEADERS, last_event_id=str(before[-1].id))
        assert then.status == 200, await then.body()
        events = [*before, *await then.events()]
        assert "".join(event.text for event in events).split() == [f"w{number}" for number in range(300)]
        (record,) = deployment.records()
        assert (record["outcome"], record["cost"]) == ("ok", "0.0009")


async def test_resuming_can_be_switched_off(deploy: Any, ask: Any) -> None:
    async with deploy(stream_resume_s=0) as deployment:
        reply = await ask(deployment.urls[0], deployment.key(), speech(3), **HEADERS)
        assert reply.status == 200
        assert "headgate-resumable" not in reply.headers
        assert {event.id for event in await reply.events()} == {None}
