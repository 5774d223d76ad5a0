"""Frames survive every split, cap, failure and garbage that a socket can bring."""

import asyncio
import itertools
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop
from headgate_engine import ipc
from headgate_engine.wire import Cancel, Events, FromEngine, Run, ToEngine
from headgate_plugin_api import (
    Event,
    Finished,
    InferenceRequest,
    InferPayload,
    TextDelta,
    Usage,
    UsageReport,
)
from headgate_plugin_api import requests as canonical
from hypothesis import given, settings
from hypothesis import strategies as st


class Recorder:
    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.closed = 0
        self.error: Exception | None = None

    def on_message(self, _connection: ipc.Connection[Any], message: Any) -> None:
        self.messages.append(message)

    def on_close(self, _connection: ipc.Connection[Any], error: Exception | None) -> None:
        self.closed += 1
        self.error = error


class FakeTransport(asyncio.Transport):
    """Takes writes; aborting it tells the protocol, as a loop would do later."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.aborted = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def is_closing(self) -> bool:
        return self.aborted

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def abort(self) -> None:
        self.aborted = True


def frames(*messages: Any) -> bytes:
    buffer = bytearray()
    codec: ipc.Codec[Any] = ipc.Codec(Any)
    for message in messages:
        codec.encode_into(message, buffer)
    return bytes(buffer)


events = st.one_of(
    st.builds(TextDelta, text=st.text(), index=st.integers(0, 5), tokens=st.none() | st.integers(0, 9)),
    st.builds(Finished, reason=st.sampled_from(["stop", "length"])),
    st.builds(UsageReport, usage=st.builds(Usage, input=st.integers(0, 2**40), output=st.integers(0, 2**40))),
)
answers = st.lists(
    st.builds(
        Events,
        request_id=st.text(min_size=1, max_size=12),
        events=st.lists(events, max_size=4).map(tuple),
        done=st.booleans(),
    ),
    max_size=6,
)


@settings(deadline=None)
@given(answers, st.lists(st.integers(0, 4096), max_size=8))
def test_frames_split_at_any_byte_are_the_same_messages(messages: list[Events], cuts: list[int]) -> None:
    async def check() -> None:
        recorder = Recorder()
        connection = ipc.Connection(ipc.Codec[FromEngine](FromEngine), recorder.on_message, recorder.on_close)
        connection.connection_made(FakeTransport())
        stream = frames(*messages)
        places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
        for start, end in itertools.pairwise(places):
            connection.data_received(stream[start:end])
        assert recorder.messages == messages
        assert not recorder.closed

    asyncio.run(check())


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_garbage_closes_the_connection_and_raises_nothing(garbage: bytes) -> None:
    async def check() -> None:
        recorder = Recorder()
        connection = ipc.Connection(ipc.Codec[ToEngine](ToEngine), recorder.on_message, recorder.on_close)
        transport = FakeTransport()
        connection.connection_made(transport)
        connection.data_received(garbage)
        assert transport.aborted == bool(recorder.closed)
        assert recorder.closed <= 1

    asyncio.run(check())


async def test_one_turn_of_the_loop_is_one_write() -> None:
    connection = ipc.Connection(ipc.Codec[Any](Any), lambda _connection, _message: None)
    transport = FakeTransport()
    connection.connection_made(transport)
    for number in range(5):
        connection.send(Cancel(f"r{number}"))
    expected = frames(*(Cancel(f"r{number}") for number in range(5)))
    assert (connection.backlog, transport.written) == (len(expected), [])
    await asyncio.sleep(0)
    assert transport.written == [expected]


def test_a_message_over_the_cap_leaves_the_buffer_as_it_was() -> None:
    codec: ipc.Codec[Any] = ipc.Codec(Any, max_frame=64)
    buffer = bytearray()
    codec.encode_into(Cancel("small"), buffer)
    before = bytes(buffer)
    with pytest.raises(ipc.FrameTooLarge, match="over the cap of 64"):
        codec.encode_into(Cancel("x" * 100), buffer)
    assert buffer == before


def test_a_message_that_cannot_be_encoded_leaves_the_buffer_as_it_was() -> None:
    codec: ipc.Codec[Any] = ipc.Codec(Any)
    buffer = bytearray()
    codec.encode_into(Cancel("small"), buffer)
    before = bytes(buffer)
    with pytest.raises(TypeError):
        codec.encode_into(Events("r", (TextDelta(text="a", extra={"no": object()}),)), buffer)
    assert buffer == before


async def test_an_announced_frame_over_the_cap_is_not_waited_for() -> None:
    recorder = Recorder()
    codec: ipc.Codec[Any] = ipc.Codec(Any, max_frame=64)
    connection = ipc.Connection(codec, recorder.on_message, recorder.on_close)
    transport = FakeTransport()
    connection.connection_made(transport)
    connection.data_received(frames(Cancel("before")) + (65).to_bytes(4, "big"))
    assert transport.aborted
    assert [message["request_id"] for message in recorder.messages] == ["before"]
    assert isinstance(recorder.error, ipc.FrameTooLarge)
    connection.connection_lost(None)
    assert recorder.closed == 1


def _loops() -> list[Callable[[], asyncio.AbstractEventLoop]]:
    return [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.mark.parametrize("new_loop", _loops(), ids=["asyncio", "uvloop"])
def test_frames_that_had_come_are_delivered_although_our_own_write_fails(
    new_loop: Callable[[], asyncio.AbstractEventLoop], short_path: Path
) -> None:
    async def check() -> None:
        recorder = Recorder()
        codec: ipc.Codec[FromEngine] = ipc.Codec(FromEngine)
        connection = await ipc.connect(
            short_path / "s.sock", lambda: ipc.Connection(codec, recorder.on_message, recorder.on_close)
        )
        peer, _ = listener.accept()
        # In one turn of the loop: the peer says its last words and dies, and we write to it.
        last_words = [Events(f"r{number}", (), done=True) for number in range(3)]
        peer.sendall(frames(*last_words))
        peer.close()
        connection.send(Cancel("r9"))
        connection._flush()
        await asyncio.wait_for(connection.closed(), 5)
        assert recorder.messages == last_words
        assert recorder.closed == 1

    with socket.socket(socket.AF_UNIX) as listener, asyncio.Runner(loop_factory=new_loop) as runner:
        listener.bind(str(short_path / "s.sock"))
        listener.listen()
        runner.run(check())


async def test_a_socket_is_private_and_a_dead_one_is_replaced(short_path: Path) -> None:
    path = short_path / "run" / "s.sock"
    path.parent.mkdir()
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    recorder = Recorder()
    codec: ipc.Codec[Any] = ipc.Codec(Any)
    server = await ipc.listen(path, lambda: ipc.Connection(codec, recorder.on_message))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    client = await ipc.connect(path, lambda: ipc.Connection(codec, lambda _connection, _message: None))
    client.send(Cancel("hello"))
    client.close()  # what is queued goes out first
    async with asyncio.timeout(5):
        while not recorder.messages:
            await asyncio.sleep(0)
    assert recorder.messages == [{"type": "cancel", "request_id": "hello"}]
    with pytest.raises(ipc.ConnectionLost):
        client.send(Cancel("too late"))
    server.close()


def test_a_request_is_the_same_on_the_other_side() -> None:
    tensor = canonical.Tensor(name="x", datatype="FP32", shape=(2, 2), data=bytes(16))
    request = InferenceRequest(
        id="req_1", model="m", payload=InferPayload(inputs=(tensor,)), options={"a": [1, None, "ü"]}
    )
    codec: ipc.Codec[ToEngine] = ipc.Codec(ToEngine)
    assert codec.decode(frames(Run(request))[4:]) == Run(request)
    done: list[Event] = [UsageReport(usage=Usage(input=1))]
    assert msgspec.msgpack.decode(frames(Events("req_1", tuple(done), done=True))[4:], type=FromEngine) == Events(
        "req_1", tuple(done), done=True
    )
