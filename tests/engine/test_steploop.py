"""The step loop with a real thread: echo at a pace, and models that misbehave."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from headgate_echo.speak import EchoSpeaker, Options
from headgate_engine.pulse import Pulse
from headgate_engine.spec import EngineSpec
from headgate_engine.steploop import StepLoop
from headgate_engine.wire import Events, Failed
from headgate_plugin_api import (
    ChatPayload,
    InferenceRequest,
    Message,
    ModelInfo,
    NotReady,
    Overloaded,
    StepModel,
    StepOutput,
    TextDelta,
    Usage,
)

PATIENCE_S = 10.0


class Outbox:
    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.events: dict[str, list[Events]] = {}
        self.ends: dict[str, Events | Failed] = {}

    def __call__(self, messages: Sequence[Events | Failed]) -> None:
        with self._changed:
            for message in messages:
                assert message.request_id not in self.ends, "nothing follows the end"
                if isinstance(message, Events):
                    self.events.setdefault(message.request_id, []).append(message)
                if isinstance(message, Failed) or message.done:
                    self.ends[message.request_id] = message
            self._changed.notify_all()

    def end(self, request_id: str) -> Events | Failed:
        with self._changed:
            assert self._changed.wait_for(lambda: request_id in self.ends, PATIENCE_S), request_id
            return self.ends[request_id]

    def failure(self, request_id: str) -> Failed:
        end = self.end(request_id)
        assert isinstance(end, Failed)
        return end

    def first(self, request_id: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: request_id in self.events, PATIENCE_S), request_id

    def text(self, request_id: str) -> str:
        assert isinstance(self.end(request_id), Events), self.ends[request_id]
        events = [event for message in self.events[request_id] for event in message.events]
        return "".join(event.text for event in events if isinstance(event, TextDelta))


class Fragile:
    """Takes `size` requests; says one word per step until told to do worse."""

    info = ModelInfo()

    def __init__(self, size: int = 2) -> None:
        self.size = size
        self.admitted: dict[str, InferenceRequest] = {}
        self.steps = 0
        self.explode = threading.Event()

    @property
    def room(self) -> int:
        return self.size - len(self.admitted)

    def admit(self, request: InferenceRequest) -> None:
        if request.id == "unexpected":
            raise KeyError("admit")
        self.admitted[request.id] = request

    def step(self) -> Sequence[StepOutput]:
        self.steps += 1
        if self.explode.is_set():
            self.explode.clear()
            raise FloatingPointError("nan")
        outputs = []
        for request_id in list(self.admitted):
            if request_id.startswith("error"):
                del self.admitted[request_id]
                outputs.append(StepOutput(request_id=request_id, error=RuntimeError("this one")))
            elif request_id.startswith("short"):
                del self.admitted[request_id]
                outputs.append(StepOutput(request_id=request_id, events=(TextDelta(text="ok"),), done=True))
            else:
                outputs.append(StepOutput(request_id=request_id, events=(TextDelta(text="."),)))
        outputs.append(StepOutput(request_id="nobody", events=(TextDelta(text="?"),), done=True))
        return outputs

    def cancel(self, request_id: str) -> Usage | None:
        return Usage(input=7) if self.admitted.pop(request_id, None) else None

    def close(self) -> None: ...


def chat(request_id: str, text: str = "a b c", timeout_ms: int = 60_000, **options: object) -> InferenceRequest:
    payload = ChatPayload(messages=(Message(role="user", content=text),))
    return InferenceRequest(id=request_id, model="m", payload=payload, timeout_ms=timeout_ms, options=options)


@contextmanager
def running(model: StepModel, outbox: Outbox, **limits: int) -> Iterator[StepLoop]:
    loop = StepLoop(model, EngineSpec(id="m", task="chat", backend="b", **limits), outbox, Pulse())
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        yield loop
    finally:
        loop.stop()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@pytest.fixture
def outbox() -> Outbox:
    return Outbox()


def test_many_answers_advance_together(outbox: Outbox) -> None:
    with running(EchoSpeaker(Options(delay_ms=5)), outbox) as loop:
        for number in range(200):
            loop.submit(chat(f"r{number}", f"w{number} and more"))
        for number in range(200):
            assert outbox.text(f"r{number}") == f"w{number} and more"


def test_a_slow_answer_holds_up_nobody_and_waiting_costs_no_steps(outbox: Outbox) -> None:
    model = EchoSpeaker(Options())
    steps = 0
    step = model.step

    def counted() -> Sequence[StepOutput]:
        nonlocal steps
        steps += 1
        return step()

    model.step = counted  # type: ignore[method-assign]
    with running(model, outbox) as loop:
        loop.submit(chat("slow", delay_ms=30_000))
        for number in range(20):
            loop.submit(chat(f"r{number}"))
            assert outbox.text(f"r{number}") == "a b c"
        assert loop.running == 1
        loop.cancel("slow")
        failed = outbox.failure("slow")
        assert failed.code == "cancelled"
        assert failed.usage == Usage(input=3)
    assert steps < 100


def test_a_waiting_request_comes_in_when_there_is_room(outbox: Outbox) -> None:
    model = Fragile(size=1)
    with running(model, outbox) as loop:
        loop.submit(chat("long"))
        outbox.first("long")
        loop.submit(chat("short"))
        loop.submit(chat("dropped"))
        loop.cancel("dropped")
        assert outbox.failure("dropped").usage is None
        assert "short" not in outbox.ends
        loop.cancel("long")
        assert outbox.text("short") == "ok"
    assert outbox.failure("long").usage == Usage(input=7)


def test_errors_stay_with_their_request(outbox: Outbox, caplog: pytest.LogCaptureFixture) -> None:
    with running(Fragile(size=8), outbox) as loop:
        loop.submit(chat("error"))
        loop.submit(chat("unexpected"))
        loop.submit(chat("short"))
        assert outbox.text("short") == "ok"
        assert "this one" in outbox.failure("error").message
        assert outbox.failure("unexpected").code == "upstream_error"


def test_a_failing_step_fails_those_in_it_and_the_loop_goes_on(
    outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    model = Fragile()
    with running(model, outbox) as loop:
        loop.submit(chat("a"))
        loop.submit(chat("b"))
        outbox.first("a")
        outbox.first("b")
        model.explode.set()
        for request_id in ("a", "b"):
            assert "nan" in outbox.failure(request_id).message
            assert outbox.failure(request_id).usage == Usage(input=7)
        loop.submit(chat("short"))
        assert outbox.text("short") == "ok"


def test_a_deadline_ends_what_runs_and_what_waits(outbox: Outbox) -> None:
    with running(Fragile(size=1), outbox) as loop:
        loop.submit(chat("runs", timeout_ms=300))
        outbox.first("runs")
        loop.submit(chat("waits", timeout_ms=1))
        assert outbox.failure("waits").code == "upstream_timeout"
        assert outbox.failure("runs").code == "upstream_timeout"


def test_the_queue_is_bounded(outbox: Outbox) -> None:
    with running(Fragile(size=1), outbox, queue_requests=2, queue_tokens=100) as loop:
        loop.submit(chat("runs"))
        outbox.first("runs")
        loop.submit(chat("waits"))
        with pytest.raises(Overloaded, match="tokens wait for m"):
            loop.submit(chat("large", "x" * 1000))
        loop.submit(chat("second"))
        with pytest.raises(Overloaded, match="2 requests wait for m") as caught:
            loop.submit(chat("third"))
        assert caught.value.retry_after_s > 0
        assert (loop.waiting, loop.running) == (2, 1)


def test_stopping_cancels_everything(outbox: Outbox) -> None:
    with running(Fragile(size=1), outbox) as loop:
        loop.submit(chat("runs"))
        outbox.first("runs")
        loop.submit(chat("waits"))
        loop.stop()
        with pytest.raises(NotReady):
            loop.submit(chat("late"))
    assert {outbox.failure(request_id).code for request_id in ("runs", "waits")} == {"cancelled"}
