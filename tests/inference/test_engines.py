"""Real engine processes behind the relay, killed at the worst moments."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from random import Random

import pytest
from headgate_echo.backend import EchoBackend
from headgate_engine.testing import EngineProcess
from headgate_gateway.domain.commands import SyncPrices
from headgate_gateway.inference import Call, Exchange, Inference, Rejected
from headgate_gateway.models import ModelRegistry, engine_spec
from headgate_gateway.settings import Model, Settings
from headgate_plugin_api import ChatPayload, InferenceRequest, Message, NotReady, TextDelta, UpstreamFailed

from tests.inference.conftest import INPUT, OUTPUT, World, until


class House:
    """A worker's inference over two replicas of echo."""

    def __init__(self, world: World, registry: ModelRegistry, engines: list[EngineProcess]) -> None:
        self.world = world
        self.registry = registry
        self.engines = engines
        self.inference = Inference(
            ledger=world.ledger, registry=registry, router=world.router, clock=world.clock, ids=world.ids
        )

    def call(self, text: str, *, stream: bool = True, **options: object) -> Call:
        payload = ChatPayload(messages=(Message(role="user", content=text),))
        request = InferenceRequest(id="", model="m", payload=payload, stream=stream, options=options)
        return Call(principal=self.world.principal, request=request)

    async def begin(self, text: str, **how: object) -> Exchange:
        exchange = await self.inference.begin(self.call(text, **how))  # type: ignore[arg-type]
        assert isinstance(exchange, Exchange)
        return exchange

    def answering(self) -> EngineProcess:
        """The engine that works on the one request in flight."""
        served = self.registry.find("m")
        assert served is not None
        assert served.replicas is not None
        busy = [place for place, client in enumerate(served.replicas.clients) if client.in_flight]
        assert len(busy) == 1
        return self.engines[busy[0]]


@pytest.fixture
async def house(world: World) -> AsyncIterator[House]:
    model = Model(id="m", task="chat", backend="echo", replicas=2)
    settings = Settings(models=(model,))
    await world.ledger.command(SyncPrices(models={"m": {"input": "1", "output": "10"}}))
    registry = ModelRegistry(settings, world.layout, {"echo": EchoBackend()}, None, str, random=Random(1))
    engines = [EngineProcess(engine_spec(model), world.layout.engine_socket(0, replica)) for replica in range(2)]
    for engine in engines:
        engine.__enter__()
    await registry.start()
    served = registry.find("m")
    assert served is not None
    assert served.replicas is not None
    clients = served.replicas.clients
    await until(lambda: all(client.state == "ready" for client in clients))
    house = House(world, registry, engines)
    yield house
    await house.inference.close()
    await registry.close()
    for engine in engines:
        engine.__exit__(None, None, None)


async def test_echo_is_bounded_and_billed_exactly(house: House):
    exchange = await house.begin("to be or not", stream=False)
    assert exchange.granted.held == 4 * INPUT + 4 * OUTPUT
    text = "".join([event.text async for event in exchange.events() if isinstance(event, TextDelta)])
    assert text.split() == ["to", "be", "or", "not"]
    assert (await exchange.settle()).cost == exchange.granted.held


async def test_a_budget_worth_a_hundred_requests_serves_exactly_a_hundred(house: House):
    world = house.world
    await world.key(budget="0.0022/total")  # 2 tokens in and out cost 22,000 nano-units

    async def one() -> str:
        while True:
            try:
                exchange = await house.begin("two words", stream=False)
            except Rejected as error:
                if error.refused.code == "budget_in_flight":
                    await asyncio.sleep(0.01)
                    continue
                return error.refused.code
            async for _ in exchange.events():
                pass
            await exchange.settle()
            return "ok"

    outcomes = await asyncio.gather(*(one() for _ in range(130)))
    assert outcomes.count("ok") == 100
    assert set(outcomes) <= {"ok", "budget_exhausted", "request_exceeds_budget"}
    world.assert_nothing_held()


async def test_killed_before_the_first_byte_the_other_replica_answers(house: House):
    beginning = asyncio.create_task(house.begin("one two", stream=False, delay_ms=300))
    await until(lambda: bool(house.world.inference.in_flight or house.inference.in_flight))
    served = house.registry.find("m")
    assert served is not None
    assert served.replicas is not None
    clients = served.replicas.clients
    await until(lambda: any(client.in_flight for client in clients))
    house.answering().kill()
    exchange = await beginning
    assert exchange.attempts == 2
    async for _ in exchange.events():
        pass
    settled = await exchange.settle()
    assert settled.cost == 2 * INPUT + 2 * OUTPUT
    assert b"engine_crash" in house.world.record()["detail"]
    house.world.assert_nothing_held()


async def test_killed_in_the_middle_nobody_pays(house: House):
    exchange = await house.begin("word", tokens=500, delay_ms=20)
    events = exchange.events()
    await anext(events)
    await anext(events)
    house.answering().kill()

    async def rest() -> None:
        async for _ in events:
            pass

    with pytest.raises(UpstreamFailed):
        await rest()
    record = house.world.record()
    assert (record["outcome"], record["billed"], record["cost"]) == ("engine_crash", 0, 0)
    assert record["output"] >= 1
    house.world.assert_nothing_held()


async def test_no_replica_left(house: House):
    for engine in house.engines:
        engine.kill()
    served = house.registry.find("m")
    assert served is not None
    await until(lambda: served.state != "ready")
    with pytest.raises(NotReady):
        await house.begin("x")
    house.world.assert_nothing_held()


async def test_leaving_frees_the_engine(house: House):
    exchange = await house.begin("word", tokens=5_000, delay_ms=20)
    events = exchange.events()
    await anext(events)
    await anext(events)
    await events.aclose()
    await exchange.abandon()
    served = house.registry.find("m")
    assert served is not None
    assert served.replicas is not None
    clients = served.replicas.clients
    await until(lambda: not any(client.in_flight for client in clients))
    record = house.world.record()
    # The engine said what went in before its first word: nothing of a cut stream's bill is estimated.
    assert (record["outcome"], record["input"], record["source"]) == ("client_gone", 1, "tokenizer")
    house.world.assert_nothing_held()
