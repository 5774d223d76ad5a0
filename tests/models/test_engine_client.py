import asyncio
import signal
from contextlib import aclosing
from pathlib import Path
from random import Random

import pytest
import uvloop
from headgate_engine.spec import EngineSpec
from headgate_engine.testing import EngineProcess
from headgate_gateway.models import EngineClient
from headgate_plugin_api import (
    BackendError,
    Cancelled,
    EmbedPayload,
    Event,
    Finished,
    InferenceRequest,
    InvalidRequest,
    NotReady,
    Overloaded,
    TextDelta,
    UpstreamFailed,
    UpstreamTimeout,
    UsageReport,
)

from tests.models.conftest import chat, until


async def answer(client: EngineClient, request: InferenceRequest) -> list[Event]:
    return [event async for event in client.run(request)]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def test_an_answer_comes_whole_and_in_order(client: EngineClient) -> None:
    await until(lambda: client.state == "ready")
    events = await answer(client, chat("one two three"))
    assert text_of(events) == "one two three"
    assert [event for event in events if isinstance(event, Finished)] == [Finished(reason="stop")]
    assert isinstance(events[-1], UsageReport)
    assert (events[-1].usage.input, events[-1].usage.output) == (3, 3)
    assert client.was_ready
    assert client.info is not None
    assert client.info.platform == "echo"


async def test_many_answers_do_not_mix(client: EngineClient) -> None:
    await until(lambda: client.state == "ready")
    texts = [" ".join(f"w{number}" for _ in range(number % 7 + 1)) for number in range(300)]
    answers = await asyncio.gather(*(answer(client, chat(text)) for text in texts))
    assert [text_of(events) for events in answers] == texts
    assert client.in_flight == 0


async def test_before_the_engine_is_there_a_request_is_refused_not_kept(short_path: Path) -> None:
    client = EngineClient(short_path / "none.sock", name="none/0", random=Random(1))
    await client.start()
    with pytest.raises(NotReady, match="none/0 is unreachable"):
        await answer(client, chat("hello"))
    await client.close()


async def test_a_refused_request_names_the_field(client: EngineClient) -> None:
    await until(lambda: client.state == "ready")
    with pytest.raises(InvalidRequest) as caught:
        await answer(client, chat("hello", tokens=-1))
    assert caught.value.path == "options.tokens"
    with pytest.raises(InvalidRequest):
        await answer(client, InferenceRequest(id="req_x", model="echo", payload=EmbedPayload(inputs=("a",))))


async def test_leaving_early_cancels_and_frees_the_id(client: EngineClient) -> None:
    await until(lambda: client.state == "ready")
    request = chat("a b c", tokens=10_000, delay_ms=20)
    async with aclosing(client.run(request)) as events:
        async for event in events:
            assert isinstance(event, TextDelta)
            break
    # The same id may be used again at once, although the engine has not said yet that the first has ended.
    assert text_of(await answer(client, chat("again"))) == "again"
    again = await answer(client, request_with_id(request.id, "once more"))
    assert text_of(again) == "once more"
    await until(lambda: client.in_flight == 0)
    await until(lambda: client.beat is not None and client.beat.running == 0)


def request_with_id(request_id: str, text: str) -> InferenceRequest:
    request = chat(text)
    return InferenceRequest(id=request_id, model=request.model, payload=request.payload)


async def test_killing_the_engine_fails_what_it_answers_and_its_successor_is_found(
    client: EngineClient, engine: EngineProcess
) -> None:
    await until(lambda: client.state == "ready")
    started = asyncio.Semaphore(0)

    async def one() -> BaseException | None:
        try:
            async for _ in client.run(chat("a b", tokens=100_000, delay_ms=5)):
                started.release()
        except BackendError as error:
            return error
        return None

    tasks = [asyncio.create_task(one()) for _ in range(64)]
    for _ in range(64):
        await started.acquire()
    engine.kill()
    async with asyncio.timeout(5):
        errors = await asyncio.gather(*tasks)
    assert all(isinstance(error, UpstreamFailed) and error.retryable for error in errors)
    assert client.state == "unreachable"
    assert client.in_flight == 0

    engine.start()
    await until(lambda: client.state == "ready")
    assert text_of(await answer(client, chat("back again"))) == "back again"


async def test_a_failed_load_says_why(short_path: Path) -> None:
    spec = EngineSpec(id="bad", task="chat", backend="echo", options={"tokenz": 3})
    with EngineProcess(spec, short_path / "e.sock") as engine:
        client = EngineClient(engine.socket, name="bad/0", random=Random(1))
        await client.start()
        await until(lambda: client.state == "failed")
        assert "tokenz" in client.reason
        with pytest.raises(NotReady, match="tokenz"):
            await answer(client, chat("hello"))
        code, errors = await asyncio.to_thread(engine.wait)
        assert code == 3
        assert "tokenz" in errors
        await client.close()


async def test_a_deadline_ends_a_slow_answer(client: EngineClient) -> None:
    await until(lambda: client.state == "ready")
    with pytest.raises(UpstreamTimeout):
        await answer(client, chat("slow", tokens=1000, delay_ms=1000, timeout_ms=100))
    await until(lambda: client.in_flight == 0)


async def test_stopping_the_engine_cancels_what_it_answers(client: EngineClient, engine: EngineProcess) -> None:
    await until(lambda: client.state == "ready")
    task = asyncio.create_task(answer(client, chat("slow", tokens=1000, delay_ms=1000)))
    await until(lambda: client.in_flight == 1)
    # The engine has the request when a later one has been answered.
    await answer(client, chat("hello"))
    assert await asyncio.to_thread(engine.stop) == 0
    with pytest.raises(Cancelled):
        await task


async def test_a_full_queue_says_when_to_come_again(short_path: Path) -> None:
    spec = EngineSpec(id="echo", task="embed", backend="echo", queue_tokens=10, queue_requests=10_000)
    with EngineProcess(spec, short_path / "e.sock") as engine:
        client = EngineClient(engine.socket, name="echo/0", random=Random(1))
        await client.start()
        await until(lambda: client.state == "ready")
        inputs = tuple(f"word{number} " * 5 for number in range(1000))
        request = InferenceRequest(id="req_", model="echo", payload=EmbedPayload(inputs=inputs))
        outcomes = await asyncio.gather(
            *(
                answer(client, InferenceRequest(id=f"req_{n}", model="echo", payload=request.payload))
                for n in range(50)
            ),
            return_exceptions=True,
        )
        refused = [outcome for outcome in outcomes if isinstance(outcome, Overloaded)]
        assert refused
        assert all(0 < error.retry_after_s <= 60 for error in refused)
        assert any(isinstance(outcome, list) for outcome in outcomes)
        await client.close()


def test_it_works_on_the_workers_loop_too(engine: EngineProcess) -> None:
    async def check() -> None:
        client = EngineClient(engine.socket, name="echo/0", random=Random(1))
        await client.start()
        await until(lambda: client.state == "ready")
        assert text_of(await answer(client, chat("hello there"))) == "hello there"
        async with aclosing(client.run(chat("a b", tokens=1000, delay_ms=5))) as events:
            await anext(events)
            await asyncio.to_thread(engine.kill)
            with pytest.raises(UpstreamFailed):
                async for _ in events:
                    pass
        await client.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(check())


async def test_an_engine_that_is_frozen_does_not_hang_its_callers(
    client: EngineClient, engine: EngineProcess
) -> None:
    await until(lambda: client.state == "ready")
    assert engine.process is not None
    engine.process.send_signal(signal.SIGSTOP)
    with pytest.raises(UpstreamTimeout, match="did not answer within 50 ms"):
        await answer(client, chat("hello", timeout_ms=50))
    engine.process.send_signal(signal.SIGCONT)
    await until(lambda: client.in_flight == 0)
    assert text_of(await answer(client, chat("hello again"))) == "hello again"


async def test_silence_shows_as_a_stall(client: EngineClient) -> None:
    await until(lambda: client.beat is not None)
    assert client.stalled_ms == 0
    now = client._clock()
    client._clock = lambda: now + 40.0
    assert client.stalled_ms >= 39_000
