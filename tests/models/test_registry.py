"""The registry over real engines and a remote backend of the test's own."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any, Literal

import msgspec
import pytest
from headgate_echo.backend import EchoBackend
from headgate_engine.testing import EngineProcess
from headgate_engine.wire import Beat
from headgate_gateway.layout import Layout
from headgate_gateway.models import MisconfiguredModel, ModelRegistry, engine_spec
from headgate_gateway.settings import Model, Settings, Target
from headgate_plugin_api import (
    Backend,
    ChatPayload,
    Event,
    InferenceRequest,
    Message,
    Native,
    NotReady,
    TargetSpec,
    Task,
    TextDelta,
    Upstream,
    UpstreamFailed,
    Usage,
)

from tests.models.conftest import chat, until


class RemoteOptions(msgspec.Struct, forbid_unknown_fields=True):
    pass


class FakeRemote:
    """Answers with the name that the provider would know the model by."""

    name = "remote"
    kind: Literal["remote"] = "remote"
    tasks: frozenset[Task] = frozenset({"chat"})
    options_type = RemoteOptions

    def __init__(self) -> None:
        self.specs: list[TargetSpec] = []
        self.closed: list[str] = []
        self.left: list[str] = []

    def connect(self, spec: TargetSpec, upstream: Upstream) -> "FakeConnection":
        self.specs.append(spec)
        return FakeConnection(self, spec)

    def bound(self, request: InferenceRequest, spec: TargetSpec) -> Usage | None:
        return None if spec.upstream_model == "unbounded" else Usage(input=1000, output=1)


class FakeConnection:
    def __init__(self, backend: FakeRemote, spec: TargetSpec) -> None:
        self._backend = backend
        self._spec = spec

    async def run(self, request: InferenceRequest) -> AsyncIterator[Event]:
        try:
            while True:
                yield TextDelta(text=self._spec.upstream_model)
        finally:
            self._backend.left.append(request.id)

    async def close(self) -> None:
        self._backend.closed.append(self._spec.upstream_model)


UPSTREAM: Any = object()
ECHO = Model(id="echo", task="chat", backend="echo", aliases=("parrot", "org/parrot"), replicas=2)
REMOTE = Model(
    id="gpt",
    task="chat",
    targets=(
        Target(
            backend="remote", model="gpt-4o", base_url="https://user:secret@api.example/v1", api_key="env:KEY"
        ),
        Target(backend="echo", model="echo", priority=1, weight=3),
    ),
)


def registry(
    layout: Layout, *models: Model, remote: FakeRemote | None = None, upstream: Any = UPSTREAM
) -> ModelRegistry:
    backends: dict[str, Backend] = {"echo": EchoBackend(), "remote": remote or FakeRemote()}
    return ModelRegistry(
        Settings(models=models),
        layout,
        backends,
        upstream,
        lambda reference: f"<{reference}>",
        random=Random(1),
    )


@pytest.fixture
def layout(short_path: Path) -> Layout:
    return Layout(short_path, short_path)


@pytest.fixture
def engines(layout: Layout) -> Iterator[list[EngineProcess]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(EngineProcess(engine_spec(ECHO), layout.engine_socket(0, replica)))
            for replica in range(2)
        ]


async def test_models_are_found_by_id_and_alias(layout: Layout) -> None:
    models = registry(layout, ECHO, REMOTE)
    assert [served.id for served in models.all()] == ["echo", "gpt"]
    assert models.find("org/parrot") is models.find("echo")
    assert models.find("Echo") is None


async def test_targets_are_what_the_config_says_without_its_secrets(layout: Layout) -> None:
    remote = FakeRemote()
    served = registry(layout, ECHO, REMOTE, remote=remote).find("gpt")
    assert served is not None
    assert [(target.name, target.local, target.priority, target.weight) for target in served.targets] == [
        ("remote:gpt-4o@api.example", False, 0, 1),
        ("echo:echo", True, 1, 3),
    ]
    (spec,) = remote.specs
    assert (spec.model, spec.upstream_model, spec.api_key, spec.timeout_s) == ("gpt", "gpt-4o", "<env:KEY>", 600)


async def test_a_remote_model_is_ready_and_a_local_one_says_where_it_stands(layout: Layout) -> None:
    models = registry(layout, ECHO, REMOTE)
    echo, gpt = models.all()
    assert (echo.state, echo.was_ready) == ("unreachable", False)
    assert (gpt.state, gpt.was_ready) == ("ready", True)
    with pytest.raises(NotReady, match="model echo is unreachable"):
        async for _ in echo.targets[0].run(chat("hello")):
            pass


async def test_the_bound_covers_every_target(layout: Layout) -> None:
    gpt = registry(layout, ECHO, REMOTE).find("gpt")
    assert gpt is not None
    assert gpt.bound(chat("one two three", max_output=10)) == Usage(input=1000, output=3)
    other = Model(id="x", task="chat", targets=(Target(backend="remote", model="unbounded"), *REMOTE.targets))
    served = registry(layout, ECHO, other).find("x")
    assert served is not None
    assert served.bound(chat("one two three")) is None


async def test_leaving_a_remote_answer_early_drops_the_upstream_call(layout: Layout) -> None:
    remote = FakeRemote()
    models = registry(layout, ECHO, REMOTE, remote=remote)
    gpt = models.find("gpt")
    assert gpt is not None
    target, request = gpt.targets[0], chat("hello")
    events = target.run(request)
    assert await anext(events) == TextDelta(text="gpt-4o")
    await events.aclose()
    assert remote.left == [request.id]
    await models.close()
    assert remote.closed == ["gpt-4o"]


@pytest.mark.parametrize(
    ("model", "path", "message"),
    [
        (
            Model(id="m", task="chat", backend="absent"),
            "models[0].backend",
            "unknown backend 'absent'; known: echo",
        ),
        (Model(id="m", task="chat", backend="remote"), "models[0].backend", "is remote"),
        (Model(id="m", task="chat"), "models[0]", "expected a backend or at least one target"),
        (
            Model(id="m", task="chat", targets=(Target(backend="echo", model="nope"),)),
            "models[0].targets[0].model",
            "expected the id of a local model",
        ),
    ],
)
async def test_a_wrong_model_names_its_field(layout: Layout, model: Model, path: str, message: str) -> None:
    with pytest.raises(MisconfiguredModel, match=message) as caught:
        registry(layout, model)
    assert caught.value.path == path


async def test_requests_go_to_the_replica_with_the_least_to_do_and_past_a_dead_one(
    layout: Layout, engines: list[EngineProcess]
) -> None:
    models = registry(layout, ECHO)
    await models.start()
    served = models.find("echo")
    assert served is not None
    assert served.replicas is not None
    clients = served.replicas.clients
    await until(lambda: all(client.state == "ready" for client in clients))
    assert served.was_ready
    assert served.info is not None
    target = served.targets[0]
    started = asyncio.Semaphore(0)

    async def hold() -> str:
        try:
            async for _ in target.run(chat("a b", tokens=100_000, delay_ms=5)):
                started.release()
        except UpstreamFailed:
            return "failed"
        return "done"

    tasks = [asyncio.create_task(hold()) for _ in range(20)]
    await until(lambda: [client.in_flight for client in clients] == [10, 10])
    for _ in tasks:
        await started.acquire()

    engines[0].kill()
    await until(lambda: sum(task.done() for task in tasks) == 10)
    assert served.state == "ready"
    for _ in range(5):
        events = [event async for event in target.run(chat("still here"))]
        assert events[0] == TextDelta(text="still", tokens=1)

    engines[1].kill()
    async with asyncio.timeout(5):
        assert set(await asyncio.gather(*tasks)) == {"failed"}
    await until(lambda: served.state == "unreachable")
    changed = asyncio.create_task(models.changed())
    engines[1].start()
    await changed
    await until(lambda: served.state == "ready")
    await models.close()


async def test_who_begins_knows_what_is_ready_already(layout: Layout, engines: list[EngineProcess]) -> None:
    first = registry(layout, ECHO)
    await first.start()
    await until(lambda: first.find("echo").state == "ready")  # type: ignore[union-attr]
    second = registry(layout, ECHO)
    await second.start()
    assert second.find("echo").state == "ready"  # type: ignore[union-attr]
    for models in (first, second):
        await models.close()


async def test_who_begins_after_a_model_failed_knows_that_it_was_ready_once(
    layout: Layout, engines: list[EngineProcess]
) -> None:
    first = registry(layout, ECHO)
    assert not first.find("echo").was_ready  # type: ignore[union-attr]
    await first.start()
    await until(lambda: first.find("echo").was_ready)  # type: ignore[union-attr]
    for engine in engines:
        engine.kill()
    second = registry(layout, ECHO)
    await second.start()
    assert second.find("echo").state == "unreachable"  # type: ignore[union-attr]
    assert second.find("echo").was_ready  # type: ignore[union-attr]
    for models in (first, second):
        await models.close()


async def test_an_engine_that_says_nothing_is_not_waited_for(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headgate_gateway.models.registry.HEARD_S", 0.05)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(layout.engine_socket(0, 0)))
        silent.listen()
        models = registry(layout, ECHO)
        async with asyncio.timeout(10):
            await models.start()
        assert models.find("echo").state == "unreachable"  # type: ignore[union-attr]
        await models.close()


async def test_a_hung_model_is_not_ready_although_its_process_lives(
    layout: Layout, engines: list[EngineProcess]
) -> None:
    models = registry(layout, ECHO)
    await models.start()
    served = models.find("echo")
    assert served is not None
    assert served.replicas is not None
    clients = served.replicas.clients
    await until(lambda: all(client.state == "ready" for client in clients))
    for client in clients:
        client.beat = Beat(stalled_ms=31_000, waiting=0, running=1, per_second=0.0)
    assert (served.state, served.reason) == ("failed", "the model's loop has been in one pass for 31 s")
    with pytest.raises(NotReady, match="in one pass for 31 s"):
        async for _ in served.targets[0].run(chat("hello")):
            pass
    clients[1].beat = Beat(stalled_ms=0, waiting=0, running=0, per_second=0.0)
    assert (served.state, served.reason) == ("ready", "")
    assert served.replicas.choose() is clients[1]
    await models.close()


async def test_the_spec_of_an_engine_is_what_the_config_says() -> None:
    model = Model(
        id="m",
        task="embed",
        backend="onnx",
        source="models/m",
        device="cpu",
        options={"threads": 2, "max_batch_tokens": 99},
        max_input_tokens=5,
        queue_requests=7,
        queue_tokens=8,
    )
    spec = engine_spec(model)
    assert (spec.id, spec.task, spec.backend, spec.source, spec.device) == (
        "m",
        "embed",
        "onnx",
        "models/m",
        "cpu",
    )
    assert (spec.max_input_tokens, spec.queue_requests, spec.queue_tokens) == (5, 7, 8)
    assert (spec.max_batch_tokens, spec.max_batch_items) == (99, 256)
    with pytest.raises(MisconfiguredModel, match="has only targets"):
        engine_spec(REMOTE)


async def test_the_clients_own_document_does_not_go_to_engines(
    layout: Layout, engines: list[EngineProcess]
) -> None:
    """An engine is not sent what the client wrote: the payload says it all, and the document can be large."""
    models = registry(layout, ECHO)
    await models.start()
    served = models.find("echo")
    assert served is not None
    await until(lambda: served.state == "ready")
    payload = ChatPayload(messages=(Message(role="user", content="hello"),))
    native = Native(dialect="openai", document={"cannot": "x" * (70 * 1024 * 1024)})
    request = InferenceRequest(id="req_native", model="echo", payload=payload, native=native)
    events = [event async for event in served.targets[0].run(request)]
    assert events[0] == TextDelta(text="hello", tokens=1)
    await models.close()
