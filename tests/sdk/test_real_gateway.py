"""The client against a real gateway on a real port: both colours, both transports, real money."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from headgate import Cost, errors
from headgate.testing import FakeGateway

from tests.deployment import ECHO, SLOW, Gateway, wait_for

from .conftest import HELLO, Driver, say

MODELS = (
    ECHO
    + SLOW
    + """
[[models]]
id = "org/words"
task = "completion"
backend = "echo"
price = { input = "1", output = "2" }

[[models]]
id = "vectors"
task = "embed"
backend = "echo"
price = { input = "1" }

[[models]]
id = "tensors"
task = "infer"
backend = "echo"
price = { request = "0.000001" }

[[models]]
id = "long-is-dear"
aliases = ["dear"]
task = "chat"
backend = "echo"
price = { input = "1", output = "2", context = [{ above = 5, input = "3" }, { above = 20, output = "7" }] }

[[models]]
id = "much-is-cheap"
task = "chat"
backend = "echo"
price = { input = "3", output = "2", graduated = [{ above = 5, input = "1" }], minimum = "0.00004" }
"""
)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    gateway = Gateway(tmp_path_factory.mktemp("real"), MODELS, workers=2).start()
    yield gateway
    gateway.close()


@pytest.fixture(scope="module")
def key(real: Gateway) -> str:
    return real.key()


@pytest.fixture(params=["httpx", "fast"])
def client(request: pytest.FixtureRequest, drive: Driver, real: Gateway, key: str) -> Any:
    return drive.kind(api_key=key, base_url=f"{real.url}/v1", transport=request.param, timeout=30)


@pytest.mark.parametrize("wrong", ["hi", {"role": "user", "content": "hi"}, 5])
async def test_messages_that_are_no_list_are_named(drive: Driver, client: Any, wrong: Any) -> None:
    async with drive.within(client):
        for stream in (False, True):
            with pytest.raises(errors.InvalidRequest, match="messages: expected `array`") as caught:
                await drive.do(client.chat.completions.create, model="echo", messages=wrong, stream=stream)
            assert caught.value.path == "messages"


async def test_everything_a_newcomer_tries(drive: Driver, client: Any) -> None:
    async with drive.within(client):
        answer = await drive.do(client.chat.completions.create, model="echo", messages=HELLO)
        assert answer.text == "hello brave new world"
        assert answer.cost.nano == (answer.usage.prompt_tokens + 2 * answer.usage.completion_tokens) * 1000
        assert answer.request_id.startswith("req_")
        async with drive.within(client.chat.completions.stream(model="echo", messages=HELLO)) as stream:
            assert "".join(await drive.list(stream.text)) == "hello brave new world"
        assert stream.cost == answer.cost or stream.cost.nano == answer.cost.nano
        assert (await drive.do(client.completions.create, model="org/words", prompt="a b")).text == "a b"
        vectors = await drive.do(client.embeddings.create, model="vectors", input=["a", "b", "a"], batch_size=2)
        assert vectors.vectors[0] == vectors.vectors[2] != vectors.vectors[1]
        assert vectors.fingerprint
        assert vectors.cost.nano == vectors.usage.prompt_tokens * 1000
        array = np.array([[1, 2], [3, 4]], dtype=np.float32)
        inferred = await drive.do(client.infer.create, model="tensors", inputs={"x": array})
        np.testing.assert_array_equal(inferred.outputs[0].numpy(), array)
        assert str(inferred.cost) == "0.000001"
        models = await drive.do(client.models.list)
        assert {"echo", "org/words"} <= {model.id for model in models}
        assert (await drive.do(client.models.retrieve, "org/words")).task == "completion"


async def test_the_same_key_costs_once(drive: Driver, client: Any) -> None:
    async with drive.within(client):
        mine = f"mine-{drive.colour}-{id(client)}"
        with client.meter() as meter:
            first = await drive.do(
                client.chat.completions.create, model="echo", messages=HELLO, idempotency_key=mine
            )
            again = await drive.do(
                client.chat.completions.create, model="echo", messages=HELLO, idempotency_key=mine
            )
            other = client.chat.completions.create
            with pytest.raises(errors.IdempotencyMismatch):
                await drive.do(other, model="echo", messages=say("other"), idempotency_key=mine)
        assert (first.replayed, again.replayed) == (False, True)
        assert again.request_id == first.request_id
        assert again.text == first.text
        assert meter.cost == first.cost.__class__(first.cost.nano)


async def test_errors_by_real_causes(drive: Driver, client: Any, real: Gateway) -> None:
    async with drive.within(client):
        create = client.chat.completions.create
        with pytest.raises(errors.NotFound) as missing:
            await drive.do(create, model="nope", messages=HELLO)
        assert missing.value.code == "model_not_found"
        assert missing.value.request_id
        with pytest.raises(errors.InvalidRequest) as bad:
            await drive.do(create, model="echo", messages=[])
        assert bad.value.path is not None
        assert bad.value.path.startswith("messages")
        with pytest.raises(errors.Unauthenticated):
            await drive.do(client.with_options(api_key="hg_wrong").models.list)
        small = real.key(budget="0.00001/total")
        poor = client.with_options(api_key=small).chat.completions.create
        with pytest.raises(errors.QuotaExceeded) as spent:
            await drive.do(poor, model="echo", messages=HELLO)
        assert str(spent.value.limit) == "0.00001"
        assert spent.value.scope
        assert len(spent.value.attempts) == 1
        limited = real.key(rpm=1)
        hasty = client.with_options(api_key=limited, max_retries=0)
        await drive.do(hasty.chat.completions.create, model="echo", messages=HELLO)
        with pytest.raises(errors.RateLimited) as rate:
            await drive.do(hasty.chat.completions.create, model="echo", messages=HELLO)
        assert rate.value.retry_after is not None
        assert 0 < rate.value.retry_after <= 60


async def test_the_deadline_ends_a_slow_answer(drive: Driver, client: Any) -> None:
    async with drive.within(client):
        with pytest.raises(errors.TimedOut) as late:
            await drive.do(client.chat.completions.create, model="slow", messages=say("w " * 200), deadline=0.5)
        assert late.value.clock == "deadline"


async def test_leaving_a_stream_stops_the_bill(drive: Driver, client: Any, real: Gateway) -> None:
    async with drive.within(client):
        admin = client.with_options(api_key=real.admin_key).admin
        made = await drive.do(admin.keys.create, project="leavers", budget="1/total")
        leaver = client.with_options(api_key=made.key)
        manager = leaver.chat.completions.stream(model="slow", messages=say("w " * 500), max_tokens=500)
        async with drive.within(manager) as stream:
            async for _ in drive.each(stream.text):
                break

        async def budget() -> Any:
            keys = await drive.list(await drive.do(admin.keys.list, project="leavers"))
            return next(key for key in keys if key.id == made.id).account.budgets[0]

        async with asyncio.timeout(20):
            while (state := await budget()).held != "0" or state.spent == "0":
                await asyncio.sleep(0.02)
        # Input of 500 tokens and a few of output; all 500 of them would have been 0.0015.
        assert 0 < float(state.spent) < 0.0011
        assert (await drive.do(admin.keys.revoke, made.id)).changed
        with pytest.raises(errors.Unauthenticated):
            await drive.do(leaver.models.list)


async def test_tags_are_erased(drive: Driver, client: Any, real: Gateway) -> None:
    async with drive.within(client):
        mine = client.with_options(api_key=real.key(), tags={"user": f"alice of {drive}"})
        began = datetime.now(UTC)
        answers = [await drive.do(mine.chat.completions.create, model="echo", messages=HELLO) for _ in range(2)]
        tags = client.with_options(api_key=real.admin_key).admin.tags
        assert (await drive.do(tags.erase, {"user": f"alice of {drive}"}, before=began)).erased == 0
        done = await drive.do(tags.erase, {"user": f"alice of {drive}"})
        assert (done.erased, done.after, done.copies) == (2, None, [])
        record = await drive.do(mine.usage.retrieve, answers[0].request_id)
        assert (record.tags, record.erased, record.cost) == ({}, True, str(answers[0].cost))
        with pytest.raises(errors.InvalidRequest, match="tags"):
            await drive.do(tags.erase)


async def test_the_ledger_says_what_the_client_saw(drive: Driver, client: Any, real: Gateway) -> None:
    async with drive.within(client):
        mine = client.with_options(api_key=real.key(budget="1/day", rpm=1000))
        began = datetime.now(UTC)
        with mine.meter(tags={"job": "night=1, x"}) as meter:
            answer = await drive.do(mine.chat.completions.create, model="echo", messages=HELLO)
            stream = await drive.do(mine.chat.completions.create, model="echo", messages=HELLO, stream=True)
            await drive.do(stream.final)
            await drive.do(mine.embeddings.create, model="vectors", input=["a b"] * 5, batch_size=2)
        record = await drive.do(mine.usage.retrieve, answer.request_id)
        assert record.amount == Cost(answer.cost.nano)
        assert record.outcome == "ok"
        rows = await drive.do(mine.usage.records, since=began, key=record.key, limit=2)
        assert len(rows) == 5
        assert sum(row.amount.nano for row in rows) == meter.cost.nano
        totals = await drive.do(mine.usage.query, group_by="model", since=began, key=record.key)
        assert {row.model: row.amount for row in totals.data} == meter.by_model()
        found = await drive.do(mine.usage.reconcile, began)
        assert found.ok, found
        assert found.matched >= 5
        limits = await drive.do(mine.limits.retrieve)
        assert limits.budgets[0]["spent"] == str(meter.cost)
        assert {limit["kind"] for limit in limits.limits} == {"requests"}


async def test_a_client_that_paces_itself_is_never_refused(drive: Driver, real: Gateway) -> None:
    # Thirty a minute are thirty at once, then one each two seconds.
    async with drive.within(
        drive.kind(api_key=real.key(rpm=30), base_url=real.url, max_retries=0, pace=True)
    ) as client:
        create = client.chat.completions.create
        answers = [await drive.do(create, model="echo", messages=HELLO)]
        asked = [drive.do(create, model="echo", messages=HELLO) for _ in range(30)]
        answers += await asyncio.gather(*asked)
        assert len(answers) == 31
        assert answers[-1].limits["requests"].remaining == 0
        # Who has not so much time is told by the gateway when there will be room.
        with pytest.raises(errors.RateLimited) as caught:
            await drive.do(create, model="echo", messages=HELLO, deadline=0.5)
        assert caught.value.retry_at is not None


@pytest.mark.parametrize("words", [1, 5, 6, 30])
@pytest.mark.parametrize("model", ["echo", "long-is-dear", "dear", "much-is-cheap"])
async def test_a_budget_of_the_client_is_what_the_gateway_bills(
    drive: Driver, client: Any, model: str, words: int
) -> None:
    async with drive.within(client):
        asked = {"model": model, "messages": say("w " * words), "max_tokens": 3}
        create = client.chat.completions.create
        with client.budget(max_cost="0.000000001"), pytest.raises(errors.BudgetExceeded) as refused:
            await drive.do(create, **asked)
        most = refused.value.needed
        quote = await drive.do(client.quotes.create, **asked)
        # What the client reserves is never less than what the gateway holds, and enough is enough.
        assert quote.most.nano <= most.nano
        with client.budget(max_cost=Cost(most.nano - 1)), pytest.raises(errors.BudgetExceeded):
            await drive.do(create, **asked)
        with client.budget(max_cost=Cost(most.nano)) as budget:
            answer = await drive.do(create, **asked)
        record = await drive.do(client.usage.retrieve, answer.request_id)
        assert budget.cost == record.amount == Cost(answer.cost.nano)
        read, made = answer.usage.prompt_tokens, answer.usage.completion_tokens
        assert (read, made) == (words, min(words, 3))
        into, out = {"echo": (1, 2), "much-is-cheap": (3, 2)}.get(
            model, (1, 2) if words <= 5 else (3, 2) if words <= 20 else (3, 7)
        )
        bill = read * into + made * out
        if model == "much-is-cheap":
            bill = max(40, min(read, 5) * 3 + max(0, read - 5) + made * 2)
        assert answer.cost.nano == bill * 1000


async def test_killed_workers_are_survived(drive: Driver, client: Any, real: Gateway) -> None:
    async with drive.within(client):
        stream = await drive.do(
            client.chat.completions.create, model="slow", messages=say("w " * 200), stream=True
        )
        for worker in real.children("headgate_gateway.worker"):
            worker.kill()
        with pytest.raises(errors.StreamInterrupted) as caught:
            await drive.do(stream.final)
        assert caught.value.partial.startswith("w")
        assert isinstance(caught.value.__cause__, errors.ConnectionFailed)
        answer = await drive.do(client.chat.completions.create, model="echo", messages=HELLO, max_retries=20)
        assert answer.text == "hello brave new world"
    wait_for(
        lambda: len(real.children("headgate_gateway.worker")) == 2 and real.is_ready(), "the workers are back"
    )


async def test_the_scenarios_of_the_fake_hold_here(drive: Driver, client: Any) -> None:
    """Without faults, a fake and a real gateway cannot be told apart by what a caller sees."""
    fake = Driver(drive.colour, FakeGateway()).client()
    async with drive.within(client):
        for arguments in (
            {"messages": HELLO},
            {"messages": HELLO, "max_tokens": 2},
            {"messages": [*HELLO, {"role": "assistant", "content": "x"}, *say("last one")]},
        ):
            seen = []
            for side in (fake, client):
                answer = await drive.do(side.chat.completions.create, model="echo", **arguments)
                choice = answer.choices[0]
                seen.append((choice.message.content, choice.finish_reason, answer.usage.completion_tokens))
            assert seen[0] == seen[1]
