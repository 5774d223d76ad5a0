"""The whole way to a provider: ledger, relay, router, backend and HTTP client, all of them real."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random

import pytest
from headgate_gateway.inference import Exchange, Inference
from headgate_gateway.models import ModelRegistry
from headgate_gateway.settings import Model, Settings, Target
from headgate_plugin_api import Finished, InvalidRequest, Overloaded, TextDelta, UpstreamFailed
from headgate_remote.openai import OpenAIBackend

from tests.inference.conftest import INPUT, OUTPUT, World, until, world
from tests.inference.test_cancellation import Moment, cancel_everywhere

__all__ = ["world"]


def delta(text: str) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


STOP = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
DONE = b"data: [DONE]\n\n"


def usage(prompt: int, output: int) -> dict[str, object]:
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": output}}


@pytest.fixture
def connect(world: World, upstream) -> Callable[..., Inference]:
    """Inference over providers at these addresses, the first preferred."""

    def make(*urls: str) -> Inference:
        targets = tuple(
            Target(backend="openai", model="theirs", base_url=url, api_key="sk-x", priority=place)
            for place, url in enumerate(urls)
        )
        settings = Settings(models=(Model(id="m", task="chat", targets=targets),))
        registry = ModelRegistry(
            settings, world.layout, {"openai": OpenAIBackend()}, upstream, str, random=Random(1)
        )
        world.inference = Inference(
            ledger=world.ledger, registry=registry, router=world.router, clock=world.clock, ids=world.ids
        )
        return world.inference

    return make


async def test_an_honest_provider(world: World, provider, connect):
    provider.streams(delta("hel"), delta("lo"), STOP, usage(4, 2), DONE)
    connect(provider.url)
    events, settled = await world.run(world.call())
    assert [event.text for event in events if isinstance(event, TextDelta)] == ["hel", "lo"]
    assert settled.cost == 4 * INPUT + 2 * OUTPUT
    assert provider.seen[0].json["max_tokens"] == 4096
    assert world.record()["source"] == "upstream"


@pytest.mark.parametrize(
    "prepare",
    [
        lambda broken: broken.says(),
        lambda broken: broken.says_json({"error": "x"}, status=500),
        lambda broken: broken.says_json({"error": "x"}, status=401),
        lambda broken: broken.says_json({"error": "x"}, status=429),
        lambda broken: broken.streams(b"data: garbage\n\n"),
    ],
    ids=["closed", "500", "401", "429", "garbage"],
)
async def test_a_broken_provider_is_followed_by_the_next(world: World, provider, another, connect, prepare):
    prepare(provider)
    another.streams(delta("ok"), STOP, usage(4, 1), DONE)
    connect(provider.url, another.url)
    events, settled = await world.run(world.call())
    assert events[:2] == [TextDelta(text="ok"), Finished(reason="stop")]
    assert settled.cost == 4 * INPUT + OUTPUT
    assert len(world.rows("SELECT * FROM usage_records")) == 1


async def test_a_provider_that_breaks_off_is_paid_for_what_it_delivered(world: World, provider, connect):
    provider.streams(delta("four" * 3))
    inference = connect(provider.url)
    exchange = await inference.begin(world.call("12345678"))
    assert isinstance(exchange, Exchange)
    events = exchange.events()
    await anext(events)
    with pytest.raises(UpstreamFailed):
        await anext(events)
    record = world.record()
    assert (record["outcome"], record["source"]) == ("upstream_error", "estimated")
    assert record["cost"] == 2 * INPUT + 3 * OUTPUT
    world.assert_nothing_held()


async def test_a_provider_that_claims_the_moon(world: World, provider, connect):
    provider.streams(delta("ok"), STOP, usage(2**40, 2**40), DONE)
    connect(provider.url)
    _, settled = await world.run(world.call("hi"))
    record = world.record()
    assert record["output"] == 0  # two bytes: less than a token, and the customer's favour
    assert record["cost"] == settled.cost < 500 * INPUT
    assert record["overrun"] == 0


async def test_what_the_provider_says_of_the_callers_request_reaches_the_caller(world: World, provider, connect):
    provider.says_json({"error": {"message": "too long", "param": "messages"}}, status=400)
    connect(provider.url)
    with pytest.raises(InvalidRequest, match="too long") as caught:
        await world.run(world.call())
    assert caught.value.path == "messages"
    world.assert_nothing_held()


async def test_a_busy_provider_says_when(world: World, provider, connect):
    provider.says_json({}, status=503, headers="retry-after: 12\r\n")
    connect(provider.url)
    with pytest.raises(Overloaded) as caught:
        await world.run(world.call())
    assert caught.value.retry_after_s == 12
    world.assert_nothing_held()


@pytest.mark.parametrize("moment", ["before", "arrived"])
async def test_cancelled_at_any_await(world: World, provider, connect, moment: Moment):
    provider.streams(delta("a"), delta("b"), STOP, usage(4, 2), DONE)
    inference = connect(provider.url)

    async def handler() -> None:
        exchange = await inference.begin(world.call())
        assert isinstance(exchange, Exchange)
        try:
            async for _ in exchange.events():
                await asyncio.sleep(0)
            await exchange.settle()
        finally:
            await exchange.abandon()

    assert await cancel_everywhere(world, handler, moment) > 4
    await until(lambda: not provider.busy)
