"""The batch loop with a real thread and a small real model: isolation, cancellation, bounds, the end."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from headgate_engine.batchloop import BatchLoop
from headgate_engine.pulse import Pulse
from headgate_engine.spec import EngineSpec
from headgate_engine.wire import Events, Failed
from headgate_plugin_api import (
    EmbedPayload,
    EmbedResult,
    Event,
    InferenceRequest,
    InvalidRequest,
    Item,
    ModelInfo,
    NotReady,
    Overloaded,
    Usage,
    UsageReport,
)

PATIENCE_S = 10.0


class Lengths:
    """Embeds a text as its length. Texts: `bad` is refused, `poison` breaks the batch that it is in."""

    info = ModelInfo()

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches: list[list[str]] = []
        self.short = False

    def prepare(self, request: InferenceRequest) -> Sequence[Item]:
        assert isinstance(request.payload, EmbedPayload)
        if "bad" in request.payload.inputs:
            raise InvalidRequest("expected good", path="input[0]")
        return [
            Item(request=request, index=index, tokens=1, data=text)
            for index, text in enumerate(request.payload.inputs)
        ]

    def run_batch(self, items: Sequence[Item]) -> Sequence[Any]:
        self.entered.set()
        assert self.gate.wait(PATIENCE_S)
        self.batches.append([item.data for item in items])
        if any(item.data == "poison" for item in items):
            raise FloatingPointError("poisoned")
        if self.short:
            return []
        return [bytes([len(item.data), 0, 0, 0]) for item in items]

    def finish(self, request: InferenceRequest, items: Sequence[Item], results: Sequence[Any]) -> Sequence[Event]:
        if request.id == "unfinished":
            raise KeyError("finish")
        return [EmbedResult(vectors=tuple(results)), UsageReport(usage=Usage(input=len(items)))]

    def close(self) -> None: ...


class Outbox:
    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.messages: dict[str, Events | Failed] = {}

    def __call__(self, messages: Sequence[Events | Failed]) -> None:
        with self._changed:
            for message in messages:
                assert message.request_id not in self.messages, "a request ends once"
                self.messages[message.request_id] = message
            self._changed.notify_all()

    def __getitem__(self, request_id: str) -> Events | Failed:
        with self._changed:
            assert self._changed.wait_for(lambda: request_id in self.messages, PATIENCE_S), request_id
            return self.messages[request_id]

    def failure(self, request_id: str) -> Failed:
        message = self[request_id]
        assert isinstance(message, Failed), message
        return message

    def vectors(self, request_id: str) -> list[int]:
        message = self[request_id]
        assert isinstance(message, Events), message
        assert message.done
        result = message.events[0]
        assert isinstance(result, EmbedResult)
        return [vector[0] for vector in result.vectors]


def embed(request_id: str, *texts: str, timeout_ms: int = 60_000) -> InferenceRequest:
    payload = EmbedPayload(inputs=texts)
    return InferenceRequest(id=request_id, model="m", payload=payload, timeout_ms=timeout_ms)


@contextmanager
def running(
    model: Lengths, outbox: Outbox, clock: Callable[[], float] | None = None, **limits: int
) -> Iterator[BatchLoop]:
    spec = EngineSpec(id="m", task="embed", backend="b", **limits)
    loop = BatchLoop(model, spec, outbox, Pulse(), **({"clock": clock} if clock else {}))
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        yield loop
    finally:
        model.gate.set()
        loop.stop()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@pytest.fixture
def model() -> Lengths:
    return Lengths()


@pytest.fixture
def outbox() -> Outbox:
    return Outbox()


def test_results_go_to_the_right_request_in_order(model: Lengths, outbox: Outbox) -> None:
    with running(model, outbox) as loop:
        for number in range(100):
            loop.submit(embed(f"r{number}", "x" * (number % 9 + 1), "y", "zz"))
        for number in range(100):
            assert outbox.vectors(f"r{number}") == [number % 9 + 1, 1, 2]


def test_what_waits_while_a_batch_runs_makes_the_next_batch(model: Lengths, outbox: Outbox) -> None:
    model.gate.clear()
    with running(model, outbox) as loop:
        loop.submit(embed("first", "a"))
        assert model.entered.wait(PATIENCE_S)
        for number in range(10):
            loop.submit(embed(f"r{number}", "b"))
        while loop._batcher.requests < 10 or loop._pool._work_queue.qsize():
            time.sleep(0.001)
        model.gate.set()
        for number in range(10):
            outbox.vectors(f"r{number}")
    assert len(model.batches) <= 3  # a preparation may still have been under way


def test_a_poisonous_item_fails_alone(model: Lengths, outbox: Outbox, caplog: pytest.LogCaptureFixture) -> None:
    model.gate.clear()
    with running(model, outbox) as loop:
        loop.submit(embed("first", "a"))
        assert model.entered.wait(PATIENCE_S)
        for number in range(9):
            loop.submit(embed(f"r{number}", "poison" if number == 4 else "abc", "d"))
        model.gate.set()
        failed = outbox.failure("r4")
        assert failed.code == "upstream_error"
        assert "poisoned" in failed.message
        for number in (0, 1, 2, 3, 5, 6, 7, 8):
            assert outbox.vectors(f"r{number}") == [3, 1]


def test_a_refused_request_names_its_field(model: Lengths, outbox: Outbox) -> None:
    with running(model, outbox) as loop:
        loop.submit(embed("r", "bad"))
        failed = outbox.failure("r")
        assert (failed.code, failed.path) == ("invalid_request", "input[0]")


def test_a_model_that_gives_too_few_results_fails_the_request_not_the_loop(
    model: Lengths, outbox: Outbox
) -> None:
    model.short = True
    with running(model, outbox) as loop:
        loop.submit(embed("r", "a", "b"))
        assert "0 results for 1 items" in outbox.failure("r").message
        model.short = False
        loop.submit(embed("s", "a"))
        assert outbox.vectors("s") == [1]


def test_a_failing_finish_is_that_requests_failure(model: Lengths, outbox: Outbox) -> None:
    with running(model, outbox) as loop:
        loop.submit(embed("unfinished", "a"))
        assert outbox.failure("unfinished").code == "upstream_error"
        loop.submit(embed("s", "a"))
        assert outbox.vectors("s") == [1]


def test_an_empty_request_is_finished_at_once(model: Lengths, outbox: Outbox) -> None:
    with running(model, outbox) as loop:
        loop.submit(embed("r"))
        assert outbox.vectors("r") == []
        assert (loop.waiting, loop.running) == (0, 0)


def test_a_cancelled_request_never_reaches_the_model(model: Lengths, outbox: Outbox) -> None:
    model.gate.clear()
    with running(model, outbox) as loop:
        loop.submit(embed("first", "a"))
        assert model.entered.wait(PATIENCE_S)
        loop.submit(embed("r", "unwanted"))
        loop.cancel("r")
        assert outbox.failure("r").code == "cancelled"
        loop.cancel("first")  # it runs already: it is answered now, and its result dropped later
        assert outbox.failure("first").code == "cancelled"
        model.gate.set()
        loop.submit(embed("s", "abc"))
        assert outbox.vectors("s") == [3]
        loop.cancel("nobody")
    assert not any("unwanted" in batch for batch in model.batches)


def test_a_late_request_never_reaches_the_model(model: Lengths, outbox: Outbox) -> None:
    now = [0.0]
    model.gate.clear()
    with running(model, outbox, clock=lambda: now[0]) as loop:
        loop.submit(embed("first", "a"))
        assert model.entered.wait(PATIENCE_S)
        loop.submit(embed("late", "late", timeout_ms=1000))
        loop.submit(embed("s", "abc", timeout_ms=5000))
        while len(loop._batcher._queue) < 2:
            time.sleep(0.001)
        now[0] = 2.0
        model.gate.set()
        assert outbox.failure("late").code == "upstream_timeout"
        assert outbox.vectors("s") == [3]
    assert not any("late" in batch for batch in model.batches)


def test_a_full_queue_refuses(model: Lengths, outbox: Outbox) -> None:
    model.gate.clear()
    with running(model, outbox, queue_requests=2) as loop:
        loop.submit(embed("first", "a"))
        assert model.entered.wait(PATIENCE_S)
        loop.submit(embed("a", "a"))
        loop.submit(embed("b", "b"))
        with pytest.raises(Overloaded):
            loop.submit(embed("c", "c"))
        assert (loop.waiting, loop.running) == (2, 1)


def test_stopping_fails_what_waits(model: Lengths, outbox: Outbox) -> None:
    model.gate.clear()
    with running(model, outbox) as loop:
        loop.submit(embed("first", "a"))
        assert model.entered.wait(PATIENCE_S)
        loop.submit(embed("r", "a"))
        loop.stop()
        with pytest.raises(NotReady):
            loop.submit(embed("late", "a"))
    assert outbox.failure("r").code == "cancelled"
    assert "first" in outbox.messages
