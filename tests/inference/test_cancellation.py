"""A handler may be cancelled at any await. Wherever it happens, no hold stays open and the bill adds up.

`cancelling` runs a handler and cancels it at its n-th await, in two ways: before what it waits for is there, and
in the moment when it has just arrived (the race in which results get lost). n grows until the handler gets
through.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from typing import Any, Literal

import pytest
from headgate_gateway.domain.admission import Claim
from headgate_gateway.inference import Exchange
from headgate_plugin_api import TextDelta, UpstreamFailed, Usage

from tests.inference.conftest import Scripted, World, words

Moment = Literal["before", "arrived"]

ENOUGH = 200
"""No handler here awaits more often; a test that gets here would never end."""


@types.coroutine
def cancelling(work: Coroutine[Any, Any, Any], at: int, moment: Moment) -> Generator[Any, Any, Any]:
    """Run `work`, cancelling the task at its `at`-th suspension."""
    task = asyncio.current_task()
    assert task is not None
    count = 0
    step = work.send
    value: Any = None
    while True:
        try:
            waits_for = step(value)
        except StopIteration as stop:
            return stop.value
        count += 1
        if count == at:
            if moment == "before" or waits_for is None:
                task.cancel()
            else:
                waits_for.add_done_callback(lambda _: task.cancel())
        try:
            value = yield waits_for
            step = work.send
        except BaseException as error:
            value = error
            step = work.throw


async def cancel_everywhere(world: World, handler: Any, moment: Moment) -> int:
    """Cancel `handler` at every await in turn; the number of awaits."""
    for at in range(1, ENOUGH):

        async def run(at: int = at) -> None:
            await cancelling(handler(), at, moment)

        task = asyncio.create_task(run())
        done, _ = await asyncio.wait({task}, timeout=20)
        assert done, f"the handler hangs when it is cancelled at await {at}"
        await world.settled()
        await asyncio.sleep(0)
        await world.voided()
        world.assert_nothing_held()
        if not task.cancelled():
            assert task.exception() is None
            return at
    raise AssertionError("the handler never gets through")


def scripts(kind: str) -> list[Scripted]:
    usage = Usage(input=2, output=3)
    if kind == "fallback":
        broken = Scripted(UpstreamFailed("reset"), name="broken")
        return [broken, Scripted(*words("a", "b", usage=usage), name="good", priority=1)]
    if kind == "long":
        return [Scripted(*words(*["word "] * 30, usage=Usage(input=2, output=30)))]
    return [Scripted(*words("a", "b", "c", usage=usage), at_once=kind == "at once")]


@pytest.mark.parametrize("moment", ["before", "arrived"])
@pytest.mark.parametrize("policy", ["delivered", "waive", "drain"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("kind", ["plain", "at once", "fallback"])
async def test_cancelled_at_any_await(world: World, moment: Moment, policy: str, stream: bool, kind: str):
    world.router._failures = 10_000  # the broken target is to be tried every time
    targets = scripts(kind)
    world.serve(*targets, disconnect=policy)
    number = 0

    async def handler() -> None:
        nonlocal number
        number += 1
        claim = Claim(key=f"key-{number}", fingerprint=b"f" * 32)
        exchange = await world.inference.begin(world.call("12345678", stream=stream, claim=claim))
        assert isinstance(exchange, Exchange)
        try:
            if kind == "at once" and not stream:
                assert [event.text for event in exchange.whole()[:3]] == ["a", "b", "c"]
            else:
                async for _ in exchange.events():
                    await asyncio.sleep(0)  # the transport
            await exchange.settle(b"answer")
            await asyncio.sleep(0)  # the last bytes
        finally:
            await exchange.abandon()

    awaits = await cancel_everywhere(world, handler, moment)
    assert awaits > 4
    for target in targets:
        assert target.closed == len(target.asked), "an upstream was left running"
    ended = world.rows("SELECT request_id FROM usage_records UNION ALL SELECT request_id FROM voids")
    assert len(ended) == len({row["request_id"] for row in ended})
    open_claims = world.rows("SELECT * FROM claims WHERE state = 'open'")
    assert open_claims == []


@pytest.mark.parametrize("moment", ["before", "arrived"])
async def test_cancelled_at_any_await_of_a_stream_that_extends(world: World, moment: Moment):
    """An extension may be under way, or just granted, when the client goes."""
    served = world.serve(Scripted(*words(*["w"] * 6, tokens=400, usage=Usage(input=2, output=2_400))))

    async def handler() -> None:
        exchange = await world.inference.begin(world.call("12345678"))
        assert isinstance(exchange, Exchange)
        try:
            relayed = [event async for event in exchange.events()]
            assert sum(event.tokens or 0 for event in relayed if isinstance(event, TextDelta)) == 2_400
            await exchange.settle()
        finally:
            await exchange.abandon()

    assert await cancel_everywhere(world, handler, moment) > 6
    assert served.targets[0].closed == len(served.targets[0].asked)
