"""Meters and budgets: what they count is what the ledger billed, whatever went wrong on the way."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime

import pytest
from headgate import Budget, Cost, errors
from headgate.testing import (
    Cut,
    Disconnect,
    Duplicate,
    FailAfterCommit,
    FakeGateway,
    FakeModel,
    Fault,
    Refuse,
    Split,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from .conftest import HELLO, Driver, say

FAULTS = st.one_of(
    st.builds(Refuse, st.sampled_from([402, 429, 500, 503]), st.none(), st.just(0.5)),
    st.builds(Disconnect, st.sampled_from(["connect", "first_byte"])),
    st.builds(FailAfterCommit, st.sampled_from([500, None])),
    st.builds(Split, st.integers(1, 9)),
    st.just(Duplicate()),
    st.builds(Cut, st.integers(0, 5)),
)


async def test_a_meter_adds_up_per_model_and_tag(drive: Driver) -> None:
    client = drive.client()
    with client.meter(tags={"team": "web"}) as outer:
        await drive.do(client.chat.completions.create, model="echo", messages=HELLO)
        with client.meter(tags={"job": "night"}) as inner:
            await drive.do(client.embeddings.create, model="embed", input=["a b"])
            await drive.do(client.chat.completions.create, model="echo", messages=HELLO, tags={"step": "1"})
    await drive.do(client.chat.completions.create, model="echo", messages=HELLO)
    assert outer.requests == 3
    assert inner.requests == 2
    assert outer.by_model() == {"echo": Cost(24_000), "embed": Cost(40)}
    assert inner.by_tag("step") == {"": Cost(40), "1": Cost(12_000)}
    assert outer.total_tokens == 18
    # The tags went along and are in the records.
    assert [record["tags"] for record in drive.gateway.records] == [
        {"team": "web"},
        {"team": "web", "job": "night"},
        {"team": "web", "job": "night", "step": "1"},
        {},
    ]


async def test_failures_are_counted(drive: Driver) -> None:
    client = drive.client()
    drive.gateway.script(Refuse(402, "budget_exhausted"))
    with client.meter() as meter:
        with pytest.raises(errors.QuotaExceeded):
            await drive.do(client.chat.completions.create, model="echo", messages=HELLO)
        drive.gateway.models["echo"] = FakeModel(answer=lambda _: "no json")
        with pytest.raises(errors.ResponseShapeError):
            await drive.do(client.chat.completions.parse, model="echo", messages=HELLO, response_format=list[int])
    row = meter.rows()[0]
    assert (row.failures, row.requests) == (1, 1)
    assert meter.cost.nano == drive.gateway.spent


async def test_a_meter_follows_tasks(gateway: FakeGateway) -> None:
    client = gateway.async_client()

    async def one(words: int) -> None:
        with client.meter(tags={"n": str(words)}):
            await client.chat.completions.create(model="echo", messages=say("w " * words))  # type: ignore[arg-type]

    with client.meter() as meter:
        async with asyncio.TaskGroup() as group:
            for n in (1, 2, 3):
                group.create_task(one(n))
        assert meter.requests == 3
        assert meter.cost.nano == gateway.spent


async def test_a_replay_costs_once(drive: Driver) -> None:
    client = drive.client()
    with client.meter() as meter:
        for _ in range(3):
            await drive.do(client.chat.completions.create, model="echo", messages=HELLO, idempotency_key="mine")
    row = meter.rows()[0]
    assert (row.requests, row.replays) == (3, 2)
    assert meter.cost.nano == drive.gateway.spent == 12_000


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(FAULTS, st.booleans(), st.booleans()), max_size=6))
def test_reconciliation_finds_no_difference_after_any_script(script: list[tuple[Fault, bool, bool]]) -> None:
    """What a caller saw in full is what was billed; what it did not see in full, reconcile names."""
    gateway = FakeGateway()
    client = gateway.client()
    interrupted = 0
    with client.meter() as meter:
        for fault, stream, resumable in script:
            gateway.script(fault)
            with contextlib.suppress(errors.QuotaExceeded, errors.ServerError):
                try:
                    if stream:
                        options = {"resumable": 10.0} if resumable else {}
                        manager = client.chat.completions.stream(model="echo", messages=HELLO, **options)  # type: ignore[arg-type]
                        with manager as opened:
                            assert opened.final().text == "hello brave new world"
                    else:
                        client.chat.completions.create(model="echo", messages=HELLO)  # type: ignore[arg-type]
                except errors.StreamInterrupted:
                    interrupted += 1
    found = client.usage.reconcile(datetime(2025, 1, 1, tzinfo=UTC))
    assert not found.missing_there
    assert len(found.differing) == interrupted
    unseen = sum(item.there.nano for item in (*found.differing, *found.missing_here) if item.there)
    assert meter.cost.nano + unseen == gateway.spent
    assert not found.missing_here


async def test_a_budget_refuses_before_sending(drive: Driver) -> None:
    client = drive.client()
    with client.budget(max_cost="0.0002") as budget:
        await drive.do(client.chat.completions.create, model="echo", messages=HELLO)
        asked = len(drive.gateway.seen)
        with pytest.raises(errors.BudgetExceeded) as caught:
            await drive.do(client.chat.completions.create, model="echo", messages=HELLO, max_tokens=1000)
        assert len(drive.gateway.seen) == asked
        assert str(budget.remaining) == "0.000188"
    error = caught.value
    assert (error.limit, error.spent) == (Cost(200_000), Cost(12_000))
    assert error.needed is not None
    assert not error.retryable
    assert drive.gateway.spent <= 200_000


async def test_budgets_nest_and_the_smallest_wins(drive: Driver) -> None:
    client = drive.client()
    with client.budget(max_cost="1") as outer, client.budget(max_cost="0.000001") as inner:
        with pytest.raises(errors.BudgetExceeded):
            await drive.do(client.chat.completions.create, model="echo", messages=HELLO)
        assert str(inner.remaining) == "0.000001"
    assert str(outer.remaining) == "1"


async def test_a_budget_of_tokens(drive: Driver) -> None:
    client = drive.client()
    with client.budget(max_tokens=200) as budget:
        await drive.do(client.chat.completions.create, model="echo", messages=HELLO)
        with pytest.raises(errors.BudgetExceeded, match="192 left"):
            await drive.do(client.chat.completions.create, model="echo", messages=HELLO, max_tokens=500)
        assert budget.remaining is None


async def test_a_budget_cuts_a_stream_that_would_cross_it(drive: Driver) -> None:
    client = drive.client()
    words = "w " * 300
    with client.budget(max_cost="0.00075") as budget:
        manager = client.chat.completions.stream(model="echo", messages=say(words))
        with pytest.raises(errors.BudgetExceeded, match="cut") as caught:
            async with drive.within(manager) as stream:
                await drive.list(stream.text)
    assert 0 < len(caught.value.partial.split()) < 300
    assert not client._engine.transport.open_streams
    assert budget.rows()[0].failures == 1


async def test_a_strict_budget_wants_prices(drive: Driver) -> None:
    drive.gateway.models["free"] = FakeModel(price={})
    client = drive.client()
    with client.budget(max_cost="1", strict=True), pytest.raises(errors.BudgetExceeded, match="not known"):
        await drive.do(client.chat.completions.create, model="free", messages=HELLO)
    with client.budget(max_cost="1"):
        await drive.do(client.chat.completions.create, model="free", messages=HELLO)


async def test_concurrent_calls_share_a_budget(gateway: FakeGateway) -> None:
    client = gateway.async_client()

    async def one() -> bool:
        try:
            await client.chat.completions.create(model="echo", messages=say("x"), max_tokens=100)  # type: ignore[arg-type]
        except errors.BudgetExceeded:
            return False
        return True

    await client.models.list()
    with client.budget(max_cost="0.0006") as budget:
        done = await asyncio.gather(*(one() for _ in range(20)))
    assert 1 <= sum(done) < 20
    assert gateway.spent <= 600_000
    assert budget.remaining == Cost(600_000 - gateway.spent, settled=False)


def test_a_budget_needs_a_limit() -> None:
    with pytest.raises(ValueError, match="max_cost or max_tokens"):
        Budget()
    with pytest.raises(ValueError, match="decimal string"):
        Budget("cheap")


async def test_exports(drive: Driver) -> None:
    client = drive.client()
    with client.meter(tags={"team": "web"}) as meter:
        await drive.do(client.chat.completions.create, model="echo", messages=HELLO)
    assert meter.to_rows() == [
        {
            "model": "echo",
            "requests": 1,
            "replays": 0,
            "failures": 0,
            "unpriced": 0,
            "prompt_tokens": 4,
            "completion_tokens": 4,
            "cached_tokens": 0,
            "cost": "0.000012",
            "tag.team": "web",
        }
    ]
    assert meter.to_dict()["cost"] == "0.000012"
    reader = InMemoryMetricReader()
    meter.to_opentelemetry(MeterProvider([reader]).get_meter("test"))
    data = reader.get_metrics_data()
    assert data is not None
    points = {
        metric.name: sum(point.value for point in metric.data.data_points)  # type: ignore[union-attr]
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
    }
    assert points == {
        "headgate.client.requests": 1,
        "headgate.client.tokens": 8,
        "headgate.client.cost": 12_000,
    }


def test_pandas_is_asked_for_when_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []

    class Pandas:
        DataFrame = staticmethod(lambda rows: made.append(rows) or "frame")

    monkeypatch.setattr("importlib.import_module", lambda name: Pandas if name == "pandas" else None)
    assert Budget("1").to_pandas() == "frame"
    assert made == [[]]
