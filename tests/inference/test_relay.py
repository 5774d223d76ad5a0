"""The way of a request from admission to its record, against the real ledger."""

from __future__ import annotations

import asyncio

import pytest
from headgate_gateway.domain.admission import Claim, Replay
from headgate_gateway.domain.commands import AccountFound, GetAccount
from headgate_gateway.inference import Exchange, NotAllowed, Rejected, UnknownModel, WrongTask
from headgate_plugin_api import (
    Cancelled,
    Event,
    Finished,
    InvalidRequest,
    NotReady,
    Overloaded,
    TextDelta,
    UpstreamFailed,
    UpstreamTimeout,
    Usage,
    UsageReport,
)

from tests.inference.conftest import INPUT, OUTPUT, Scripted, World, forever, until, words


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_is_relayed_priced_and_recorded(world: World, stream: bool):
    target = Scripted(*words("to ", "be", usage=Usage(input=6, output=2)))
    world.serve(target)
    events, settled = await world.run(world.call(stream=stream))
    assert events[:3] == words("to ", "be")
    assert events[3] == UsageReport(usage=Usage(input=6, output=2, requests=1), source="upstream")
    assert settled.cost == 6 * INPUT + 2 * OUTPUT
    record = world.record()
    assert (record["outcome"], record["backend"], record["billed"]) == ("ok", "scripted", 1)
    assert (record["input"], record["output"], record["cost"]) == (6, 2, settled.cost)
    assert record["first_byte_us"] is not None
    assert target.asked[0].max_output == 4096
    assert target.closed == 1
    world.assert_nothing_held()


async def test_facts_of_an_exchange(world: World):
    world.serve(Scripted(*words("x", usage=Usage(input=1, output=1))))
    exchange = await world.inference.begin(world.call())
    assert isinstance(exchange, Exchange)
    assert (exchange.model, exchange.backend, exchange.attempts) == ("m", "scripted", 1)
    assert exchange.request_id.startswith("req_")
    assert exchange.price is not None
    assert exchange.overhead_ms > 0
    async for _ in exchange.events():
        pass
    await exchange.settle()
    assert exchange.usage == Usage(input=1, output=1, requests=1)
    assert (await exchange.settle()).cost == INPUT + OUTPUT  # idempotent


async def test_who_may_ask_for_what(world: World):
    world.serve(Scripted(*words("x")))
    with pytest.raises(WrongTask, match="'chat', not 'embed'"):
        await world.run(world.call(task="embed", stream=False))
    await world.key(models=frozenset({"other"}))
    with pytest.raises(NotAllowed):
        await world.run(world.call())
    await world.key(scopes=frozenset({"usage"}))
    with pytest.raises(NotAllowed, match="inference"):
        await world.run(world.call())
    world.models.clear()
    with pytest.raises(UnknownModel, match="'m'"):
        await world.run(world.call())


async def test_a_model_that_is_not_ready_holds_nothing(world: World):
    served = world.serve(Scripted(*words("x")))
    served.state, served.reason = "loading", "weights"
    with pytest.raises(NotReady, match="loading: weights"):
        await world.run(world.call())
    assert world.rows("SELECT * FROM usage_records") == world.rows("SELECT * FROM voids") == []


# -- holds


async def test_a_budget_that_is_too_small_is_refused_with_what_fits(world: World):
    world.serve(Scripted(*words("x")))
    await world.key(budget="0.001/total")
    with pytest.raises(Rejected) as caught:
        await world.run(world.call("hi", stream=False, max_output=2000))
    refused = caught.value.refused
    assert refused.code == "request_exceeds_budget"
    assert refused.largest_output is not None
    world.assert_nothing_held()
    assert refused.largest_output < 2000


async def test_a_whole_answer_without_a_limit_takes_what_a_small_budget_covers(world: World):
    target = Scripted(*words("x", usage=Usage(input=1, output=1)))
    world.serve(target)
    await world.key(budget="0.001/total")
    await world.run(world.call("hi", stream=False))
    assert 1 <= (target.asked[0].max_output or 0) < 100


async def test_limits_of_model_and_key_bind_the_backend(world: World):
    target = Scripted(*words("x"))
    world.serve(target, max_output_tokens=50)
    await world.run(world.call(max_output=60))
    await world.key(max_output=40, budget="1/total")
    await world.run(world.call(max_output=60))
    await world.run(world.call(max_output=7))
    assert [request.max_output for request in target.asked] == [50, 40, 7]


async def test_a_stream_extends_its_hold_and_ends_exactly(world: World):
    count = 3_000
    target = Scripted(*words(*["w "] * count, usage=Usage(input=6, output=count)))
    world.serve(target)
    events, settled = await world.run(world.call())
    assert len(events) == count + 2
    assert settled.cost == 6 * INPUT + count * OUTPUT
    assert target.asked[0].max_output == 4096
    world.assert_nothing_held()


async def test_a_stream_asks_for_more_before_its_hold_is_used_up(world: World):
    key = await world.key(budget="1/total")

    async def holds_more() -> None:
        """The upstream pauses at 80 % of the first step, until the second is held."""
        async with asyncio.timeout(10):
            while True:
                found = await world.ledger.command(GetAccount(id=key.key_id))
                assert isinstance(found, AccountFound)
                if found.account.budgets[0].held > 2_000 * OUTPUT:
                    return

    target = Scripted(*words(*["w "] * 820)[:-1], holds_more, Finished(reason="stop"))
    world.serve(target)
    await world.run(world.call())


async def test_a_stream_is_cut_where_its_budget_ends(world: World):
    """1,500 tokens of budget: the first step fits, the second only in part; then nothing."""
    target = Scripted(*words(*["w "] * 4_000, usage=Usage(input=6, output=4_000)))
    world.serve(target)
    await world.key(budget="0.0152/total")
    events, settled = await world.run(world.call())
    deltas = [event for event in events if isinstance(event, TextDelta)]
    assert events[-2] == Finished(reason="length")
    assert isinstance(events[-1], UsageReport)
    assert events[-1].usage.output == len(deltas)
    assert 1_024 < len(deltas) < 1_520
    record = world.record()
    assert (record["outcome"], record["output"], record["billed"]) == ("budget_stop", len(deltas), 1)
    assert settled.cost == record["cost"] <= 15_200_000
    assert settled.overrun == 0
    assert target.closed == 1
    world.assert_nothing_held()


async def test_a_stream_waits_for_what_others_hold(world: World):
    """The budget covers 1,520 tokens; 400 of them are held by a request that needs ten and ends while we wait."""
    gate, relayed = asyncio.Event(), 0
    small = Scripted(TextDelta(text="w", tokens=10), gate.wait, Finished(reason="stop"), name="small")
    world.serve(small)
    await world.key(budget="0.0152/total")
    other = asyncio.create_task(world.run(world.call("hi", max_output=400)))
    await until(lambda: world.inference.in_flight == 1 and bool(small.asked))
    world.serve(Scripted(*words(*["w"] * 1_300, usage=Usage(input=1, output=1_300))))
    exchange = await world.inference.begin(world.call("hi"))
    assert isinstance(exchange, Exchange)

    async def free_the_rest() -> None:
        await until(lambda: relayed >= 1_025)
        gate.set()

    freeing = asyncio.create_task(free_the_rest())
    async for event in exchange.events():
        relayed += isinstance(event, TextDelta)
    await exchange.settle()
    await asyncio.gather(other, freeing)
    assert relayed == 1_300
    assert world.record()["outcome"] == "ok"
    world.assert_nothing_held()


async def test_an_upstream_that_ignores_its_limit_is_cut(world: World):
    target = Scripted(*words(*["w "] * 50, usage=Usage(input=6, output=50)))
    world.serve(target)
    events, _ = await world.run(world.call(max_output=10))
    assert len([event for event in events if isinstance(event, TextDelta)]) == 10
    assert events[-2] == Finished(reason="length")
    assert world.record()["outcome"] == "ok"
    assert world.record()["output"] == 10


async def test_every_open_choice_is_finished_by_a_cut(world: World):
    script = [Finished(reason="stop", index=1), *[TextDelta(text="w", tokens=1) for _ in range(50)]]
    world.serve(Scripted(*script))
    events, _ = await world.run(world.call(max_output=10, n=3))
    finished = {event.index: event.reason for event in events if isinstance(event, Finished)}
    assert finished == {0: "length", 1: "stop", 2: "length"}


# -- lies and silence about usage


async def test_missing_usage_is_counted(world: World):
    world.serve(Scripted(*words("abcdefgh", "ij", tokens=None)))
    _, settled = await world.run(world.call("x" * 40))
    record = world.record()
    assert (record["input"], record["output"], record["source"]) == (10, 2, "estimated")
    assert settled.cost == 10 * INPUT + 2 * OUTPUT


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "lie",
    [
        Usage(input=10**15, output=10**15),
        Usage(input=-5, output=-7),
        Usage(input=3, output=3_000),
        Usage(),
        Usage(cache_read=2**62, cache_write=2**62, input=2**62, output=1, images=9, gpu_ms=2**60),
    ],
)
async def test_a_lie_about_usage_costs_the_customer_nothing(world: World, lie: Usage, stream: bool):
    world.serve(Scripted(*words("hello world", tokens=None, usage=lie)))
    _, settled = await world.run(world.call("hi", stream=stream))
    record = world.record()
    bound = 2 * 11 + 64 * 2
    assert 0 <= record["output"] <= len("hello world") + 16
    assert record["input"] + record["cache_read"] + record["cache_write"] <= bound
    assert record["images"] == 0
    assert settled.cost <= bound * INPUT + record["output"] * OUTPUT
    assert settled.overrun == 0
    world.assert_nothing_held()


# -- failures


async def test_fallback_until_the_first_event(world: World):
    bad = Scripted(UpstreamFailed("reset"), name="bad")
    good = Scripted(*words("x", usage=Usage(input=1, output=1)), name="good", priority=1)
    world.serve(bad, good)
    exchange = await world.inference.begin(world.call())
    assert isinstance(exchange, Exchange)
    assert exchange.attempts == 2
    async for _ in exchange.events():
        pass
    settled = await exchange.settle()
    assert settled.cost == INPUT + OUTPUT
    assert (bad.closed, good.closed) == (1, 1)
    assert len(world.rows("SELECT * FROM usage_records")) == 1
    assert b"bad" in world.record()["detail"]
    assert b"upstream_error" in world.record()["detail"]
    world.assert_nothing_held()


async def test_a_whole_answer_falls_back_even_halfway(world: World):
    bad = Scripted(TextDelta(text="half", tokens=1), UpstreamFailed("reset"), name="bad")
    good = Scripted(*words("whole", usage=Usage(input=1, output=1)), name="good", priority=1)
    world.serve(bad, good)
    events, settled = await world.run(world.call(stream=False))
    assert events[0] == TextDelta(text="whole", tokens=1)
    assert settled.cost == INPUT + OUTPUT


@pytest.mark.parametrize("error", [Overloaded("busy"), NotReady("loading"), UpstreamTimeout("slow")])
async def test_other_reasons_to_fall_back(world: World, error: Exception):
    world.serve(Scripted(error, name="bad"), Scripted(*words("x"), name="good", priority=1))
    events, _ = await world.run(world.call())
    assert events[0] == TextDelta(text="x", tokens=1)


@pytest.mark.parametrize(
    ("error", "record"),
    [
        (UpstreamFailed("reset"), ("upstream_error", 0, 0)),
        (UpstreamTimeout("slow"), ("timeout", 0, 0)),
        (RuntimeError("a backend with a bug"), ("upstream_error", 0, 0)),
        (InvalidRequest("no", path="messages"), None),
        (Overloaded("busy"), None),
        (NotReady("loading"), None),
    ],
)
async def test_no_target_answers(world: World, error: Exception, record: tuple[str, int, int] | None):
    """What was asked of a provider is recorded at 0; what never reached one is voided."""
    world.serve(Scripted(error))
    expected = UpstreamFailed if isinstance(error, RuntimeError) else type(error)
    with pytest.raises(expected):
        await world.run(world.call())
    records = world.rows("SELECT outcome, cost, billed FROM usage_records")
    assert [tuple(row.values()) for row in records] == ([] if record is None else [record])
    assert len(world.rows("SELECT * FROM voids")) == (record is None)
    world.assert_nothing_held()


async def test_an_invalid_request_is_not_tried_elsewhere(world: World):
    other = Scripted(*words("x"), name="other", priority=1)
    world.serve(Scripted(InvalidRequest("no")), other)
    with pytest.raises(InvalidRequest):
        await world.run(world.call())
    assert other.asked == []


async def test_a_dead_replica_is_followed_by_another(world: World):
    target = Scripted(UpstreamFailed("engine died"), local=True)
    world.serve(target)
    with pytest.raises(UpstreamFailed):
        await world.run(world.call())
    assert len(target.asked) == 2
    assert world.record()["outcome"] == "engine_crash"
    assert world.record()["cost"] == 0


@pytest.mark.parametrize(("local", "cost"), [(True, 0), (False, 2 * INPUT + 2 * OUTPUT)])
async def test_breaking_off_is_paid_for_as_delivered_but_not_to_our_own_engines(
    world: World, local: bool, cost: int
):
    script = words("a", "b")[:-1]
    world.serve(Scripted(*script, UpstreamFailed("gone"), local=local))
    exchange = await world.inference.begin(world.call("12345678"))
    assert isinstance(exchange, Exchange)
    relayed: list[Event] = []

    async def relay() -> None:
        async for event in exchange.events():
            relayed.append(event)

    with pytest.raises(UpstreamFailed):
        await relay()
    assert relayed == script
    record = world.record()  # settled before the error came out
    assert (record["cost"], record["billed"]) == (cost, 0 if local else 1)
    assert record["outcome"] == ("engine_crash" if local else "upstream_error")
    await exchange.abandon()
    world.assert_nothing_held()


async def test_a_stall_ends_with_a_timeout(world: World):
    world.serve(Scripted(TextDelta(text="a", tokens=1), forever), timeout_s=0.2)
    exchange = await world.inference.begin(world.call())
    assert isinstance(exchange, Exchange)
    events = exchange.events()
    await anext(events)
    with pytest.raises(UpstreamTimeout):
        await anext(events)
    assert world.record()["outcome"] == "timeout"
    assert world.record()["output"] == 1
    world.assert_nothing_held()


async def test_failing_targets_are_left_alone_for_a_while(world: World):
    target = Scripted(UpstreamFailed("down"))
    world.serve(target)
    for _ in range(3):
        with pytest.raises(UpstreamFailed):
            await world.run(world.call())
    with pytest.raises(Overloaded) as caught:
        await world.run(world.call())
    assert 50 < caught.value.retry_after_s <= 60
    assert len(target.asked) == 3
    world.assert_nothing_held()


# -- clients that leave, servers that stop


@pytest.mark.parametrize(
    ("policy", "cost", "billed"),
    [("delivered", 2 * INPUT + 1 * OUTPUT, 1), ("waive", 0, 0), ("drain", 2 * INPUT + 4 * OUTPUT, 1)],
)
async def test_a_client_that_leaves_a_stream(world: World, policy: str, cost: int, billed: int):
    target = Scripted(*words("a", "b", "c", "d", usage=Usage(input=2, output=4)))
    world.serve(target, disconnect=policy)
    exchange = await world.inference.begin(world.call("12345678"))
    assert isinstance(exchange, Exchange)
    events = exchange.events()
    await anext(events)  # delivered, because the next is asked for
    await anext(events)  # in hand, never handed on
    await events.aclose()
    await exchange.abandon()
    await exchange.abandon()
    record = world.record()
    assert (record["outcome"], record["cost"], record["billed"]) == ("client_gone", cost, billed)
    assert target.closed == 1
    world.assert_nothing_held()


@pytest.mark.parametrize(
    ("policy", "cost"),
    [("delivered", 2 * INPUT + 1 * OUTPUT), ("waive", 0), ("drain", 2 * INPUT + 1 * OUTPUT)],
)
async def test_a_worker_that_dies_in_a_stream(world: World, policy: str, cost: int):
    world.serve(Scripted(*words("a", "b", "c", usage=Usage(input=2, output=3))), disconnect=policy)
    exchange = await world.inference.begin(world.call("12345678"))
    assert isinstance(exchange, Exchange)
    events = exchange.events()
    await anext(events)
    await anext(events)
    await world.ledger.close()  # what is in flight is left to the ledger, as when the process dies
    await until(lambda: bool(world.rows("SELECT seq FROM usage_records")))
    record = world.record()
    assert (record["outcome"], record["cost"], record["billed"]) == ("gateway_crash", cost, int(cost > 0))
    assert record["output"] == 1


@pytest.mark.parametrize(("policy", "cost"), [("delivered", 0), ("waive", 0), ("drain", 2 * INPUT + OUTPUT)])
async def test_a_client_that_leaves_a_whole_answer(world: World, policy: str, cost: int):
    world.serve(Scripted(*words("a", usage=Usage(input=2, output=1))), disconnect=policy)
    exchange = await world.inference.begin(world.call("12345678", stream=False))
    assert isinstance(exchange, Exchange)
    assert len([event async for event in exchange.events()]) == 3
    await exchange.abandon()
    assert world.record()["cost"] == cost
    world.assert_nothing_held()


async def test_a_waiting_stream_can_be_cut_by_the_server(world: World):
    world.serve(Scripted(TextDelta(text="a", tokens=1), forever))
    exchange = await world.inference.begin(world.call())
    assert isinstance(exchange, Exchange)
    waiting = asyncio.Event()

    async def read() -> None:
        async for _ in exchange.events():
            waiting.set()

    reading = asyncio.create_task(read())
    await waiting.wait()
    world.inference.cut_all()
    with pytest.raises(Cancelled):
        await reading
    record = world.record()
    assert (record["outcome"], record["output"]) == ("gateway_stop", 1)
    world.assert_nothing_held()


@pytest.mark.parametrize("stream", [True, False])
async def test_what_the_server_cuts_before_its_answer_is_no_failure_of_a_backend(world: World, stream: bool):
    target = Scripted(forever)
    world.serve(target)
    asking = asyncio.create_task(world.inference.begin(world.call(stream=stream)))
    await until(lambda: bool(target.asked))
    world.inference.cut_all()
    with pytest.raises(Cancelled):
        await asking
    record = world.record()
    assert (record["outcome"], record["cost"]) == ("gateway_stop", 0)
    world.assert_nothing_held()


@pytest.mark.parametrize("policy", ["delivered", "drain", "waive"])
async def test_closing_reaches_relays_under_way(world: World, policy: str):
    """Whatever the policy: a server that stops waits for no answer, and its readers are told."""
    world.serve(Scripted(TextDelta(text="a", tokens=1), forever), disconnect=policy)
    exchange = await world.inference.begin(world.call())
    assert isinstance(exchange, Exchange)
    waiting = asyncio.Event()

    async def read() -> None:
        try:
            async for _ in exchange.events():
                waiting.set()
        finally:
            await exchange.abandon()

    reading = asyncio.create_task(read())
    await waiting.wait()
    async with asyncio.timeout(5):
        await world.inference.close()
        with pytest.raises(Cancelled):
            await reading
    assert world.record()["billed"] == (policy != "waive")
    world.assert_nothing_held()


@pytest.mark.parametrize("policy", ["delivered", "drain"])
async def test_closing_settles_what_is_open(world: World, policy: str):
    world.serve(Scripted(TextDelta(text="a", tokens=1), forever), disconnect=policy)
    for _ in range(5):
        await world.inference.begin(world.call())
    assert world.inference.in_flight == 5
    async with asyncio.timeout(5):
        await world.inference.close()
    assert world.inference.in_flight == 0
    world.assert_nothing_held()


# -- idempotency


async def test_a_claim_replays_the_stored_answer(world: World):
    target = Scripted(*words("x", usage=Usage(input=1, output=1)))
    world.serve(target)
    claim = Claim(key="k", fingerprint=b"f" * 32)
    _, settled = await world.run(world.call(claim=claim, stream=False), answer=b"the answer")
    replay = await world.inference.begin(world.call(claim=claim, stream=False))
    assert isinstance(replay, Replay)
    assert replay.answer == b"the answer"
    assert replay.cost == settled.cost
    assert len(target.asked) == 1


async def test_an_answer_that_is_too_large_to_keep_leaves_the_claim_spent(world: World):
    world.serve(Scripted(*words("x", usage=Usage(input=1, output=1))))
    claim = Claim(key="k", fingerprint=b"f" * 32)
    await world.run(world.call(claim=claim, stream=False), answer=b"x" * 70_000)
    with pytest.raises(Rejected) as caught:
        await world.run(world.call(claim=claim, stream=False))
    assert caught.value.refused.code == "idempotency_consumed"


async def test_settling_early_is_a_mistake(world: World):
    world.serve(Scripted(*words("x")))
    exchange = await world.inference.begin(world.call())
    assert isinstance(exchange, Exchange)
    with pytest.raises(RuntimeError, match="last event"):
        await exchange.settle()
    await exchange.abandon()
    world.assert_nothing_held()
