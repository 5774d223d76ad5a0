"""What users do without thinking of it: share a client, drop things half-way, hand over what is no plain list."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import datetime
from typing import Any

import numpy as np
import pytest
from headgate import Cost, Limits, Wiring, errors
from headgate._core.metering import Budget, Meter, current
from headgate._core.prices import Upper
from headgate._core.tickets import Journal, Ticket
from headgate.testing import FakeGateway, FakeModel, Garble, Refuse, Split
from pydantic import BaseModel

from .conftest import HELLO, Driver


class Interrupted:
    """A lock that lets somebody else in, once, when it is next free."""

    def __init__(self, then: Callable[[], Any]) -> None:
        self._lock = threading.Lock()
        self._then: Callable[[], Any] | None = then

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        then, self._then = self._then, None
        if then is not None:
            then()


ALL = Upper(tokens=10, nano=10, price=None, tokens_in=5)


def ticket(budget: Budget) -> Ticket:
    return Ticket(Journal(), (budget,), "m", None, None)


def test_another_thread_finds_a_budget_full_while_a_call_is_settled() -> None:
    budget = Budget(Cost(10))
    mine = ticket(budget)
    mine.reserve(ALL)
    refused: list[bool] = []

    def intrude() -> None:
        with pytest.raises(errors.BudgetExceeded):
            ticket(budget).reserve(ALL)
        refused.append(True)

    budget._lock = Interrupted(intrude)  # type: ignore[assignment]
    mine.settle(usage=None, nano=10, request_id=None)
    assert refused


def test_a_call_that_another_thread_settles_meanwhile_still_counts() -> None:
    budget = Budget(Cost(10))
    mine = ticket(budget)
    mine.reserve(ALL)
    budget._lock = Interrupted(lambda: mine.settle(usage=None, nano=10, request_id=None))  # type: ignore[assignment]
    with pytest.raises(errors.BudgetExceeded):
        ticket(budget).reserve(ALL)


def test_scopes_may_end_in_any_order() -> None:
    def scoped() -> Iterator[Budget]:
        with Budget("1") as budget:
            yield budget

    first, second = scoped(), scoped()
    one, two = next(first), next(second)
    first.close()
    assert current() == (two,)
    second.close()
    assert one not in current()
    assert current() == ()


def test_a_scope_may_be_entered_twice_and_counts_once() -> None:
    with Meter() as meter:
        with meter:
            assert current() == (meter,)
        assert current() == (meter,)
    assert current() == ()


def test_a_thread_joins_a_budget(gateway: FakeGateway) -> None:
    client = gateway.client()

    def ask(joined: Budget | nullcontext[None], most: int = 5) -> None:
        with joined:
            client.chat.completions.create(
                model="echo", messages=[{"role": "user", "content": "a"}], max_tokens=most
            )

    with client.budget("0.0001") as budget, ThreadPoolExecutor(1) as threads:
        threads.submit(ask, nullcontext()).result()
        assert budget.requests == 0
        threads.submit(ask, budget).result()
        assert budget.requests == 1
        with pytest.raises(errors.BudgetExceeded):
            threads.submit(ask, budget, 1000).result()


async def test_a_scope_may_end_in_another_task() -> None:
    async def use() -> Any:
        with Budget("1") as budget:
            yield budget

    scoped = use()
    await asyncio.create_task(scoped.__anext__())
    await scoped.aclose()
    assert current() == ()


@pytest.mark.parametrize("method", ["chat", "infer"])
async def test_an_answer_of_another_shape_was_paid_for(drive: Driver, method: str) -> None:
    client = drive.client()

    drive.gateway.script(Garble(b"[]"))
    with client.budget("1") as budget:
        with pytest.raises(errors.ResponseShapeError, match=r"the answer: Input should be") as caught:
            if method == "chat":
                await drive.do(client.chat.completions.create, model="echo", messages=HELLO, max_tokens=5)
            else:
                await drive.do(client.infer.create, model="double", inputs={"x": [1]})
        assert budget.remaining == Cost(1_000_000_000, settled=False)
    assert budget.rows()[0].failures == 1
    assert [attempt.status for attempt in caught.value.attempts] == [200]
    assert caught.value.request_id is not None


async def test_an_observer_that_fails_holds_no_budget(drive: Driver) -> None:
    def broken(_call: Any) -> Any:
        raise RuntimeError("no tracer")

    client = drive.client(observers=[broken])
    with client.budget(max_tokens=1000) as budget:
        for stream in (False, True):
            with pytest.raises(RuntimeError, match="no tracer"):
                await drive.do(
                    client.chat.completions.create, model="echo", messages=HELLO, max_tokens=5, stream=stream
                )
        assert budget._held_tokens == 0


async def test_events_of_another_shape_come_with_the_facts(drive: Driver) -> None:
    chunk = b'data: {"choices": [{"index": 0, "delta": {"content": "w"}}]}\n\n'
    drive.gateway.script(Garble(chunk + b'data: {"choices": 3}\n\n', "text/event-stream"))
    stream = await drive.do(drive.client().chat.completions.create, model="echo", messages=HELLO, stream=True)
    with pytest.raises(errors.ResponseShapeError) as caught:
        await drive.do(stream.final)
    assert caught.value.request_id == stream.request_id is not None
    assert len(caught.value.attempts) == 1


async def test_a_stream_that_a_budget_cut_comes_with_the_facts(drive: Driver) -> None:
    drive.gateway.models["long"] = FakeModel("chat", answer=lambda _: " ".join(["word"] * 500))
    client = drive.client()
    with client.budget("0.0003"), pytest.raises(errors.BudgetExceeded) as caught:
        stream = await drive.do(client.chat.completions.create, model="long", messages=HELLO, stream=True)
        await drive.do(stream.final)
    assert caught.value.partial
    assert caught.value.request_id is not None
    assert len(caught.value.attempts) == 1


@pytest.mark.parametrize("limit", [{"max_cost": "0.001"}, {"max_tokens": 1000}])
async def test_streams_left_early_use_up_a_budget(drive: Driver, limit: Any) -> None:
    drive.gateway.models["long"] = FakeModel("chat", answer=lambda _: " ".join(["word"] * 500))
    client = drive.client()
    with client.budget(**limit) as budget, pytest.raises(errors.BudgetExceeded):
        for _ in range(20):
            async with drive.within(client.chat.completions.stream(model="long", messages=HELLO)) as stream:
                async for _ in drive.each(stream):
                    if len(stream.text_so_far) > 1000:
                        break
    assert budget.rows()[0].unpriced
    assert budget.cost.nano == 0


async def test_a_stream_left_early_has_no_whole_answer(drive: Driver) -> None:
    async with drive.within(drive.client().chat.completions.stream(model="echo", messages=HELLO)) as stream:
        async for _ in drive.each(stream):
            break
    with pytest.raises(errors.StreamInterrupted, match="closed") as caught:
        await drive.do(stream.final)
    assert caught.value.partial == stream.text_so_far != ""


async def test_all_parts_of_one_call_share_its_deadline(drive: Driver) -> None:
    drive.gateway.script(*[Refuse(503, "overloaded", 4), Split(7)] * 8)
    with pytest.raises(errors.HeadgateError):
        await drive.do(
            drive.client().embeddings.create, model="embed", input=["a"] * 8, batch_size=1, deadline=10
        )
    assert drive.gateway.clock.now <= 10


def test_many_calls_ask_for_prices_once(gateway: FakeGateway) -> None:
    async def in_tasks() -> None:
        client = gateway.async_client()
        with client.budget("1"):
            await asyncio.gather(
                *(client.chat.completions.create(model="echo", messages=HELLO) for _ in range(20))  # type: ignore[arg-type]
            )

    asyncio.run(in_tasks())
    assert [seen.path for seen in gateway.seen].count("/v1/models") == 1


async def test_prices_that_cannot_be_had_are_not_asked_for_at_each_call(drive: Driver) -> None:
    client = drive.client()
    asked = drive.gateway._get

    def away(path: str, query: Any) -> Any:
        return drive.gateway._problem(404, "not_found", "away") if path == "/v1/models" else asked(path, query)

    drive.gateway._get = away  # type: ignore[method-assign]
    with client.budget("1") as budget:
        for pause in (0, 0, 10, 0):
            drive.gateway.clock.advance(pause)
            await drive.do(client.chat.completions.create, model="echo", messages=HELLO)
    assert [seen.path for seen in drive.gateway.seen].count("/v1/models") == 2
    assert budget.cost.nano == drive.gateway.spent > 0


async def test_another_key_has_another_journal(drive: Driver) -> None:
    client = drive.client()
    await drive.do(client.with_options(api_key="hg_other").chat.completions.create, model="echo", messages=HELLO)
    drive.gateway.records.clear()
    assert (await drive.do(client.usage.reconcile, "2025-01-01T00:00:00Z")).ok


async def test_what_a_journal_forgot_is_counted(drive: Driver) -> None:
    client = drive.client()
    client._journal._size = 2
    for _ in range(5):
        await drive.do(client.chat.completions.create, model="echo", messages=HELLO)
    found = await drive.do(client.usage.reconcile, "2025-01-01T00:00:00Z")
    assert (found.matched, len(found.missing_here), found.forgotten) == (2, 3, 3)


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"idempotency_key": "a\nb"}, "idempotency_key"),
        ({"idempotency_key": "schlüssel"}, "idempotency_key"),
        ({"idempotency_key": 5}, "idempotency_key"),
        ({"extra_headers": {"x-a": "a\r\nb: c"}}, "extra_headers: 'x-a'"),
        ({"extra_headers": {"x-a": None}}, "extra_headers: 'x-a'"),
        ({"extra_headers": {"x a": "b"}}, "extra_headers: 'x a'"),
        ({"tags": {"job": 5}}, "tags: 'job'"),
        ({"deadline": "3"}, "deadline: '3'"),
        ({"timeout": "3"}, "timeout.total: '3'"),
    ],
)
async def test_an_option_that_cannot_be_is_named(drive: Driver, option: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        await drive.do(drive.client().chat.completions.create, model="echo", messages=HELLO, **option)
    assert not drive.gateway.seen


def test_default_headers_are_checked_at_once(drive: Driver) -> None:
    with pytest.raises(ValueError, match="default_headers: 'x-a'"):
        drive.client(default_headers={"x-a": "ü"})


@pytest.mark.parametrize("colour", ["sync"], indirect=True)
@pytest.mark.parametrize("transport", ["httpx", "fast"])
@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: {"api_key": 5}, "api_key: expected text, got int"),
        (lambda: {"wiring": 3}, "wiring: expected a Wiring, got int"),
        (lambda: {"tags": {"job": 5}}, "tags: 'job' is 5"),
        (lambda: {"wiring": Wiring(limits=3)}, r"wiring\.limits: 3"),  # type: ignore[arg-type]
        (lambda: {"wiring": Wiring(limits=Limits(connections=0))}, r"limits\.connections: 0"),
        (lambda: {"wiring": Wiring(limits=Limits(keepalive="3"))}, r"limits\.keepalive: '3'"),  # type: ignore[arg-type]
        (lambda: {"wiring": Wiring(limits=Limits(pool_wait_s=-1))}, r"limits\.pool_wait_s: -1"),
        (lambda: {"wiring": Wiring(proxy="proxy:8080")}, r"wiring\.proxy: is no address such as"),
        (lambda: {"wiring": Wiring(ca="/none.pem")}, r"wiring\.ca: '/none\.pem' .*: No such file"),
        (lambda: {"wiring": Wiring(ca=__file__)}, r"wiring\.ca: .* is no PEM file of authorities"),
    ],
)
def test_a_setting_that_cannot_be_is_named_at_once(
    drive: Driver, transport: str, make: Callable[[], Any], named: str
) -> None:
    with pytest.raises((ValueError, errors.ConfigurationError), match=named):
        drive.kind(**{"api_key": "hg_x", "base_url": "https://a", "transport": transport, **make()})


async def test_what_is_shown_holds_no_secret(drive: Driver) -> None:
    seen: list[str] = []

    def plain(request: Any, send: Any) -> Any:
        seen.append(repr(request))
        return send(request)

    async def awaited(request: Any, send: Any) -> Any:
        return await plain(request, send)

    client = drive.client(api_key="hg_secret", middleware=[plain if drive.colour == "sync" else awaited])
    made = await drive.do(client.admin.keys.create, project="p")
    assert "/admin/v1/keys" in seen[0]
    assert repr(client).startswith(f"<{drive.kind.__name__} http")
    wiring = Wiring(proxy="http://me:hg_secret@proxy")
    assert made.key not in repr(made) + str(made)
    for shown in (*seen, repr(client), str(client), repr(wiring)):
        assert "hg_secret" not in shown


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_client_says_that_it_does_not_travel(drive: Driver, copied: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="make one in each process"):
        copied(drive.client())


@pytest.mark.parametrize(
    "address", ["http://[bad", "http://host:99999", "http://ho st", "http://:80", "http://host/?a=b"]
)
def test_an_address_that_cannot_be_is_refused(drive: Driver, address: str) -> None:
    with pytest.raises(errors.ConfigurationError, match="base_url"):
        drive.client(base_url=address)


async def test_errors_and_answers_travel_between_processes(drive: Driver) -> None:
    client = drive.client()
    answer = await drive.do(client.chat.completions.create, model="echo", messages=HELLO)
    assert pickle.loads(pickle.dumps(answer)).cost == answer.cost
    with pytest.raises(errors.NotFound) as caught:
        await drive.do(client.chat.completions.create, model="nope", messages=HELLO)
    for error in (
        caught.value,
        errors.TimedOut("late", clock="idle", seconds=3),
        errors.StreamInterrupted("cut", partial="some"),
        errors.BudgetExceeded("no", limit=Cost(1)),
        errors.ResponseShapeError("what", path="choices", body=b"x"),
    ):
        for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
            assert type(other) is type(error)
            assert str(other) == str(error)
            assert vars(other) == vars(error)


class Deep(BaseModel):
    """Fields that a provider's strict schemas are picky about."""

    class Inner(BaseModel):
        number: int = 3

    inner: Inner
    many: list[Inner] = []
    default: str = "x"


async def test_a_schema_is_one_that_strict_providers_take(drive: Driver) -> None:
    drive.gateway.models["deep"] = FakeModel("chat", answer=lambda _: '{"inner":{},"many":[]}')
    await drive.do(drive.client().chat.completions.parse, model="deep", messages=HELLO, response_format=Deep)
    form = drive.gateway.seen[-1].json()["response_format"]["json_schema"]
    schema = form["schema"]
    assert form["strict"] is True
    for one in (schema, schema["$defs"]["Inner"]):
        assert one["additionalProperties"] is False
        assert one["required"] == list(one["properties"])
    assert schema["required"] == ["inner", "many", "default"]
    assert "default" not in schema["properties"]["default"]


async def test_a_schema_with_open_keys_is_not_called_strict(drive: Driver) -> None:
    drive.gateway.models["map"] = FakeModel("chat", answer=lambda _: '{"a": 1}')
    answer = await drive.do(
        drive.client().chat.completions.parse, model="map", messages=HELLO, response_format=dict[str, int]
    )
    assert answer.parsed == {"a": 1}
    assert drive.gateway.seen[-1].json()["response_format"]["json_schema"]["strict"] is False


async def test_an_answer_that_was_cut_says_why_it_is_not_of_the_type(drive: Driver) -> None:
    drive.gateway.models["long"] = FakeModel("chat", answer=lambda _: '{"inner": {"number": 1}, "many": []}')
    parse = drive.client().chat.completions.parse
    with pytest.raises(errors.ResponseShapeError, match="finish_reason 'length'") as caught:
        await drive.do(parse, model="long", messages=HELLO, response_format=Deep, max_tokens=2)
    assert str(caught.value.cost) == str(drive.gateway.records[0]["cost"])
    assert caught.value.attempts
    with pytest.raises(TypeError, match="response_format: expected a type"):
        await drive.do(parse, model="long", messages=HELLO, response_format={"type": "json_object"})


@pytest.mark.parametrize("given", [np.array(["a", "b"]), (text for text in ("a", "b")), ("a", "b")])
async def test_texts_to_embed_need_not_be_a_list(gateway: FakeGateway, given: Any) -> None:
    assert len(gateway.client().embeddings.create(model="embed", input=given).data) == 2
    assert gateway.seen[-1].json()["input"] == ["a", "b"]


async def test_what_cannot_be_embedded_is_refused_by_the_gateway(drive: Driver) -> None:
    with pytest.raises(errors.InvalidRequest, match="input"):
        await drive.do(drive.client().embeddings.create, model="embed", input={"a": 1})


async def test_tensors_without_names_and_numbers_that_json_lacks(drive: Driver) -> None:
    create = drive.client().infer.create
    with pytest.raises(ValueError, match="inputs: expected arrays or lists by name"):
        await drive.do(create, model="double", inputs=[1, 2])
    for nan in ([1.0, float("nan")], np.array([np.inf])):
        with pytest.raises(ValueError, match=r"x: JSON has no form for .* binary=True"):
            await drive.do(create, model="double", inputs={"x": nan})
    answer = await drive.do(create, model="double", inputs={"x": np.array([np.inf])}, binary=True)
    assert answer["x"].numpy()[0] == np.inf


async def test_an_empty_id_asks_nobody(drive: Driver) -> None:
    client = drive.client()
    for retrieve in (client.models.retrieve, client.usage.retrieve):
        with pytest.raises(ValueError, match="empty"):
            await drive.do(retrieve, "")
    assert not drive.gateway.seen


async def test_a_time_without_a_zone_is_local(drive: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        await drive.do(drive.client().usage.query, since=datetime(2026, 1, 1, 9))  # noqa: DTZ001
    finally:
        monkeypatch.undo()
        time.tzset()
    assert drive.gateway.seen[-1].query["since"] == "2026-01-01T00:00:00+00:00"


async def test_a_closed_client_says_so_at_once(drive: Driver) -> None:
    client = drive.client()
    await drive.do(client.close)
    with pytest.raises(errors.ConnectionFailed, match="the client is closed") as caught:
        await drive.do(client.chat.completions.create, model="echo", messages=HELLO)
    assert len(caught.value.attempts) == 1
    assert not caught.value.retryable
