"""Engines as real processes: how they start, fail, beat, and end."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from headgate_engine import ipc
from headgate_engine.spec import EngineSpec
from headgate_engine.testing import EngineProcess
from headgate_engine.wire import Beat, Events, Failed, FromEngine, Run, State
from headgate_plugin_api import EmbedPayload, InferenceRequest, TextDelta

M = TypeVar("M")


@pytest.fixture
def plugins(short_path: Path) -> dict[str, str]:
    """An environment in which the odd plugin is installed."""
    site = short_path / "site"
    info = site / "odd-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("odd_plugin.py"), site)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[headgate.plugins]\nodd = odd_plugin\nexplosive = no_such_module_anywhere\n"
    )
    return {"PYTHONPATH": str(site)}


class Peer:
    """One connection to an engine and everything that it said."""

    def __init__(self) -> None:
        self.heard: list[FromEngine] = []
        self.lost = asyncio.Event()
        self._news = asyncio.Event()
        self.connection: ipc.Connection[FromEngine] | None = None

    async def connect(self, socket: Path) -> "Peer":
        codec: ipc.Codec[FromEngine] = ipc.Codec(FromEngine)
        async with asyncio.timeout(20):
            while self.connection is None:
                try:
                    self.connection = await ipc.connect(
                        socket, lambda: ipc.Connection(codec, self._on_message, lambda *_: self.lost.set())
                    )
                except OSError:
                    await asyncio.sleep(0.01)
        return self

    def _on_message(self, _connection: ipc.Connection[FromEngine], message: FromEngine) -> None:
        self.heard.append(message)
        self._news.set()

    async def hear(self, kind: type[M], which: Callable[[M], bool] = lambda _: True, timeout_s: float = 20) -> M:
        async with asyncio.timeout(timeout_s):
            while True:
                for message in self.heard:
                    if isinstance(message, kind) and which(message):
                        return message
                self._news.clear()
                await self._news.wait()

    async def ready(self) -> State:
        return await self.hear(State, lambda state: state.state == "ready")

    def ask(self, request_id: str, text: str) -> None:
        assert self.connection is not None
        request = InferenceRequest(id=request_id, model="m", payload=EmbedPayload(inputs=(text,)))
        self.connection.send(Run(request))

    async def failure(self, request_id: str) -> Failed:
        return await self.hear(Failed, lambda failed: failed.request_id == request_id)

    async def answer(self, request_id: str) -> Events:
        return await self.hear(Events, lambda events: events.request_id == request_id)


@asynccontextmanager
async def odd_engine(
    short_path: Path, plugins: dict[str, str], source: str = "well", **more: str
) -> AsyncIterator[tuple[EngineProcess, Peer]]:
    spec = EngineSpec(id="m", task="embed", backend="odd", source=source)
    with EngineProcess(spec, short_path / "e.sock", environment=plugins | more) as engine:
        peer = await Peer().connect(engine.socket)
        yield engine, peer
        if peer.connection is not None:
            peer.connection.abort()
            await peer.connection.closed()


async def failed_load(engine: EngineProcess, peer: Peer) -> tuple[State, str]:
    state = await peer.hear(State, lambda state: state.state == "failed")
    code, errors = await asyncio.to_thread(engine.wait)
    assert code == 3
    assert state.reason in errors
    return state, errors


async def test_an_engine_carries_no_server(short_path: Path, plugins: dict[str, str]) -> None:
    async with odd_engine(short_path, plugins) as (_, peer):
        await peer.ready()
        peer.ask("r", "modules")
        delta = (await peer.answer("r")).events[0]
        assert isinstance(delta, TextDelta)
        loaded = {name.partition(".")[0] for name in delta.text.split()}
    assert {"msgspec", "pluggy", "headgate_engine"} <= loaded
    heavy = {
        "litestar",
        "sqlalchemy",
        "uvicorn",
        "uvloop",
        "pyreqwest",
        "pydantic",
        "numpy",
        "torch",
        "onnxruntime",
    }
    ours = {"gateway", "dialects", "echo", "onnx", "torch", "remote"}
    heavy |= {f"headgate_{name}" for name in ours}
    assert not heavy & loaded


async def test_loading_is_reported_step_by_step(short_path: Path, plugins: dict[str, str]) -> None:
    async with odd_engine(short_path, plugins, source="slow") as (_, peer):
        state = await peer.hear(State, lambda state: state.what == "half way")
        assert (state.state, state.fraction) == ("loading", 0.5)
        peer.ask("r", "too early")
        failed = await peer.failure("r")
        assert failed.code == "model_loading"
        assert failed.retry_after_ms is not None


async def test_a_failed_load_names_file_and_cause(short_path: Path, plugins: dict[str, str]) -> None:
    async with odd_engine(short_path, plugins, source="missing") as (engine, peer):
        state, _ = await failed_load(engine, peer)
        assert state.reason == "/models/weights.bin does not exist"


async def test_an_unexpected_failure_of_a_load_has_its_traceback(
    short_path: Path, plugins: dict[str, str]
) -> None:
    async with odd_engine(short_path, plugins, source="crash") as (engine, peer):
        state, errors = await failed_load(engine, peer)
        assert state.reason == "ZeroDivisionError: in the weights"
        assert "Traceback" in errors


async def test_a_plugin_for_another_api_is_refused_with_both_numbers(
    short_path: Path, plugins: dict[str, str]
) -> None:
    async with odd_engine(short_path, plugins, ODD_API="7") as (engine, peer):
        state, _ = await failed_load(engine, peer)
        assert "built for plugin API 7, this engine has 1" in state.reason


@pytest.mark.parametrize(
    ("backend", "reason"),
    [("absent", "no backend 'absent' is installed"), ("explosive", "no_such_module_anywhere"), ("openai", "")],
)
async def test_a_backend_that_cannot_be_had_is_a_failed_load(
    short_path: Path, plugins: dict[str, str], backend: str, reason: str
) -> None:
    spec = EngineSpec(id="m", task="embed", backend=backend)
    with EngineProcess(spec, short_path / "e.sock", environment=plugins) as engine:
        peer = await Peer().connect(engine.socket)
        state, _ = await failed_load(engine, peer)
        assert reason in state.reason
        assert backend in state.reason


async def test_an_answer_that_cannot_be_sent_is_that_requests_failure(
    short_path: Path, plugins: dict[str, str]
) -> None:
    async with odd_engine(short_path, plugins) as (_, peer):
        await peer.ready()
        for text in ("object", "giant"):
            peer.ask(text, text)
            failed = await peer.failure(text)
            assert failed.code == "upstream_error"
            assert "cannot be sent" in failed.message
        peer.ask("r", "fine")
        assert (await peer.answer("r")).done


async def test_no_thread_ends_unnoticed(short_path: Path, plugins: dict[str, str]) -> None:
    """What ends a thread silently elsewhere is a failed request here, or the end of the process."""
    async with odd_engine(short_path, plugins) as (engine, peer):
        await peer.ready()
        peer.ask("r", "exit early")
        assert (await peer.failure("r")).code == "upstream_error"
        peer.ask("s", "exit")
        await asyncio.wait_for(peer.lost.wait(), 20)
        code, errors = await asyncio.to_thread(engine.wait)
        assert code == 4
        assert "in run_batch" in errors


async def test_a_library_that_exits_while_loading_is_a_failed_load(
    short_path: Path, plugins: dict[str, str]
) -> None:
    async with odd_engine(short_path, plugins, source="exit") as (engine, peer):
        state, _ = await failed_load(engine, peer)
        assert state.reason == "SystemExit: a library thinks it is alone"


async def test_the_heartbeat_shows_a_model_that_hangs(short_path: Path, plugins: dict[str, str]) -> None:
    async with odd_engine(short_path, plugins) as (engine, peer):
        await peer.ready()
        beat = await peer.hear(Beat)
        assert (beat.stalled_ms, beat.running) == (0, 0)
        peer.ask("r", "hang")
        beat = await peer.hear(Beat, lambda beat: beat.stalled_ms >= 1000)
        assert beat.running == 1
        # Even now it ends when its parent does.
        assert await asyncio.to_thread(engine.orphan) == 1


async def test_stopping_closes_the_model_and_exits_0(short_path: Path, plugins: dict[str, str]) -> None:
    async with odd_engine(short_path, plugins) as (engine, peer):
        await peer.ready()
        assert engine.process is not None
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):  # those are the supervisor's business
            os.kill(engine.process.pid, number)
        peer.ask("r", "still here")
        assert (await peer.answer("r")).done
        engine.tell_to_end()
        await asyncio.wait_for(peer.lost.wait(), 20)
        code, errors = await asyncio.to_thread(engine.wait)
        assert code == 0
        assert "closed" in errors
        assert not engine.socket.exists()


async def test_stopping_while_it_loads_does_not_wait_for_the_load(
    short_path: Path, plugins: dict[str, str]
) -> None:
    async with odd_engine(short_path, plugins, source="slow") as (engine, peer):
        await peer.hear(State, lambda state: state.what == "half way")
        assert await asyncio.to_thread(engine.stop) == 0


async def test_the_parents_death_ends_it_at_once(short_path: Path, plugins: dict[str, str]) -> None:
    async with odd_engine(short_path, plugins, source="slow") as (engine, peer):
        await peer.hear(State, lambda state: state.what == "half way")
        assert await asyncio.to_thread(engine.orphan) == 1


async def test_a_peer_that_talks_nonsense_is_dropped_and_others_are_not(
    short_path: Path, plugins: dict[str, str]
) -> None:
    async with odd_engine(short_path, plugins) as (engine, peer):
        await peer.ready()
        reader, writer = await asyncio.open_unix_connection(str(engine.socket))
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await asyncio.wait_for(reader.read(), 20)
        writer.close()
        peer.ask("r", "fine")
        assert (await peer.answer("r")).done


def test_bad_arguments_exit_2_with_the_field(short_path: Path) -> None:
    spec = EngineSpec(id="m", task="embed", backend="odd", queue_requests="many")  # type: ignore[arg-type]
    with EngineProcess(spec, short_path / "e.sock") as engine:
        code, errors = engine.wait()
    assert code == 2
    assert "queue_requests" in errors
